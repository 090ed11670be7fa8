//! `cargo xtask soak`: the reliability tests of a server, in full, or in a reduced form that a change can wait for.
//!
//! Each test drives the real binary from outside, measures, and holds what it measured to a number. Counts are smaller in the
//! reduced form; bounds of time are tenfold there, because it runs where others build. What it cannot measure it says.
//!
//! Invariant: a test fails where its number is not reached, also where the machine was too slow for it.

mod input;
mod life;
mod live;
mod load;
mod others;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::bail;

/// How much of each test is run.
pub struct Scale {
    full: bool,
    /// The binary.
    binary: PathBuf,
    /// A tiny model.
    model: PathBuf,
    workspace: PathBuf,
}

impl Scale {
    /// Of two counts.
    fn count(&self, full: usize, reduced: usize) -> usize {
        if self.full { full } else { reduced }
    }

    /// A bound of time.
    fn within(&self, milliseconds: u64) -> Duration {
        Duration::from_millis(if self.full { milliseconds } else { 10 * milliseconds })
    }
}

type Test = fn(&Scale) -> anyhow::Result<String>;

/// Number, name, what is demanded, test.
const TESTS: [(&str, &str, &str, Test); 15] = [
    (
        "1",
        "parsers",
        "1 000 000 mutated files: no panic, no allocation beyond twice the file and 1 MiB, 100 ms each",
        others::parsers,
    ),
    ("2", "bad input", ">= 2000 bodies: no 5xx, p99 <= 20 ms, growth <= 5 MiB", input::bad_input),
    ("3", "extreme values", "400 or 413 within 50 ms; a stream beside them at most 2x as slow", input::extremes),
    (
        "4",
        "grammars",
        "compiled or refused within 1 s, at most 64 MiB kept; no stream stands for 100 ms",
        input::grammars,
    ),
    (
        "5",
        "disconnects",
        "1000 clients leave: all places and blocks back within 200 ms, at most 2 tokens later",
        load::disconnects,
    ),
    (
        "6",
        "slow clients",
        "64 slow readers delay nobody, keep 256 KiB each and are cut off; 256 slow headers are closed within 10 s",
        load::slow_clients,
    ),
    (
        "7",
        "overload",
        "4x for 60 s: refused within 10 ms; p99 TTFT <= 2x; goodput >= 95 %; normal after 2 s",
        load::overload,
    ),
    ("8", "drain", "SIGTERM with 32 streams: all finish, exit 0; 100 times SIGKILL and start", life::drain),
    ("9", "faults", "every status and a hang of the runtime: right verdict, no wrong token", others::faults),
    ("10", "isolation", ">= 1000 answers equal those that ran alone; no two salts share a block", load::isolation),
    ("11", "memory", "10 000 requests, 1 h: growth <= 1 MiB, file descriptors constant, tokens add up", life::memory),
    ("12", "metrics", "running + waiting = in flight +- 1 at every scrape; energy adds up within 1 %", life::metrics),
    ("13", "files", "broken files and disks: exit code 1, named, within 1 s, no part left", others::files),
    ("14", "text", "10 000 streams say what whole answers say", load::text),
    ("15", "accuracy", "lm-eval equals the reference", others::accuracy),
];

/// Runs the tests of these numbers, or all. `--reduced` runs less of each.
pub fn run(words: &[&str]) -> anyhow::Result<()> {
    let reduced = words.contains(&"--reduced");
    let numbers: Vec<&str> = words.iter().copied().filter(|word| *word != "--reduced").collect();
    if let Some(unknown) = numbers.iter().find(|number| !TESTS.iter().any(|test| test.0 == **number)) {
        bail!("there is no test {unknown:?}: they are 1 to 15");
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let scale = Scale {
        full: !reduced,
        binary: crate::clients::binary(workspace)?,
        model: workspace.join("testdata/qwen3"),
        workspace: workspace.to_owned(),
    };
    println!("| | test | demanded | result | s | measured |\n|---|---|---|---|---|---|");
    let mut failed = vec![];
    for (number, name, demanded, test) in TESTS {
        if !numbers.is_empty() && !numbers.contains(&number) {
            continue;
        }
        let begun = Instant::now();
        let (result, what) = match test(&scale) {
            Ok(what) if what.starts_with("not run") => ("not run", what),
            Ok(what) => ("pass", what),
            Err(error) => {
                failed.push(number);
                ("FAIL", format!("{error:#}"))
            }
        };
        println!("| {number} | {name} | {demanded} | {result} | {} | {what} |", begun.elapsed().as_secs());
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(" "));
    }
    Ok(())
}
