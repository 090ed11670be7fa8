//! `njoule probe`: the first hour on a chip. Takes the probe's steps on the first core of this machine, records the forms
//! that work as the chip's profile, and writes a report that names no machine.
//!
//! Invariant: a profile is written only where no step failed that everything needs, and what a stand-in gave is never kept
//! as a chip's.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, anyhow, bail};
use njoule_neuron_sys as sys;
use njoule_runtime::backend::neuron::Profile;
use njoule_runtime::backend::neuron::compiler::{Compiler, NeffCache, Settings};
use njoule_runtime::backend::neuron::plan::{Instances, Wish};
use njoule_runtime::backend::neuron::probe::{
    self, Golden, Heard, Neffs, NeuronDevice, Outcome, ProbeModel, Redaction, STEPS, State, StepOutcome,
};
use serde_json::{Value, json};
use sys::sysfs::Root;

use super::Context;
use super::doctor::library::is_stand_in;
use crate::args::{ModelArgs, UsageError};
use crate::session::neuron::{self, probe::Probed};
use crate::session::options::{KvArg, QuantArg};
use crate::session::planning::no_instance;
use crate::session::{Interrupted, Model, Stop};

/// Arguments of `probe`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Leave out the steps that need a model: its logits and its speed
    #[arg(long, conflicts_with_all = ["positional", "model", "golden"])]
    no_model: bool,
    /// What a reference gives for the model, in the form of testdata/smollm2 [default: of the default model it is known, of
    /// another the cpu backend computes it]
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Stored type of the model's weights: none (f32), bf16 or int8 [default: bf16 if that fits, else int8]
    #[arg(long, value_enum, value_name = "TYPE")]
    quant: Option<QuantArg>,
    /// Type of its key/value cache: f32, bf16 or int8
    #[arg(long, value_enum, value_name = "TYPE")]
    kv_type: Option<KvArg>,
    /// Instance type of this machine [default: what its firmware says, else the smallest with such chips]
    #[arg(long, env = "NJOULE_INSTANCE", value_name = "TYPE")]
    instance: Option<String>,
    /// Write a report to send: no host names, paths or serial numbers are in it
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print the report as JSON instead of the table
    #[arg(long, conflicts_with = "emit")]
    json: bool,
    /// Write the modules and the commands that compile them, and stop: for a machine without a chip
    #[arg(long, value_name = "DIR", conflicts_with_all = ["neffs", "report"])]
    emit: Option<PathBuf>,
    /// With --emit: the device profile in whose forms whole layers are written
    #[arg(long, value_name = "FILE", requires = "emit")]
    profile: Option<PathBuf>,
    /// Take NEFFs that were compiled elsewhere from DIR instead of compiling; MODEL is then an artifact
    #[arg(long, value_name = "DIR")]
    neffs: Option<PathBuf>,
    /// inf2, trn1 or trn2; default: what the driver, or else libnrt, says this machine has
    #[arg(long)]
    target: Option<String>,
}

impl Args {
    /// Takes the steps.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let root = Root::from_environment();
        let chip = root.devices().first().and_then(|device| device.chip().ok());
        let named = self.target.as_deref().or_else(|| chip?.target()).or_else(|| target_by_library());
        let named = named.ok_or_else(|| UsageError(NO_TARGET.into()))?;
        let target = probe::target(named)
            .ok_or_else(|| UsageError(format!("--target {named}: njoule makes modules for inf2, trn1 and trn2")))?;
        let settings = Settings { target, opt_level: 1, lnc: None, extra: vec![] };
        if let Some(dir) = &self.emit {
            return emit(dir, self.profile.as_deref(), &settings, context);
        }
        let stop = Stop::install().context("cannot take Ctrl-C over")?;
        let cache = context.fetch.env.njoule_cache()?.join("neuron");
        let (neffs, compiler) = match &self.neffs {
            Some(dir) if dir.is_dir() => (Neffs::Directory(dir.clone()), None),
            Some(dir) => bail!("{}: no such directory", dir.display()),
            None => {
                let compiler = Compiler::find().context("--emit and --neffs compile on another machine")?;
                let version = compiler.version().to_owned();
                // What a compiler took once it need not take now.
                let (cache, cancelled) = (NeffCache::anew(&cache.join("neffs")), stop.shared());
                (Neffs::Compiler { compiler, cache, settings, cancelled }, Some(version))
            }
        };
        let stand_in =
            !root.is_machine() || sys::Library::open().is_ok_and(|library| is_stand_in(&library.version().detail));
        let instance = self.instance(named)?;

        let mut nowhere = io::sink();
        let quiet = Context { out: &mut nowhere, fetch: context.fetch.clone(), quiet: context.quiet, colour: false };
        let mut model = self.probed(instance.clone(), compiler.is_some(), stand_in, quiet)?;
        let model = model.as_mut().map(|model| model as &mut dyn ProbeModel).map_err(|why| why.clone());

