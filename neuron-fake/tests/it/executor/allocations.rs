//! A warm step allocates nothing on njoule's side: not where batches are cut and handed over, not on a rank's thread.
//!
//! Every thread of the process is counted. The stand-in is not, because it is a library with an allocator of its own (the
//! system's): what this binary's allocator sees is what this binary's code asked for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use njoule_runtime::backend::{Batch, Bias, BlockId, Executor, Masks, SeqSpan, StepOutput, Wants};

use super::{SMALL, Shape, TOGETHER, backend, build, environment, load, place, small_model};
use crate::child::{child, faults, is_child};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Counts the allocations of all threads.
struct Counting;

// SAFETY: every call is passed on to the system allocator unchanged; counting is an atomic addition.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One token of each row, with biases and masks, and a chunk of another sequence.
fn fill(batch: &mut Batch, step: usize, vocab: usize, block_len: usize) {
    batch.clear();
    batch.wants = Wants::Tokens;
    batch.masks.words = Masks::words_for(vocab);
    let mut add = |block: u32, first: usize, tokens: usize| {
        let row = batch.tokens.len();
        for position in first..first + tokens {
            batch.tokens.push((position * 31 % vocab) as u32);
            batch.positions.push(position as u32);
            batch.slots.push(block * block_len as u32 + position as u32);
        }
        let table = batch.tables.len();
        batch.tables.push(BlockId(block));
        let (rows, context) = (row..row + tokens, first + tokens);
        batch.seqs.push(SeqSpan { rows, context, table: table..table + 1, rope_len: 64 });
        let output = batch.outputs.len() as u32;
        batch.outputs.push((row + tokens - 1) as u32);
        batch.biases.push(Bias { output, id: 3, value: 1.5 });
        if output % 2 == 1 {
            batch.masks.push(output).fill(0x5555_5555);
        }
    };
    (0..3).for_each(|block| add(block, step, 1));
    add(3, 0, 9 + step % 3);
}

fn steps() {
    let (model, backend) = (small_model(), backend(&place()));
    let (vocab, block_len) = (model.config.program().vocab(), backend.capacity().block_len);
    let mut executor = load(&backend, &model);
    let (mut batch, mut out) = (Batch::default(), StepOutput::default());
    let mut step = |i: usize| {
        fill(&mut batch, i, vocab, block_len);
        executor.submit(&batch).unwrap();
        executor.collect(&mut out).unwrap();
        assert_eq!(out.rows, 4);
    };
    (0..6).for_each(&mut step);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(before > 0, "loading allocates: it is counted");
    (6..30).for_each(&mut step);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
    drop(executor);
    assert_eq!(faults(), 0);
}

#[test]
fn a_warm_step_allocates_nothing() {
    let run = |environment: &[(&str, &str)]| child(environment, || steps());
    if is_child() {
        return run(&[]);
    }
    for shape in [SMALL, Shape { tp: 2, ..SMALL }, TOGETHER] {
        let dir = tempfile::tempdir().unwrap();
        build(&small_model().config.program(), shape, dir.path());
        // Scheduled runs and, of a library without them, executed ones.
        for version in ["2.34.10", "2.30.0"] {
            run(&[environment(dir.path()), vec![("NJOULE_FAKE_VERSION", version)]].concat());
        }
    }
}
