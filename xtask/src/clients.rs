//! `cargo xtask check-clients`: outside clients against live servers, each of one pinned version, in environments below `target/`.
//!
//! What a check shows stands at the head of its script in `xtask/clients`. A script ends with 0 where everything was as it
//! should be, with 77 where it could not be run, and says in its last line what it did.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::python::{self, expect};

/// A client, or a program that serves through njoule.
struct Check {
    name: &'static str,
    script: &'static str,
    by: By,
}

enum By {
    /// Python, with packages of PyPI.
    Python(&'static [&'static str]),
    /// node, with packages of npm.
    Node(&'static [&'static str]),
}

const CHECKS: [Check; 9] = [
    Check { name: "openai-python", script: "openai_python.py", by: By::Python(&["openai==3.57.0"]) },
    Check { name: "openai-js", script: "openai_js.mjs", by: By::Node(&["openai@7.59.0"]) },
    Check { name: "anthropic", script: "anthropic_python.py", by: By::Python(&["anthropic==2.14.0"]) },
    Check {
        name: "manifests",
        script: "manifests.py",
        by: By::Python(&["pyyaml==6.0.4", "prometheus-client==0.26.0"]),
    },
    Check { name: "vllm-router", script: "vllm_router.py", by: By::Python(&["vllm-router==0.1.17"]) },
    Check {
        name: "ray-serve",
        script: "ray_serve.py",
        by: By::Python(&["ray[serve,data]==2.60.0", "httpx==0.28.1", "psutil==7.2.2", "openai==3.57.0"]),
    },
    Check { name: "ray-rows", script: "ray_rows.py", by: By::Python(&["httpx==0.28.1"]) },
    Check {
        name: "ray-data",
        script: "ray_data.py",
        by: By::Python(&["ray[serve,data]==2.60.0", "httpx==0.28.1", "psutil==7.2.2", "openai==3.57.0"]),
    },
    Check { name: "guidellm", script: "guidellm_bench.py", by: By::Python(&["guidellm==0.8.1"]) },
];

/// They bring scikit-learn, datasets, transformers and, the second one, torch, which are large: only by their names.
const LARGE: [Check; 2] = [
    Check { name: "lm-eval", script: "lm_eval.py", by: By::Python(&["lm-eval[api]==0.4.13", "transformers==5.24.0"]) },
    Check {
        name: "accuracy",
        script: "accuracy.py",
        by: By::Python(&["lm-eval[api,hf]==0.4.13", "transformers==5.24.0", "torch==2.15.0"]),
    },
];

/// What came of a check.
enum Outcome {
    Pass(String),
    NotRun(String),
    Fail(String),
}

/// Runs the checks of these names, or all but the large ones.
pub fn run(names: &[&str]) -> anyhow::Result<()> {
    let all = || CHECKS.iter().chain(&LARGE);
    let known = || all().map(|check| check.name).collect::<Vec<_>>().join(" ");
    let mut chosen: Vec<&Check> = vec![];
    for name in names {
        // `ray` is both of Ray's.
        let matching = all().filter(|check| {
            check.name == *name || check.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
        });
        let before = chosen.len();
        chosen.extend(matching);
        if chosen.len() == before {
            bail!("there is no check {name:?}; there are {}", known());
        }
    }
    if names.is_empty() {
        chosen.extend(&CHECKS);
    }
    let place = Place::new()?;
    let rows = chosen.into_iter().map(|check| {
        let started = Instant::now();
        eprintln!("== {}", check.name);
        (check, place.outcome(check), started.elapsed().as_secs())
    });
    let rows: Vec<_> = rows.collect();
    println!("| check | versions | result | s | |\n|---|---|---|---|---|");
    let mut failed = 0;
    for (check, outcome, seconds) in &rows {
        let (By::Python(packages) | By::Node(packages)) = check.by;
        let (result, what) = match outcome {
            Outcome::Pass(what) => ("pass", what),
            Outcome::NotRun(why) => ("not run", why),
            Outcome::Fail(why) => {
                failed += 1;
                ("FAIL", why)
            }
        };
        println!("| {} | {} | {result} | {seconds} | {what} |", check.name, packages.join(", "));
    }
    match failed {
        0 => Ok(()),
        _ => bail!("{failed} of {} checks failed", rows.len()),
    }
}

/// What the check of this name says that it did; what is wrong where it failed or could not be run.
pub fn check(name: &str) -> anyhow::Result<String> {
    let check = CHECKS.iter().chain(&LARGE).find(|check| check.name == name).context("no such check")?;
    match Place::new()?.outcome(check) {
        Outcome::Pass(what) => Ok(what),
        Outcome::NotRun(why) => bail!("it could not be run: {why}"),
        Outcome::Fail(why) => bail!("{why}"),
    }
}

