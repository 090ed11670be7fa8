//! nemotron (`modeling_nemotron.py` of transformers; Nemotron-3, Nemotron-4, Minitron): layer norms that hold their weight
//! minus one, half of each head rotated, a squared activation without a gate.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{Layout, attention, decoder, layer_norm, plain_mlp};
use crate::config::{Biases, Defaults, RopeScaling};
use crate::program::Act;

pub(super) const NEMOTRON: Definition = Definition {
    name: "nemotron",
    class: "NemotronForCausalLM",
    part_of: None,
    // The last two are of published files; no class reads them.
    keys: &["attention_bias", "mlp_bias", "kv_channels", "rope_percent"],
    aliases: &[("rms_norm_eps", "norm_eps")],
    defaults: Defaults {
        vocab: 256_000,
        hidden: 6144,
        heads: 48,
        ffn: 24576,
        max_len: 4096,
        norm_eps: 1e-5,
        act: Act::Relu2,
        partial_rotary: Some(0.5),
        bos: Some(2),
        eos: &[3],
        ..Defaults::LLAMA
    },
    read: |keys, c| {
        let attention = keys.flag("attention_bias", false)?;
        c.bias = Biases { qkv: attention, o: attention, mlp: keys.flag("mlp_bias", false)? };
        c.norm_plus_one = true;
        keys.may_only_say("kv_channels", c.head_dim)?;
        if let Some(part) = keys.number("rope_percent")?
            && (c.head_dim as f64 * part) as usize != c.rope_width
        {
            return Err(keys.unsupported("rope_percent"));
        }
        // 4.57 has no scaling here.
        if c.rope.scaling != RopeScaling::None {
            return Err(keys.unsupported(if keys.get("rope_scaling").is_some() {
                "rope_scaling"
            } else {
                "rope_parameters"
            }));
        }
        ignores_layer_types(keys, c)
    },
    trace: |t, c| {
        let layout = Layout { norm: layer_norm, ..Layout::LLAMA };
        decoder(t, c, layout, attention, |t, c, _, h| t.scope("mlp", |t| plain_mlp(t, c, h, ["up_proj", "down_proj"])))
    },
};
