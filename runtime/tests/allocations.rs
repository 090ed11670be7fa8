//! A step of the cpu backend allocates nothing once it has run: neither the thread that submits it nor the team's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZero;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use njoule_models::checkpoint::Checkpoint;
use njoule_models::program::Program;
use njoule_models::weights::WeightSource;
use njoule_models::weights::random::RandomSource;
use njoule_runtime::backend::cpu::{CpuBackend, CpuExecutor};
use njoule_runtime::backend::{Batch, BlockId, Capacity, Executor, KvType, Quant, SeqSpan, StepOutput};

#[path = "fixture/every_op.rs"]
mod every_op;

static WATCHING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// Counts the allocations of all threads but the process's first while `WATCHING`.
struct Counting;

fn count() {
    // The first thread is the test harness's own: it may still be setting up its wait for this test.
    let is_first = || rustix::thread::gettid() == rustix::process::getpid();
    if WATCHING.load(Ordering::Relaxed) && !is_first() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system allocator unchanged; counting only touches atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CAPACITY: Capacity =
    Capacity { blocks: 16, block_len: 32, max_rows: 64, max_seqs: 4, max_outputs: 64, max_len: 128 };

/// `(rows, position)` per sequence; sequence `i` owns blocks `4 i ..`.
fn batch(parts: &[(usize, usize)], all_outputs: bool) -> Batch {
    let mut batch = Batch::default();
    for (i, (rows, position)) in parts.iter().enumerate() {
        let row = batch.rows();
        let table: Vec<BlockId> = (4 * i as u32..4 * i as u32 + 4).map(BlockId).collect();
        for p in *position..position + rows {
            batch.tokens.push((p * 7 % 200) as u32);
            batch.positions.push(p as u32);
            batch.slots.push(table[p / 32].0 * 32 + (p % 32) as u32);
        }
        let at = batch.tables.len();
        batch.tables.extend(&table);
        batch.seqs.push(SeqSpan { rows: row..row + rows, context: position + rows, table: at..at + 4, rope_len: 128 });
        let first = if all_outputs { row } else { row + rows - 1 };
        batch.outputs.extend(first as u32..(row + rows) as u32);
    }
    batch
}

/// Allocations and releases of a step.
fn allocations(executor: &mut CpuExecutor, batch: &Batch, out: &mut StepOutput) -> usize {
    ALLOCATIONS.store(0, Ordering::SeqCst);
    WATCHING.store(true, Ordering::SeqCst);
    let submitted = executor.submit(batch);
    let collected = executor.collect(out);
    WATCHING.store(false, Ordering::SeqCst);
    submitted.and(collected).expect("a valid step");
    ALLOCATIONS.load(Ordering::SeqCst)
}

/// The only test of this binary: another's allocations would count.
#[test]
fn steps_allocate_nothing_after_the_first() {
    // Packing weights starts rayon's threads, which may still allocate when the first step is counted.
    rayon::broadcast(|_| ());
    let mut cases = 0;
    for (name, quant, kv) in [
        ("llama_plain", Quant::None, None),
        ("mistral", Quant::Bf16, None),
        ("qwen3", Quant::Int8, Some(KvType::Int8)),
        ("gguf_llama", Quant::Int4, Some(KvType::F16)),
    ] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name);
        let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{name}: {e}"));
        let program = checkpoint.config.program();
        cases += check(name, &program, &*checkpoint.weights, quant, kv);
    }
    for quant in [Quant::None, Quant::Bf16, Quant::Int8, Quant::Int4] {
        cases += check("every op", &every_op::program(), &RandomSource::new(3), quant, None);
    }
    // The counter counts.
    WATCHING.store(true, Ordering::SeqCst);
    drop(std::hint::black_box(vec![1_u8; 100]));
    WATCHING.store(false, Ordering::SeqCst);
    assert!(ALLOCATIONS.load(Ordering::SeqCst) >= 2);
    println!("{cases} steps");
}

/// Runs steps of all kinds; how many.
fn check(name: &str, program: &Program, weights: &dyn WeightSource, quant: Quant, kv: Option<KvType>) -> usize {
    let mut cases = 0;
    for threads in [1, 2] {
        let mut backend = CpuBackend::new(NonZero::new(threads).expect("not zero"), quant).expect("a set");
        backend.kv = kv;
        let mut executor = backend.load_cpu(program, weights, CAPACITY).expect("a model that fits");
        let mut out = StepOutput::default();
        // The engine's buffer and the executor's change places at each step: both must have grown.
        let largest = batch(&[(40, 0), (8, 0), (8, 0), (8, 0)], true);
        for _ in 0..2 {
            allocations(&mut executor, &largest, &mut out);
        }
        let decodes = (0..8).map(|i| batch(&vec![(1, 40 + i); 1 + i % 4], false));
        let chunks = [1, 2, 3, 5, 12, 13, 31, 33, 64].map(|rows| batch(&[(rows, 0)], rows % 2 == 0));
        let mixed = [batch(&[(1, 70), (30, 0), (1, 3), (7, 64)], false), batch(&[(16, 16), (48, 0)], true)];
        for step in decodes.chain(chunks).chain(mixed) {
            cases += 1;
            let count = allocations(&mut executor, &step, &mut out);
            let spans: Vec<_> = step.seqs.iter().map(|s| (s.rows.len(), s.context)).collect();
            assert_eq!(count, 0, "{name} {quant:?} {threads} threads, (rows, context) {spans:?}");
            assert_eq!(out.rows, step.outputs.len());
        }
    }
    cases
}
