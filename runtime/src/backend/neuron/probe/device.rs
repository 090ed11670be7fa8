//! A core of this machine as the probe sees it, by libnrt; NEFFs come from the compiler or from a directory.
//!
//! Every call that may hang has a limit; one that did hang leaves the core unusable, and every later step fails by that.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use njoule_hlo::{Module, Tensor, encode};
use njoule_neuron_sys as sys;
use sys::sysfs::Root;

use super::{Fault, PowerFound, ProbeDevice, Stage};
use crate::backend::neuron::compiler::{Compiler, Limits, NeffCache, Settings, Unit};
use crate::backend::neuron::executor;

/// The first core that this process owns.
pub struct NeuronDevice {
    neffs: Neffs,
    root: Root,
    open: Option<Open>,
}

/// Where a module's NEFF comes from.
#[derive(Clone, Debug)]
pub enum Neffs {
    /// `DIR/NAME.neff`, compiled elsewhere; of a module that has none its `DIR/NAME.pb` is written, to be compiled next.
    Directory(PathBuf),
    /// This compiler, each module once.
    Compiler {
        /// Which.
        compiler: Compiler,
        /// What it made is kept there.
        cache: NeffCache,
        /// How.
        settings: Settings,
        /// Set by somebody who wants to stop.
        cancelled: Arc<AtomicBool>,
    },
}

struct Open {
    lane: sys::Lane,
    runtime: sys::Runtime,
    core: sys::Core,
}

impl NeuronDevice {
    /// Nothing is opened yet. Power is read below `root`.
    pub fn new(neffs: Neffs, root: Root) -> NeuronDevice {
        NeuronDevice { neffs, root, open: None }
    }

    fn neff(&self, module: &Module) -> Result<Vec<u8>, Fault> {
        let path = match &self.neffs {
            Neffs::Directory(dir) => {
                let path = dir.join(format!("{}.neff", module.name));
                if !path.exists() {
                    return Err(at(Stage::Compile)(self.not_compiled(dir, module)));
                }
                path
            }
            Neffs::Compiler { compiler, cache, settings, cancelled } => {
                let unit = Unit { name: module.name.clone(), hlo: encode(module), settings: settings.clone() };
                let limits = Limits { jobs: Some(1), memory: None, deadline: Some(COMPILE), cancelled };
                let done = compiler.compile(&[unit], cache, limits, &|_| {}).map_err(at(Stage::Compile))?;
                match done.into_iter().next() {
                    Some(compiled) => compiled.neff,
                    None => return Err(at(Stage::Compile)("the compiler gave nothing")),
                }
            }
        };
        fs::read(&path).map_err(|error| at(Stage::Compile)(format!("{}: {error}", path.display())))
    }

    /// A module whose NEFF is not there was refused elsewhere, or is of a form that nobody knew would be chosen.
    fn not_compiled(&self, dir: &Path, module: &Module) -> String {
        let source = dir.join(format!("{}.pb", module.name));
        if source.exists() {
            return "no NEFF of it is there: the compiler refused it, or compile.sh has not run since it was added"
                .to_owned();
        }
        match fs::write(&source, encode(module)) {
            Ok(()) => "no NEFF of it is there; the module was added: run compile.sh there once more".to_owned(),
            Err(error) => format!("no NEFF of it is there, and the module cannot be added: {error}"),
        }
    }
}

impl ProbeDevice for NeuronDevice {
    fn library(&mut self) -> Result<String, Fault> {
        let library = sys::Library::open().map_err(at(Stage::Open))?;
        let version = library.version();
        // Three numbers: four look like an address, which a report takes out.
        let number = format!("{}.{}.{}", version.major, version.minor, version.patch);
        Ok(format!("libnrt {number} \"{}\"", version.detail))
    }

    fn core(&mut self) -> Result<String, Fault> {
        let runtime = executor::runtime().map_err(at(Stage::Open))?;
        let core = runtime.core(0).map_err(at(Stage::Open))?;
        let lane = sys::Lane::new("probe").map_err(at(Stage::Open))?;
        let instance = match runtime.library().instance() {
            Ok(instance) => format!("{} {}", instance.family, instance.arch),
            Err(error) => error.to_string(),
        };
        let words = format!("{instance}, {} cores", runtime.cores().len());
        self.open = Some(Open { lane, runtime, core });
        Ok(words)
    }

    fn run(&mut self, module: &Module, inputs: &[Tensor], runs: usize) -> Result<Vec<Tensor>, Fault> {
        let neff = self.neff(module)?;
        let Some(open) = &mut self.open else { return Err(at(Stage::Open)("no core is open")) };
        open.run(module, neff, inputs, runs)
    }

    fn power(&mut self) -> PowerFound {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        PowerFound::read(&self.root, now)
    }
}

impl Open {
    fn run(&mut self, module: &Module, neff: Vec<u8>, inputs: &[Tensor], runs: usize) -> Result<Vec<Tensor>, Fault> {
        let (runtime, core, name) = (self.runtime.clone(), self.core, module.name.clone());
        let load = move || sys::Model::load(&runtime, core, &neff, &name);
        let model = self.lane.call("a load", LOAD, load).and_then(|model| model).map_err(at(Stage::Load))?;

        let new =
            |name: &str, bytes: usize| sys::Tensor::on_core(&self.runtime, core, bytes, name).map_err(at(Stage::Load));
        let mut taken = vec![];
        for (number, input) in inputs.iter().enumerate() {
            let tensor = new(&format!("input{number}"), input.shape().bytes())?;
            tensor.write(0, &input.to_bytes()).map_err(at(Stage::Load))?;
            taken.push(Rc::new(tensor));
        }
        let mut given = vec![];
        for (number, result) in module.results().iter().enumerate() {
            let alias = module.aliases.iter().find(|alias| alias.output == Some(number));
            match alias.and_then(|alias| taken.get(alias.parameter)) {
                Some(input) => given.push(input.clone()),
                None => {
                    let tensor = new(&format!("output{number}"), result.bytes())?;
                    // All ones are NaN in every float: what is not written shows.
                    tensor.fill(0, tensor.size(), 0xff).map_err(at(Stage::Load))?;
                    given.push(Rc::new(tensor));
                }
            }
        }
        let set = |side: &str, tensors: &[Rc<sys::Tensor>]| {
            let mut set = sys::TensorSet::new(&self.runtime)?;
            for (number, tensor) in tensors.iter().enumerate() {
                set.bind(&format!("{side}{number}"), tensor)?;
            }
            Ok::<_, sys::Error>(set)
        };
        let sets = set("input", &taken).and_then(|inputs| Ok((inputs, set("output", &given)?)));
        let (from, to) = sets.map_err(at(Stage::Load))?;
        let mut run = sys::Run::new(Arc::new(model), from, to).map_err(at(Stage::Load))?;
        for _ in 0..runs {
            self.lane.execute(&mut run, STEP).map_err(at(Stage::Execute))?;
        }
        let read = |(tensor, shape): (&Rc<sys::Tensor>, &njoule_hlo::ArrayShape)| {
            let mut bytes = vec![0; tensor.size()];
            tensor.read(0, &mut bytes).map_err(at(Stage::Execute))?;
            Tensor::from_bytes(*shape, &bytes).map_err(at(Stage::Execute))
        };
        given.iter().zip(module.results()).map(read).collect()
    }
}

fn at<E: ToString>(stage: Stage) -> impl Fn(E) -> Fault {
    move |words| Fault { stage, words: words.to_string() }
}

const COMPILE: Duration = Duration::from_secs(1200);
const LOAD: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_secs(60);
