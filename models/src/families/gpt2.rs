//! gpt2 (`modeling_gpt2.py` of transformers): learned positions, layer norms, biases everywhere, and matrices that are
//! stored `[in, out]` (`Conv1D`), those of queries, keys and values in one.

use super::Definition;
use crate::blocks::{attend, embed_positions, layer_norm};
use crate::config::{Defaults, ModelConfig};
use crate::program::{Act, Parallel, Val, View, WeightUse};
use crate::tracer::{LinearWeight, Tracer};

pub(super) const GPT2: Definition = Definition {
    name: "gpt2",
    class: "GPT2LMHeadModel",
    part_of: None,
    keys: &[
        "n_ctx",                   // of the first files; read by nobody
        "reorder_and_upcast_attn", // the same in f32
        "scale_attn_by_inverse_layer_idx",
        "scale_attn_weights",
        "summary_activation", // of another head
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ],
    aliases: ALIASES,
    defaults: DEFAULTS,
    read: |keys, c| {
        keys.refuse_any(&["head_dim", "num_key_value_heads"])?;
        keys.refuse_any(&OF_OTHER_POSITIONS)?;
        c.ffn = keys.size("intermediate_size")?.unwrap_or(c.hidden.saturating_mul(4));
        (c.rope_width, c.rope_layers) = (0, vec![false; c.layers]);
        if !keys.flag("scale_attn_weights", true)? {
            c.attention_scale = 1.0;
        }
        c.attention_scale_by_layer = keys.flag("scale_attn_by_inverse_layer_idx", false)?;
        Ok(())
    },
    trace: decoder,
};

/// gpt2's names of keys.
pub(super) const ALIASES: &[(&str, &str)] = &[
    ("hidden_act", "activation_function"),
    ("hidden_size", "n_embd"),
    ("intermediate_size", "n_inner"),
    ("max_position_embeddings", "n_positions"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
    ("rms_norm_eps", "layer_norm_epsilon"),
];

/// What holds where a config says nothing.
pub(super) const DEFAULTS: Defaults = Defaults {
    vocab: 50257,
    hidden: 768,
    layers: 12,
    heads: 12,
    max_len: 1024,
    norm_eps: 1e-5,
    tied: true,
    act: Act::GeluTanh,
    bos: Some(50256),
    eos: &[50256],
    ..Defaults::LLAMA
};

/// Keys of layers and positions that a model with learned positions has none of.
pub(super) const OF_OTHER_POSITIONS: [&str; 5] =
    ["layer_types", "original_max_position_embeddings", "rope_parameters", "rope_scaling", "rope_theta"];

fn decoder(t: &mut Tracer, c: &ModelConfig) -> Val {
    let wte = t.weight("transformer.wte.weight", c.vocab, c.hidden, WeightUse::Vocabulary, Parallel::Column);
    let tokens = t.embed(wte);
    let positions = embed_positions(t, c, "transformer.wpe", 0);
    let (mut x, mut delta) = (tokens, Some(positions));
    for layer in 0..c.layers {
        (x, delta) = t.layer(&format!("transformer.h.{layer}"), |t| {
            let norm = layer_norm(t, c, "ln_1");
            let (mut x, h) = t.add_norm(x, delta, norm);
            let part = |i| View::part(i * c.hidden, c.hidden, 3 * c.hidden);
            let qkv = [0, 1, 2].map(|i| conv1d(t, "attn.c_attn", (c.hidden, c.hidden), Parallel::Column, part(i)));
            let qkv = t.linear_n(h, qkv);
            let mut a = attend(t, c, layer, qkv, None);
            if layer + 1 == c.layers {
                (x, a) = (t.take_outputs(x), t.take_outputs(a));
            }
            let o = conv1d(t, "attn.c_proj", (c.hidden, c.hidden), Parallel::Row, View::whole(c.hidden));
            let o = t.linear(a, o);
            let norm = layer_norm(t, c, "ln_2");
            let (x, h) = t.add_norm(x, Some(o), norm);
            let up = conv1d(t, "mlp.c_fc", (c.ffn, c.hidden), Parallel::Column, View::whole(c.ffn));
            let m = t.linear(h, up);
            let m = t.act(m, c.act);
            let down = conv1d(t, "mlp.c_proj", (c.hidden, c.ffn), Parallel::Row, View::whole(c.hidden));
            (x, Some(t.linear(m, down)))
        });
    }
    let norm = layer_norm(t, c, "transformer.ln_f");
    let (_, h) = t.add_norm(x, delta, norm);
    let weight = match c.tied {
        true => wte,
        false => t.weight("lm_head.weight", c.vocab, c.hidden, WeightUse::Vocabulary, Parallel::Column),
    };
    t.linear(h, LinearWeight { weight, bias: None })
}

/// A map whose matrix is stored `[in, out]`, or a part of one.
fn conv1d(t: &mut Tracer, name: &str, shape: (usize, usize), parallel: Parallel, view: View) -> LinearWeight {
    t.linear_view(name, shape, true, parallel, view.transposed())
}
