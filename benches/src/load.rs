//! What building and loading an artifact takes of this machine, on the stand-ins: njoule's own memory beside a model's weights,
//! and the time of a load beside that of copying the same bytes.
//!
//! A build runs in a process of its own, whose largest resident size is told; the stand-in compiler is in others. A load
//! runs in another: its weights lie in that process, since they are the stand-in's device memory, and are taken off. A copy
//! reads the files of all ranks at once, each by a thread, into fresh memory, which is what the stand-in has of a device.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use njoule_models::checkpoint::Checkpoint;
use njoule_runtime::backend::neuron::artifact::{Artifact, Layout};
use njoule_runtime::backend::neuron::{CacheShape, ModuleKind, ModuleSpec, NeuronBackend, Profile};
use njoule_runtime::backend::{KvType, Quant};

use crate::flags::Flags;
use crate::standin;

/// Of the command line.
struct Options {
    model: String,
    quant: Quant,
    tp: usize,
    times: usize,
    directory: String,
}

impl Options {
    fn read() -> Result<Options> {
        let mut flags = Flags::read()?;
        let options = Options {
            model: flags.take("model", Some("llama-3.1-8b"))?,
            quant: match flags.take("quant", Some("int8"))?.as_str() {
                "bf16" => Quant::Bf16,
                "int8" => Quant::Int8,
                other => bail!("--quant is bf16 or int8, not {other}"),
            },
            tp: flags.take("tp", Some("2"))?.parse().context("--tp")?,
            times: flags.take("times", Some("3"))?.parse().context("--times")?,
            directory: flags.take("dir", Some(""))?,
        };
        flags.finish()?;
        ensure!(options.times > 0 && options.tp > 0, "--times and --tp must be positive");
        Ok(options)
    }
}

/// Measures; or does what its parent asks for, where it is a child.
pub fn main() -> ExitCode {
    standin::program(Options::read, run)
}

fn run(options: &Options) -> Result<()> {
    match std::env::var(PHASE).as_deref() {
        Ok("build") => build(options),
        Ok("load") => load(options),
        _ => measure(options),
    }
}

