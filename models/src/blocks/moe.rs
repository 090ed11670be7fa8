//! Feed-forward layers made of experts.

use super::gated_mlp;
use crate::config::{ModelConfig, Moe};
use crate::program::*;
use crate::tracer::{LinearWeight, Tracer};

/// What `experts` makes in a layer that has them, the gated layer elsewhere.
pub(crate) fn sparse_mlp(
    t: &mut Tracer,
    c: &ModelConfig,
    layer: usize,
    h: Val,
    experts: fn(&mut Tracer, &ModelConfig, &Moe, Val) -> Val,
) -> Val {
    match c.moe.as_ref().filter(|moe| moe.layers[layer]) {
        Some(moe) => experts(t, c, moe, h),
        None => gated_mlp(t, c, h, c.ffn),
    }
}

/// Every row through the experts with the largest scores.
pub(crate) fn routed_experts(
    t: &mut Tracer,
    moe: &Moe,
    router: LinearWeight,
    experts: [ExpertWeights; 3],
    glu: Glu,
    h: Val,
) -> Val {
    let logits = t.linear(h, router);
    let bias = "gate.e_score_correction_bias";
    let bias = moe.correction.then(|| t.weight(bias, 1, moe.experts, WeightUse::Vector, Parallel::Replicated));
    let Moe { score, groups, top_k, normalise, factor, .. } = *moe;
    let shares = t.route(logits, Routing { score, bias, groups, top_k, normalise, factor });
    t.moe_mlp(h, shares, experts, glu)
}

/// A router, `{name}.weight`.
pub(crate) fn router(t: &mut Tracer, moe: &Moe, hidden: usize, name: &str, bias: bool) -> LinearWeight {
    t.linear_weight(name, (moe.experts, hidden), bias, Parallel::Replicated)
}

/// Gate, up and down of experts that have a tensor each: `experts.0.{gate}.weight` and so on.
pub(crate) fn separate_experts(t: &mut Tracer, moe: &Moe, hidden: usize, names: [&str; 3]) -> [ExpertWeights; 3] {
    let (inner, outer) = ((moe.ffn, hidden), (hidden, moe.ffn));
    let [gate, up, down] = names.map(|name| format!("experts.{{}}.{name}.weight"));
    [(gate, inner, Parallel::Column), (up, inner, Parallel::Column), (down, outer, Parallel::Row)].map(
        |(name, shape, parallel)| t.expert_weights((&name, None), moe.experts, shape, parallel, View::whole(shape.0)),
    )
}
