//! gpt_neox (`modeling_gpt_neox.py` of transformers; Pythia): attention and feed-forward part side by side in most models,
//! partly rotated heads, and queries, keys and values of each head together.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{Layout, Names, attend, decoder, layer_norm, plain_mlp, project_groups};
use crate::config::{Biases, ConfigError, Defaults, Keys, ModelConfig};
use crate::program::{Act, Val};
use crate::tracer::Tracer;

pub(super) const GPT_NEOX: Definition = Definition {
    name: "gpt_neox",
    class: "GPTNeoXForCausalLM",
    part_of: None,
    keys: &["attention_bias", "use_parallel_residual"],
    aliases: &[
        ("partial_rotary_factor", "rotary_pct"),
        ("rms_norm_eps", "layer_norm_eps"),
        ("rope_theta", "rotary_emb_base"),
    ],
    defaults: Defaults {
        vocab: 50432,
        hidden: 6144,
        layers: 44,
        heads: 64,
        ffn: 24576,
        norm_eps: 1e-5,
        act: Act::Gelu,
        partial_rotary: Some(0.25),
        bos: Some(0),
        eos: &[2],
        ..Defaults::LLAMA
    },
    read,
    trace: |t, c| {
        let names = Names {
            tokens: "gpt_neox.embed_in",
            layers: "gpt_neox.layers",
            attention: "attention",
            output: "dense",
            norm: "gpt_neox.final_layer_norm",
            head: "embed_out",
            ..Names::LLAMA
        };
        let layout = Layout { names, norm: layer_norm, is_parallel: c.is_parallel, ..Layout::LLAMA };
        decoder(t, c, layout, attention, |t, c, _, h| {
            t.scope("mlp", |t| plain_mlp(t, c, h, ["dense_h_to_4h", "dense_4h_to_h"]))
        })
    },
};

fn read(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    let attention = keys.flag("attention_bias", true)?;
    c.bias = Biases { qkv: attention, o: attention, mlp: true };
    c.is_parallel = keys.flag("use_parallel_residual", true)?;
    keys.may_only_say("num_key_value_heads", c.heads)?;
    keys.may_only_say("head_dim", c.hidden / c.heads.max(1))?;
    // 4.57 goes by its own names alone; what 5.23 writes has a section of its own.
    let is_older = keys.get("rope_parameters").is_none();
    for (key, own) in [("partial_rotary_factor", "rotary_pct"), ("rope_theta", "rotary_emb_base")] {
        if is_older && keys.map().contains_key(key) && !keys.map().contains_key(own) {
            return Err(keys.unsupported(key));
        }
    }
    ignores_layer_types(keys, c)
}

fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let qkv = project_groups(t, c, h, "query_key_value");
    attend(t, c, layer, qkv, None)
}
