//! What cores have of a weight, put together, is the weight.

use njoule_models::program::{Norm, NormGroup, NormKind, Parallel, View};
use njoule_models::tracer::{Attention, LinearWeight, Tracer};
use njoule_models::weights::{Container, DType as FileType, Encoding, WeightError};

use super::*;
use crate::backend::neuron::shard::shard;

/// Element `[row, col]` is `row + col / 1000`, its largest by far where `loud` says.
struct Numbered {
    loud: Option<(usize, f32)>,
}

struct NumberedRows {
    shape: (usize, usize),
    loud: Option<(usize, f32)>,
}

impl WeightSource for Numbered {
    fn container(&self) -> Container {
        Container::Generated
    }

    fn get(&self, decl: &WeightDecl) -> Result<Box<dyn WeightRows + '_>, WeightError> {
        Ok(Box::new(NumberedRows { shape: (decl.all_rows(), decl.cols), loud: self.loud }))
    }
}

impl WeightRows for NumberedRows {
    fn encoding(&self) -> Encoding {
        Encoding::Dense(FileType::F32)
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(self.shape.1)) {
            out.iter_mut().enumerate().for_each(|(col, x)| *x = row as f32 + col as f32 / 1000.0);
            if let Some((loud, value)) = self.loud
                && loud == row
            {
                out[0] = value;
            }
        }
    }

    fn raw_row(&self, _row: usize) -> Option<&[u8]> {
        None
    }

    fn release(&self, _rows: Range<usize>) {}
}

/// A tied table, a split pair of matrices, and experts.
fn program() -> Program {
    let mut t = Tracer::new("case");
    let table = t.weight("embed", 70, 6, WeightUse::Vocabulary, Parallel::Column);
    let x = t.embed(table);
    let up = t.linear_weight("up", (7, 6), true, Parallel::Column);
    let down = t.linear_weight("down", (6, 7), true, Parallel::Row);
    let m = t.linear(x, up);
    let m = t.act(m, njoule_models::program::Act::Relu);
    let m = t.linear(m, down);
    let router = t.linear_weight("router", (3, 6), false, Parallel::Replicated);
    let logits = t.linear(m, router);
    let score = njoule_models::program::RouteScore::Softmax;
    let shares = t.route(
        logits,
        njoule_models::program::Routing { score, bias: None, groups: None, top_k: 1, normalise: true, factor: 1.0 },
    );
    let stacks = [("gate", 5, 6), ("up_e", 5, 6), ("down_e", 6, 5)].map(|(name, out, inp)| {
        t.expert_weights((name, Some(&format!("{name}_b"))), 3, (out, inp), Parallel::Column, View::whole(out))
    });
    let act = njoule_models::program::Act::Silu;
    let m = t.moe_mlp(m, shares, stacks, njoule_models::program::Glu::Act(act));
    let m = t.take_outputs(m);
    let logits = t.linear(m, LinearWeight { weight: table, bias: None });
    t.finish(logits)
}

/// Six query heads of three pairs, each with a norm's vector of its own.
fn head_norms() -> Program {
    let mut t = Tracer::new("case");
    let table = t.weight("embed", 70, 6, WeightUse::Vocabulary, Parallel::Column);
    let x = t.embed(table);
    let ws =
        [("q", 24), ("k", 12), ("v", 12)].map(|(name, out)| t.linear_weight(name, (out, 6), false, Parallel::Column));
    let mut qkv = t.linear_n(x, ws);
    for (val, name, heads) in [(0, "q_norm", 6), (1, "k_norm", 3)] {
        let weight = t.vectors(name, heads, 4);
        let norm = Norm { kind: NormKind::Layer, weight: Some(weight), bias: None, eps: 1e-5 };
        qkv[val] = t.norm(qkv[val], norm, NormGroup::Head(4));
    }
    let attention =
        Attention { heads: 6, kv_heads: 3, scale: 1.0, window: None, softcap: None, sinks: None, alibi: None };
    let a = t.attend(qkv, attention);
    let o = t.linear_weight("o", (6, 24), false, Parallel::Row);
    let m = t.linear(a, o);
    let m = t.take_outputs(m);
    let logits = t.linear(m, LinearWeight { weight: table, bias: None });
    t.finish(logits)
}

