//! starcoder2 (`modeling_starcoder2.py` of transformers): mistral with layer norms, biases, and a feed-forward part without a
//! gate.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{Layout, attention, decoder, layer_norm, plain_mlp};
use crate::config::{Biases, Defaults};
use crate::program::Act;

pub(super) const STARCODER2: Definition = Definition {
    name: "starcoder2",
    class: "Starcoder2ForCausalLM",
    part_of: None,
    keys: &[
        "activation_function", // kept from gpt_bigcode in published files, as the next ones; no class reads them
        "attention_softmax_in_fp32",
        "embedding_dropout",
        "layer_norm_epsilon",
        "mlp_type", // published files state what the class does
        "norm_type",
        "residual_dropout",
        "scale_attention_softmax_in_fp32",
        "scale_attn_weights",
        "sliding_window",
        "use_bias",
    ],
    aliases: &[("rms_norm_eps", "norm_epsilon")],
    defaults: Defaults {
        vocab: 49152,
        hidden: 3072,
        layers: 30,
        heads: 24,
        kv_heads: Some(2),
        ffn: 12288,
        max_len: 4096,
        norm_eps: 1e-5,
        tied: true,
        act: Act::GeluTanh,
        bos: Some(50256),
        eos: &[50256],
        ..Defaults::LLAMA
    },
    read: |keys, c| {
        let bias = keys.flag("use_bias", true)?;
        c.bias = Biases { qkv: bias, o: bias, mlp: bias };
        c.windows = vec![keys.size("sliding_window")?; c.layers];
        keys.may_only_say("mlp_type", "default")?;
        keys.may_only_say("scale_attn_weights", true)?;
        keys.may_only_say("norm_type", "layer_norm")?;
        ignores_layer_types(keys, c)
    },
    trace: |t, c| {
        let layout = Layout { norm: layer_norm, ..Layout::LLAMA };
        decoder(t, c, layout, attention, |t, c, _, h| t.scope("mlp", |t| plain_mlp(t, c, h, ["c_fc", "c_proj"])))
    },
};
