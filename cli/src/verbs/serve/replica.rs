//! One replica of a server that forwards to it: what differs from a server of its own.
//!
//! The process that owns the port starts it with the same command line and these variables. It listens on the loopback
//! interface, writes its address to stdout, and ends when that process does.

use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use njoule_server::{ServerConfig, Stop};

use crate::args::UsageError;
use crate::fetch::Env;
use crate::session::RunOptions;
use crate::session::threads::cpu_list;

/// `NUMBER/COUNT`.
pub const REPLICA: &str = "NJOULE_REPLICA";
/// CPUs to run on.
pub const CPUS: &str = "NJOULE_REPLICA_CPUS";
/// Where packed weights lie.
pub const WEIGHTS: &str = "NJOULE_REPLICA_WEIGHTS";

/// This process is one.
pub struct Replica {
    /// Its number.
    pub number: usize,
    count: usize,
    cpus: Vec<usize>,
    weights: Option<PathBuf>,
}

impl Replica {
    /// What the variables say, if this process is one.
    pub fn of(env: &Env) -> Result<Option<Replica>, UsageError> {
        let Some(value) = env.var(REPLICA) else { return Ok(None) };
        let bad = || UsageError(format!("{REPLICA}={value}: it is set by --replicas, not by hand"));
        let (number, count) = value.split_once('/').ok_or_else(bad)?;
        let (number, count) = (number.parse().map_err(|_| bad())?, count.parse().map_err(|_| bad())?);
        let cpus = env.var(CPUS).map(|list| cpu_list(list).ok_or_else(bad)).transpose()?.unwrap_or_default();
        Ok(Some(Replica { number, count, cpus, weights: env.var(WEIGHTS).map(PathBuf::from) }))
    }

    /// Goes to its CPUs. To be called before there is another thread.
    #[cfg(target_os = "linux")]
    pub fn settle(&self) -> anyhow::Result<()> {
        use rustix::process::{Signal, set_parent_process_death_signal};
        use rustix::thread::{CpuSet, sched_setaffinity};
        // One that hangs does not see its stdin end.
        set_parent_process_death_signal(Some(Signal::KILL)).context("cannot ask for a signal")?;
        if self.cpus.is_empty() {
            return Ok(());
        }
        let mut set = CpuSet::new();
        self.cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu));
        sched_setaffinity(None, &set).context("cannot go to the CPUs of this replica")
    }

    /// Elsewhere threads run where the system puts them.
    #[cfg(not(target_os = "linux"))]
    pub fn settle(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// What it may take of the machine, and what it shares.
    pub fn share(&self, options: &mut RunOptions) -> anyhow::Result<()> {
        options.replicas = self.count.max(1);
        #[cfg(target_os = "linux")]
        if let Some(path) = &self.weights {
            let shared = njoule_runtime::backend::cpu::Shared::open(path).context("cannot open the shared weights")?;
            options.shared = Some(std::sync::Arc::new(shared));
        }
        Ok(())
    }

    /// The server's settings, as those of one that others do not see.
    pub fn config(&self, config: ServerConfig, sequences: usize) -> ServerConfig {
        ServerConfig {
            host: "127.0.0.1".into(),
            port: 0,
            max_connections: config.max_connections.saturating_mul(2).saturating_add(PROBES),
            // Who stands in front sends no more than may run and wait; all of them may come between two steps.
            max_queued_requests: config.max_queued_requests.saturating_add(sequences),
            tls: None,
            // Who stands in front says what pages may read.
            allowed_origins: Vec::new(),
            is_replica: true,
            // All see the same machine.
            tells_meters: self.number == 0,
            ..config
        }
    }

    /// Tells where it listens, and ends it with the process that wants to know.
    pub fn announce(&self, address: std::net::SocketAddr, out: &mut dyn Write, stop: Stop) -> std::io::Result<()> {
        writeln!(out, "{address}")?;
        out.flush()?;
        std::thread::Builder::new().name("njoule-parent".into()).spawn(move || {
            // Nothing is ever written there: whatever ends the read ends the process.
            let _ = std::io::stdin().read(&mut [0]);
            stop.stop();
            stop.stop();
        })?;
        Ok(())
    }
}

/// Connections beside those that are forwarded.
const PROBES: usize = 64;
