//! What decoders are made of: the functions that families share.
//!
//! Weights are declared under the names that most checkpoints have (`model.layers.0.self_attn.q_proj`); families with
//! other names or shapes declare their own and use the rest.

mod moe;
mod norm;

pub(crate) use moe::{routed_experts, router, separate_experts, sparse_mlp};
pub(crate) use norm::{NormOf, layer_norm, layer_norm_of, layer_norm_unbiased, rms_norm, rms_norm_of};

use crate::config::ModelConfig;
use crate::program::*;
use crate::rope::RopeTable;
use crate::tracer::{Attention, LinearWeight, Tracer};

/// A part of a layer: from normalised rows to what is added to the residual stream.
pub(crate) type Part = fn(&mut Tracer, &ModelConfig, usize, Val) -> Val;

/// What a decoder's layers are made of, and what checkpoints call it.
pub(crate) struct Layout {
    pub(crate) names: Names,
    pub(crate) norm: NormOf,
    /// Names of the norms around the attention: before (what it reads) and after (what it adds), where the layer has them.
    pub(crate) attention: (Option<&'static str>, Option<&'static str>),
    /// The same of the feed-forward part.
    pub(crate) mlp: (Option<&'static str>, Option<&'static str>),
    /// Whether both parts read one residual stream, `x += attention(before(x)) + mlp(before(x))`; without a norm of its own the
    /// feed-forward part reads the attention's rows.
    pub(crate) is_parallel: bool,
}

/// Where a checkpoint has the parts that every decoder has.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    pub(crate) tokens: &'static str,
    /// Learned positions, which are added to the embeddings.
    pub(crate) positions: Option<&'static str>,
    pub(crate) layers: &'static str,
    pub(crate) attention: &'static str,
    /// The attention's output projection, within it.
    pub(crate) output: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) head: &'static str,
}

impl Names {
    pub(crate) const LLAMA: Names = Names {
        tokens: "model.embed_tokens",
        positions: None,
        layers: "model.layers",
        attention: "self_attn",
        output: "o_proj",
        norm: "model.norm",
        head: "lm_head",
    };
}

impl Layout {
    /// That of a decoder that RMS-norms what its parts read.
    pub(crate) const LLAMA: Layout = Layout {
        names: Names::LLAMA,
        norm: rms_norm,
        attention: (Some("input_layernorm"), None),
        mlp: (Some("post_attention_layernorm"), None),
        is_parallel: false,
    };
}

/// A decoder of layers that RMS-norm what they read: `x += attention(norm(x)); x += mlp(norm(x))`.
pub(crate) fn pre_norm_decoder(t: &mut Tracer, c: &ModelConfig, attention: Part, mlp: Part) -> Val {
    decoder(t, c, Layout::LLAMA, attention, mlp)
}