        let mut device = NeuronDevice::new(neffs, root.clone());
        let reporter = context.fetch.reporter.clone();
        let (driver, names) = (root.driver().version.ok().map(|version| version.to_string()), names());
        let report = |outcome: &Outcome| {
            json!({
                "njoule": env!("CARGO_PKG_VERSION"),
                "stand_in": stand_in,
                "instance": instance,
                "chip": chip.map(|chip| chip.name()),
                "driver": driver,
                "compiler": compiler.as_deref().unwrap_or("elsewhere"),
                "outcome": outcome.redacted(&names),
            })
        };
        let (mut number, mut told_so_far) = (0, Ok(()));
        let outcome = probe::run(&mut device, model, target, STEPS, |heard| {
            let so_far = match heard {
                Heard::Begins(step, so_far) => {
                    number += 1;
                    reporter.note(&format!("[{number}/{}] {}: {}", STEPS.len(), step.name, step.proves));
                    so_far
                }
                Heard::Done(step, so_far) => {
                    if !self.json {
                        let written = writeln!(context.out, "{}", told(step)).and_then(|()| context.out.flush());
                        told_so_far = written.map_err(Into::into);
                    }
                    so_far
                }
            };
            // Each time: what ends the process or the machine leaves a report of all before it.
            if told_so_far.is_ok() {
                told_so_far = self.write_report(&report(so_far));
            }
            let ends = told_so_far.is_err() || stop.flag().load(Ordering::Relaxed);
            if ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        told_so_far?;
        self.hand_over(&report(&outcome), context)?;
        if stop.flag().load(Ordering::Relaxed) {
            context.note(&format!("stopped at step {}", outcome.stopped_at.unwrap_or_default()));
            return Err(Interrupted.into());
        }
        let Some(profile) = outcome.profile else {
            let last = outcome.steps.last().map_or("", |step| step.advice.as_str());
            return Err(anyhow!("stopped at step {}: {last}", outcome.stopped_at.unwrap_or_default()));
        };
        let kept = keep(&cache, named, stand_in, &serde_json::to_string_pretty(&profile)?)?;
        match self.json {
            true => context.note(&format!("profile: {}", kept.display())),
            false => writeln!(context.out, "profile: {}", kept.display())?,
        }
        Ok(())
    }

    /// The instance type that was named, this machine's, or one whose cores are like its: their memory and bandwidth are the
    /// chip's.
    fn instance(&self, target: &str) -> anyhow::Result<String> {
        let table = Instances::built_in();
        if let Some(name) = &self.instance {
            table.find(name).ok_or_else(|| no_instance(name, &table))?;
            return Ok(name.clone());
        }
        let present = neuron::present_instance().filter(|name| table.find(name).is_some());
        let like = || table.all().iter().find(|i| i.target().name() == target).map(|i| i.name.clone());
        present.or_else(like).ok_or_else(|| anyhow!("no instance has chips of {target}"))
    }

    /// The model, open; or why there is none.
    fn probed<'a>(
        &self,
        instance: String,
        compiles: bool,
        stand_in: bool,
        context: Context<'a>,
    ) -> anyhow::Result<Result<Probed<'a>, String>> {
        if self.no_model {
            return Ok(Err("--no-model".to_owned()));
        }
        let named = self.model.positional.is_some() || self.model.model.is_some();
        if !compiles && !named {
            return Ok(Err(NO_COMPILER.to_owned()));
        }
        if let Some(quant) = self.quant.filter(|quant| matches!(quant, QuantArg::Int4 | QuantArg::Auto)) {
            return Err(UsageError(format!("--quant {}: on Neuron it is none, bf16 or int8", quant.name())).into());
        }
        if matches!(self.kv_type, Some(KvArg::F16)) {
            return Err(UsageError("--kv-type f16: on Neuron it is f32, bf16 or int8".to_owned()).into());
        }
        let golden = self.golden.as_deref().map(read_golden).transpose()?;
        let model = Model::open(&self.model.resolve(&context.fetch.env)?, &context)
            .context("give MODEL, or --no-model to go without the steps that need one")?;
        if !compiles && model.artifact.is_none() {
            return Err(UsageError(NO_COMPILER.to_owned()).into());
        }
        let usual = Wish::default();
        let wish = Wish {
            weights: self.quant.map(QuantArg::quant),
            kv: self.kv_type.map(KvArg::kv),
            candidates: usual.candidates.min(model.program.vocab()),
            ..usual
        };
        Ok(Ok(Probed { model, instance, wish, golden, stand_in, context }))
    }

    /// Writes the report where it was asked for. A file is replaced by a rename: at no moment is there half a report.
    fn write_report(&self, report: &Value) -> anyhow::Result<()> {
        let Some(path) = &self.report else { return Ok(()) };
        let text = serde_json::to_string_pretty(report)?;
        let written = if path.metadata().is_ok_and(|found| !found.is_file()) {
            fs::write(path, &text) // a pipe or a terminal
        } else {
            let mut beside = path.clone().into_os_string();
            beside.push(".part");
            fs::write(&beside, &text).and_then(|()| fs::rename(&beside, path))
        };
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// The last report, and where it is.
    fn hand_over(&self, report: &Value, context: &mut Context<'_>) -> anyhow::Result<()> {
        self.write_report(report)?;
        if let Some(path) = &self.report {
            context.note(&format!("report: {}", path.display()));
        }
        if self.json {
            writeln!(context.out, "{}", serde_json::to_string_pretty(report)?)?;
        }
        Ok(())
    }
}

