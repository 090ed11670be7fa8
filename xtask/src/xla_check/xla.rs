//! XLA, each module in a process of its own: one that it cannot stand ends its process, not the check.
//!
//! jaxlib runs in forks of one Python (`run.py`). Where `NJOULE_PJRT` names a plugin, this program itself is started for each
//! module and opens it. Requests and answers are lines, arrays go by files.

mod arrays;
mod child;
#[cfg(feature = "pjrt")]
mod plugin;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{bail, ensure};
use njoule_hlo::{Builder, DType, Module, Tensor, encode};
use njoule_runtime::backend::neuron::evaluated::Engine;
use serde_json::json;

use child::Child;
#[cfg(feature = "pjrt")]
pub use plugin::serve;

use crate::python;

/// What runs modules.
#[derive(Clone, Debug)]
pub enum Host {
    /// This Python, with jaxlib.
    Python(PathBuf),
    /// This plugin of the PJRT C API.
    Plugin(PathBuf),
}

impl Host {
    /// `NJOULE_PJRT`, else a Python with jaxlib of the one version that is known to work: `NJOULE_XLA_PYTHON`, or a virtual
    /// environment that is made.
    pub fn find(target: &Path) -> anyhow::Result<Host> {
        if let Some(plugin) = std::env::var_os("NJOULE_PJRT").filter(|value| !value.is_empty()) {
            ensure!(
                cfg!(feature = "pjrt"),
                "NJOULE_PJRT is set: `cargo run -p xtask --features pjrt -- xla-check` uses it"
            );
            return Ok(Host::Plugin(plugin.into()));
        }
        if let Some(python) = std::env::var_os("NJOULE_XLA_PYTHON") {
            return Ok(Host::Python(python.into()));
        }
        let packages = [format!("jax=={VERSION}"), format!("jaxlib=={VERSION}")];
        Ok(Host::Python(python::environment(target, "xla-venv", &packages.each_ref().map(String::as_str))?))
    }
}

/// XLA, started when it is first asked.
#[derive(Clone, Debug)]
pub struct Xla(Arc<Mutex<Runs>>);

#[derive(Debug)]
struct Runs {
    host: Host,
    directory: PathBuf,
    /// jaxlib's, under no name; a plugin's by module.
    children: HashMap<PathBuf, Child>,
    /// Modules that were written, by their bytes.
    modules: HashMap<Vec<u8>, PathBuf>,
}

impl Xla {
    /// Files that children read and write are in `directory`.
    pub fn new(host: Host, directory: PathBuf) -> anyhow::Result<Xla> {
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("run.py"), include_str!("run.py"))?;
        let (children, modules) = (HashMap::new(), HashMap::new());
        Ok(Xla(Arc::new(Mutex::new(Runs { host, directory, children, modules }))))
    }

    /// Modules that were run, by their bytes.
    pub fn modules(&self) -> Vec<Vec<u8>> {
        self.runs().modules.keys().cloned().collect()
    }

    /// Ends the processes of the modules so far: another model has others.
    pub fn forget(&self) -> anyhow::Result<()> {
        let mut runs = self.runs();
        if matches!(runs.host, Host::Plugin(_)) {
            runs.children.clear();
        } else if !runs.children.is_empty() {
            runs.say(Path::new(""), &json!({ "forget": true }))?;
        }
        Ok(())
    }

    /// That a module whose process aborts is named, and that another's process lives on.
    pub fn check_isolation(&self) -> anyhow::Result<()> {
        let twice = |name: &str| {
            let mut b = Builder::new(name);
            let x = b.parameter("x", DType::F32, &[2]);
            let y = b.add(x, x);
            b.finish(&[y])
        };
        let (one, other) = (twice("lives"), twice("aborts"));
        let input = || vec![vec![Tensor::new(&[2], vec![1.5_f32, -2.0]).expect("two elements")]];
        let expected = [vec![Tensor::new(&[2], vec![3_f32, -4.0]).expect("two elements")]];
        let mut runs = self.runs();
        ensure!(runs.ask(&one, &input())? == expected, "XLA adds otherwise");
        let path = runs.written(&other)?;
        let died = runs.say(&path, &json!({ "module": path, "abort": true }))?;
        ensure!(died.contains("SIGABRT") || died.contains("signal: 6"), "a child that aborts is told as: {died}");
        ensure!(runs.ask(&one, &input())? == expected && runs.ask(&other, &input())? == expected, "XLA adds otherwise");
        // They are no model's, and files are named by their number.
        runs.modules.clear();
        drop(runs);
        self.forget()
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runs {
    fn written(&mut self, module: &Module) -> anyhow::Result<PathBuf> {
        let bytes = encode(module);
        if let Some(path) = self.modules.get(&bytes) {
            return Ok(path.clone());
        }
        let path = self.directory.join(format!("{}.pb", self.modules.len()));
        std::fs::write(&path, &bytes)?;
        self.modules.insert(bytes, path.clone());
        Ok(path)
    }

    fn ask(&mut self, module: &Module, inputs: &[Vec<Tensor>]) -> anyhow::Result<Vec<Vec<Tensor>>> {
        let path = self.written(module)?;
        let [input, output] = ["inputs", "outputs"].map(|name| self.directory.join(name));
        arrays::write(&input, inputs)?;
        let said = self.say(&path, &json!({ "module": path, "inputs": input, "outputs": output }))?;
        if said != "ok" {
            bail!("XLA does not take {} ({}): {said}", module.name, path.display());
        }
        arrays::read(&output)
    }

    /// The answer to a request about a module; what became of its process if that ended.
    fn say(&mut self, module: &Path, request: &serde_json::Value) -> anyhow::Result<String> {
        let (name, mut command) = match &self.host {
            Host::Python(python) => {
                let mut command = Command::new(python);
                command.arg(self.directory.join("run.py"));
                (Path::new(""), command)
            }
            Host::Plugin(plugin) => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("xla-run").arg(plugin).env("TF_CPP_MIN_LOG_LEVEL", "3");
                // As in run.py.
                command.env("XLA_FLAGS", "--xla_allow_excess_precision=false");
                (module, command)
            }
        };
        let mut child = match self.children.remove(name) {
            Some(child) => child,
            None => Child::start(&mut command)?,
        };
        match child.ask(request) {
            Some(said) => {
                self.children.insert(name.to_owned(), child);
                Ok(said)
            }
            None => Ok(format!("its process ended with {}", child.end()?)),
        }
    }
}

impl Engine for Xla {
    fn run(&mut self, module: &Module, inputs: Vec<Vec<Tensor>>) -> Result<Vec<Vec<Tensor>>, String> {
        self.runs().ask(module, &inputs).map_err(|e| format!("{e:#}"))
    }
}

/// Of jax and jaxlib.
const VERSION: &str = "0.10.2";