/// A decoder: `x += after(attention(before(x))); x += after(mlp(before(x)))`, by the norms that its layers have.
///
/// `attention` ends before the output projection, so that the last layer's runs on rows that need logits alone.
pub(crate) fn decoder(t: &mut Tracer, c: &ModelConfig, layout: Layout, attention: Part, mlp: Part) -> Val {
    let Layout { names, .. } = layout;
    let norm = |t: &mut Tracer, name: Option<&str>| name.map(|name| (layout.norm)(t, c, name));
    let mut x = embed(t, c, &names);
    let mut delta = names.positions.map(|name| embed_positions(t, c, name, 0));
    for layer in 0..c.layers {
        (x, delta) = t.layer(&format!("{}.{layer}", names.layers), |t| {
            let before = norm(t, layout.attention.0);
            let (mut x, mut h) = add_and_norm(t, x, delta, before);
            let mut a = t.scope(names.attention, |t| attention(t, c, layer, h));
            if layer + 1 == c.layers {
                // Nothing after the last attention mixes rows.
                (x, a) = (t.take_outputs(x), t.take_outputs(a));
                if layout.is_parallel && layout.mlp.0.is_none() {
                    h = t.take_outputs(h);
                }
            }
            let o = t.scope(names.attention, |t| output_projection(t, c, names.output, a));
            let after = norm(t, layout.attention.1);
            let o = as_added(t, c, o, after);
            let before = norm(t, layout.mlp.0);
            let (x, h) = match (layout.is_parallel, before) {
                (false, before) => add_and_norm(t, x, Some(o), before),
                (true, Some(norm)) => (x, t.norm(x, norm, NormGroup::Row)),
                (true, None) => (x, h),
            };
            let m = mlp(t, c, layer, h);
            let after = norm(t, layout.mlp.1);
            let m = as_added(t, c, m, after);
            (x, Some(if layout.is_parallel { t.add(o, m) } else { m }))
        });
    }
    let last = (layout.norm)(t, c, names.norm);
    let (_, h) = t.add_norm(x, delta, last);
    head(t, c, &names, h)
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
pub(crate) fn embed(t: &mut Tracer, c: &ModelConfig, names: &Names) -> Val {
    let table = vocabulary(t, c, names.tokens);
    let x = t.embed(table);
    t.scale(x, c.embed_scale)
}

/// Learned positions, of which the first `offset` stand for none.
pub(crate) fn embed_positions(t: &mut Tracer, c: &ModelConfig, name: &str, offset: usize) -> Val {
    let (name, rows) = (format!("{name}.weight"), c.max_len + offset);
    let table = t.weight(&name, rows, c.hidden, WeightUse::Vocabulary, Parallel::Replicated);
    t.embed_by(table, EmbedIndex::Positions { offset })
}

/// Logits of the last hidden state.
pub(crate) fn head(t: &mut Tracer, c: &ModelConfig, names: &Names, h: Val) -> Val {
    let weight = vocabulary(t, c, if c.tied { names.tokens } else { names.head });
    let bias = || format!("{}.bias", names.head);
    let bias = c.head_bias.then(|| t.weight(&bias(), 1, c.vocab, WeightUse::Vector, Parallel::Column));
    let logits = t.linear(h, LinearWeight { weight, bias });
    let logits = t.scale(logits, c.logit_scale);
    t.softcap(logits, c.logit_softcap)
}

fn vocabulary(t: &mut Tracer, c: &ModelConfig, name: &str) -> WeightId {
    t.weight(&format!("{name}.weight"), c.vocab, c.hidden, WeightUse::Vocabulary, Parallel::Column)
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

/// Queries, keys and values of a checkpoint that has them in one tensor, the queries of a group of heads above its key and its
/// value.
pub(crate) fn project_groups(t: &mut Tracer, c: &ModelConfig, h: Val, name: &str) -> [Val; 3] {
    let (d, n) = (c.head_dim, c.heads / c.kv_heads);
    let step = (n + 2) * d;
    let parts = [(0, n * d), (n * d, d), ((n + 1) * d, d)].map(|(start, run)| {
        let view = View::every(start, (run, step), c.kv_heads * step);
        t.linear_view(name, (c.kv_heads * run, c.hidden), c.bias.qkv, Parallel::Column, view)
    });
    t.linear_n(h, parts)
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
    let alibi = c.alibi.clone();
    t.attend([q, k, v], Attention { heads, kv_heads, scale, window, softcap, sinks, alibi })
}

fn output_projection(t: &mut Tracer, c: &ModelConfig, name: &str, a: Val) -> Val {
    let o = t.linear_weight(name, (c.hidden, t.cols(a)), c.bias.o, Parallel::Row);
    t.linear(a, o)
}

/// `down(act(up(h)))`.
pub(crate) fn plain_mlp(t: &mut Tracer, c: &ModelConfig, h: Val, [up, down]: [&str; 2]) -> Val {
    let up = t.linear_weight(up, (c.ffn, c.hidden), c.bias.mlp, Parallel::Column);
    let m = t.linear(h, up);
    let m = t.act(m, c.act);
    let down = t.linear_weight(down, (c.hidden, c.ffn), c.bias.mlp, Parallel::Row);
    t.linear(m, down)
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
