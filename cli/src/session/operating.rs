//! Operating points: what `njoule tune` found to be the best way to run a model on this machine.
//!
//! `$NJOULE_CACHE/operating-points.json` maps machine, model and types to a point. It is a cache: what cannot be understood
//! counts as absent, with a warning, and no verb fails for it but `tune`, which wants to write it. Fields that are not known
//! are ignored and fields that are absent have defaults, so that versions of njoule read each other's files; entries that
//! cannot be read are kept as they are.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use njoule_energy::bound::BatchLaw;
use njoule_energy::{Host, Root};
use njoule_runtime::backend::KvType;
use njoule_runtime::policy::Objective;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::RunOptions;
use super::options::{WaitArg, kv_name};
use crate::fetch::Env;

/// How to run a model on a machine: the cheapest point within a latency, and beside it what is best for other objectives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperatingPoint {
    /// Of these fields.
    #[serde(default = "first")]
    pub version: u32,
    /// Threads that compute.
    pub threads: NonZero<usize>,
    /// Sequences beyond which a token gets no cheaper, or its latency too long.
    pub batch: NonZero<usize>,
    /// How threads wait for each other, if that was looked at.
    #[serde(default, deserialize_with = "lenient")]
    pub wait: Option<WaitArg>,
    /// When guesses pay, if that was looked at.
    #[serde(default, deserialize_with = "lenient")]
    pub speculate: Option<Guesses>,
    /// A cache type that is cheaper than the default; it changes what the model says, and is taken only where somebody allows it.
    #[serde(default, deserialize_with = "lenient")]
    pub kv: Option<KvType>,
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
    /// Seconds of a step: `row_s · B + step_s`, where they follow that.
    #[serde(default)]
    pub row_s: Option<f64>,
    /// See `row_s`.
    #[serde(default)]
    pub step_s: Option<f64>,
    /// What serves other objectives.
    #[serde(default, deserialize_with = "lenient")]
    pub objectives: Option<Others>,
}

/// Settings of the objectives that are not about energy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Others {
    /// The shortest step of one sequence.
    #[serde(default, deserialize_with = "lenient")]
    pub latency: Option<Setting>,
    /// Most tokens per second.
    #[serde(default, deserialize_with = "lenient")]
    pub throughput: Option<Setting>,
}

/// How to run for one objective.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Threads that compute; those that steps keep to while latency allows, for an objective that says so.
    #[serde(default)]
    pub threads: Option<NonZero<usize>>,
    /// Sequences, if they are to be fewer than usual.
    #[serde(default)]
    pub batch: Option<NonZero<usize>>,
    /// How threads wait for each other.
    #[serde(default, deserialize_with = "lenient")]
    pub wait: Option<WaitArg>,
    /// When guesses pay.
    #[serde(default, deserialize_with = "lenient")]
    pub speculate: Option<Guesses>,
}

/// When guessed tokens pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guesses {
    /// Never.
    Off,
    /// While at most so many sequences run, as the engine measures.
    UpTo(NonZero<usize>),
}

impl OperatingPoint {
    /// Version of the fields above.
    pub const VERSION: u32 = 2;

    /// With fitted laws of what a token costs and of a step's time over its batch.
    pub fn with_laws(mut self, cost: Option<BatchLaw>, time: Option<BatchLaw>) -> OperatingPoint {
        (self.a, self.b) = (cost.map(|law| law.a), cost.map(|law| law.b));
        (self.row_s, self.step_s) = (time.map(|law| law.a), time.map(|law| law.b));
        self
    }

    /// What it says for an objective.
    pub fn setting(&self, objective: Objective) -> Option<Setting> {
        let others = self.objectives.unwrap_or_default();
        match objective {
            Objective::Latency => others.latency,
            Objective::Throughput => others.throughput,
            Objective::TokensPerJoule(_) => Some(Setting {
                // CPU time the policy measures itself, step by step.
                threads: Some(self.threads).filter(|_| self.currency == "joules"),
                batch: Some(self.batch),
                wait: self.wait,
                speculate: self.speculate,
            }),
        }
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flags = [
            self.threads.map(|threads| format!("--threads {threads}")),
            self.batch.map(|batch| format!("--max-num-seqs {batch}")),
            self.wait.map(|wait| format!("--wait {}", wait.name())),
            self.speculate.map(|guesses| match guesses {
                Guesses::Off => "--speculate off".to_owned(),
                Guesses::UpTo(most) => format!("--speculate auto while at most {most} run"),
            }),
        ];
        let flags: Vec<String> = flags.into_iter().flatten().collect();
        f.write_str(&flags.join(" "))
    }
}

fn first() -> u32 {
    1
}

/// What cannot be read counts as absent: a later version may say it in another way.
fn lenient<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok().flatten())
}

/// All points of this user's machines.
pub struct OperatingPoints {
    path: PathBuf,
    points: BTreeMap<String, Value>,
    /// Why the file says nothing.
    broken: Option<String>,
}

impl OperatingPoints {
    /// Reads them.
    pub fn open(env: &Env) -> anyhow::Result<OperatingPoints> {
        Ok(OperatingPoints::read(env.njoule_cache()?.join("operating-points.json")))
    }

    fn read(path: PathBuf) -> OperatingPoints {
        let (points, broken) = match load(&path) {
            Ok(points) => (points, None),
            Err(why) => (BTreeMap::new(), Some(format!("{}: {why}", path.display()))),
        };
        OperatingPoints { path, points, broken }
    }

    /// The point of a model with these options on this machine; an error says why there is none although there should be.
    pub fn of(&self, model: &str, options: &RunOptions) -> Result<Option<OperatingPoint>, String> {
        self.get(&key(model, options))
    }

