//! falcon (`modeling_falcon.py` of transformers) in its three layouts: one head of keys and one norm for both parts (7B);
//! groups of queries and a norm for each part (40B, 180B, 11B); one part after the other, and scores that fall with the
//! distance instead of rotations (RW).

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{Layout, Names, attend, decoder, layer_norm, plain_mlp, project_groups};
use crate::config::{Biases, ConfigError, Defaults, Keys, ModelConfig};
use crate::program::{Act, Val};
use crate::tracer::Tracer;

pub(super) const FALCON: Definition = Definition {
    name: "falcon",
    class: "FalconForCausalLM",
    part_of: None,
    keys: &[
        "alibi",
        "apply_residual_connection_post_layernorm", // kept from bloom in published files; no class reads it
        "bias",
        "ff_factor", // says what ffn_hidden_size says; no class reads it
        "multi_query",
        "new_decoder_architecture",
        "num_kv_heads",
        "num_ln_in_parallel_attn",
        "parallel_attn",
    ],
    aliases: &[
        ("hidden_act", "activation"),
        ("hidden_size", "n_embed"),
        ("intermediate_size", "ffn_hidden_size"),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ],
    defaults: Defaults {
        vocab: 65024,
        hidden: 4544,
        heads: 71,
        norm_eps: 1e-5,
        tied: true,
        act: Act::Gelu,
        bos: Some(11),
        eos: &[11],
        ..Defaults::LLAMA
    },
    read,
    trace,
};

fn read(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    keys.refuse_any(&["num_key_value_heads"])?;
    keys.may_only_say("head_dim", c.hidden / c.heads.max(1))?;
    let bias = keys.flag("bias", false)?;
    c.bias = Biases { qkv: bias, o: bias, mlp: bias };
    c.ffn = keys.size("intermediate_size")?.unwrap_or(c.hidden.saturating_mul(4));
    let in_groups = keys.flag("new_decoder_architecture", false)?;
    c.kv_heads = match (in_groups, keys.flag("multi_query", true)?) {
        (true, _) => keys.size("num_kv_heads")?.unwrap_or(c.heads),
        (false, true) => 1,
        (false, false) => {
            keys.may_only_say("num_kv_heads", c.heads)?;
            c.heads
        }
    };
    c.is_parallel = keys.flag("parallel_attn", true)?;
    if in_groups && !c.is_parallel {
        return Err(keys.unsupported("parallel_attn"));
    }
    c.norm_per_part = match keys.size("num_ln_in_parallel_attn")? {
        None => in_groups,
        Some(2) if in_groups => true,
        Some(1) => false,
        Some(_) => return Err(keys.unsupported("num_ln_in_parallel_attn")),
    };
    if keys.flag("alibi", false)? {
        (c.rope_width, c.rope_layers) = (0, vec![false; c.layers]);
        c.alibi = Some(slopes(c.heads).into_iter().map(|slope| slope * c.attention_scale).collect());
    }
    ignores_layer_types(keys, c)
}

/// Slopes of `build_alibi_tensor`: powers of one base for as many heads as the largest power of two, and for the others
/// every second power of its root. They are bf16 there; so are their products with positions, which ours are not. They are
/// added once, as its sdpa attention has it; the eager one of 4.57.6 adds them twice, in the scores and in the mask.
fn slopes(heads: usize) -> Vec<f32> {
    let whole = if heads == 0 { 0 } else { 1_usize << heads.ilog2() };
    let power = |i: usize, of: usize| 2_f64.powf(-8.0 * i as f64 / of as f64);
    let slopes = (1..=whole).map(|i| power(i, whole)).chain((0..heads - whole).map(|i| power(2 * i + 1, 2 * whole)));
    slopes.map(|slope| half::bf16::from_f64(slope).to_f32()).collect()
}

fn trace(t: &mut Tracer, c: &ModelConfig) -> Val {
    let names = Names {
        tokens: "transformer.word_embeddings",
        layers: "transformer.h",
        attention: "self_attention",
        output: "dense",
        norm: "transformer.ln_f",
        ..Names::LLAMA
    };
    let (attention_norm, mlp_norm) = match (c.is_parallel, c.norm_per_part) {
        (false, _) => (Some("input_layernorm"), Some("post_attention_layernorm")),
        (true, false) => (Some("input_layernorm"), None),
        (true, true) => (Some("ln_attn"), Some("ln_mlp")),
    };
    let layout = Layout {
        names,
        norm: layer_norm,
        attention: (attention_norm, None),
        mlp: (mlp_norm, None),
        is_parallel: c.is_parallel,
    };
    decoder(t, c, layout, attention, |t, c, _, h| {
        t.scope("mlp", |t| plain_mlp(t, c, h, ["dense_h_to_4h", "dense_4h_to_h"]))
    })
}

fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let qkv = project_groups(t, c, h, "query_key_value");
    attend(t, c, layer, qkv, None)
}

#[cfg(test)]
mod tests {
    use super::slopes;

    /// `build_alibi_tensor` of transformers 4.57.6 for 6 heads: powers of 2^-2, then the odd ones of 2^-1.
    #[test]
    fn slopes_of_heads_that_are_no_power_of_two_are_interleaved() {
        assert_eq!(slopes(6), [0.25, 0.0625, 0.015_625, 0.003_906_25, 0.5, 0.125]);
        assert_eq!(slopes(8)[..3], [0.5, 0.25, 0.125]);
        // The root of a half is none of bf16.
        assert_eq!(slopes(16)[0], 0.707_031_25);
    }
}
