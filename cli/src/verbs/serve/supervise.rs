//! `--replicas`: the process that owns the port and starts one process per share of the machine.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::process::Command;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use njoule_server::replicas::ReplicaSettings;
use njoule_server::replicas::dispatch::Policy;
use njoule_server::{Outcome, Server, ServerConfig};

use super::replica;
use crate::args::UsageError;
use crate::session::shares::{self, Share};
use crate::session::{Interrupted, Model, RunOptions};
use crate::verbs::Context;

/// Several engines behind one port.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Replicas")]
pub struct Replication {
    /// Start so many processes behind one port, each with its own cores: a number, or `auto` for one per NUMA node, or per
    /// group of NeuronCores that the model needs. Needed once, weights are shared [default: this process alone]
    #[arg(long, env = "NJOULE_REPLICAS", value_name = "auto|N")]
    replicas: Option<Count>,
    /// Where requests go that no replica has a cached part of
    #[arg(long, value_enum, env = "NJOULE_DISPATCH", default_value_t = DispatchArg::Spread, value_name = "POLICY")]
    dispatch: DispatchArg,
    /// Seconds after which a replica that gives no sign of life is replaced
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    replica_timeout: NonZero<u32>,
    /// Seconds without requests after which a Neuron device is given back, by ending the process that has it; the next request
    /// starts it anew and waits for that [default: never]
    #[arg(long, env = "NJOULE_IDLE_UNLOAD", value_name = "SECONDS")]
    idle_unload: Option<NonZero<u32>>,
    /// Pack the weights for each replica, where they could be shared
    #[arg(long)]
    private_weights: bool,
}

/// `--replicas`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// As the machine suggests.
    Auto,
    /// As many.
    Exactly(usize),
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Count, String> {
        match text.parse() {
            _ if text == "auto" => Ok(Count::Auto),
            Ok(count @ 1..=MOST) => Ok(Count::Exactly(count)),
            _ => Err(format!("`auto` or a number from 1 to {MOST}")),
        }
    }
}

/// `--dispatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DispatchArg {
    /// To the replica with the fewest requests: least time per token
    Spread,
    /// To one replica until it is full, then to the next: most tokens per joule
    Pack,
}

impl Replication {
    /// Whether processes are to be started.
    pub fn is_asked(&self) -> bool {
        // What is to be ended is a process of its own: libnrt starts once in one.
        self.replicas.is_some() || self.idle_unload.is_some()
    }

    /// Serves until a signal. `model` is open, so that what cannot be served is refused here and once.
    pub fn run(
        &self,
        server: Server,
        config: &ServerConfig,
        model: Model,
        options: &RunOptions,
        sequences: usize,
        name: String,
        context: &Context<'_>,
    ) -> anyhow::Result<()> {
        let (shares, rows) = self.shares(&model, options, context)?;
        drop(model);
        let weights = if self.private_weights { BTreeMap::new() } else { Weights::of(&shares)? };
        let paths: BTreeMap<usize, _> = weights.iter().map(|(node, weights)| (*node, weights.path.clone())).collect();
        let count = shares.len();
        context.note(&format!("{count} replicas"));
        let command = move |number: usize| {
            let mut command = myself();
            command.args(std::env::args_os().skip(1));
            command.env(replica::REPLICA, format!("{number}/{count}"));
            match shares.get(number) {
                Some(share @ Share::Cpus { cpus, node }) => {
                    if !cpus.is_empty() {
                        command.env(replica::CPUS, share.list());
                    }
                    if let Some(path) = paths.get(node) {
                        command.env(replica::WEIGHTS, path);
                    }
                }
                Some(share @ Share::NeuronCores { .. }) => {
                    command.env("NEURON_RT_VISIBLE_CORES", share.list());
                    // Both would be the same for all.
                    command.env_remove("NEURON_RT_NUM_CORES").env_remove("NEURON_RT_ROOT_COMM_ID");
                }
                None => {}
            }
            command
        };
        server.serve_replicas(ReplicaSettings {
            model: name,
            count,
            command: Arc::new(command),
            slots: rows.map_or(sequences, |rows| rows.min(sequences)),
            queue: config.max_queued_requests,
            policy: match self.dispatch {
                DispatchArg::Spread => Policy::Spread,
                DispatchArg::Pack => Policy::Pack,
            },
            patience: Duration::from_secs(self.replica_timeout.get().into()),
            idle_unload: self.idle_unload.map(|seconds| Duration::from_secs(seconds.get().into())),
        });
        if server.phase() == njoule_server::Phase::Ready {
            let scheme = if config.tls.is_some() { "https" } else { "http" };
            eprintln!("listening on {scheme}://{}", server.address());
        }
        let outcome = server.wait();
        drop(weights);
        match outcome {
            Outcome::Drained => Ok(()),
            Outcome::Aborted => Err(Interrupted.into()),
            Outcome::EngineLost => Err(super::EngineLost.into()),
            Outcome::ReplicaFailed(2) => Err(UsageError("a replica refuses this command line".into()).into()),
            Outcome::ReplicaFailed(code) => Err(anyhow::anyhow!("no replica could be started (exit code {code})")),
        }
    }

