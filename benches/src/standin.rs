//! A stand-in device for benchmarks: its library beside the program, the program itself as its compiler, and models built for it.
//!
//! The library has one state per process and reads the environment at its start, so what is measured runs in a child.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use neuron_fake::compiler::{End, run};
use njoule_models::program::Program;
use njoule_models::weights::WeightSource;
use njoule_runtime::backend::neuron::artifact::{Artifact, Layout, ModelRecord, Origin};
use njoule_runtime::backend::neuron::build::Job;
use njoule_runtime::backend::neuron::compiler::{Compiler, NeffCache};

/// Where the library is: cargo leaves it beside what it builds.
pub fn library() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let dir = here.parent().unwrap_or(Path::new("."));
    let places = [dir.join(NAME), dir.join("deps").join(NAME)];
    let found = places.iter().find(|place| place.is_file()).cloned();
    found.with_context(|| {
        format!(
            "there is no {NAME} in {} nor in its deps: build it in the same profile, `cargo build [--release] -p neuron-fake`",
            dir.display()
        )
    })
}

/// This program again, with the same arguments, on a stand-in with these switches (see `neuron-fake/src/config.rs`).
pub fn child(library: &Path, switches: &[(&str, &str)]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("NEURON_") || text.starts_with("NJOULE_FAKE_") {
            command.env_remove(&name);
        }
    }
    command.env("NJOULE_NRT", library).env("NJOULE_PJRT", "").env(CHILD, "1").envs(switches.iter().copied());
    Ok(command)
}

/// Whether this is the child.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// A benchmark's whole program: what it was asked for is read and run, or it is a child's compiler.
pub fn program<O>(read: impl FnOnce() -> Result<O>, run: impl FnOnce(&O) -> Result<()>) -> ExitCode {
    if let Some(code) = compiled() {
        return code;
    }
    let (error, code) = match read() {
        Err(error) => (error, ExitCode::from(2)),
        Ok(options) => match run(&options) {
            Err(error) => (error, ExitCode::FAILURE),
            Ok(()) => return ExitCode::SUCCESS,
        },
    };
    eprintln!("error: {error:#}");
    code
}

/// Where this process was started as the compiler: what it ends with.
fn compiled() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !is_child() || !matches!(arguments.first().map(String::as_str), Some("compile" | "--version")) {
        return None;
    }
    Some(match run(&arguments) {
        End::Exit(code) => ExitCode::from(code),
        End::Abort | End::Kill => ExitCode::FAILURE,
    })
}

/// Builds `dir/artifact`, its modules by [`compiled`] in children, with these weights; without, they come from the checkpoint
/// at load.
pub fn build(program: &Program, layout: &Layout, weights: Option<&dyn WeightSource>, dir: &Path) -> Result<Artifact> {
    let model = ModelRecord {
        name: program.name.clone(),
        architecture: program.name.clone(),
        fingerprint: format!("{:016x}", program.fingerprint()),
        vocab: program.vocab(),
        origin: Origin::None,
    };
    let (plan, cancelled) = (serde_json::Value::Null, AtomicBool::new(false));
    let job = Job { program, model: &model, layout, plan: &plan, flags: &[], opt_level: None, cancelled: &cancelled };
    let compiler = Compiler::at(&std::env::current_exe()?)?;
    let lowering = job.lower(&|_| {})?;
    let compiled = job.compile(&lowering, &compiler, &NeffCache::new(&dir.join("cache")), None, &|_| {})?;
    Ok(job.write(&dir.join("artifact"), &lowering, &compiler, &compiled, weights, |_| Ok(()), &|_| {})?)
}

const NAME: &str = "libneuron_fake.so";
/// Set for children, and for theirs.
const CHILD: &str = "NJOULE_BENCH_CHILD";
