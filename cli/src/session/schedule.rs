//! The flags of verbs that answer requests: what the engine does beyond running them.

use std::num::NonZero;

use clap::Args;
use njoule_runtime::policy::Objective;
use njoule_runtime::{EngineConfig, Speculate};

use super::operating::Guesses;
use crate::args::UsageError;

/// How requests are scheduled, as typed.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Scheduling")]
pub struct ScheduleArgs {
    /// Run every prompt from its beginning, also where the cache still holds it
    #[arg(long, alias = "no-enable-prefix-caching", env = "NJOULE_NO_PREFIX_CACHE",
        value_parser = clap::builder::FalseyValueParser::new())]
    no_prefix_cache: bool,
    /// vLLM's way to undo it, whatever the variable, the file or the other flag says. No conflict of clap's: that would count the
    /// variable.
    #[arg(long, hide = true)]
    enable_prefix_caching: bool,
    /// Guess tokens from the text so far and check several in one step; the answer is the same. `auto` while it pays, or
    /// at most N per step (1 to 15) [default: auto]
    #[arg(long, env = "NJOULE_SPECULATE", value_name = "auto|off|N", value_parser = speculate)]
    speculate: Option<Speculate>,
    #[arg(long, hide = true, value_name = "JSON")]
    speculative_config: Option<String>,
}

impl ScheduleArgs {
    /// What was tuned about guesses, in the place of what was not named.
    pub fn tuned(&self, schedule: Schedule, guesses: Option<Guesses>) -> Schedule {
        match guesses.filter(|_| self.speculate.is_none()) {
            None => schedule,
            Some(Guesses::Off) => Schedule { speculate: Speculate::Off, ..schedule },
            Some(Guesses::UpTo(most)) => {
                Schedule { speculate: Speculate::Auto, speculate_sequences: most.get(), ..schedule }
            }
        }
    }

    /// What they say.
    pub fn read(&self) -> Result<Schedule, UsageError> {
        if self.speculative_config.is_some() {
            let message = "--speculative-config: there is one method, n-grams of the text so far, and nothing to configure \
                but how much of it: --speculate auto, off or N (tokens per step)";
            return Err(UsageError(message.into()));
        }
        Ok(Schedule {
            prefix_cache: self.enable_prefix_caching || !self.no_prefix_cache,
            speculate: self.speculate.unwrap_or(Speculate::Auto),
            ..Schedule::default()
        })
    }
}

/// How requests are scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    prefix_cache: bool,
    speculate: Speculate,
    /// Sequences beyond which nothing is guessed by itself.
    speculate_sequences: usize,
    objective: Objective,
    thrifty_workers: Option<NonZero<usize>>,
}

impl Default for Schedule {
    /// For verbs that give their requests to the engine once: nothing repeats, and steps are what they seem.
    fn default() -> Self {
        Schedule {
            prefix_cache: true,
            speculate: Speculate::Off,
            speculate_sequences: usize::MAX,
            objective: Objective::Latency,
            thrifty_workers: None,
        }
    }
}

impl Schedule {
    /// Outputs that a step needs for it, beside one per sequence.
    pub fn outputs(self) -> usize {
        match self.speculate {
            Speculate::Off => 0,
            Speculate::Auto => MOST,
            Speculate::UpTo(n) => n,
        }
    }

    /// The same with an objective.
    pub fn aiming_at(self, objective: Objective) -> Schedule {
        Schedule { objective, ..self }
    }

    /// The same with the number of threads whose tokens cost the fewest joules.
    pub fn with_thrifty_workers(self, threads: NonZero<usize>) -> Schedule {
        Schedule { thrifty_workers: Some(threads), ..self }
    }

    /// What steps wait for.
    pub fn objective(self) -> Objective {
        self.objective
    }

    /// Tells an engine.
    pub fn apply(self, config: &mut EngineConfig) {
        (config.prefix_cache, config.speculate) = (self.prefix_cache, self.speculate);
        config.speculate_sequences = self.speculate_sequences;
        (config.objective, config.thrifty_workers) = (self.objective, self.thrifty_workers);
    }
}

fn speculate(typed: &str) -> Result<Speculate, String> {
    match typed {
        "auto" => Ok(Speculate::Auto),
        "off" | "0" => Ok(Speculate::Off),
        number => match number.parse() {
            Ok(n) if (1..=MOST).contains(&n) => Ok(Speculate::UpTo(n)),
            _ => Err(format!("it is auto, off or a number of tokens from 1 to {MOST}")),
        },
    }
}

/// Guessed tokens per step at most.
const MOST: usize = njoule_runtime::engine::MOST_DRAFTS;
