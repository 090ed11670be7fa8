//! Requests through a plan: continuous batching over classes and buckets, counted, not timed by a clock.
//!
//! How requests take rows is [`replay`]'s; here its steps are put into buckets. A round decodes every class once, in the
//! modules that the executor would run: [`Decodes`] chooses for both. Padding is all that a bucket reads beyond what
//! the sequences in it need: rows whose sequence is shorter than the longest, rows of nobody, and rows of sequences that
//! are still in prefill.

use serde::{Deserialize, Serialize};

use super::choices::Choices;
use super::lengths::Request;
use super::replay::{Lane, Replay, uncounted};
use super::steps::Marks;
use super::{CacheShape, ModuleKind, ModuleSpec, Plan};
use crate::backend::neuron::decodes::Decodes;

/// Useful over padded, each in 0..=1; 1 where there was nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Useful {
    /// Cache positions that decode steps needed, over batch times length of their buckets.
    pub decode: f64,
    /// Prompt tokens over the tokens of their chunks.
    pub prefill: f64,
    /// Cache positions before prefill chunks, over the lengths of their buckets.
    pub prefix: f64,
    /// Decode positions and prompt tokens together.
    pub all: f64,
}

/// What a replay costs in a plan's buckets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Simulation {
    /// Requests that ended.
    pub served: u64,
    /// Requests that were too long.
    pub refused: u64,
    /// Rounds.
    pub rounds: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Seconds at the roofline: at least.
    pub seconds: f64,
    /// Seconds of it that are prefill.
    pub prefill_seconds: f64,
    /// Share of rows that were taken.
    pub occupancy: f64,
    /// Useful over padded.
    pub useful: Useful,
}

impl Simulation {
    /// Answer tokens per second of one replica, at most.
    pub fn tokens_per_s(&self) -> f64 {
        if self.seconds > 0.0 { self.output_tokens as f64 / self.seconds } else { 0.0 }
    }

    /// Mean seconds of a round, which is the time per output token of a sequence, at least.
    pub fn round_s(&self) -> f64 {
        if self.rounds > 0 { self.seconds / self.rounds as f64 } else { 0.0 }
    }
}

/// Runs `requests` through one replica of `plan`.
pub fn simulate(plan: &Plan, requests: &[Request], limit: Option<usize>) -> Simulation {
    let lanes: Vec<Lane> = plan.classes.iter().map(|class| plan.lane(*class)).collect();
    let modules: Vec<(ModuleSpec, f64)> =
        plan.modules.iter().cloned().zip(plan.module_seconds.iter().copied()).collect();
    cost(&lanes, &uncounted(&lanes, requests, limit, true), &plan.classes, &modules)
}

/// Costs of `replay` of `lanes`, which are of `classes`, with modules and their seconds.
pub fn cost(lanes: &[Lane], replay: &Replay, classes: &[CacheShape], modules: &[(ModuleSpec, f64)]) -> Simulation {
    let (mut decode, mut prefill, mut prefix) = ((0_u128, 0_u128), (0_u128, 0_u128), (0_u128, 0_u128));
    let (mut seconds, mut prefill_seconds, mut held) = (0.0, 0.0, 0);
    for (done, class) in replay.lanes.iter().zip(classes) {
        decode.0 += done.positions;
        prefill.0 += u128::from(done.prompt);
        held += done.held;
        for ((chunk, start), steps) in &done.prefill {
            if let Some((len, time)) = prefill_step(modules, *class, *chunk, *start) {
                prefill.1 += *chunk as u128 * u128::from(*steps);
                prefix.0 += *start as u128 * u128::from(*steps);
                prefix.1 += len as u128 * u128::from(*steps);
                prefill_seconds += time * *steps as f64;
            }
        }
    }
    let decodes = Decodes::new(classes, modules.iter().map(|(m, _)| m));
    let mut choices = Choices::new(&decodes, classes.len());
    let mut known: Vec<(usize, f64)> = Vec::new();
    replay.steps(&marks(classes, modules), |number, needs, steps| {
        if number == known.len() {
            let (mut positions, mut seconds) = (0, 0.0);
            choices.each(needs, |decode| {
                positions += decode.positions;
                seconds += modules[decode.module].1;
            });
            known.push((positions, seconds));
        }
        let (padded, time) = known[number];
        decode.1 += padded as u128 * u128::from(steps);
        seconds += time * steps as f64;
    });
    let share = |(useful, padded): (u128, u128)| if padded > 0 { useful as f64 / padded as f64 } else { 1.0 };
    let rows: usize = lanes.iter().map(|lane| lane.rows).sum();
    Simulation {
        served: replay.served,
        refused: replay.refused,
        rounds: replay.rounds,
        output_tokens: replay.outputs,
        prompt_tokens: replay.lanes.iter().map(|l| l.prompt).sum(),
        seconds: seconds + prefill_seconds,
        prefill_seconds,
        occupancy: held as f64 / (replay.rounds as f64 * rows as f64).max(1.0),
        useful: Useful {
            decode: share(decode),
            prefill: share(prefill),
            prefix: share(prefix),
            all: share((decode.0 + prefill.0, decode.1 + prefill.1)),
        },
    }
}

/// Rows and lengths at which decode modules of each class end.
fn marks(classes: &[CacheShape], modules: &[(ModuleSpec, f64)]) -> Vec<Marks> {
    let of_class = |class: &CacheShape| {
        let decodes = modules.iter().filter(|(m, _)| matches!(m.kind, ModuleKind::Decode { .. }));
        let parts: Vec<_> = decodes.filter_map(|(m, _)| m.part(*class)).collect();
        let [mut rows, mut lens]: [Vec<usize>; 2] =
            [parts.iter().map(|part| part.rows).collect(), parts.iter().map(|part| part.len).collect()];
        for marks in [&mut rows, &mut lens] {
            marks.sort_unstable();
            marks.dedup();
        }
        Marks { rows, lens }
    };
    classes.iter().map(of_class).collect()
}

/// Length and seconds of the shortest prefill module of this chunk.
fn prefill_step(modules: &[(ModuleSpec, f64)], class: CacheShape, chunk: usize, start: usize) -> Option<(usize, f64)> {
    let padded = |(m, time): &(ModuleSpec, f64)| match m.kind {
        ModuleKind::Prefill { tokens } if tokens == chunk => {
            m.part(class).filter(|part| part.len >= start).map(|part| (part.len, *time))
        }
        _ => None,
    };
    modules.iter().filter_map(padded).min_by_key(|(len, _)| *len)
}
