//! What decoders are made of: the functions that families share.
//!
//! Weights are declared under the names that most checkpoints have (`model.layers.0.self_attn.q_proj`); families with
//! other names or shapes declare their own and use the rest.

mod moe;

pub(crate) use moe::{routed_experts, router, separate_experts, sparse_mlp};

use crate::config::ModelConfig;
use crate::program::*;
use crate::rope::RopeTable;
use crate::tracer::{Attention, LinearWeight, Tracer};

/// A part of a layer: from normalised rows to what is added to the residual stream.
pub(crate) type Part = fn(&mut Tracer, &ModelConfig, usize, Val) -> Val;

/// Declares a norm over the residual stream.
pub(crate) type NormOf = fn(&mut Tracer, &ModelConfig, &str) -> Norm;

/// Which norm a decoder has, and the names of a layer's: before (what the part reads) and after (what it adds), where the
/// layer has them.
pub(crate) struct LayerNorms {
    pub(crate) norm: NormOf,
    pub(crate) attention: (Option<&'static str>, Option<&'static str>),
    pub(crate) mlp: (Option<&'static str>, Option<&'static str>),
}

impl LayerNorms {
    /// Those of a layer that norms what its parts read.
    pub(crate) fn before(norm: NormOf) -> LayerNorms {
        let (attention, mlp) = (Some("input_layernorm"), Some("post_attention_layernorm"));
        LayerNorms { norm, attention: (attention, None), mlp: (mlp, None) }
    }
}

/// A decoder of layers that RMS-norm what they read: `x += attention(norm(x)); x += mlp(norm(x))`.
pub(crate) fn pre_norm_decoder(t: &mut Tracer, c: &ModelConfig, attention: Part, mlp: Part) -> Val {
    decoder(t, c, LayerNorms::before(rms_norm), attention, mlp)
}

/// A decoder: `x += after(attention(before(x))); x += after(mlp(before(x)))`, by the norms that its layers have.
///
/// `attention` ends before the output projection, so that the last layer's runs on rows that need logits alone.
pub(crate) fn decoder(t: &mut Tracer, c: &ModelConfig, norms: LayerNorms, attention: Part, mlp: Part) -> Val {
    let norm = |t: &mut Tracer, name: Option<&str>| name.map(|name| (norms.norm)(t, c, name));
    let mut x = embed(t, c);
    let mut delta = None;
    for layer in 0..c.layers {
        (x, delta) = t.layer(&format!("model.layers.{layer}"), |t| {
            let before = norm(t, norms.attention.0);
            let (mut x, h) = add_and_norm(t, x, delta, before);
            let mut a = t.scope("self_attn", |t| attention(t, c, layer, h));
            if layer + 1 == c.layers {
                // Nothing after the last attention mixes rows.
                (x, a) = (t.take_outputs(x), t.take_outputs(a));
            }
            let o = output_projection(t, c, a);
            let after = norm(t, norms.attention.1);
            let o = as_added(t, c, o, after);
            let before = norm(t, norms.mlp.0);
            let (x, h) = add_and_norm(t, x, Some(o), before);
            let m = mlp(t, c, layer, h);
            let after = norm(t, norms.mlp.1);
            (x, Some(as_added(t, c, m, after)))
        });
    }
    let last = (norms.norm)(t, c, "model.norm");
    let (_, h) = t.add_norm(x, delta, last);
    head(t, c, h)
}

/// `x + delta`, and what the next part reads of it.
fn add_and_norm(t: &mut Tracer, x: Val, delta: Option<Val>, norm: Option<Norm>) -> (Val, Val) {
    match norm {
        Some(norm) => t.add_norm(x, delta, norm),
        None => {
            let x = delta.map_or(x, |delta| t.add(x, delta));
            (x, x)
        }
    }
}

/// What a part adds to the residual stream.
fn as_added(t: &mut Tracer, c: &ModelConfig, x: Val, norm: Option<Norm>) -> Val {
    let x = norm.map_or(x, |norm| t.norm(x, norm, NormGroup::Row));
    t.scale(x, c.residual_scale)
}

/// Token embeddings, scaled.
pub(crate) fn embed(t: &mut Tracer, c: &ModelConfig) -> Val {
    let table = t.weight(EMBEDDING, c.vocab, c.hidden, WeightUse::Vocabulary, Parallel::Column);
    let x = t.embed(table);
    t.scale(x, c.embed_scale)
}

