//! opt (`modeling_opt.py` of transformers): learned positions of which the first two stand for none; the 350m model norms
//! behind its parts instead of before, and has embeddings of another width than its layers.

use super::Definition;
use super::gpt2::OF_OTHER_POSITIONS;
use crate::blocks::{attend, embed_positions, layer_norm_of, project};
use crate::config::{Biases, ConfigError, Defaults, Keys, ModelConfig};
use crate::program::{Act, Norm, Parallel, Val, WeightUse};
use crate::tracer::{LinearWeight, Tracer};

pub(super) const OPT: Definition = Definition {
    name: "opt",
    class: "OPTForCausalLM",
    part_of: None,
    keys: &[
        "_remove_final_layer_norm",
        "do_layer_norm_before",
        "enable_bias",
        "init_std",
        "layer_norm_elementwise_affine",
        "learned_embeddings", // of Galactica's files; no class reads it
        "word_embed_proj_dim",
    ],
    aliases: &[("hidden_act", "activation_function"), ("intermediate_size", "ffn_dim")],
    defaults: Defaults {
        vocab: 50272,
        hidden: 768,
        layers: 12,
        heads: 12,
        ffn: 3072,
        norm_eps: EPS,
        tied: true,
        act: Act::Relu,
        bos: Some(2),
        ..Defaults::LLAMA
    },
    read,
    trace,
};

/// What `torch.nn.LayerNorm` takes if it is not told.
const EPS: f64 = 1e-5;
/// Positions before the first.
const OFFSET: usize = 2;

fn read(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    keys.refuse_any(&["head_dim", "num_key_value_heads", "rms_norm_eps"])?;
    keys.refuse_any(&OF_OTHER_POSITIONS)?;
    keys.may_only_say("learned_embeddings", true)?;
    let bias = keys.flag("enable_bias", true)?;
    c.bias = Biases { qkv: bias, o: bias, mlp: bias };
    c.norms_have_weights = keys.flag("layer_norm_elementwise_affine", true)?;
    c.norms_behind = !keys.flag("do_layer_norm_before", true)?;
    c.final_norm = !c.norms_behind && !keys.flag("_remove_final_layer_norm", false)?;
    c.embed_width = keys.size("word_embed_proj_dim")?.filter(|n| *n != c.hidden);
    (c.rope_width, c.rope_layers) = (0, vec![false; c.layers]);
    Ok(())
}

fn trace(t: &mut Tracer, c: &ModelConfig) -> Val {
    let width = c.embed_width.unwrap_or(c.hidden);
    let table = |t: &mut Tracer, name| t.weight(name, c.vocab, width, WeightUse::Vocabulary, Parallel::Column);
    let tokens = table(t, "model.decoder.embed_tokens.weight");
    let mut x = t.embed(tokens);
    if c.embed_width.is_some() {
        let up = t.linear_weight("model.decoder.project_in", (c.hidden, width), false, Parallel::Replicated);
        x = t.linear(x, up);
    }
    let mut delta = Some(embed_positions(t, c, "model.decoder.embed_positions", OFFSET));
    for layer in 0..c.layers {
        (x, delta) = t.layer(&format!("model.decoder.layers.{layer}"), |t| {
            let last = layer + 1 == c.layers;
            let attention = |t: &mut Tracer, mut x: Val, h: Val| {
                let (x, a) = t.scope("self_attn", |t| {
                    let qkv = project(t, c, h);
                    let mut a = attend(t, c, layer, qkv, None);
                    if last {
                        (x, a) = (t.take_outputs(x), t.take_outputs(a));
                    }
                    let o = t.linear_weight("out_proj", (c.hidden, c.hidden), c.bias.o, Parallel::Row);
                    (x, t.linear(a, o))
                });
                (x, a)
            };
            if c.norms_behind {
                let x = delta.map_or(x, |delta| t.add(x, delta));
                let (x, o) = attention(t, x, x);
                let behind = norm(t, c, "self_attn_layer_norm");
                let (_, x) = t.add_norm(x, Some(o), behind);
                let m = mlp(t, c, x);
                let behind = norm(t, c, "final_layer_norm");
                (t.add_norm(x, Some(m), behind).1, None)
            } else {
                let before = norm(t, c, "self_attn_layer_norm");
                let (x, h) = t.add_norm(x, delta, before);
                let (x, o) = attention(t, x, h);
                let before = norm(t, c, "final_layer_norm");
                let (x, h) = t.add_norm(x, Some(o), before);
                (x, Some(mlp(t, c, h)))
            }
        });
    }
    let mut h = if c.final_norm {
        let last = norm(t, c, "model.decoder.final_layer_norm");
        t.add_norm(x, delta, last).1
    } else {
        delta.map_or(x, |delta| t.add(x, delta))
    };
    if c.embed_width.is_some() {
        let down = t.linear_weight("model.decoder.project_out", (width, c.hidden), false, Parallel::Replicated);
        h = t.linear(h, down);
    }
    let weight = if c.tied { tokens } else { table(t, "lm_head.weight") };
    t.linear(h, LinearWeight { weight, bias: None })
}

fn norm(t: &mut Tracer, c: &ModelConfig, name: &str) -> Norm {
    match c.norms_have_weights {
        true => layer_norm_of(t, c, name, c.hidden),
        false => super::olmo::norm(t, c, name),
    }
}

fn mlp(t: &mut Tracer, c: &ModelConfig, h: Val) -> Val {
    crate::blocks::plain_mlp(t, c, h, ["fc1", "fc2"])
}
