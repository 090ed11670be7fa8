//! `njoule probe`: the first hour on a chip. Takes the probe's steps on the first core of this machine, records the forms
//! that work as the chip's profile, and writes a report that names no machine.
//!
//! Invariant: a profile is written only where every step passed, and what a stand-in gave is never kept as a chip's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use njoule_neuron_sys::sysfs::Root;
use njoule_runtime::backend::neuron::compiler::{Compiler, NeffCache, Settings};
use njoule_runtime::backend::neuron::probe::{self, Neffs, NeuronDevice, Redaction, STEPS, StepOutcome};
use serde_json::json;

use super::Context;
use super::doctor::library::is_stand_in;
use crate::args::UsageError;

/// Arguments of `probe`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Write a report to send: no host names, paths or serial numbers are in it
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the modules and the commands that compile them, and stop: for a machine without a chip
    #[arg(long, value_name = "DIR", conflicts_with_all = ["neffs", "report"])]
    emit: Option<PathBuf>,
    /// Take NEFFs that were compiled elsewhere from DIR instead of compiling
    #[arg(long, value_name = "DIR")]
    neffs: Option<PathBuf>,
    /// inf2, trn1 or trn2; default: what the driver says this machine has
    #[arg(long)]
    target: Option<String>,
}

impl Args {
    /// Takes the steps.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let root = Root::from_environment();
        let chip = root.devices().first().and_then(|device| device.chip().ok());
        let named = self.target.as_deref().or_else(|| chip?.target());
        let named =
            named.ok_or_else(|| UsageError("no device tells what it is: give --target inf2, trn1 or trn2".into()))?;
        let target = probe::target(named)
            .ok_or_else(|| UsageError(format!("--target {named}: njoule makes modules for inf2, trn1 and trn2")))?;
        let settings = Settings { target, opt_level: 1, lnc: None, extra: vec![] };
        if let Some(dir) = &self.emit {
            return emit(dir, &settings, context);
        }
        let cache = context.fetch.env.njoule_cache()?.join("neuron");
        let (neffs, compiler) = match &self.neffs {
            Some(dir) if dir.is_dir() => (Neffs::Directory(dir.clone()), "elsewhere".to_owned()),
            Some(dir) => bail!("{}: no such directory", dir.display()),
            None => {
                let compiler = Compiler::find().context("--emit and --neffs compile on another machine")?;
                let version = compiler.version().to_owned();
                (Neffs::Compiler { compiler, cache: NeffCache::new(&cache.join("neffs")), settings }, version)
            }
        };
        let mut device = NeuronDevice::new(neffs, root.clone());
        let mut lines = vec![];
        let outcome = probe::run(&mut device, target, STEPS, |step| lines.push(told(step)));
        drop(device); // gives the core back
        for line in lines {
            writeln!(context.out, "{line}")?;
        }
        let opened = outcome.steps.first().map_or("", |step| step.words.as_str());
        let stand_in = is_stand_in(opened) || !root.is_machine();
        if let Some(path) = &self.report {
            let report = json!({
                "njoule": env!("CARGO_PKG_VERSION"),
                "stand_in": stand_in,
                "chip": chip.map(|chip| chip.name()),
                "driver": root.driver().version.ok().map(|version| version.to_string()),
                "compiler": compiler,
                "outcome": outcome.redacted(&names()),
            });
            let text = serde_json::to_string_pretty(&report)?;
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
            context.note(&format!("report: {}", path.display()));
        }
        let Some(profile) = outcome.profile else {
            let last = outcome.steps.last().map_or("", |step| step.advice.as_str());
            return Err(anyhow!("stopped at step {}: {last}", outcome.stopped_at.unwrap_or_default()));
        };
        let kept = keep(&cache, named, stand_in, &serde_json::to_string_pretty(&profile)?)?;
        writeln!(context.out, "profile: {}", kept.display())?;
        Ok(())
    }
}

/// Where the profile of a target is kept; a stand-in's has another name, which nothing takes for a chip's.
fn keep(cache: &Path, target: &str, stand_in: bool, profile: &str) -> anyhow::Result<PathBuf> {
    let dir = cache.join("profiles");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join(format!("{target}{}.json", if stand_in { "-stand-in" } else { "" }));
    fs::write(&path, profile).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn emit(dir: &Path, settings: &Settings, context: &mut Context<'_>) -> anyhow::Result<()> {
    let written = probe::emit(STEPS, dir).with_context(|| format!("cannot write into {}", dir.display()))?;
    let mut script =
        "#!/bin/sh\n# Compiles the probe's modules, in this directory. One that is refused is part of the answer.\n"
            .to_owned();
    for name in &written {
        let flags = settings.flags().join(" ");
        script += &format!("neuronx-cc compile {name}.pb {flags} --output {name}.neff || echo '{name}: refused'\n");
    }
    fs::write(dir.join("compile.sh"), script).with_context(|| format!("cannot write into {}", dir.display()))?;
    writeln!(
        context.out,
        "{} modules; run `sh compile.sh` there, then `njoule probe --neffs DIR` on the chip",
        written.len()
    )?;
    Ok(())
}

/// A step in a line, and what went wrong in others.
fn told(step: &StepOutcome) -> String {
    let mark = if step.passed { "ok" } else { "FAILED" };
    let chosen = step.chosen.as_deref().map_or_else(|| step.words.clone(), str::to_owned);
    let mut text = format!("{:<12}{mark:<8}{chosen}", step.name);
    for form in step.forms.iter().filter(|form| !form.works) {
        let stage = form.failed.map_or("", |stage| stage.name());
        text += &format!("\n            {} does not work here ({stage}): {}", form.form, form.words);
    }
    if !step.passed {
        text += &format!("\n            {}", step.advice);
    }
    text
}

/// What a report must not name.
fn names() -> Redaction {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let user = ["USER", "LOGNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    let names = user.chain(read("/proc/sys/kernel/hostname"));
    Redaction { names: names.filter(|name| !["", "root", "localhost"].contains(&name.as_str())).collect() }
}

const EXAMPLES: &str = "\
Examples:
  njoule probe --report report.json           on a machine with a chip and the compiler
  njoule probe --target inf2 --emit modules   elsewhere; then `sh compile.sh` in modules
  njoule probe --neffs modules                on the chip, with what was compiled there

Nothing of njoule has run on Neuron hardware yet: this is what to run first.
";
