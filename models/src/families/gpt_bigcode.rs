//! gpt_bigcode (`modeling_gpt_bigcode.py` of transformers; SantaCoder, StarCoder): gpt2 with matrices `[out, in]`, and one
//! head of keys for all queries.

use super::Definition;
use super::gpt2::{ALIASES, DEFAULTS, OF_OTHER_POSITIONS};
use crate::blocks::{Layout, Names, attend, decoder, layer_norm, plain_mlp, project_groups};
use crate::config::{Biases, ConfigError, Keys, ModelConfig};
use crate::program::Val;
use crate::tracer::Tracer;

pub(super) const GPT_BIGCODE: Definition = Definition {
    name: "gpt_bigcode",
    class: "GPTBigCodeForCausalLM",
    part_of: None,
    keys: &[
        "attention_softmax_in_fp32", // the same in f32
        "inference_runner",          // of the first server
        "max_batch_size",
        "multi_query",
        "pad_key_length",
        "pre_allocate_kv_cache",
        "scale_attention_softmax_in_fp32",
        "scale_attn_weights",
        "summary_activation", // of another head
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "validate_runner_input",
    ],
    aliases: ALIASES,
    defaults: DEFAULTS,
    read,
    trace: |t, c| {
        let names = Names {
            tokens: "transformer.wte",
            positions: Some("transformer.wpe"),
            layers: "transformer.h",
            attention: "attn",
            output: "c_proj",
            norm: "transformer.ln_f",
            ..Names::LLAMA
        };
        let (attention_norm, mlp_norm) = ((Some("ln_1"), None), (Some("ln_2"), None));
        let layout = Layout { names, norm: layer_norm, attention: attention_norm, mlp: mlp_norm, ..Layout::LLAMA };
        decoder(t, c, layout, attention, |t, c, _, h| t.scope("mlp", |t| plain_mlp(t, c, h, ["c_fc", "c_proj"])))
    },
};

fn read(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    keys.refuse_any(&["head_dim"])?;
    keys.refuse_any(&OF_OTHER_POSITIONS)?;
    c.kv_heads = if keys.flag("multi_query", true)? { 1 } else { c.heads };
    keys.may_only_say("num_key_value_heads", c.kv_heads)?;
    c.ffn = keys.size("intermediate_size")?.unwrap_or(c.hidden.saturating_mul(4));
    c.bias = Biases { qkv: true, o: true, mlp: true };
    (c.rope_width, c.rope_layers) = (0, vec![false; c.layers]);
    if !keys.flag("scale_attn_weights", true)? {
        c.attention_scale = 1.0;
    }
    Ok(())
}

fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let qkv = project_groups(t, c, h, "c_attn");
    attend(t, c, layer, qkv, None)
}
