//! Same answer whatever the load, at the level of the executor: a sequence's logits at every position are bit-identical
//! to those it gets alone in one step, for any mix of other sequences, chunks, block tables, block lengths, numbers of
//! threads, and after its blocks were taken away and its tokens computed again; on every instruction set.
//!
//! Each run is a schedule drawn from a seed; a failure names model, types, set, threads and seed.

use std::num::NonZero;
use std::path::Path;

use njoule_kernels::isa::{Isa, Kernels};
use njoule_models::checkpoint::Checkpoint;
use njoule_models::program::Program;
use njoule_models::weights::WeightSource;
use njoule_models::weights::random::RandomSource;
use njoule_runtime::backend::cpu::{CpuBackend, CpuExecutor};
use njoule_runtime::backend::{Batch, BlockId, Capacity, Executor, KvType, Quant, SeqSpan, StepOutput};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[path = "fixture/every_op.rs"]
mod every_op;

/// The longest sequence; several key tiles of 64, and far beyond mistral's window of 16.
const MAX_LEN: usize = 150;
const MAX_ROWS: usize = 150;
const SEQUENCES: usize = 5;
const SCHEDULES: u32 = 2;

#[test]
fn llama_is_the_same_whatever_the_load() {
    check("llama_plain");
}

#[test]
fn mistral_with_its_window_is_the_same_whatever_the_load() {
    check("mistral");
}

#[test]
fn qwen3_with_its_head_norms_is_the_same_whatever_the_load() {
    check("qwen3");
}

#[test]
fn a_gguf_is_the_same_whatever_the_load() {
    check("gguf_llama");
}

#[test]
fn every_op_is_the_same_whatever_the_load() {
    const { assert!(MAX_LEN <= every_op::MAX_LEN && every_op::BEYOND < MAX_LEN) };
    check_program("every op", &every_op::program(), &RandomSource::new(3));
}

fn check(name: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name);
    let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{name}: {e}"));
    check_program(name, &checkpoint.config.program(), &*checkpoint.weights);
}

fn check_program(name: &str, program: &Program, weights: &dyn WeightSource) {
    let vocab = program.vocab();
    let mut draw = Draw(7);
    // One token, two, around a block and a key tile, and as long as can be.
    let sequences: [Vec<u32>; SEQUENCES] = [1, 2, 31 + draw.below(4), 62 + draw.below(5), MAX_LEN]
        .map(|n| (0..n).map(|_| draw.below(vocab) as u32).collect());
    let quants = [
        (Quant::None, None),
        (Quant::Bf16, None),
        (Quant::Int8, Some(KvType::Int8)),
        (Quant::Int4, Some(KvType::F16)),
        (Quant::Auto, Some(KvType::Bf16)),
    ];
    let mut runs = 0;
    for ((quant, kv), kernels) in quants.into_iter().flat_map(|q| Kernels::available().map(move |k| (q, k))) {
        let model = Model { weights, program, quant, kv, isa: kernels.isa };
        let mut executor = model.load(1, 32);
        let alone: Vec<Vec<u32>> = sequences.iter().map(|s| alone(&mut executor, s)).collect();
        for threads in 1..=4 {
            let block_len = [32, 16, 48, 64][threads - 1];
            let executor = std::cell::RefCell::new(model.load(threads, block_len));
            let config =
                Config { cases: SCHEDULES, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
            let outcome = TestRunner::new(config).run(&any::<u64>(), |seed| {
                let wrong = schedule(&mut executor.borrow_mut(), block_len, &sequences, &alone, seed);
                prop_assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
                Ok(())
            });
            runs += SCHEDULES;
            let set = kernels.isa.name();
            assert!(outcome.is_ok(), "{name} {quant:?} kv {kv:?} {set} {threads} threads: {outcome:?}");
        }
    }
    println!("{name}: {runs} schedules");
}

struct Model<'a> {
    weights: &'a dyn WeightSource,
    program: &'a Program,
    quant: Quant,
    kv: Option<KvType>,
    isa: Isa,
}

impl Model<'_> {
    fn load(&self, threads: usize, block_len: usize) -> CpuExecutor {
        let capacity = Capacity {
            blocks: blocks(block_len),
            block_len,
            max_rows: MAX_ROWS,
            max_seqs: SEQUENCES,
            max_outputs: MAX_ROWS,
            max_len: MAX_LEN,
        };
        let threads = NonZero::new(threads).expect("not zero");
        let mut backend = CpuBackend::new(threads, self.quant).expect("a set").with_isa(self.isa).expect("available");
        backend.kv = self.kv;
        backend.load_cpu(self.program, self.weights, capacity).expect("a model that fits")
    }
}

/// Blocks for two of the longest sequences: fewer than all sequences want at once.
fn blocks(block_len: usize) -> usize {
    2 * MAX_LEN.div_ceil(block_len) + 1
}

/// Reproducible draws (SplitMix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// True once in `n`.
    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

