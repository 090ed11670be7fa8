//! A program's ops as a plan's: one to one.

use std::num::NonZero;

use njoule_kernels::acts;
use njoule_kernels::isa::Kernels;
use njoule_kernels::kv::{KvShape, KvStored};
use njoule_kernels::plan::{self, AttendHow, Embedding, Plan, PlanBuilder, PlanLimits, Product, RowSet, Val};
use njoule_kernels::route;
use njoule_kernels::rows;
use njoule_models::program::{self, Act, EmbedIndex, Glu, Norm, NormGroup, NormKind, Op, Pairing, Program, RouteScore};

use super::StoredWeights;
use crate::backend::{Capacity, LoadError};

// What configs may ask for, kernels can do.
const _: () = assert!(program::RouteGroups::MOST <= route::MOST_GROUPS);

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
    let val = |v: &program::Val| vals[v.0 as usize];
    let ropes: Vec<usize> = program
        .ropes
        .iter()
        .map(|r| {
            let long = r.long.as_ref().map(|l| (l.beyond, l.inv_freq.clone()));
            b.rope_table(plan::RopeTable { inv_freq: r.inv_freq.clone(), amplitude: r.amplitude, long })
        })
        .collect();
    let caches: Vec<usize> = program
        .caches
        .iter()
        .map(|c| {
            let (heads, k_dim, v_dim) = (c.kv_heads, c.k_dim, c.v_dim);
            b.cache(KvShape { blocks: capacity.blocks, block_len: capacity.block_len, heads, k_dim, v_dim, stored: kv })
        })
        .collect();
    let product = |weight: &program::WeightId, bias: &Option<program::WeightId>| Product {
        weight: weights.matrix(*weight),
        bias: bias.map(|b| weights.vector(b)),
    };
    let experts = |w: &program::ExpertWeights| product(&w.weight, &w.bias);
    let norm_of = |norm: &Norm| plan::Norm {
        kind: match norm.kind {
            NormKind::Rms => rows::NormKind::Rms,
            NormKind::Layer => rows::NormKind::Layer,
        },
        weight: norm.weight.map(|w| weights.vector(w)),
        bias: norm.bias.map(|w| weights.vector(w)),
        eps: norm.eps,
    };
    for op in &program.ops {
        match op {
            Op::Embed { table, index, out } => {
                let index = match index {
                    EmbedIndex::Tokens => Embedding::Token,
                    EmbedIndex::Positions { offset } => Embedding::Position(*offset),
                };
                b.embed(weights.matrix(*table), index, val(out));
            }
            Op::Norm { x, norm, group, out } => {
                let group = match group {
                    NormGroup::Row => plan::NormGroup::Row,
                    NormGroup::Head(n) => plan::NormGroup::Head(*n),
                };
                b.norm(val(x), norm_of(norm), group, val(out));
            }
            Op::AddNorm { x, delta, norm, sum, out } => {
                b.add_norm(val(x), val(delta), norm_of(norm), val(sum), val(out));
            }
            Op::LinearN { x, parts } => {
                b.linear(val(x), parts.iter().map(|p| (product(&p.weight, &p.bias), val(&p.out))).collect());
            }
            Op::GatedMlpIn { x, gate, up, gate_bias, up_bias, glu, out } => {
                b.gated(val(x), [product(gate, gate_bias), product(up, up_bias)], glu_of(*glu), val(out));
            }
            Op::Act { x, act, out } => b.act(val(x), act_of(*act), val(out)),
            Op::Rope { x, table, head_dim, pairing, out } => {
                let pairing = match pairing {
                    Pairing::Half => plan::Pairing::Half,
                    Pairing::Neighbours => plan::Pairing::Neighbours,
                };
                b.rope(val(x), ropes[table.0 as usize], *head_dim, pairing, val(out));
            }
            Op::Attend { q, k, v, cache, heads, scale, window, softcap, sinks, alibi, out } => {
                let (heads, scale, window, softcap) = (*heads, *scale, *window, *softcap);
                let sinks = sinks.map(|w| weights.vector(w));
                let how = AttendHow { heads, scale, window, softcap, sinks, alibi: alibi.clone() };
                b.attend([q, k, v].map(val), caches[cache.0 as usize], how, val(out));
            }
            Op::Add { x, y, out } => b.add(val(x), val(y), val(out)),
            Op::Mul { x, y, out } => b.mul(val(x), val(y), val(out)),
            Op::Scale { x, factor, out } => b.scale(val(x), *factor, val(out)),
            Op::Softcap { x, cap, out } => b.softcap(val(x), *cap, val(out)),
            Op::Clamp { x, bound, out } => b.clamp(val(x), *bound, val(out)),
            Op::JoinHeads { x, y, lengths, out } => b.join(val(x), val(y), *lengths, val(out)),
            Op::Route { x, routing, out } => {
                let program::Routing { score, bias, groups, top_k, normalise, factor } = *routing;
                let bias = bias.map(|w| weights.vector(w));
                let groups =
                    groups.map(|program::RouteGroups { count, kept, best }| route::RouteGroups { count, kept, best });
                let score = match score {
                    RouteScore::Softmax => route::RouteScore::Softmax,
                    RouteScore::Sigmoid => route::RouteScore::Sigmoid,
                };
                b.route(val(x), route::Routing { score, bias, groups, top_k, normalise, factor }, val(out));
            }
            Op::MoeMlp { x, shares, gate, up, down, glu, out } => {
                b.moe(val(x), val(shares), [gate, up, down].map(experts), glu_of(*glu), val(out));
            }
            Op::TakeOutputs { x, out } => b.take(val(x), val(out)),
        }
    }
    b.logits(val(&program.logits));
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

fn act_of(act: Act) -> acts::Act {
    match act {
        Act::Silu => acts::Act::Silu,
        Act::Gelu => acts::Act::Gelu,
        Act::GeluTanh => acts::Act::GeluTanh,
        Act::Relu => acts::Act::Relu,
        Act::Relu2 => acts::Act::Relu2,
        Act::Sigmoid => acts::Act::Sigmoid,
    }
}

fn glu_of(glu: Glu) -> acts::Glu {
    match glu {
        Glu::Act(act) => acts::Glu::Act(act_of(act)),
        Glu::ClampedSwish { alpha, limit } => acts::Glu::ClampedSwish { alpha, limit },
    }
}
