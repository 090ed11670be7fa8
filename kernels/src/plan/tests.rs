//! Plans: what [`Plan::run`] refuses, that no two live values share memory, and that a step reads nothing that it (or
//! the cache) did not write.

use std::num::NonZero;

mod experts;
mod ops;

use proptest::prelude::*;

use super::layout::{Layout, Span as Life};
use super::*;
use crate::fixture::{Matrix, Noise, bits};
use crate::isa::Kernels;
use crate::kv::{KvShape, KvStored};
use crate::packed::Stored;
use crate::team::Team;

const LIMITS: PlanLimits = PlanLimits { max_rows: 40, max_seqs: 3, max_outputs: 5, threads: 2 };
const BLOCK: usize = 16;
const BLOCKS: usize = 8;
const VOCAB: usize = 50;

/// A layer and a half of a model whose every size is odd for panels and lanes: hidden 36, heads 4 (2 of keys) of 10.
fn plan(kernels: &'static Kernels, stored: Stored, kv: KvStored) -> Plan {
    let (hidden, head, heads, kv_heads, inner) = (36, 10, 4, 2, 50);
    let mut seed = 0;
    let mut weight = |rows, cols| {
        seed += 1;
        Arc::new(Matrix::random(rows, cols, seed).pack(stored))
    };
    let vector = |n: usize| -> Vector { Noise::new(n as u64).values(n, 1.0).iter().map(|x| 1.0 + x).collect() };
    let rms = |n: usize| Norm { kind: NormKind::Rms, weight: Some(vector(n)), bias: None, eps: 1e-5 };
    let mut b = PlanBuilder::new();
    let table = weight(VOCAB, hidden);
    let rope = b.rope_table(RopeTable { inv_freq: vec![1.0, 0.1, 0.01, 0.001, 0.0001], amplitude: 1.0, long: None });
    let mut x = b.val(hidden, RowSet::Tokens);
    b.embed(table.clone(), Embedding::Token, x);
    let mut normed = b.val(hidden, RowSet::Tokens);
    b.norm(x, rms(hidden), NormGroup::Row, normed);
    for layer in 0..2 {
        let cache = b.cache(KvShape {
            blocks: BLOCKS,
            block_len: BLOCK,
            heads: kv_heads,
            k_dim: head,
            v_dim: head,
            stored: kv,
        });
        let qkv = [heads, kv_heads, kv_heads].map(|n| b.val(n * head, RowSet::Tokens));
        let parts = [heads, kv_heads, kv_heads]
            .into_iter()
            .zip(qkv)
            .map(|(n, out)| (Product { weight: weight(n * head, hidden), bias: Some(vector(n * head)) }, out));
        b.linear(normed, parts.collect());
        let turned = [0, 1].map(|i| {
            let (scaled, out) = (
                b.val([heads, kv_heads][i] * head, RowSet::Tokens),
                b.val([heads, kv_heads][i] * head, RowSet::Tokens),
            );
            b.norm(qkv[i], rms(head), NormGroup::Head(head), scaled);
            b.rope(scaled, rope, head, Pairing::Half, out);
            out
        });
        let attended = b.val(heads * head, RowSet::Tokens);
        let window = (layer == 1).then_some(7);
        let how = AttendHow { heads, scale: 0.3, window, softcap: None, sinks: None, alibi: None };
        b.attend([turned[0], turned[1], qkv[2]], cache, how, attended);
        let delta = b.val(hidden, RowSet::Tokens);
        b.linear(attended, vec![(plain(weight(hidden, heads * head)), delta)]);
        let (sum, out) = (b.val(hidden, RowSet::Tokens), b.val(hidden, RowSet::Tokens));
        b.add_norm(x, delta, rms(hidden), sum, out);
        let (act, down, next) =
            (b.val(inner, RowSet::Tokens), b.val(hidden, RowSet::Tokens), b.val(hidden, RowSet::Tokens));
        let gate_up = [plain(weight(inner, hidden)), plain(weight(inner, hidden))];
        b.gated(out, gate_up, Glu::Act(Act::Silu), act);
        b.linear(act, vec![(plain(weight(hidden, inner)), down)]);
        b.add(sum, down, next);
        x = next;
        normed = b.val(hidden, RowSet::Tokens);
        b.norm(x, rms(hidden), NormGroup::Row, normed);
    }
    let last = b.val(hidden, RowSet::Outputs);
    b.take(normed, last);
    let logits = b.val(VOCAB, RowSet::Outputs);
    b.linear(last, vec![(plain(table), logits)]);
    b.logits(logits);
    b.finish(kernels, LIMITS).expect("memory")
}

fn plain(weight: Arc<Packed>) -> Product {
    Product { weight, bias: None }
}

/// A step's input, owned.
#[derive(Clone, Debug, Default)]
struct Step {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    spans: Vec<Span>,
    tables: Vec<u32>,
    outputs: Vec<u32>,
}