fn measure(options: &Options) -> Result<()> {
    let place = match options.directory.as_str() {
        "" => tempfile::tempdir()?,
        given => tempfile::tempdir_in(given)?,
    };
    let place = place.path();
    let [seconds, peak] = phase("build", place)?;
    let artifact = Artifact::open(&place.join("artifact"))?;
    let files: Vec<_> = artifact.manifest.weights.iter().map(|file| artifact.dir.join(&file.path)).collect();
    let sizes = files.iter().map(|path| Ok(path.metadata()?.len())).collect::<Result<Vec<u64>>>()?;
    let bytes: u64 = sizes.iter().sum();
    let largest = largest_tensor(&Checkpoint::random(&options.model)?);
    println!(
        "build of {} for {} cores: {:.2} GB of weights in {seconds:.1} s; njoule's own memory {:.3} GB at most (one tensor: {:.3} GB)",
        options.model,
        options.tp,
        bytes as f64 / 1e9,
        peak / 1e9,
        largest as f64 / 1e9
    );
    // Once, so that all is in the page cache.
    copy(&files)?;
    let (mut copies, mut loads, mut beside) = (vec![], vec![], 0.0_f64);
    for _ in 0..options.times {
        copies.push(copy(&files)?.as_secs_f64());
        let [seconds, peak] = phase("load", place)?;
        loads.push(seconds);
        beside = beside.max(peak - bytes as f64);
    }
    let [copied, loaded] = [&mut copies, &mut loads].map(|times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    println!(
        "load: {loaded:.2} s in the median ({:.2} GB/s), copying {copied:.2} s ({:.2} GB/s): at {:.0} % of its speed; \
         njoule's own memory {:.3} GB at most",
        bytes as f64 / loaded / 1e9,
        bytes as f64 / copied / 1e9,
        copied / loaded * 100.0,
        beside / 1e9
    );
    Ok(())
}

/// What a child says: seconds, and its largest resident size in bytes.
fn phase(name: &str, place: &Path) -> Result<[f64; 2]> {
    let place = place.to_str().context("the directory's name is no text")?;
    let switches = [
        ("NJOULE_FAKE_INSTANCE", "inf2.48xlarge"),
        ("NJOULE_FAKE_HBM_BYTES", HBM),
        ("NJOULE_FAKE_EVALUATE", "0"),
        ("NEURON_RT_ROOT_COMM_ID", "127.0.0.1:20000"),
        (PHASE, name),
        (PLACE, place),
    ];
    let output = standin::child(&standin::library()?, &switches)?.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the child of phase {name} ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().map_err(|_| anyhow::anyhow!("the child of phase {name} said {text:?}"))
}

fn place() -> Result<std::path::PathBuf> {
    std::env::var_os(PLACE).map(Into::into).context("a child without a place")
}

fn build(options: &Options) -> Result<()> {
    let (place, checkpoint) = (place()?, Checkpoint::random(&options.model)?);
    let start = Instant::now();
    let layout = layout(options);
    standin::build(&checkpoint.config.program(), &layout, Some(checkpoint.weights.as_ref()), &place)?;
    println!("{} {}", start.elapsed().as_secs_f64(), peak()?);
    Ok(())
}

fn load(options: &Options) -> Result<()> {
    let (place, checkpoint) = (place()?, Checkpoint::random(&options.model)?);
    let start = Instant::now();
    let backend = NeuronBackend::new(Artifact::open(&place.join("artifact"))?);
    let program = checkpoint.config.program();
    let executor = backend.load_neuron(&program, checkpoint.weights.as_ref(), backend.capacity())?;
    println!("{} {}", start.elapsed().as_secs_f64(), peak()?);
    drop(executor);
    Ok(())
}

fn layout(options: &Options) -> Layout {
    let class = CacheShape { rows: ROWS, positions: POSITIONS };
    let spec = |kind| ModuleSpec { biases: 8, mask: true, ..ModuleSpec::of(class, kind, POSITIONS) };
    let kinds = [ModuleKind::Prefill { tokens: CHUNK }, ModuleKind::Decode { batch: ROWS }];
    Layout {
        instance: "inf2.48xlarge".to_owned(),
        target: njoule_hlo::Target::Inf2,
        lnc: None,
        tp: options.tp,
        replicas: 1,
        weights: options.quant,
        kv: KvType::Bf16,
        candidates: 64,
        context: POSITIONS,
        profile: Profile::default(),
        classes: vec![class],
        modules: kinds.map(spec).into(),
    }
}

/// Reads all files at once into fresh memory.
fn copy(files: &[std::path::PathBuf]) -> Result<Duration> {
    let start = Instant::now();
    let one = |path: &Path| -> Result<u8> {
        let mut file = File::open(path)?;
        let size = usize::try_from(file.metadata()?.len())?;
        let mut memory = Vec::with_capacity(size);
        file.read_to_end(&mut memory)?;
        ensure!(memory.len() == size, "{} was cut off", path.display());
        // So that nobody thinks it was not needed.
        Ok(memory.last().copied().unwrap_or(0))
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = files.iter().map(|path| scope.spawn(move || one(path))).collect();
        let end = |thread: std::thread::ScopedJoinHandle<'_, Result<u8>>| match thread.join() {
            Ok(result) => result.map(|_| ()),
            Err(_) => bail!("a thread that copies panicked"),
        };
        threads.into_iter().try_for_each(end)
    })?;
    Ok(start.elapsed())
}

/// As f32, which weights become on their way.
fn largest_tensor(checkpoint: &Checkpoint) -> u64 {
    let weights = checkpoint.config.program().weights;
    weights.iter().map(|w| 4 * (w.experts.unwrap_or(1) * w.rows * w.cols) as u64).max().unwrap_or(0)
}

/// The largest resident size of this process so far.
fn peak() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// What a child is to do, and where.
const PHASE: &str = "NJOULE_BENCH_PHASE";
const PLACE: &str = "NJOULE_BENCH_PLACE";
/// Of a core: more than any chip's, so that models of any size load.
const HBM: &str = "137438953472";
const ROWS: usize = 4;
const POSITIONS: usize = 1024;
const CHUNK: usize = 128;