    fn get(&self, key: &str) -> Result<Option<OperatingPoint>, String> {
        if let Some(why) = &self.broken {
            return Err(why.clone());
        }
        let Some(value) = self.points.get(key) else { return Ok(None) };
        let point = serde_json::from_value(value.clone());
        point.map(Some).map_err(|error| format!("{}: the point of {key}: {error}", self.path.display()))
    }

    /// Keeps a point; where.
    pub fn keep(&mut self, model: &str, options: &RunOptions, point: &OperatingPoint) -> anyhow::Result<&Path> {
        self.put(key(model, options), point)
    }

    fn put(&mut self, key: String, point: &OperatingPoint) -> anyhow::Result<&Path> {
        self.points.insert(key, serde_json::to_value(point)?);
        self.broken = None;
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

    /// Why the file that is there cannot be used.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }
}

fn load(path: &Path) -> Result<BTreeMap<String, Value>, String> {
    let file = match std::fs::metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.to_string()),
    };
    if !file.is_file() || file.len() > MOST_BYTES {
        return Err(format!("no file of operating points: they take at most {} MiB", MOST_BYTES >> 20));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("no file of operating points: {error}"))
}

/// Machine, model and stored types.
fn key(model: &str, options: &RunOptions) -> String {
    let host = Host::read(&Root::from_environment());
    let cpu = host.cpu.unwrap_or_else(|| "unknown CPU".to_owned());
    let kv = options.kv.map_or("default", kv_name);
    format!("{cpu} x{} | {model} | weights {} | cache {kv}", host.vcpus.unwrap_or(0), options.quant_name())
}

/// Bytes of the file.
const MOST_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use njoule_runtime::policy::Bounds;
    use serde_json::json;

    use super::*;

    fn n(n: usize) -> NonZero<usize> {
        NonZero::new(n).unwrap()
    }

    fn points(text: &str) -> (tempfile::TempDir, OperatingPoints) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("points.json");
        std::fs::write(&path, text).unwrap();
        let points = OperatingPoints::read(path);
        (dir, points)
    }

    /// What the first version wrote.
    const OLD: &str = r#"{"m": {"threads": 2, "batch": 8, "currency": "cpu_seconds", "method": null, "per_token": 0.004,
        "tpot_s": 0.02, "a": 0.001, "b": 0.01}}"#;

    #[test]
    fn old_points_are_read_and_say_nothing_of_what_they_do_not_know() {
        let (_dir, points) = points(OLD);
        let point = points.get("m").unwrap().unwrap();
        assert_eq!((point.version, point.threads, point.batch), (1, n(2), n(8)));
        assert_eq!((point.wait, point.speculate, point.kv, point.objectives), (None, None, None, None));
        assert_eq!(point.setting(Objective::Latency), None);
        let setting = point.setting(Objective::TokensPerJoule(Bounds::default())).unwrap();
        assert_eq!(setting.to_string(), "--max-num-seqs 8", "CPU time decides for each step");
        let in_joules = OperatingPoint { currency: "joules".to_owned(), ..point.clone() };
        let setting = in_joules.setting(Objective::TokensPerJoule(Bounds::default())).unwrap();
        assert_eq!(setting.to_string(), "--threads 2 --max-num-seqs 8");
        assert_eq!(points.get("another").unwrap(), None);
    }

    #[test]
    fn what_a_later_version_says_otherwise_is_ignored() {
        let mut value: Value = serde_json::from_str(OLD).unwrap();
        let fields = json!({"version": 9, "wait": "in_a_new_way", "speculate": {"up_to": 4}, "kv": "int8", "clock": 2.4,
            "objectives": {"latency": {"threads": 4, "wait": "spin"}, "throughput": {"threads": "all"}}});
        let point = value["m"].as_object_mut().unwrap();
        fields.as_object().unwrap().iter().for_each(|(key, field)| drop(point.insert(key.clone(), field.clone())));
        let (_dir, points) = points(&value.to_string());
        let point = points.get("m").unwrap().unwrap();
        assert_eq!((point.wait, point.speculate), (None, Some(Guesses::UpTo(n(4)))));
        assert_eq!(point.kv, Some(KvType::Int8));
        let latency = point.setting(Objective::Latency).unwrap();
        assert_eq!((latency.threads, latency.wait, latency.batch), (Some(n(4)), Some(WaitArg::Spin), None));
        assert_eq!(point.setting(Objective::Throughput), None);
    }

    #[test]
    fn a_broken_file_says_so_and_is_replaced() {
        for text in ["not JSON", "[1, 2]"] {
            let (_dir, mut points) = points(text);
            assert!(points.get("m").unwrap_err().contains("points.json") && points.broken().is_some());
            let (_old_dir, old) = self::points(OLD);
            let point = old.get("m").unwrap().unwrap();
            points.put("m".to_owned(), &point).unwrap();
            assert_eq!(OperatingPoints::read(points.path.clone()).get("m").unwrap(), Some(point));
        }
    }

    #[test]
    fn one_broken_point_spoils_no_other_and_is_kept() {
        let (_dir, mut points) = points(&OLD.replacen('{', r#"{"x": {"threads": 0}, "#, 1));
        assert!(points.get("x").unwrap_err().contains("the point of x"));
        let point = points.get("m").unwrap().unwrap();
        points.put("y".to_owned(), &point).unwrap();
        let again = OperatingPoints::read(points.path.clone());
        assert!(again.get("x").is_err() && again.get("y").unwrap() == Some(point));
    }
}