    /// What each computes on, and the rows that an artifact has.
    fn shares(
        &self,
        model: &Model,
        options: &RunOptions,
        context: &Context<'_>,
    ) -> anyhow::Result<(Vec<Share>, Option<usize>)> {
        let count = match self.replicas {
            Some(Count::Exactly(count)) => Some(count),
            Some(Count::Auto) => None,
            None => Some(1),
        };
        #[cfg(target_os = "linux")]
        if let Some(layout) = options.neuron_layout(model, context)? {
            let var = |name: &str| context.fetch.env.var(name);
            let total = crate::session::neuron::machine_cores(context).unwrap_or(layout.tp * layout.replicas);
            let visible = shares::visible_cores(var("NEURON_RT_VISIBLE_CORES"), var("NEURON_RT_NUM_CORES"), total)?;
            let rows = layout.classes.iter().map(|class| class.rows).sum();
            return Ok((shares::of_neuron_cores(&visible, layout.tp, count)?, Some(rows)));
        }
        let _ = (model, options, context);
        if self.idle_unload.is_some() {
            let why = "--idle-unload: there is no Neuron device to give back; an idle CPU engine uses no CPU time";
            return Err(UsageError(why.to_owned()).into());
        }
        Ok((shares::of_cpus(&shares::cores(), count), None))
    }
}

/// Memory for packed weights: one for each NUMA node, since what a core reads should lie near it.
struct Weights {
    /// Kept while replicas may be started.
    #[cfg(target_os = "linux")]
    _shared: njoule_runtime::backend::cpu::Shared,
    path: std::path::PathBuf,
}

impl Weights {
    #[cfg(target_os = "linux")]
    fn of(shares: &[Share]) -> anyhow::Result<BTreeMap<usize, Weights>> {
        let mut all = BTreeMap::new();
        for share in shares {
            if let Share::Cpus { node, .. } = share
                && !all.contains_key(node)
            {
                let (shared, path) = njoule_runtime::backend::cpu::Shared::create()
                    .context("cannot make memory that replicas share; --private-weights needs none")?;
                all.insert(*node, Weights { _shared: shared, path });
            }
        }
        Ok(all)
    }

    #[cfg(not(target_os = "linux"))]
    fn of(_: &[Share]) -> anyhow::Result<BTreeMap<usize, Weights>> {
        Ok(BTreeMap::new())
    }
}

/// This program. On Linux the file that runs, also where another version has taken its place meanwhile.
fn myself() -> Command {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("/proc/self/exe");
        command.arg0(std::env::args_os().next().unwrap_or_else(|| "njoule".into()));
        command
    }
    #[cfg(not(target_os = "linux"))]
    Command::new(std::env::current_exe().unwrap_or_else(|_| "njoule".into()))
}

/// More than any machine has groups of cores.
const MOST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_auto_or_a_number_of_sense() {
        assert_eq!("auto".parse(), Ok(Count::Auto));
        assert_eq!("4".parse(), Ok(Count::Exactly(4)));
        for bad in ["0", "257", "-1", "many", ""] {
            assert!(bad.parse::<Count>().is_err(), "{bad}");
        }
    }
}
