//! A program's ops as a plan's: one to one.

use std::num::NonZero;

use njoule_kernels::isa::Kernels;
use njoule_kernels::kv::{KvShape, KvStored};
use njoule_kernels::plan::{LinearPart, Plan, PlanBuilder, PlanLimits, RowSet, Val};
use njoule_models::program::{self, Act, EmbedIndex, Glu, Norm, NormGroup, NormKind, Op, Pairing, Program};

use super::StoredWeights;
use crate::backend::{Capacity, LoadError};

/// Compiles `program`.
pub fn plan(
    program: &Program,
    weights: &StoredWeights,
    kernels: &'static Kernels,
    kv: KvStored,
    capacity: Capacity,
    threads: NonZero<usize>,
) -> Result<Plan, LoadError> {
    let mut b = PlanBuilder::new();
    let vals: Vec<Val> = program.vals.iter().map(|v| b.val(v.cols, row_set(v.rows))).collect();
    let val = |v: program::Val| vals[v.0 as usize];
    let ropes: Vec<usize> = program.ropes.iter().map(|r| b.rope_table(r.inv_freq.clone(), r.amplitude)).collect();
    let caches: Vec<usize> = program
        .caches
        .iter()
        .map(|c| {
            let (heads, k_dim, v_dim) = (c.kv_heads, c.k_dim, c.v_dim);
            b.cache(KvShape { blocks: capacity.blocks, block_len: capacity.block_len, heads, k_dim, v_dim, stored: kv })
        })
        .collect();
    let part = |weight, bias: Option<program::WeightId>, out| LinearPart {
        weight: weights.matrix(weight),
        bias: bias.map(|b| weights.vector(b)),
        out,
    };
    let rms = |norm: &Norm| match *norm {
        Norm { kind: NormKind::Rms, weight: Some(weight), bias: None, eps } => Some((weights.vector(weight), eps)),
        _ => None,
    };
    for op in &program.ops {
        let unsupported = || LoadError::Unsupported { backend: "cpu", what: format!("it lacks {}", op.name()) };
        match op {
            Op::Embed { table, index: EmbedIndex::Tokens, out } => b.embed(weights.matrix(*table), val(*out)),
            Op::Norm { x, norm, group, out } => {
                let (weight, eps) = rms(norm).ok_or_else(unsupported)?;
                match group {
                    NormGroup::Row => b.norm(val(*x), weight, eps, val(*out)),
                    NormGroup::Head(_) => b.head_norm(val(*x), weight, eps, val(*out)),
                }
            }
            Op::AddNorm { x, delta, norm, sum, out } => {
                let (weight, eps) = rms(norm).ok_or_else(unsupported)?;
                b.add_norm(val(*x), val(*delta), weight, eps, val(*sum), val(*out));
            }
            Op::LinearN { x, parts } => {
                let parts = parts.iter().map(|p| {
                    let out = (p.out != program.logits).then(|| val(p.out));
                    part(p.weight, p.bias, out)
                });
                b.linear(val(*x), parts.collect());
            }
            Op::GatedMlpIn { x, gate, up, gate_bias, up_bias, glu: Glu::Act(Act::Silu), out } => {
                b.gated(val(*x), part(*gate, *gate_bias, None), part(*up, *up_bias, None), val(*out));
            }
            Op::Rope { x, table, head_dim, pairing: Pairing::Half, out } => {
                b.rope(val(*x), ropes[table.0 as usize], *head_dim, val(*out));
            }
            Op::Attend { q, k, v, cache, heads, scale, window, softcap: None, sinks: None, out } => {
                let qkv = [val(*q), val(*k), val(*v)];
                b.attend(qkv, caches[cache.0 as usize], *heads, *scale, *window, val(*out));
            }
            Op::Add { x, y, out } => b.add(val(*x), val(*y), val(*out)),
            Op::TakeOutputs { x, out } => b.take(val(*x), val(*out)),
            _ => return Err(unsupported()),
        }
    }
    let limits = PlanLimits {
        max_rows: capacity.max_rows,
        max_seqs: capacity.max_seqs,
        max_outputs: capacity.max_outputs,
        threads: threads.get(),
    };
    b.finish(kernels, limits).map_err(|e| LoadError::Memory { bytes: e.bytes, what: "cache and activations" })
}

fn row_set(rows: program::RowSet) -> RowSet {
    match rows {
        program::RowSet::Tokens => RowSet::Tokens,
        program::RowSet::Outputs => RowSet::Outputs,
    }
}
