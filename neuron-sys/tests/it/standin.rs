//! Compiles the stand-in library with given switches and opens it. Every call gives a file of its own, so each test has
//! a library with a state of its own; a test asserts at its end that the stand-in saw no misuse.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use njoule_neuron_sys::{Core, Library, LoadError, Model, Run, Runtime, Tensor, TensorSet};
use tempfile::TempDir;

/// A compiled stand-in.
pub struct Standin {
    /// The file.
    pub path: PathBuf,
    _dir: TempDir,
}

impl Standin {
    /// One that was compiled with these switches (`OLD`, `MINOR=30`, ...).
    pub fn new(switches: &[&str]) -> Standin {
        // One compilation per set of switches, a copy per test.
        static COMPILED: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("libnrt.so.1");
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = compiled.entry(switches.join(" ")).or_insert_with(|| {
            Standin::compile(switches, &path);
            fs::read(&path).unwrap()
        });
        fs::write(&path, bytes).unwrap();
        Standin { path, _dir: dir }
    }

    fn compile(switches: &[&str], path: &Path) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-I"]);
        cc.arg(root.join("include")).args(switches.iter().map(|s| format!("-D{s}")));
        cc.arg(root.join("tests/it/standin.c")).arg("-o").arg(path);
        let output = cc.output().expect("cc");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Opens it.
    pub fn open(&self) -> Result<Library, LoadError> {
        // SAFETY: a stand-in of the project's own header.
        unsafe { Library::open_at(&self.path) }
    }

    /// Opens and starts it.
    pub fn start(&self) -> Runtime {
        Runtime::start(self.open().unwrap()).unwrap()
    }

    /// What one of its `standin_*` functions says.
    pub fn count(&self, name: &str) -> i32 {
        // SAFETY: it is mapped already, so nothing runs.
        let library = unsafe { libloading::Library::new(&self.path) }.unwrap();
        // SAFETY: the function's type in standin.c.
        let function = unsafe { library.get::<unsafe extern "C" fn() -> i32>(name) }.unwrap();
        // SAFETY: it only reads a counter.
        unsafe { function() }
    }

    /// That everything was given back, in order.
    pub fn assert_clean(&self) {
        let counts = ["standin_faults", "standin_live"].map(|name| self.count(name));
        assert_eq!(counts, [0, 0], "misuse, handles left");
        assert_eq!(self.count("standin_inits"), self.count("standin_closes"));
    }
}

/// The stand-in's model with its tensors: input0 (8 bytes) to output0, and a cache (16 bytes) updated in place.
pub struct Bound {
    /// Ready to run.
    pub run: Run,
    /// Of 8 bytes, filled with 1.
    pub input: Tensor,
    /// Of 8 bytes.
    pub output: Tensor,
    /// Of 16 bytes, zeroed.
    pub cache: Tensor,
}

impl Bound {
    /// On `core`.
    pub fn new(runtime: &Runtime, core: Core) -> Bound {
        let model = Arc::new(Model::load(runtime, core, b"NEFF", "decode-b1").unwrap());
        let input = Tensor::on_core(runtime, core, 8, "tokens").unwrap();
        let output = Tensor::on_core(runtime, core, 8, "candidates").unwrap();
        let cache = Tensor::on_core(runtime, core, 16, "cache").unwrap();
        input.fill(0, 8, 1).unwrap();
        cache.fill(0, 16, 0).unwrap();
        let (mut inputs, mut outputs) = (TensorSet::new(runtime).unwrap(), TensorSet::new(runtime).unwrap());
        inputs.bind("input0", &input).unwrap();
        inputs.bind("input1", &cache).unwrap();
        outputs.bind("output0", &output).unwrap();
        outputs.bind("output1", &cache).unwrap();
        Bound { run: Run::new(model, inputs, outputs).unwrap(), input, output, cache }
    }
}

/// All bytes of a tensor.
pub fn bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.size()];
    tensor.read(0, &mut bytes).unwrap();
    bytes
}