/// What the library says that this machine is, where it says so without being started.
fn target_by_library() -> Option<&'static str> {
    let family = sys::Library::open().ok()?.instance().ok()?.family.name()?;
    // Variants of a family begin as it does.
    ["inf2", "trn1", "trn2"].into_iter().find(|target| family.starts_with(target))
}

fn read_golden(path: &Path) -> anyhow::Result<Golden> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Golden::parse(&text).map_err(|what| anyhow!("{}: {what}", path.display()))
}

/// Where the profile of a target is kept; a stand-in's has another name, which nothing takes for a chip's.
fn keep(cache: &Path, target: &str, stand_in: bool, profile: &str) -> anyhow::Result<PathBuf> {
    let dir = cache.join("profiles");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join(format!("{target}{}.json", if stand_in { "-stand-in" } else { "" }));
    fs::write(&path, profile).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn emit(dir: &Path, profile: Option<&Path>, settings: &Settings, context: &mut Context<'_>) -> anyhow::Result<()> {
    let profile = match profile {
        None => Profile::default(),
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{} is no device profile", path.display()))?
        }
    };
    let written = probe::emit(STEPS, &profile, dir).with_context(|| format!("cannot write into {}", dir.display()))?;
    let script = format!(
        "#!/bin/sh\n# Compiles the probe's modules that have no NEFF yet, in this directory. One that is refused is part of \
         the answer.\nfor module in *.pb; do\n    name=${{module%.pb}}\n    [ -e \"$name.neff\" ] || neuronx-cc compile \
         \"$module\" {} --output \"$name.neff\" || echo \"$name: refused\"\ndone\n",
        settings.flags().join(" ")
    );
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
    let mark = match step.state {
        State::Passed => "ok",
        State::Failed => "FAILED",
        State::Unknown => "unknown",
    };
    let chosen = step.chosen.as_deref().map_or_else(|| step.words.clone(), str::to_owned);
    let mut text = format!("{:<12}{mark:<8}{chosen}", step.name);
    for form in step.forms.iter().filter(|form| !form.works) {
        let stage = form.failed.map_or("", |stage| stage.name());
        text += &format!("\n            {} does not work here ({stage}): {}", form.form, form.words);
    }
    for time in step.speed.iter().flat_map(|speed| &speed.steps) {
        let share =
            time.mbu.map_or_else(String::new, |mbu| format!(", {:.1} % of the published bandwidth", 100.0 * mbu));
        text += &format!(
            "\n            {:>3} sequences of {:>5} tokens: {:.3} ms per token ({:.3} to {:.3}, {} steps), {:.2} GB/s{share}",
            time.batch, time.len, time.tpot_ms, time.least_ms, time.most_ms, time.runs, time.gb_s
        );
    }
    if step.state == State::Failed {
        if let Some(only_for) = &step.only_for {
            text += &format!("\n            only for {only_for}");
        }
        text += &format!("\n            {}", step.advice);
    }
    text
}

/// What a report must not name: users and hosts, by their whole names and by what stands before the domain.
fn names() -> Redaction {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let variables =
        ["USER", "LOGNAME", "SUDO_USER", "HOSTNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    let kernel = ["hostname", "domainname"].into_iter().filter_map(|name| read(&format!("/proc/sys/kernel/{name}")));
    let whole: Vec<String> = variables.chain(kernel).chain(read("/etc/hostname")).collect();
    let short = whole.iter().filter_map(|name| name.split_once('.')).map(|(short, _)| short.to_owned());
    let mut names: Vec<String> = short.chain(whole.iter().cloned()).collect();
    names.retain(|name| !["", "root", "localhost", "(none)"].contains(&name.as_str()));
    // The longer ones first: of a whole name nothing is left.
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    names.dedup();
    Redaction { names }
}

const NO_TARGET: &str = "neither the driver nor libnrt tells what this machine has: give --target inf2, trn1 or trn2";
const NO_COMPILER: &str = "a model's modules are not compiled here: build it elsewhere with `njoule build`, with the profile \
                           that this run records, and give the artifact as MODEL";
const EXAMPLES: &str = "\
Examples:
  njoule probe --report report.json           on a machine with a chip and the compiler
  njoule probe --no-model                     without a model: each idiom, and a layer
  njoule probe --target inf2 --emit modules   elsewhere; then `sh compile.sh` in modules
  njoule probe --neffs modules ARTIFACT       on the chip, with what was compiled there

Nothing of njoule has run on Neuron hardware yet: this is what to run first.
";
