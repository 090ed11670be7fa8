//! qwen2_moe and qwen3_moe (`modeling_qwen2_moe.py`, `modeling_qwen3_moe.py` of transformers): qwen2 and qwen3 with experts
//! in some layers; in qwen2_moe one more expert takes every token, as much as its own gate says.

use super::Definition;
use super::llama::ignores_layer_types;
use crate::blocks::{attention, gated_mlp, pre_norm_decoder, routed_experts, router, separate_experts, sparse_mlp};
use crate::config::{Biases, ConfigError, Defaults, Keys, ModelConfig, Moe};
use crate::program::{Act, Glu, Parallel, Val};
use crate::tracer::Tracer;

pub(super) const QWEN2_MOE: Definition = Definition {
    name: "qwen2_moe",
    class: "Qwen2MoeForCausalLM",
    part_of: None,
    keys: &[
        "decoder_sparse_step",
        "max_window_layers",
        "mlp_only_layers",
        "moe_intermediate_size",
        "norm_topk_prob",
        "num_experts",
        "num_experts_per_tok",
        "qkv_bias",
        "shared_expert_intermediate_size",
        "sliding_window",
        "use_sliding_window",
    ],
    aliases: &[],
    defaults: Defaults { ffn: 5632, heads: 16, kv_heads: Some(16), ..QWEN },
    read: |keys, c| {
        c.bias.qkv = keys.flag("qkv_bias", true)?;
        c.windows = windows(keys, c.layers)?;
        let shared = keys.size("shared_expert_intermediate_size")?.unwrap_or(5632);
        let defaults = Moe { experts: 60, top_k: 4, ffn: 1408, shared_ffn: Some(shared), ..Moe::PLAIN };
        c.moe = moe(keys, c.layers, defaults)?;
        Ok(())
    },
    trace: decoder,
};

pub(super) const QWEN3_MOE: Definition = Definition {
    name: "qwen3_moe",
    class: "Qwen3MoeForCausalLM",
    part_of: None,
    keys: &[
        "attention_bias",
        "decoder_sparse_step",
        "max_window_layers", // published files have it, the class does not
        "mlp_only_layers",
        "moe_intermediate_size",
        "norm_topk_prob",
        "num_experts",
        "num_experts_per_tok",
        "num_local_experts", // what 5.23 writes for num_experts
        "shared_expert_intermediate_size",
        "sliding_window",
        "use_qk_norm",
        "use_sliding_window",
    ],
    aliases: &[],
    defaults: Defaults { ffn: 6144, kv_heads: Some(4), ..QWEN },
    read: |keys, c| {
        let attention = keys.flag("attention_bias", false)?;
        c.bias = Biases { qkv: attention, o: attention, mlp: false };
        c.head_norms = true;
        let window = match keys.flag("use_sliding_window", false)? {
            true => keys.size_or_null("sliding_window", 4096)?,
            false => None,
        };
        c.windows = vec![window; c.layers];
        // Qwen3-Coder's files state these two; the class does as they say without reading them.
        if keys.size("shared_expert_intermediate_size")?.is_some_and(|n| n > 0) {
            return Err(keys.unsupported("shared_expert_intermediate_size"));
        }
        if !keys.flag("use_qk_norm", true)? {
            return Err(keys.unsupported("use_qk_norm"));
        }
        let defaults = Moe { experts: 128, top_k: 8, ffn: 768, ..Moe::PLAIN };
        c.moe = moe(keys, c.layers, defaults)?;
        ignores_layer_types(keys, c)
    },
    trace: decoder,
};

const QWEN: Defaults =
    Defaults { vocab: 151_936, hidden: 2048, layers: 24, max_len: 32768, bos: None, eos: &[], ..Defaults::LLAMA };

/// Which layers of qwen2_moe slide is disputed: all by 4.57, by 5.23 those that `layer_types` names, or every other one
/// below `max_window_layers`. What they agree on is read.
fn windows(keys: &Keys<'_>, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let window = match keys.flag("use_sliding_window", false)? {
        true => keys.size_or_null("sliding_window", 4096)?,
        false => None,
    };
    let all = vec![window; layers];
    let given = keys.layer_types(layers, window)?;
    match given.is_some_and(|given| given == all) || window.is_none() {
        true => Ok(all),
        false => Err(keys.unsupported("use_sliding_window")),
    }
}

/// The experts; none where every layer is dense.
fn moe(keys: &Keys<'_>, layers: usize, defaults: Moe) -> Result<Option<Moe>, ConfigError> {
    let experts = match (keys.size("num_experts")?, keys.size("num_local_experts")?) {
        (Some(a), Some(b)) if a != b => return Err(keys.unsupported("num_local_experts")),
        (a, b) => a.or(b).unwrap_or(defaults.experts),
    };
    let step = keys.size("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(keys.value("decoder_sparse_step", step, "must be positive"));
    }
    let dense = keys.sizes("mlp_only_layers")?.unwrap_or_default();
    let moe = Moe {
        experts,
        top_k: keys.size("num_experts_per_tok")?.unwrap_or(defaults.top_k),
        ffn: keys.size("moe_intermediate_size")?.unwrap_or(defaults.ffn),
        normalise: keys.flag("norm_topk_prob", defaults.normalise)?,
        layers: (0..layers).map(|i| experts > 0 && (i + 1) % step == 0 && !dense.contains(&i)).collect(),
        ..defaults
    };
    Ok(Some(moe).filter(|moe| moe.layers.contains(&true)))
}

fn decoder(t: &mut Tracer, c: &ModelConfig) -> Val {
    let mlp = |t: &mut Tracer, c: &ModelConfig, layer, h| t.scope("mlp", |t| sparse_mlp(t, c, layer, h, experts));
    pre_norm_decoder(t, c, attention, mlp)
}

fn experts(t: &mut Tracer, c: &ModelConfig, moe: &Moe, h: Val) -> Val {
    let router = router(t, moe, c.hidden, "gate", false);
    let stacks = separate_experts(t, moe, c.hidden, ["gate_proj", "up_proj", "down_proj"]);
    let routed = routed_experts(t, moe, router, stacks, Glu::Act(c.act), h);
    let Some(ffn) = moe.shared_ffn else { return routed };
    let shared = t.scope("shared_expert", |t| gated_mlp(t, c, h, ffn));
    let gate = t.linear_weight("shared_expert_gate", (1, c.hidden), false, Parallel::Replicated);
    let gate = t.linear(h, gate);
    let gate = t.act(gate, Act::Sigmoid);
    let shared = t.mul(shared, gate);
    t.add(routed, shared)
}