/// Logits of the last hidden state.
pub(crate) fn head(t: &mut Tracer, c: &ModelConfig, h: Val) -> Val {
    let name = if c.tied { EMBEDDING } else { "lm_head.weight" };
    let weight = t.weight(name, c.vocab, c.hidden, WeightUse::Vocabulary, Parallel::Column);
    let logits = t.linear(h, LinearWeight { weight, bias: None });
    let logits = t.scale(logits, c.logit_scale);
    t.softcap(logits, c.logit_softcap)
}

/// An RMS norm over the residual stream.
pub(crate) fn rms_norm(t: &mut Tracer, c: &ModelConfig, name: &str) -> Norm {
    rms_norm_of(t, c, name, c.hidden)
}

/// An RMS norm of `len` values.
pub(crate) fn rms_norm_of(t: &mut Tracer, c: &ModelConfig, name: &str, len: usize) -> Norm {
    let weight = if c.norm_plus_one { t.vector_plus_one(name, len) } else { t.vector(name, len) };
    Norm::rms(weight, c.norm_eps)
}

/// Projections, norms of heads where the family has them, rotation, attention.
pub(crate) fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let [mut q, mut k, v] = project(t, c, h);
    if c.head_norms {
        let (q_norm, k_norm) = (rms_norm_of(t, c, "q_norm", c.head_dim), rms_norm_of(t, c, "k_norm", c.head_dim));
        q = t.norm(q, q_norm, NormGroup::Head(c.head_dim));
        k = t.norm(k, k_norm, NormGroup::Head(c.head_dim));
    }
    attend(t, c, layer, [q, k, v], None)
}

/// Queries, keys and values.
pub(crate) fn project(t: &mut Tracer, c: &ModelConfig, h: Val) -> [Val; 3] {
    let (q_cols, kv_cols) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let parts = [("q_proj", q_cols), ("k_proj", kv_cols), ("v_proj", kv_cols)];
    let weights = parts.map(|(name, cols)| t.linear_weight(name, (cols, c.hidden), c.bias.qkv, Parallel::Column));
    t.linear_n(h, weights)
}

/// Rotates queries and keys as the layer does, and attends.
pub(crate) fn attend(
    t: &mut Tracer,
    c: &ModelConfig,
    layer: usize,
    [q, k, v]: [Val; 3],
    sinks: Option<WeightId>,
) -> Val {
    let rope = c.local_rope.as_ref().filter(|_| c.windows[layer].is_some()).unwrap_or(&c.rope);
    let [q, k] = match c.rope_layers[layer] {
        true => {
            let table = t.rope_table(RopeTable::new(rope, c.rope_width));
            [q, k].map(|x| t.rope(x, table, c.head_dim, c.rope_pairing))
        }
        false => [q, k],
    };
    let (heads, kv_heads) = (c.heads, c.kv_heads);
    let scale = if c.attention_scale_by_layer { c.attention_scale / (layer + 1) as f32 } else { c.attention_scale };
    let (window, softcap) = (c.windows[layer], c.attention_softcap);
    t.attend([q, k, v], Attention { heads, kv_heads, scale, window, softcap, sinks })
}

/// `self_attn.o_proj`.
pub(crate) fn output_projection(t: &mut Tracer, c: &ModelConfig, a: Val) -> Val {
    let o = t.linear_weight("self_attn.o_proj", (c.hidden, c.heads * c.head_dim), c.bias.o, Parallel::Row);
    t.linear(a, o)
}

/// `down(act(gate(h)) * up(h))`, of width `ffn`.
pub(crate) fn gated_mlp(t: &mut Tracer, c: &ModelConfig, h: Val, ffn: usize) -> Val {
    let [gate, up] =
        ["gate_proj", "up_proj"].map(|name| t.linear_weight(name, (ffn, c.hidden), c.bias.mlp, Parallel::Column));
    let down = t.linear_weight("down_proj", (c.hidden, ffn), c.bias.mlp, Parallel::Row);
    let m = t.gated_mlp_in(h, gate, up, Glu::Act(c.act));
    t.linear(m, down)
}

/// The same of a checkpoint that stacks gate on up: `gate_up_proj`.
pub(crate) fn fused_gated_mlp(t: &mut Tracer, c: &ModelConfig, h: Val, ffn: usize) -> Val {
    let part = |t: &mut Tracer, start| {
        let view = View::part(start, ffn, 2 * ffn);
        t.linear_view("gate_up_proj", (ffn, c.hidden), c.bias.mlp, Parallel::Column, view)
    };
    let (gate, up) = (part(t, 0), part(t, ffn));
    let down = t.linear_weight("down_proj", (c.hidden, ffn), c.bias.mlp, Parallel::Row);
    let m = t.gated_mlp_in(h, gate, up, Glu::Act(c.act));
    t.linear(m, down)
}

const EMBEDDING: &str = "model.embed_tokens.weight";
