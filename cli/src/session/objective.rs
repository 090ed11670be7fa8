//! What a server is to be good at, and which latencies it promises.

use std::time::Duration;

use clap::{Args, ValueEnum};
use njoule_runtime::policy::{Bounds, Objective};

use super::planning::seconds;
use crate::args::UsageError;

/// The objective, as typed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Scheduling")]
pub struct ObjectiveArgs {
    /// What to be best at
    #[arg(long, value_enum, env = "NJOULE_OBJECTIVE", default_value_t = ObjectiveArg::Latency, value_name = "GOAL")]
    objective: ObjectiveArg,
    /// Time between two tokens of a request that may be used to wait for company, such as 200ms [default: 200ms]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    tpot: Option<f64>,
    /// Time to a request's first token that may be used so, such as 2s [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    ttft: Option<f64>,
    /// Take the cache's type from the operating point of `njoule tune` as well, unless --kv-type is given: it changes what the
    /// model says
    #[arg(long)]
    tuned_kv: bool,
}

/// `--objective`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ObjectiveArg {
    /// Every token as soon as possible
    Latency,
    /// Tokens per second: as latency; load decides how many run together
    Throughput,
    /// Fewer joules per token: steps wait for company within --tpot and --ttft
    TokensPerJoule,
}

impl ObjectiveArgs {
    /// Whether a tuned type of the cache may be used.
    pub fn allows_kv(&self) -> bool {
        self.tuned_kv
    }

    /// What they say.
    pub fn read(&self) -> Result<Objective, UsageError> {
        let default = Bounds::default();
        let time = |seconds: Option<f64>, otherwise: Duration| match seconds {
            Some(seconds) if seconds > LONGEST => {
                Err(UsageError(format!("--tpot and --ttft: {seconds} s; at most {LONGEST} s can be waited for")))
            }
            Some(seconds) => Ok(Duration::from_secs_f64(seconds)),
            None => Ok(otherwise),
        };
        let bounds = Bounds { tpot: time(self.tpot, default.tpot)?, ttft: time(self.ttft, default.ttft)? };
        match self.objective {
            ObjectiveArg::TokensPerJoule => Ok(Objective::TokensPerJoule(bounds)),
            _ if self.tpot.is_some() || self.ttft.is_some() => {
                Err(UsageError("--tpot and --ttft are for --objective tokens-per-joule".to_owned()))
            }
            ObjectiveArg::Throughput => Ok(Objective::Throughput),
            ObjectiveArg::Latency => Ok(Objective::Latency),
        }
    }
}

/// Seconds that a step may wait at most.
const LONGEST: f64 = 3600.0;
