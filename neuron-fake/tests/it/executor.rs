//! njoule's executor and engine on the stand-in: a model built by the stand-in compiler, requests through all of it.

mod allocations;
mod faults;
mod narrow;
mod rows;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use njoule_models::checkpoint::Checkpoint;
use njoule_models::program::Program;
use njoule_runtime::backend::neuron::artifact::{Artifact, Layout, ModelRecord, Origin};
use njoule_runtime::backend::neuron::build::Job;
use njoule_runtime::backend::neuron::compiler::{Compiler, NeffCache};
use njoule_runtime::backend::neuron::executor::NeuronExecutor;
use njoule_runtime::backend::neuron::{CacheShape, ModuleKind, ModuleSpec, NeuronBackend, Part, Profile};
use njoule_runtime::backend::{Backend, KvType, Quant};
use njoule_runtime::request::{MaskError, MaskStream, TokenMask};
use njoule_runtime::{Engine, EngineConfig};

/// What is served, and in which buckets.
#[derive(Clone, Copy, Debug)]
struct Shape {
    tp: usize,
    rows: usize,
    positions: usize,
    /// Rows of a second, longer class, which decode together with those of the first.
    longer: usize,
    /// Of prefill chunks.
    chunks: &'static [usize],
    candidates: usize,
}

/// Rows in one decode bucket: each request runs in the same NEFF whatever runs beside it.
const SMALL: Shape = Shape { tp: 1, rows: 4, positions: 80, longer: 0, chunks: &[16], candidates: 16 };

/// As many rows, of two classes.
const TOGETHER: Shape = Shape { rows: 2, longer: 2, ..SMALL };

/// A fixture with a tied head and grouped heads.
fn small_model() -> Checkpoint {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/llama_tied");
    Checkpoint::open(&dir).unwrap()
}

/// Builds its modules; the weights come from the checkpoint at load.
fn build(program: &Program, shape: Shape, place: &Path) -> Artifact {
    let mut classes = vec![CacheShape { rows: shape.rows, positions: shape.positions }];
    classes.extend((shape.longer > 0).then_some(CacheShape { rows: shape.longer, positions: shape.positions + 16 }));
    let whole = |class: &CacheShape| Part { class: *class, rows: class.rows, len: class.positions };
    let prefill = |class: &CacheShape, tokens| ModuleSpec::of(*class, ModuleKind::Prefill { tokens }, class.positions);
    let prefills = classes.iter().flat_map(|class| shape.chunks.iter().map(move |&tokens| prefill(class, tokens)));
    let modules = prefills.chain([ModuleSpec::decode(classes.iter().map(whole).collect())]);
    let modules = modules.map(|module| ModuleSpec { biases: 8, mask: true, ..module }).collect();
    let layout = Layout {
        instance: "inf2.24xlarge".to_owned(),
        target: njoule_hlo::Target::Inf2,
        lnc: None,
        tp: shape.tp,
        replicas: 1,
        weights: Quant::None,
        kv: KvType::F32,
        candidates: shape.candidates,
        context: classes[classes.len() - 1].positions,
        profile: Profile::default(),
        classes,
        modules,
    };
    let model = ModelRecord {
        name: "small".to_owned(),
        architecture: program.name.clone(),
        fingerprint: format!("{:016x}", program.fingerprint()),
        vocab: program.vocab(),
        origin: Origin::None,
    };
    let plan = serde_json::Value::Null;
    let cancelled = &AtomicBool::new(false);
    let job = Job { program, model: &model, layout: &layout, plan: &plan, flags: &[], opt_level: None, cancelled };
    let compiler = Compiler::at(Path::new(env!("CARGO_BIN_EXE_neuronx-cc-fake"))).unwrap();
    let lowering = job.lower(&|_| {}).unwrap();
    let cache = NeffCache::new(&place.join("cache"));
    let compiled = job.compile(&lowering, &compiler, &cache, None, &|_| {}).unwrap();
    job.write(&place.join("artifact"), &lowering, &compiler, &compiled, None, |_| Ok(()), &|_| {}).unwrap()
}

/// The artifact that a parent built in `place`.
fn backend(place: &Path) -> NeuronBackend {
    NeuronBackend::new(Artifact::open(&place.join("artifact")).unwrap())
}

fn load(backend: &NeuronBackend, checkpoint: &Checkpoint) -> NeuronExecutor {
    let program = checkpoint.config.program();
    backend.load_neuron(&program, checkpoint.weights.as_ref(), backend.capacity()).unwrap()
}

fn engine(backend: &NeuronBackend, executor: NeuronExecutor, program: &Program) -> Engine {
    let limits = backend.limits(program);
    let config = EngineConfig { limits, ..EngineConfig::new(backend.capacity()) };
    Engine::start(Box::new(executor), program.vocab(), config).unwrap()
}

/// Where a parent tells its child what it built.
const PLACE: &str = "NJOULE_FAKE_TEST_PLACE";

fn place() -> PathBuf {
    std::env::var_os(PLACE).unwrap().into()
}

/// What every child is given: more cores than a group needs, an address where ranks meet.
fn environment(place: &Path) -> Vec<(&str, &str)> {
    vec![
        (PLACE, place.to_str().unwrap()),
        ("NJOULE_FAKE_INSTANCE", "inf2.24xlarge"),
        ("NEURON_RT_ROOT_COMM_ID", "127.0.0.1:20000"),
        ("NJOULE_PJRT", ""),
    ]
}

/// Allows a part of the tokens, always the same.
struct Some32(u32);

impl TokenMask for Some32 {
    fn start(self: Arc<Self>, _: &[u32]) -> Box<dyn MaskStream> {
        Box::new(Some32(self.0))
    }
}

impl MaskStream for Some32 {
    fn fill(&mut self, _: &[u32], allowed: &mut [u32]) -> Result<(), MaskError> {
        allowed.fill(self.0);
        Ok(())
    }
}