impl Step {
    fn add(&mut self, tokens: impl Iterator<Item = u32>, position: usize, blocks: &[u32]) {
        let row = self.tokens.len();
        self.tokens.extend(tokens);
        let rows = self.tokens.len() - row;
        self.spans.push(Span { row, rows, position, table: self.tables.len(), blocks: blocks.len(), rope_len: 0 });
        self.tables.extend(blocks);
        for p in position..position + rows {
            self.positions.push(p as u32);
            self.slots.push(blocks[p / BLOCK] * BLOCK as u32 + (p % BLOCK) as u32);
        }
    }

    fn input(&self) -> StepInput<'_> {
        StepInput {
            tokens: &self.tokens,
            positions: &self.positions,
            slots: &self.slots,
            spans: &self.spans,
            tables: &self.tables,
            outputs: &self.outputs,
        }
    }
}

/// Twenty rows of one sequence, three of another.
fn step() -> Step {
    let mut step = Step::default();
    step.add((0..20).map(|i| i * 7 % VOCAB as u32), 0, &[3, 1]);
    step.add(4..7, 0, &[6]);
    step.outputs = vec![0, 19, 20, 22];
    step
}

fn team(threads: usize) -> Team {
    Team::new(NonZero::new(threads).expect("not zero")).expect("threads")
}

fn run(plan: &mut Plan, team: &mut Team, step: &Step) -> Vec<f32> {
    let mut logits = vec![f32::NAN; step.outputs.len() * plan.logits_stride()];
    plan.run(team, &step.input(), &mut logits).expect("a valid step");
    let stride = plan.logits_stride();
    logits.chunks(stride).flat_map(|row| row[..VOCAB].to_vec()).collect()
}

fn fill(plan: &mut Plan, byte: u8) {
    plan.arena.as_mut_slice().fill(byte);
    for cache in &mut plan.caches {
        for buffer in [&mut cache.keys, &mut cache.values, &mut cache.key_scales, &mut cache.value_scales] {
            buffer.as_mut_slice().fill(byte);
        }
    }
}

#[test]
fn a_step_reads_only_what_was_written() {
    let mut team = team(2);
    let kv_types = [KvStored::F32, KvStored::F16, KvStored::Bf16, KvStored::Int8];
    for kernels in Kernels::available() {
        for (i, stored) in Stored::ALL.into_iter().enumerate() {
            let mut plan = plan(kernels, stored, kv_types[i % 4]);
            let mut decode = Step::default();
            decode.add(8..9, 20, &[3, 1]);
            decode.add(9..11, 3, &[6]);
            decode.outputs = vec![0, 1, 2];
            let mut all = vec![];
            // Zeros, NaN in every type, and whatever the steps before left.
            for byte in [Some(0), Some(0xff), None] {
                let mut logits = vec![];
                for step in [step(), decode.clone()] {
                    match byte {
                        Some(byte) if step.spans[0].position == 0 => fill(&mut plan, byte),
                        Some(byte) => plan.arena.as_mut_slice().fill(byte),
                        None => {}
                    }
                    logits.extend(run(&mut plan, &mut team, &step));
                }
                assert!(logits.iter().all(|x| x.is_finite()), "{} {} {byte:?}", kernels.isa.name(), stored.name());
                all.push(bits(&logits));
            }
            assert!(all.iter().all(|l| *l == all[0]), "{} {}", kernels.isa.name(), stored.name());
        }
    }
}

#[test]
fn a_step_without_outputs_still_fills_the_cache() {
    let kernels = Kernels::available().last().expect("the scalar set");
    let mut team = team(2);
    let mut whole = step();
    whole.outputs = vec![19];
    let want = run(&mut plan(kernels, Stored::F32, KvStored::F32), &mut team, &whole);
    let mut plan = plan(kernels, Stored::F32, KvStored::F32);
    let (mut first, mut second) = (Step::default(), Step::default());
    first.add((0..12).map(|i| i * 7 % VOCAB as u32), 0, &[3, 1]);
    second.add((12..20).map(|i| i * 7 % VOCAB as u32), 12, &[3, 1]);
    second.outputs = vec![7];
    assert!(run(&mut plan, &mut team, &first).is_empty());
    assert_eq!(bits(&run(&mut plan, &mut team, &second)), bits(&want));
}

#[test]
fn an_empty_step_is_taken() {
    let kernels = Kernels::available().last().expect("the scalar set");
    let mut plan = plan(kernels, Stored::F32, KvStored::F32);
    assert!(run(&mut plan, &mut team(2), &Step::default()).is_empty());
}