/// Where checks are run, and with what.
struct Place {
    workspace: &'static Path,
    place: PathBuf,
    binary: PathBuf,
    model: PathBuf,
}

impl Place {
    fn new() -> anyhow::Result<Place> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        let place = workspace.join("target/clients");
        std::fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        let binary = binary(workspace)?;
        let model = std::env::var_os("NJOULE_CHECK_MODEL");
        let model = model.map_or_else(|| workspace.join("testdata/qwen3"), PathBuf::from);
        Ok(Place { workspace, place, binary, model })
    }

    /// What cannot be installed was not run; why stands above.
    fn outcome(&self, check: &Check) -> Outcome {
        self.run(check).unwrap_or_else(|error| Outcome::NotRun(format!("{error:#}")))
    }

    fn run(&self, check: &Check) -> anyhow::Result<Outcome> {
        let Place { workspace, place, binary, model } = self;
        let program = prepare(check, place)?;
        let work = place.join(check.name).join("work");
        let _ = std::fs::remove_dir_all(&work); // of the last run, if there was one
        std::fs::create_dir_all(&work)?;
        if let By::Node(_) = check.by {
            std::os::unix::fs::symlink(place.join(check.name).join("node_modules"), work.join("node_modules"))?;
        }
        let mut command = Command::new(program);
        command.arg(workspace.join("xtask/clients").join(check.script));
        command.env("NJOULE_BIN", binary).env("NJOULE_CHECK_MODEL", model).env("NJOULE_CHECK_WORK", &work);
        command.env("NJOULE_DEPLOY", workspace.join("deploy"));
        command.env("NJOULE_OFFLINE", "1").env("PYTHONUNBUFFERED", "1");
        // Nothing is told to anybody.
        command.env("RAY_USAGE_STATS_ENABLED", "0").env("DO_NOT_TRACK", "1").stdin(Stdio::null());
        script(command)
    }
}

/// `NJOULE_BIN`, or the binary of this workspace, built now.
pub fn binary(workspace: &Path) -> anyhow::Result<PathBuf> {
    if let Some(binary) = std::env::var_os("NJOULE_BIN") {
        return Ok(binary.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    expect(Command::new(cargo).args(["build", "--locked", "-p", "njoule"]).current_dir(workspace))?;
    Ok(workspace.join("target/debug/njoule"))
}

/// The program that runs a check's script, with what that needs.
fn prepare(check: &Check, place: &Path) -> anyhow::Result<PathBuf> {
    match check.by {
        By::Python(packages) => {
            // Checks that need the same share an environment.
            let same = CHECKS.iter().find(|other| matches!(other.by, By::Python(p) if p == packages));
            python::environment(place, &format!("{}/venv", same.unwrap_or(check).name), packages)
        }
        By::Node(packages) => {
            let directory = place.join(check.name);
            std::fs::create_dir_all(&directory)?;
            install(&directory.join("complete"), packages, || {
                let mut npm = Command::new("npm");
                npm.args(["install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
                expect(npm.arg(&directory).args(packages))
            })?;
            Ok("node".into())
        }
    }
}

/// Installs unless exactly this was installed before.
fn install(done: &Path, packages: &[&str], install: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let wanted = packages.join("\n");
    if std::fs::read_to_string(done).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    eprintln!("installing {}", packages.join(" "));
    install()?;
    Ok(std::fs::write(done, wanted)?)
}

/// Runs a script; its last line says what it did.
fn script(mut command: Command) -> anyhow::Result<Outcome> {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Ok(match (output.status.code(), last.split_once(": ")) {
        (Some(0), Some(("ok", what))) => Outcome::Pass(what.to_owned()),
        (Some(77), Some((_, why))) => Outcome::NotRun(why.to_owned()),
        (code, _) => {
            eprint!("{text}");
            Outcome::Fail(format!("exit code {code:?}; what it said stands above"))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn names_are_unique_scripts_exist_and_versions_are_pinned() {
        let mut names = BTreeMap::new();
        for check in CHECKS.iter().chain(&LARGE) {
            assert!(names.insert(check.name, ()).is_none(), "{}", check.name);
            assert!(
                Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(check.script).is_file(),
                "{}",
                check.name
            );
            let (By::Python(packages) | By::Node(packages)) = check.by;
            assert!(packages.iter().all(|package| package.contains("==") || package.contains('@')), "{packages:?}");
        }
    }
}
