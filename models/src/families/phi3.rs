//! phi3 (`modeling_phi3.py` of transformers; Phi-3, Phi-3.5 and Phi-4, mini included): llama whose checkpoints stack the
//! projections, with LongRoPE and partly rotated heads in some.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{attend, fused_gated_mlp, pre_norm_decoder};
use crate::config::{Defaults, ModelConfig};
use crate::program::{Parallel, Val, View};
use crate::tracer::Tracer;

pub(super) const PHI3: Definition = Definition {
    name: "phi3",
    class: "Phi3ForCausalLM",
    part_of: None,
    keys: &["full_attn_mod", "interpolate_factor", "sliding_window"],
    aliases: &[],
    defaults: Defaults {
        vocab: 32064,
        hidden: 3072,
        ffn: 8192,
        max_len: 4096,
        norm_eps: 1e-5,
        partial_rotary: Some(1.0),
        long_rope: Some(4096),
        eos: &[32000],
        ..Defaults::LLAMA
    },
    read: |keys, c| {
        // Phi-4-mini's files say 1, which is what the reference implementation does whatever they say.
        for key in ["full_attn_mod", "interpolate_factor"] {
            if keys.number(key)?.is_some_and(|x| x != 1.0) {
                return Err(keys.unsupported(key));
            }
        }
        c.windows = vec![keys.size("sliding_window")?; c.layers];
        ignores_layer_types(keys, c)
    },
    trace: |t, c| pre_norm_decoder(t, c, attention, |t, c, _, h| t.scope("mlp", |t| fused_gated_mlp(t, c, h, c.ffn))),
};

/// Queries, keys and values one below the other in `qkv_proj`.
fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let parts = [(0, q), (q, kv), (q + kv, kv)].map(|(start, rows)| {
        let view = View::part(start, rows, q + 2 * kv);
        t.linear_view("qkv_proj", (rows, c.hidden), false, Parallel::Column, view)
    });
    let qkv = t.linear_n(h, parts);
    attend(t, c, layer, qkv, None)
}