#[test]
fn a_step_that_breaks_the_contract_is_refused_with_its_reason() {
    let kernels = Kernels::available().last().expect("the scalar set");
    let mut plan = plan(kernels, Stored::F32, KvStored::F32);
    type Break = fn(&mut Step);
    let cases: [(&str, Break); 21] = [
        ("41 rows", |s| {
            *s = Step::default();
            s.add((0..41).map(|_| 0), 0, &[0, 1, 2]);
        }),
        ("4 sequences", |s| {
            *s = Step::default();
            (0..4).for_each(|i| s.add(0..1, 0, &[i]));
        }),
        ("6 outputs", |s| s.outputs = vec![0; 6]),
        ("positions and slots", |s| _ = s.positions.pop()),
        ("positions and slots", |s| s.slots.push(0)),
        ("output row 23 of 23", |s| s.outputs = vec![23]),
        ("token 50 of a vocabulary of 50", |s| s.tokens[3] = 50),
        ("token 4294967295", |s| s.tokens[22] = u32::MAX),
        ("cover the rows in order", |s| s.spans.swap(0, 1)),
        ("cover the rows in order", |s| s.spans[0].rows = 0),
        ("exceeds the rows or the tables", |s| s.spans[1].rows = 4),
        ("exceeds the rows or the tables", |s| s.spans[1].blocks = 2),
        ("exceeds the rows or the tables", |s| s.spans[0].table = 2),
        ("consecutive", |s| s.positions[5] = 6),
        ("consecutive", |s| s.spans[1].position = 1),
        ("cover 20 of 23", |s| _ = s.spans.pop()),
        ("exceeds 8 blocks", |s| s.tables[1] = 8),
        ("2 blocks do not hold 33 positions", |s| {
            *s = Step::default();
            s.add((0..33).map(|_| 0), 0, &[0, 1, 2]);
            s.spans[0].blocks = 2;
        }),
        ("slot of row 4", |s| s.slots[4] += 1),
        ("slot of row 16", |s| s.slots[16] = 0),
        ("slot of row 22", |s| s.slots[22] = u32::MAX),
    ];
    let mut pair = team(2);
    for (reason, change) in cases {
        let mut step = step();
        change(&mut step);
        let mut logits = vec![f32::NAN; 6 * plan.logits_stride()];
        let error = plan.run(&mut pair, &step.input(), &mut logits).expect_err(reason);
        assert!(error.0.contains(reason), "`{error}` does not say `{reason}`");
        assert!(logits.iter().all(|x| x.is_nan()), "{reason}: nothing ran");
    }
    let step = step();
    let mut short = vec![0.0; step.outputs.len() * plan.logits_stride() - 1];
    let error = plan.run(&mut pair, &step.input(), &mut short).expect_err("too few logits");
    assert!(error.0.contains("logits do not hold 4 rows"), "{error}");
    let mut logits = vec![0.0; 4 * plan.logits_stride()];
    let error = plan.run(&mut team(3), &step.input(), &mut logits).expect_err("too many threads");
    assert!(error.0.contains("team of 3 runs a plan for 2"), "{error}");
    plan.run(&mut pair, &step.input(), &mut logits).expect("the step itself is valid");
}

#[test]
fn numbers_near_the_top_of_their_type_are_refused_and_do_not_overflow() {
    let kernels = Kernels::available().last().expect("the scalar set");
    let mut plan = plan(kernels, Stored::F32, KvStored::F32);
    let mut pair = team(2);
    let changes: [fn(&mut Span); 4] =
        [|s| s.rows = usize::MAX, |s| s.table = usize::MAX, |s| s.blocks = usize::MAX, |s| s.position = usize::MAX];
    for (i, change) in changes.into_iter().enumerate() {
        let mut step = step();
        change(&mut step.spans[1]);
        let mut logits = vec![0.0; 4 * plan.logits_stride()];
        assert!(plan.run(&mut pair, &step.input(), &mut logits).is_err(), "change {i}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Values alive in one phase never share a byte, and all lie within the total.
    #[test]
    fn live_values_never_overlap(lives in proptest::collection::vec((0..5000_usize, 0..12_usize, 0..6_usize), 0..40)) {
        let spans: Vec<Life> = lives.iter().map(|(bytes, first, more)| {
            let mut life = Life::new(*bytes);
            (*first..first + more).for_each(|phase| life.touch(phase));
            life
        }).collect();
        let (offsets, total) = Layout::new(LIMITS).place(&spans);
        let end = |i: usize| offsets[i] + lives[i].0.next_multiple_of(64);
        let alive = |i: usize| lives[i].1..lives[i].1 + lives[i].2;
        for i in (0..lives.len()).filter(|i| !alive(*i).is_empty()) {
            prop_assert!(end(i) <= total && offsets[i].is_multiple_of(64));
            for j in (0..i).filter(|j| !alive(*j).is_empty()) {
                let together = alive(i).start < alive(j).end && alive(j).start < alive(i).end;
                prop_assert!(!together || end(i) <= offsets[j] || end(j) <= offsets[i], "{i} and {j}");
            }
        }
    }
}
