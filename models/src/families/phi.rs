//! phi (`modeling_phi.py` of transformers; Phi-1, Phi-1.5, Phi-2): attention and feed-forward part side by side behind one
//! layer norm, biases everywhere, partly rotated heads.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{Layout, Names, attend, decoder, layer_norm, layer_norm_of, plain_mlp, project};
use crate::config::{Biases, Defaults, ModelConfig};
use crate::program::{Act, NormGroup, Val};
use crate::tracer::Tracer;

pub(super) const PHI: Definition = Definition {
    name: "phi",
    class: "PhiForCausalLM",
    part_of: None,
    keys: &["qk_layernorm"],
    aliases: &[("rms_norm_eps", "layer_norm_eps")],
    defaults: Defaults {
        vocab: 51200,
        hidden: 2048,
        layers: 24,
        ffn: 8192,
        norm_eps: 1e-5,
        act: Act::GeluTanh,
        partial_rotary: Some(0.5),
        ..Defaults::LLAMA
    },
    read: |keys, c| {
        c.bias = Biases { qkv: true, o: true, mlp: true };
        c.head_bias = true;
        c.is_parallel = true;
        c.head_norms = keys.flag("qk_layernorm", false)?;
        // Norms of heads are as long as the width over the heads says.
        keys.may_only_say("head_dim", c.hidden / c.heads.max(1))?;
        ignores_layer_types(keys, c)
    },
    trace: |t, c| {
        let names = Names { output: "dense", norm: "model.final_layernorm", ..Names::LLAMA };
        let layout = Layout { names, norm: layer_norm, mlp: (None, None), is_parallel: true, ..Layout::LLAMA };
        decoder(t, c, layout, attention, |t, c, _, h| t.scope("mlp", |t| plain_mlp(t, c, h, ["fc1", "fc2"])))
    },
};

fn attention(t: &mut Tracer, c: &ModelConfig, layer: usize, h: Val) -> Val {
    let [mut q, mut k, v] = project(t, c, h);
    if c.head_norms {
        let mut norm = |x, name| {
            let norm = layer_norm_of(t, c, name, c.head_dim);
            t.norm(x, norm, NormGroup::Head(c.head_dim))
        };
        (q, k) = (norm(q, "q_layernorm"), norm(k, "k_layernorm"));
    }
    attend(t, c, layer, [q, k, v], None)
}
