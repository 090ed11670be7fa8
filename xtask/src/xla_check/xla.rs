//! XLA in a child process: a module that it cannot stand ends the child, not the check.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, bail};
use njoule_hlo::{ArrayShape, DType, Module, Tensor, encode};
use njoule_runtime::backend::neuron::evaluated::Engine;

use crate::python;

/// A Python with jaxlib of the one version that is known to work: `NJOULE_XLA_PYTHON`, or a virtual environment that is made.
pub fn python(target: &Path) -> anyhow::Result<PathBuf> {
    if let Some(python) = std::env::var_os("NJOULE_XLA_PYTHON") {
        return Ok(python.into());
    }
    let packages = [format!("jax=={VERSION}"), format!("jaxlib=={VERSION}")];
    python::environment(target, "xla-venv", &packages.each_ref().map(String::as_str))
}

/// XLA, in a child that is started when it is first asked, and again when it died.
#[derive(Clone, Debug)]
pub struct Xla(Arc<Mutex<Runs>>);

#[derive(Debug)]
struct Runs {
    python: PathBuf,
    directory: PathBuf,
    process: Option<Process>,
    /// Modules that were written, by their bytes.
    modules: HashMap<Vec<u8>, PathBuf>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Xla {
    /// By this Python; files that the child reads and writes are in `directory`.
    pub fn new(python: PathBuf, directory: PathBuf) -> anyhow::Result<Xla> {
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("run.py"), include_str!("run.py"))?;
        Ok(Xla(Arc::new(Mutex::new(Runs { python, directory, process: None, modules: HashMap::new() }))))
    }

    /// Modules that were run.
    pub fn modules(&self) -> usize {
        self.runs().modules.len()
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runs {
    fn ask(&mut self, module: &Module, inputs: &[Vec<Tensor>]) -> anyhow::Result<Vec<Vec<Tensor>>> {
        let bytes = encode(module);
        let path = match self.modules.get(&bytes) {
            Some(path) => path.clone(),
            None => {
                let path = self.directory.join(format!("{}.pb", self.modules.len()));
                std::fs::write(&path, &bytes)?;
                self.modules.insert(bytes, path.clone());
                path
            }
        };
        let [input, output] = ["inputs", "outputs"].map(|name| self.directory.join(name));
        write(&input, inputs)?;
        let request = serde_json::json!({ "module": path, "inputs": input, "outputs": output });
        let mut process = match self.process.take() {
            Some(process) => process,
            None => Process::start(&self.python, &self.directory.join("run.py"))?,
        };
        let mut line = String::new();
        let asked = writeln!(process.requests, "{request}").and_then(|()| process.answers.read_line(&mut line));
        if asked.is_err() || line.is_empty() {
            bail!("XLA died of {} ({})", module.name, path.display());
        }
        self.process = Some(process);
        if line.trim() != "ok" {
            bail!("XLA refuses {} ({}): {}", module.name, path.display(), line.trim());
        }
        read(&output)
    }
}

impl Process {
    fn start(python: &Path, script: &Path) -> anyhow::Result<Process> {
        let mut command = Command::new(python);
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {}", python.display()))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the child has no pipes")
        };
        Ok(Process { child, requests, answers: BufReader::new(answers) })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It is only this check's; whether it was still there does not matter.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Engine for Xla {
    fn run(&mut self, module: &Module, inputs: Vec<Vec<Tensor>>) -> Result<Vec<Vec<Tensor>>, String> {
        self.runs().ask(module, &inputs).map_err(|e| format!("{e:#}"))
    }
}

fn write(path: &Path, replicas: &[Vec<Tensor>]) -> anyhow::Result<()> {
    let entry = |(replica, tensor): (usize, &Tensor)| {
        let shape = tensor.shape();
        serde_json::json!({ "replica": replica, "dtype": shape.dtype().to_string(), "dims": shape.dims().to_vec() })
    };
    let all = || replicas.iter().enumerate().flat_map(|(r, tensors)| tensors.iter().map(move |t| (r, t)));
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    writeln!(file, "{}", serde_json::Value::from(all().map(entry).collect::<Vec<_>>()))?;
    for (_, tensor) in all() {
        file.write_all(&tensor.to_bytes())?;
    }
    file.flush().with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Vec<Vec<Tensor>>> {
    let mut file = BufReader::new(std::fs::File::open(path)?);
    let mut header = String::new();
    file.read_line(&mut header)?;
    let entries: Vec<serde_json::Value> = serde_json::from_str(&header)?;
    let mut replicas: Vec<Vec<Tensor>> = vec![];
    for entry in entries {
        let dtype = DType::ALL.into_iter().find(|t| Some(t.to_string().as_str()) == entry["dtype"].as_str());
        let dims: Option<Vec<usize>> =
            entry["dims"].as_array().map(|d| d.iter().filter_map(|n| n.as_u64()).map(|n| n as usize).collect());
        let shape = dtype.zip(dims).and_then(|(dtype, dims)| ArrayShape::new(dtype, &dims));
        let shape = shape.with_context(|| format!("no array: {entry}"))?;
        let mut bytes = vec![0; shape.bytes()];
        file.read_exact(&mut bytes)?;
        let replica = entry["replica"].as_u64().unwrap_or(0) as usize;
        replicas.resize_with(replicas.len().max(replica + 1), Vec::new);
        replicas[replica].push(Tensor::from_bytes(shape, &bytes)?);
    }
    Ok(replicas)
}

/// Of jax and jaxlib.
const VERSION: &str = "0.10.2";
