//! Modules for Neuron on real XLA: what they compute there against candle's logits, and the caches that they leave against
//! candle's.
//!
//! A pass says that XLA's verifier takes a module and computes with it what the model says. It says nothing of neuronx-cc's
//! operators, precision or speed.

mod compare;
mod family;
mod large;
mod passed;
mod xla;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::bail;

use self::passed::Passed;
use self::xla::{Host, Xla};

#[cfg(feature = "pjrt")]
pub use self::xla::serve;

/// One model in one form.
struct Check {
    /// A fixture, by its place in testdata; layers of SmolLM2's size without.
    fixture: Option<String>,
    bf16: bool,
    tp: usize,
    /// Classes of rows that decode together.
    classes: usize,
}

/// What became of one.
enum Outcome {
    /// These figures.
    Passed(String),
    /// The lowering does not take it, in its own words.
    Refused(String),
    /// The steps do not fit it.
    LeftOut(String),
}

/// What is to be run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Every model in every form, not some.
    all: bool,
    /// Only checks whose names have one of these in them.
    only: Vec<String>,
    /// Without those that this very program has passed before.
    resume: bool,
}

impl Options {
    /// Of a command line; `None` where it makes no sense.
    pub fn parse(words: &[&str]) -> Option<Options> {
        let (mut options, mut words) = (Options::default(), words.iter());
        while let Some(word) = words.next() {
            match *word {
                "--all" => options.all = true,
                "--resume" => options.resume = true,
                "--only" => options.only.extend(words.next()?.split(',').map(str::to_owned)),
                _ => return None,
            }
        }
        Some(options)
    }
}

/// Runs the check: of some families, or of all in every form.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let (target, testdata) = (workspace.join("target"), workspace.join("testdata"));
    let passed = Passed::open(&target.join("xla-check"), options.resume)?;
    let mut checks = checks(options.all, &testdata)?;
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|part| name.contains(part.as_str()));
    checks.retain(|check| wanted(&check.name()));
    if checks.is_empty() {
        bail!("no check has {} in its name", options.only.join(" or "));
    }
    let all = checks.len();
    checks.retain(|check| !passed.has(&check.name()));
    let before = all - checks.len();
    let host = Host::find(&target)?;
    let start = Instant::now();
    let checks = Mutex::new(checks);
    let (failures, modules) = (Mutex::new(vec![]), Mutex::new(HashSet::new()));
    // By model: the first reason, and of how many forms there is one.
    let others: Mutex<BTreeMap<String, (String, usize)>> = Mutex::default();
    let other = |what: &str, check: &Check, why: String| {
        let key = format!("{what}: {}", check.model());
        taken(&others).entry(key).or_insert((why, 0)).1 += 1;
    };
    let worker = |number: usize| -> anyhow::Result<()> {
        let xla = Xla::new(host.clone(), target.join("xla-check").join(number.to_string()))?;
        xla.check_isolation()?;
        loop {
            let Some(check) = taken(&checks).pop_front() else { break };
            let name = check.name();
            match check.run(&testdata, &xla) {
                Ok(Outcome::Passed(figures)) => {
                    println!("{name}: {figures}");
                    passed.note(&name)?;
                }
                Ok(Outcome::Refused(why)) => other("refused", &check, why),
                Ok(Outcome::LeftOut(why)) => other("left out", &check, why),
                Err(error) => {
                    let failure = format!("{name}: {error:#}");
                    println!("FAILED {failure}");
                    taken(&failures).push(failure);
                }
            }
            xla.forget()?;
        }
        taken(&modules).extend(xla.modules());
        Ok(())
    };
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_WORKERS));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|number| scope.spawn(move || worker(number))).collect();
        let ended = |worker: std::thread::ScopedJoinHandle<'_, anyhow::Result<()>>| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        workers.into_iter().map(ended).collect::<anyhow::Result<Vec<()>>>()
    })?;
    let (failures, others) = (taken(&failures), taken(&others));
    for (what, (why, forms)) in &*others {
        println!("{what} ({forms} forms): {why}");
    }
    let not_run: usize = others.values().map(|(_, forms)| forms).sum();
    let ran = all - before - not_run;
    println!(
        "{} of {ran} forms passed, {} modules in {:.0} s; {before} had passed before, {not_run} cannot be run",
        ran - failures.len(),
        taken(&modules).len(),
        start.elapsed().as_secs_f32()
    );
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