fn written(source: &Numbered, sharded: &Sharded, id: WeightId, dtype: DType, rank: usize) -> [Vec<u8>; 2] {
    let mut bytes = [vec![], vec![]];
    write_part(source, sharded, id, dtype, rank, &mut |part, more| {
        bytes[usize::from(part == WeightPart::Scales)].extend_from_slice(more);
        Ok(())
    })
    .unwrap();
    bytes
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Where element `[row, col]` of an expert stands on a core, from the split's own description.
fn local(
    runs: &Option<std::sync::Arc<crate::backend::neuron::shard::Split>>,
    n: usize,
    rank: usize,
) -> Vec<Option<usize>> {
    let Some(split) = runs else { return (0..n).map(Some).collect() };
    split
        .of_rank(rank)
        .iter()
        .flat_map(|run| (0..run.len).map(|i| run.from.map(|f| f + i)).collect::<Vec<_>>())
        .collect()
}

#[test]
fn each_core_has_its_rows_and_columns_in_the_declared_order() {
    for (program, tp) in [1, 2, 3, 4].into_iter().flat_map(|tp| [(program(), tp), (head_norms(), tp)]) {
        let sharded = shard(&program, tp).unwrap();
        for (id, decl) in (0..).map(WeightId).zip(&program.weights) {
            let part = sharded.part(id);
            for rank in 0..tp {
                let got = floats(&written(&Numbered { loud: None }, &sharded, id, DType::F32, rank)[0]);
                assert_eq!(got.len(), sharded.dims(id).iter().product::<usize>(), "{decl}");
                let (rows, cols) = (local(&part.rows, decl.rows, rank), local(&part.cols, decl.cols, rank));
                let members = local(&part.members, decl.experts.unwrap_or(1), rank);
                for (m, member) in members.iter().enumerate() {
                    for (r, row) in rows.iter().enumerate() {
                        for (c, col) in cols.iter().enumerate() {
                            let base = m * rows.len() * cols.len();
                            let at = if part.order == Order::InOut { c * rows.len() + r } else { r * cols.len() + c };
                            let value = |((member, row), col): ((usize, usize), usize)| {
                                (member * decl.rows + row) as f32 + col as f32 / 1000.0
                            };
                            let want = member.zip(*row).zip(*col).map_or(0.0, value);
                            assert_eq!(got[base + at], want, "{decl} on {rank} of {tp} at {m}, {r}, {c}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn scales_are_those_of_whole_rows_on_every_core() {
    let program = program();
    let down = WeightId(program.weights.iter().position(|w| w.name == "down.weight").unwrap() as u32);
    let sharded = shard(&program, 4).unwrap();
    let source = Numbered { loud: Some((2, -254.0)) };
    for rank in 0..4 {
        let [codes, scales] = written(&source, &sharded, down, DType::S8, rank);
        let scales = floats(&scales);
        assert_eq!(scales.len(), 6);
        // Row 0 is 0, 0.001, ..: its largest is 0.006.
        assert!((scales[0] - 0.006 / 127.0).abs() < 1e-9 && scales[2] == 2.0, "{scales:?}");
        let row = &codes[2 * sharded.dims(down)[1]..][..sharded.dims(down)[1]];
        if rank == 0 {
            assert_eq!(row[0] as i8, -127);
        }
    }
}

#[test]
fn a_row_of_zeros_and_padding_have_a_finite_scale() {
    let program = program();
    let sharded = shard(&program, 4).unwrap();
    // 70 rows on 4 cores are 32 each: two cores have padding.
    for rank in 0..4 {
        let [_, scales] = written(&Numbered { loud: None }, &sharded, WeightId(0), DType::S8, rank);
        assert!(floats(&scales).iter().all(|s| s.is_finite() && *s > 0.0), "{rank}");
    }
}

#[test]
fn a_value_that_the_type_cannot_hold_is_an_error_that_names_the_row() {
    let sharded = shard(&program(), 1).unwrap();
    for (value, dtype) in [(f32::NAN, DType::F32), (f32::MAX, DType::BF16), (f32::INFINITY, DType::S8)] {
        let source = Numbered { loud: Some((5, value)) };
        let error = write_part(&source, &sharded, WeightId(0), dtype, 0, &mut |_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("embed") && error.contains("row 5"), "{error}");
    }
}

#[test]
fn routers_stay_in_f32_beside_int8() {
    let program = program();
    let of = |quant| stored(&program, quant);
    let router = program.weights.iter().position(|w| w.name == "router.weight").unwrap();
    assert_eq!((of(Quant::Int8)[0], of(Quant::Int8)[router]), (DType::S8, DType::F32));
    assert_eq!((of(Quant::Bf16)[0], of(Quant::Bf16)[router]), (DType::BF16, DType::BF16));
}
