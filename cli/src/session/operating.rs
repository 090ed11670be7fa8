//! Operating points: what `njoule tune` found to be the cheapest way to run a model on this machine.
//!
//! `$NJOULE_CACHE/operating-points.json` maps machine, model and types to a point. It is a cache: a file that cannot be
//! understood counts as empty, and no verb fails for it but `tune`, which wants to write it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::num::NonZero;
use std::path::PathBuf;

use anyhow::Context as _;
use njoule_energy::bound::BatchLaw;
use njoule_energy::{Host, Root};
use serde::{Deserialize, Serialize};

use super::RunOptions;
use crate::fetch::Env;

/// How to run a model on a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperatingPoint {
    /// Threads that compute.
    pub threads: NonZero<usize>,
    /// Sequences beyond which a token gets no cheaper, or its latency too long.
    pub batch: NonZero<usize>,
    /// `joules` or `cpu_seconds`: what was made small.
    pub currency: String,
    /// The method of the joules.
    pub method: Option<String>,
    /// What a token costs in it.
    pub per_token: f64,
    /// Seconds between two tokens there.
    pub tpot_s: f64,
    /// `a + b/B` of these threads, where the measurements follow it.
    pub a: Option<f64>,
    /// See `a`.
    pub b: Option<f64>,
}

impl OperatingPoint {
    /// With a fitted law.
    pub fn with_law(mut self, law: Option<BatchLaw>) -> OperatingPoint {
        (self.a, self.b) = (law.map(|law| law.a), law.map(|law| law.b));
        self
    }
}

/// All points of this user's machines.
pub struct OperatingPoints {
    path: PathBuf,
    points: BTreeMap<String, OperatingPoint>,
}

impl OperatingPoints {
    /// Reads them.
    pub fn open(env: &Env) -> anyhow::Result<OperatingPoints> {
        let path = env.njoule_cache()?.join("operating-points.json");
        let small = std::fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= MOST_BYTES);
        let text = if small { std::fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        Ok(OperatingPoints { path, points: serde_json::from_str(&text).unwrap_or_default() })
    }

    /// The point of a model with these options on this machine.
    pub fn of(&self, model: &str, options: &RunOptions) -> Option<&OperatingPoint> {
        self.points.get(&key(model, options))
    }

    /// Keeps a point; where.
    pub fn keep(&mut self, model: &str, options: &RunOptions, point: OperatingPoint) -> anyhow::Result<&PathBuf> {
        self.points.insert(key(model, options), point);
        let path = &self.path;
        let write = || -> std::io::Result<()> {
            let dir = path.parent().unwrap_or(path);
            std::fs::create_dir_all(dir)?;
            // Renamed into place: a reader sees the old points or the new ones.
            let partial = path.with_extension(format!("{}.partial", std::process::id()));
            let mut file = std::fs::File::create(&partial)?;
            file.write_all(serde_json::to_string_pretty(&self.points)?.as_bytes())?;
            std::fs::rename(&partial, path)
        };
        write().with_context(|| format!("{}: cannot keep the operating point", path.display()))?;
        Ok(path)
    }
}

/// Machine, model and stored types.
fn key(model: &str, options: &RunOptions) -> String {
    let host = Host::read(&Root::from_environment());
    let cpu = host.cpu.unwrap_or_else(|| "unknown CPU".to_owned());
    let kv = options.kv.map_or("default", super::options::kv_name);
    format!("{cpu} x{} | {model} | weights {} | cache {kv}", host.vcpus.unwrap_or(0), options.quant_name())
}

/// Bytes of the file.
const MOST_BYTES: u64 = 4 << 20;