/// The longest first.
fn checks(all: bool, testdata: &Path) -> anyhow::Result<VecDeque<Check>> {
    let every = || [false, true].into_iter().flat_map(|bf16| [1, 2, 4].map(|tp| (bf16, tp)));
    let mut checks = VecDeque::new();
    let large: Vec<(bool, usize)> = if all { every().collect() } else { large::FORMS.into() };
    checks.extend(large.into_iter().map(|(bf16, tp)| Check { fixture: None, bf16, tp, classes: 1 }));
    let fixture = |name: &str, (bf16, tp)| Check { fixture: Some(name.to_owned()), bf16, tp, classes: 1 };
    if all {
        let names = fixtures(testdata)?;
        checks.extend(names.iter().flat_map(|name| every().map(move |form| fixture(name, form))));
    } else {
        checks.extend(SOME.map(|(name, bf16, tp)| fixture(name, (bf16, tp))));
    }
    checks.extend(TOGETHER.map(|(name, bf16, tp)| Check { classes: 2, ..fixture(name, (bf16, tp)) }));
    Ok(checks)
}

fn taken<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those with a model, and variants of theirs.
fn fixtures(testdata: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = vec![];
    for (dir, prefix) in [(testdata.to_owned(), ""), (testdata.join("variants"), "variants/")] {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.join("config.json").is_file()
                && let Some(name) = path.file_name()
            {
                names.push(format!("{prefix}{}", name.to_string_lossy()));
            }
        }
    }
    names.sort();
    Ok(names)
}

impl Check {
    fn model(&self) -> &str {
        self.fixture.as_deref().unwrap_or("layers of SmolLM2's size")
    }

    fn name(&self) -> String {
        let together = if self.classes > 1 { format!(", {} classes together", self.classes) } else { String::new() };
        format!("{} in {} on {}{together}", self.model(), if self.bf16 { "bf16" } else { "f32" }, self.tp)
    }

    fn run(&self, testdata: &Path, xla: &Xla) -> anyhow::Result<Outcome> {
        match &self.fixture {
            Some(name) => family::check(&testdata.join(name), self, xla),
            None => large::check(self.bf16, self.tp, xla).map(Outcome::Passed),
        }
    }
}

/// Each has a Python and the processes of one model's modules.
const MOST_WORKERS: usize = 4;

/// What every change must pass: each kind of attention, of norm and of feed-forward, and each number of cores.
const SOME: [(&str, bool, usize); 9] = [
    ("llama_tied", false, 1),
    ("llama_tied", true, 2),
    ("gemma2", false, 4),
    ("gpt2", false, 2),
    ("gpt_oss", false, 2),
    ("olmo2", true, 4),
    ("phi3_longrope", false, 1),
    ("qwen2_moe", false, 2),
    ("mistral", true, 1),
];

/// And those whose sequences are of two classes, decoded together: windows and sinks beside plain attention.
const TOGETHER: [(&str, bool, usize); 3] = [("llama_tied", false, 2), ("gemma2", true, 1), ("gpt_oss", false, 1)];

#[cfg(test)]
mod tests {
    use njoule_models::checkpoint::Checkpoint;
    use njoule_runtime::backend::neuron::shard;

    use super::*;

    #[test]
    fn options_are_those_that_are_known_and_narrow_by_parts_of_names() {
        assert!(Options::parse(&["--some"]).is_none() && Options::parse(&["--only"]).is_none());
        let options = Options::parse(&["--all", "--only", "gemma2,bf16 on 4", "--resume"]).unwrap();
        assert!(options.all && options.resume);
        assert_eq!(options.only, ["gemma2", "bf16 on 4"]);
    }

    #[test]
    fn the_lowering_takes_every_fixture() {
        let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("testdata");
        let names = fixtures(&testdata).unwrap();
        assert!(names.len() > 60 && names.iter().any(|name| name == "variants/falcon_alibi"));
        for name in names {
            let program = Checkpoint::open(&testdata.join(&name)).unwrap().config.program();
            for tp in [1, 2, 4] {
                assert_eq!(shard(&program, tp).err(), None, "{name} on {tp}");
            }
        }
    }
}