fn bits(row: &[f32]) -> impl Iterator<Item = u32> {
    row.iter().map(|x| x.to_bits())
}

/// Logits at all positions, the sequence alone in one step.
fn alone(executor: &mut CpuExecutor, ids: &[u32]) -> Vec<u32> {
    let mut batch = Batch::default();
    let table: Vec<BlockId> = (0..ids.len().div_ceil(32) as u32).map(BlockId).collect();
    add(&mut batch, ids, 0, ids.len(), &table, 32);
    batch.outputs = (0..ids.len() as u32).collect();
    let mut out = StepOutput::default();
    executor.submit(&batch).expect("a valid step");
    executor.collect(&mut out).expect("results");
    assert_eq!(out.rows, ids.len());
    let logits: Vec<u32> = (0..out.rows).flat_map(|i| bits(out.row(i)).collect::<Vec<_>>()).collect();
    assert!(logits.iter().all(|x| f32::from_bits(*x).is_finite()));
    logits
}

/// Appends `ids` of a sequence of `len` from `position` on.
fn add(batch: &mut Batch, ids: &[u32], position: usize, len: usize, table: &[BlockId], block_len: usize) {
    let (row, at) = (batch.rows(), batch.tables.len());
    batch.tokens.extend(ids);
    for p in position..position + ids.len() {
        batch.positions.push(p as u32);
        batch.slots.push(table[p / block_len].0 * block_len as u32 + (p % block_len) as u32);
    }
    batch.tables.extend(table);
    batch.seqs.push(SeqSpan {
        rows: row..row + ids.len(),
        context: position + ids.len(),
        table: at..at + table.len(),
        rope_len: len,
    });
}

#[derive(Clone, Default)]
struct Progress {
    done: usize,
    table: Vec<BlockId>,
}

/// Runs all sequences to their ends by a random schedule; says what differs from `alone`.
fn schedule(
    executor: &mut CpuExecutor,
    block_len: usize,
    sequences: &[Vec<u32>],
    alone: &[Vec<u32>],
    seed: u64,
) -> Option<String> {
    let mut draw = Draw(seed);
    let mut free: Vec<BlockId> = (0..blocks(block_len) as u32).map(BlockId).collect();
    let mut progress = vec![Progress::default(); sequences.len()];
    let (mut batch, mut out) = (Batch::default(), StepOutput::default());
    // How large chunks tend to be: decodes only up to whole prompts.
    let reach = [3, 20, 70, MAX_LEN][draw.below(4)];
    let mut preemptions = 6;
    for step in 0.. {
        batch.clear();
        let mut members = vec![];
        let mut room = MAX_ROWS;
        let mut starved = false;
        let start = draw.below(sequences.len());
        for s in (0..sequences.len()).map(|i| (start + i) % sequences.len()) {
            let (ids, p) = (&sequences[s], &mut progress[s]);
            if p.done == ids.len() || draw.once_in(3) || room == 0 {
                continue;
            }
            let want = if draw.once_in(3) { 1 } else { 1 + draw.below(reach) };
            let rows = want.min(ids.len() - p.done).min(room);
            let needed = (p.done + rows).div_ceil(block_len);
            if needed - p.table.len().min(needed) > free.len() {
                starved = true;
                continue;
            }
            while p.table.len() < needed {
                p.table.push(free.swap_remove(draw.below(free.len())));
            }
            add(&mut batch, &ids[p.done..p.done + rows], p.done, ids.len(), &p.table, block_len);
            members.extend((p.done..p.done + rows).map(|position| (s, position)));
            p.done += rows;
            room -= rows;
        }
        batch.outputs.extend((0..members.len() as u32).filter(|_| !draw.once_in(5)));
        if !members.is_empty() {
            executor.submit(&batch).expect("a valid step");
            executor.collect(&mut out).expect("results");
        }
        for (i, row) in batch.outputs.iter().enumerate() {
            let (s, position) = members[*row as usize];
            if !bits(out.row(i)).eq(alone[s][position * out.vocab..][..out.vocab].iter().copied()) {
                let spans: Vec<_> = batch.seqs.iter().map(|s| (s.rows.len(), s.context)).collect();
                return Some(format!("step {step}: sequence {s} at {position}; (rows, context) {spans:?}"));
            }
        }
        // A sequence that ended, or one that is preempted, gives its blocks to whoever comes next.
        let stuck = members.is_empty() && starved;
        for (s, p) in progress.iter_mut().enumerate() {
            let ended = p.done == sequences[s].len();
            let preempted = !ended && ((preemptions > 0 && draw.once_in(20)) || stuck);
            if ended || preempted {
                free.append(&mut p.table);
            }
            if preempted {
                preemptions -= i32::from(p.done > 0);
                p.done = 0;
            }
        }
        if progress.iter().zip(sequences).all(|(p, s)| p.done == s.len()) {
            return None;
        }
        if step > 3000 {
            return Some("the schedule never ends".into());
        }
    }
    None
}
