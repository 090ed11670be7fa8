//! The pre-norm decoder that llama, mistral, qwen2 and qwen3 share.
//!
//! Reference implementation: `transformers/models/{llama,mistral,qwen2,qwen3}/modeling_*.py` (transformers 4.57). What
//! sets the families apart is data in [`ModelConfig`]: biases, head norms, windows, rope.

use crate::config::ModelConfig;
use crate::program::{Act, Glu, Norm, NormGroup, Pairing, Parallel, Program, Val, WeightUse};
use crate::rope::RopeTable;
use crate::tracer::{Attention, LinearWeight, Tracer};

/// Traces the model that `c` describes.
pub fn program(c: &ModelConfig) -> Program {
    let mut t = Tracer::new(c.family.name());
    let logits = decoder(&mut t, c);
    t.finish(logits)
}

fn decoder(t: &mut Tracer, c: &ModelConfig) -> Val {
    let embedding = t.weight("model.embed_tokens.weight", c.vocab, c.hidden, WeightUse::Vocabulary, Parallel::Column);
    let mut x = t.embed(embedding);
    let mut delta = None;
    for layer in 0..c.layers {
        let name = format!("model.layers.{layer}");
        (x, delta) = t.layer(&name, |t| {
            let input_norm = t.vector("input_layernorm", c.hidden);
            let (x, h) = t.add_norm(x, delta, Norm::rms(input_norm, c.norm_eps));
            let mut a = t.scope("self_attn", |t| attention(t, c, layer, h));
            let mut x = x;
            if layer + 1 == c.layers {
                // Nothing after the last attention mixes rows: the rest runs on the rows that need logits alone.
                (x, a) = (t.take_outputs(x), t.take_outputs(a));
            }
            let o = t.linear_weight("self_attn.o_proj", (c.hidden, c.heads * c.head_dim), c.bias.o, Parallel::Row);
            let o = t.linear(a, o);
            let post_norm = t.vector("post_attention_layernorm", c.hidden);
            let (x, h) = t.add_norm(x, Some(o), Norm::rms(post_norm, c.norm_eps));
            (x, Some(t.scope("mlp", |t| gated_mlp(t, c, h))))
        });
    }
    let norm = t.vector("model.norm", c.hidden);
    let (_, h) = t.add_norm(x, delta, Norm::rms(norm, c.norm_eps));
    let head = if c.tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
    let weight = t.weight(head, c.vocab, c.hidden, WeightUse::Vocabulary, Parallel::Column);
    t.linear(h, LinearWeight { weight, bias: None })
}

fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let (q_cols, kv_cols) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let q = t.linear_weight("q_proj", (q_cols, c.hidden), c.bias.qkv, Parallel::Column);
    let k = t.linear_weight("k_proj", (kv_cols, c.hidden), c.bias.qkv, Parallel::Column);
    let v = t.linear_weight("v_proj", (kv_cols, c.hidden), c.bias.qkv, Parallel::Column);
    let [mut q, mut k, v] = t.linear_n(h, [q, k, v]);
    if c.head_norms {
        let (q_norm, k_norm) = (t.vector("q_norm", c.head_dim), t.vector("k_norm", c.head_dim));
        q = t.norm(q, Norm::rms(q_norm, c.norm_eps), NormGroup::Head(c.head_dim));
        k = t.norm(k, Norm::rms(k_norm, c.norm_eps), NormGroup::Head(c.head_dim));
    }
    let table = t.rope_table(RopeTable::new(&c.rope, c.head_dim));
    let q = t.rope(q, table, c.head_dim, Pairing::Half);
    let k = t.rope(k, table, c.head_dim, Pairing::Half);
    let scale = 1.0 / (c.head_dim as f32).sqrt();
    let (window, softcap, sinks) = (c.windows[layer], None, None);
    t.attend([q, k, v], Attention { heads: c.heads, kv_heads: c.kv_heads, scale, window, softcap, sinks })
}

fn gated_mlp(t: &mut Tracer, c: &ModelConfig, h: Val) -> Val {
    let gate = t.linear_weight("gate_proj", (c.ffn, c.hidden), c.bias.mlp, Parallel::Column);
    let up = t.linear_weight("up_proj", (c.ffn, c.hidden), c.bias.mlp, Parallel::Column);
    let down = t.linear_weight("down_proj", (c.hidden, c.ffn), c.bias.mlp, Parallel::Row);
    let m = t.gated_mlp_in(h, gate, up, Glu::Act(Act::Silu));
    t.linear(m, down)
}
