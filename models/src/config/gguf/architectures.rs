//! The architectures of GGUF files under llama.cpp's names, one [`Architecture`] each: which family it is, which keys it
//! reads beyond the common ones, and what llama.cpp's loader assumes (`src/models/NAME.cpp`, `load_arch_hparams`).
//!
//! What llama.cpp has in its code instead of the file is here: shares of experts, patterns of windows, layers that do not
//! rotate. Where the file says less than the checkpoint it was made from, the family's own default stands (an activation,
//! say). Where tensors are is in `weights/gguf/names.rs`.

use super::Keys;
use super::refuse_other;
use crate::config::{ConfigError, Family, Latent, ModelConfig, Moe, RopeConfig, RopeScaling};
use crate::program::{Pairing, RouteGroups, RouteScore};
use crate::rope::yarn_mscale;
use crate::weights::gguf::Gguf;

/// How files of an architecture are read.
pub(crate) struct Architecture {
    /// `general.architecture`.
    pub(crate) name: &'static str,
    /// Whose models are stored so.
    pub(crate) families: &'static [Family],
    /// As which of them a file is read.
    pub(crate) family: fn(&Keys<'_>) -> Result<Family, ConfigError>,
    /// Epsilon of its norms.
    pub(crate) eps: &'static str,
    /// What `attention.sliding_window` means.
    pub(crate) windows: Windows,
    /// Whether keys and values come from a latent.
    pub(crate) is_latent: bool,
    /// Keys that `read` reads, beyond the common ones.
    pub(crate) keys: &'static [&'static str],
    /// Reads them over what the common ones gave.
    pub(crate) read: fn(&Gguf, &Keys<'_>, &mut ModelConfig) -> Result<(), ConfigError>,
}

/// Which layers have a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Windows {
    /// llama.cpp takes no notice of the key, and what it would mean is not beyond doubt.
    None,
    /// All, if the file gives a length below the context's.
    All,
    /// Those that `attention.sliding_window_pattern` lists, or all but each `every`th.
    Some {
        /// How many keys, if the file does not say.
        default: Option<usize>,
        /// As the key if the file does not say; 0 is all layers.
        every: usize,
    },
}

const RMS: &str = "attention.layer_norm_rms_epsilon";
const LAYER: &str = "attention.layer_norm_epsilon";

/// RMS norms, no windows, nothing of its own.
const PLAIN: Architecture = Architecture {
    name: "",
    families: &[],
    family: |keys| Err(keys.missing("architecture")),
    eps: RMS,
    windows: Windows::None,
    is_latent: false,
    keys: &[],
    read: |_, _, _| Ok(()),
};

/// Keys of experts as wide as `feed_forward_length` says.
const EXPERTS: &[&str] = &["expert_count", "expert_used_count"];
/// Factors of granite.
const FACTORS: &[&str] = &["attention.scale", "embedding_scale", "logit_scale", "residual_scale"];

/// Every supported architecture.
pub(crate) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "llama",
        families: &[Family::Llama, Family::Mistral, Family::Mixtral],
        family: |keys| match keys.size("expert_count")? {
            None | Some(0) => Ok(Family::Llama),
            Some(_) => Ok(Family::Mixtral),
        },
        windows: Windows::All,
        keys: EXPERTS,
        read: |_, keys, c| {
            if c.family == Family::Mixtral {
                c.moe = Some(Moe { ffn: c.ffn, normalise: true, ..moe(keys, c)? });
            }
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "qwen2",
        families: &[Family::Qwen2],
        family: |_| Ok(Family::Qwen2),
        read: |_, _, c| {
            c.bias.qkv = true;
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "qwen2moe",
        families: &[Family::Qwen2Moe],
        family: |_| Ok(Family::Qwen2Moe),
        keys: &["expert_count", "expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_used_count"],
        read: |_, keys, c| {
            let shared = keys.size("expert_shared_feed_forward_length")?.unwrap_or(c.ffn);
            c.moe = Some(Moe { shared_ffn: Some(shared), ..moe(keys, c)? });
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "qwen3",
        families: &[Family::Qwen3],
        family: |_| Ok(Family::Qwen3),
        read: |_, _, c| {
            c.head_norms = true;
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "qwen3moe",
        families: &[Family::Qwen3Moe],
        family: |_| Ok(Family::Qwen3Moe),
        keys: &["expert_count", "expert_feed_forward_length", "expert_used_count"],
        read: |_, keys, c| {
            c.head_norms = true;
            c.moe = Some(Moe { normalise: true, ..moe(keys, c)? });
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "gemma",
        families: &[Family::Gemma],
        family: |_| Ok(Family::Gemma),
        read: |_, _, c| {
            gemma(c, None);
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "gemma2",
        families: &[Family::Gemma2],
        family: |_| Ok(Family::Gemma2),
        windows: Windows::Some { default: Some(4096), every: 2 },
        keys: &["attention.sliding_window_pattern", "attn_logit_softcapping", "final_logit_softcapping"],
        read: |_, keys, c| {
            let cap = |key, default: f64| match keys.float(key)?.unwrap_or(default) {
                0.0 => Ok::<_, ConfigError>(None),
                cap => Ok(Some(cap as f32)),
            };
            c.attention_softcap = cap("attn_logit_softcapping", 50.0)?;
            c.logit_softcap = cap("final_logit_softcapping", 30.0)?;
            gemma(c, Some(46));
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "gemma3",
        families: &[Family::Gemma3Text, Family::Gemma3],
        family: |_| Ok(Family::Gemma3Text),
        windows: Windows::Some { default: None, every: 6 },
        keys: &["attention.sliding_window_pattern", "final_logit_softcapping", "rope.freq_base_swa"],
        read: |_, keys, c| {
            c.head_norms = true;
            c.logit_softcap = keys.factor("final_logit_softcapping")?;
            let theta = keys.float("rope.freq_base_swa")?.unwrap_or(10_000.0);
            c.local_rope = Some(RopeConfig { theta, scaling: RopeScaling::None });
            gemma(c, Some(62));
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "phi2",
        families: &[Family::Phi],
        family: |_| Ok(Family::Phi),
        eps: LAYER,
        read: |_, _, c| {
            (c.is_parallel, c.head_bias) = (true, true);
            Ok(())
        },
        ..PLAIN
    },
    // llama.cpp has switched windows off here; a file's length is that of all layers.
    Architecture {
        name: "phi3",
        families: &[Family::Phi3],
        family: |_| Ok(Family::Phi3),
        windows: Windows::All,
        ..PLAIN
    },
    Architecture {
        name: "granite",
        families: &[Family::Granite],
        family: |_| Ok(Family::Granite),
        keys: FACTORS,
        read: |_, keys, c| granite(keys, c),
        ..PLAIN
    },
    Architecture {
        name: "granitemoe",
        families: &[Family::GraniteMoe],
        family: |_| Ok(Family::GraniteMoe),
        keys: &[
            "attention.scale",
            "embedding_scale",
            "expert_count",
            "expert_used_count",
            "logit_scale",
            "residual_scale",
        ],
        read: |_, keys, c| {
            c.moe = Some(Moe { ffn: c.ffn, normalise: true, ..moe(keys, c)? });
            granite(keys, c)
        },
        ..PLAIN
    },
    Architecture {
        name: "smollm3",
        families: &[Family::SmolLM3],
        family: |_| Ok(Family::SmolLM3),
        read: |_, _, c| {
            c.rope_layers = (1..=c.layers).map(|i| i % 4 != 0).collect();
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "olmo",
        families: &[Family::Olmo],
        family: |_| Ok(Family::Olmo),
        eps: LAYER,
        keys: &["attention.clamp_kqv"],
        read: |_, keys, c| {
            // The converter leaves the order of their biases as it was, and no published model has any.
            c.bias.qkv = false;
            c.qkv_clip = keys.factor("attention.clamp_kqv")?;
            match c.qkv_clip {
                Some(clip) if !(clip.is_finite() && clip > 0.0) => Err(keys.unsupported("attention.clamp_kqv")),
                _ => Ok(()),
            }
        },
        ..PLAIN
    },
    Architecture { name: "olmo2", families: &[Family::Olmo2], family: |_| Ok(Family::Olmo2), ..PLAIN },
    Architecture {
        name: "olmoe",
        families: &[Family::Olmoe],
        family: |_| Ok(Family::Olmoe),
        keys: EXPERTS,
        read: |_, keys, c| {
            c.moe = Some(Moe { ffn: c.ffn, ..moe(keys, c)? });
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "gpt2",
        families: &[Family::Gpt2],
        family: |_| Ok(Family::Gpt2),
        eps: LAYER,
        read: |_, keys, c| {
            refuse_other(keys, "attention.head_count_kv", c.heads)?;
            if c.heads.checked_mul(c.head_dim) != Some(c.hidden) {
                return Err(keys.unsupported("attention.key_length"));
            }
            (c.rope_width, c.rope_layers) = (0, vec![false; c.layers]);
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "gptneox",
        families: &[Family::GptNeox],
        family: |_| Ok(Family::GptNeox),
        eps: LAYER,
        keys: &["use_parallel_residual"],
        read: |_, keys, c| {
            c.is_parallel = keys.flag("use_parallel_residual", true)?;
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "stablelm",
        families: &[Family::StableLm],
        family: |_| Ok(Family::StableLm),
        eps: LAYER,
        keys: &["use_parallel_residual"],
        read: |gguf, keys, c| {
            // llama.cpp goes by the norm; files of models that have it may say otherwise.
            keys.flag("use_parallel_residual", true)?;
            c.is_parallel = !gguf.has("blk.0.ffn_norm.weight");
            c.head_norms = gguf.has("blk.0.attn_q_norm.weight");
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "starcoder",
        families: &[Family::GptBigCode],
        family: |_| Ok(Family::GptBigCode),
        eps: LAYER,
        read: |_, _, c| {
            (c.rope_width, c.rope_layers) = (0, vec![false; c.layers]);
            Ok(())
        },
        ..PLAIN
    },
    // The converter leaves its window out.
    Architecture {
        name: "starcoder2",
        families: &[Family::Starcoder2],
        family: |_| Ok(Family::Starcoder2),
        eps: LAYER,
        ..PLAIN
    },
    Architecture {
        name: "command-r",
        families: &[Family::Cohere],
        family: |_| Ok(Family::Cohere),
        eps: LAYER,
        keys: &["logit_scale"],
        read: |gguf, keys, c| {
            c.head_norms = gguf.has("blk.0.attn_q_norm.weight");
            cohere(keys, c)
        },
        ..PLAIN
    },
    Architecture {
        name: "cohere2",
        families: &[Family::Cohere2],
        family: |_| Ok(Family::Cohere2),
        eps: LAYER,
        windows: Windows::Some { default: None, every: 4 },
        keys: &["attention.sliding_window_pattern", "logit_scale"],
        read: |_, keys, c| {
            keys.need("attention.sliding_window")?;
            c.rope_layers = c.windows.iter().map(Option::is_some).collect();
            cohere(keys, c)
        },
        ..PLAIN
    },
    Architecture {
        name: "glm4",
        families: &[Family::Glm4],
        family: |_| Ok(Family::Glm4),
        keys: &["nextn_predict_layers"],
        read: |_, _, c| {
            c.rope_pairing = Pairing::Neighbours;
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "exaone4",
        families: &[Family::Exaone4],
        family: |_| Ok(Family::Exaone4),
        windows: Windows::Some { default: None, every: 4 },
        keys: &["attention.sliding_window_pattern"],
        read: |_, keys, c| {
            c.head_norms = true;
            // Of the two published models the one of 64 layers has windows, whether the file says so or not.
            let window = keys.size("attention.sliding_window")?.filter(|w| *w != 0);
            if window.is_none() && c.layers == 64 {
                c.windows = (1..=c.layers).map(|i| Some(4096).filter(|_| i % 4 != 0)).collect();
            }
            let some_slide = c.windows.iter().any(Option::is_some);
            c.rope_layers = c.windows.iter().map(|w| !some_slide || w.is_some()).collect();
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "nemotron",
        families: &[Family::Nemotron],
        family: |_| Ok(Family::Nemotron),
        eps: LAYER,
        read: |_, keys, c| {
            // The converter takes the part of the width over the heads, however long they are (Minitron-8B's are not that
            // long): which part is only beyond doubt where it is the half that the class takes.
            let by_width = (c.hidden / 2).checked_div(c.heads);
            if c.heads.checked_mul(c.head_dim) != Some(c.hidden) && c.rope_width != c.head_dim / 2 {
                if Some(c.rope_width) != by_width {
                    return Err(keys.unsupported("rope.dimension_count"));
                }
                c.rope_width = c.head_dim / 2;
            }
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "falcon",
        families: &[Family::Falcon],
        family: |_| Ok(Family::Falcon),
        eps: LAYER,
        read: |gguf, _, c| {
            c.is_parallel = true;
            c.norm_per_part = gguf.has("blk.0.attn_norm_2.weight");
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "gpt-oss",
        families: &[Family::GptOss],
        family: |_| Ok(Family::GptOss),
        windows: Windows::Some { default: None, every: 2 },
        keys: &["attention.sliding_window_pattern", "expert_count", "expert_feed_forward_length", "expert_used_count"],
        read: |_, keys, c| {
            keys.need("attention.sliding_window")?;
            c.moe = Some(Moe { normalise: true, ..moe(keys, c)? });
            // Its authors do not round the ends of the ramp; a file cannot say so.
            if let RopeScaling::Yarn { truncate, .. } = &mut c.rope.scaling {
                *truncate = false;
            }
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "deepseek2",
        families: &[Family::DeepseekV2, Family::DeepseekV3],
        family: |keys| match keys.size("expert_gating_func")? {
            None | Some(0 | SOFTMAX) => Ok(Family::DeepseekV2),
            Some(SIGMOID) => Ok(Family::DeepseekV3),
            Some(_) => Err(keys.unsupported("expert_gating_func")),
        },
        is_latent: true,
        keys: &[
            "attention.key_length_mla",
            "attention.kv_lora_rank",
            "attention.q_lora_rank",
            "attention.value_length_mla",
            "expert_count",
            "expert_feed_forward_length",
            "expert_gating_func",
            "expert_group_count",
            "expert_group_used_count",
            "expert_shared_count",
            "expert_used_count",
            "expert_weights_norm",
            "expert_weights_scale",
            "leading_dense_block_count",
            "nextn_predict_layers",
            "rope.scaling.yarn_log_multiplier",
        ],
        read: deepseek2,
        ..PLAIN
    },
];

/// `expert_gating_func` (`llama_expert_gating_func_type`).
const SOFTMAX: usize = 1;
const SIGMOID: usize = 2;

/// Experts in every layer.
fn moe(keys: &Keys<'_>, c: &ModelConfig) -> Result<Moe, ConfigError> {
    let top_k = keys.need_uniform("expert_used_count")?;
    // As llama.cpp has it where a file does not say.
    let ffn = keys.uniform("expert_feed_forward_length")?.unwrap_or(c.ffn / top_k.max(1));
    Ok(Moe { experts: keys.need("expert_count")?, top_k, ffn, layers: vec![true; c.layers], ..Moe::PLAIN })
}

/// Scaled embeddings; the largest model, which has so many layers, divides scores by the root of the width over the heads.
fn gemma(c: &mut ModelConfig, largest: Option<usize>) {
    c.embed_scale = (c.hidden as f64).sqrt() as f32;
    if largest == Some(c.layers) {
        c.attention_scale = 1.0 / ((c.hidden / c.heads.max(1)) as f32).sqrt();
    }
}

fn granite(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    // llama.cpp's switch of the rotation, which the family has no model without.
    if !keys.flag("rope.scaling.finetuned", true)? {
        return Err(keys.unsupported("rope.scaling.finetuned"));
    }
    c.embed_scale = keys.factor("embedding_scale")?.unwrap_or(1.0);
    c.residual_scale = keys.factor("residual_scale")?.unwrap_or(1.0);
    c.attention_scale = keys.factor("attention.scale")?.unwrap_or(c.attention_scale);
    c.logit_scale = 1.0 / keys.factor("logit_scale")?.ok_or_else(|| keys.missing("logit_scale"))?;
    Ok(())
}

fn cohere(keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    c.is_parallel = true;
    c.rope_pairing = Pairing::Neighbours;
    c.logit_scale = keys.factor("logit_scale")?.unwrap_or(1.0);
    Ok(())
}

fn deepseek2(gguf: &Gguf, keys: &Keys<'_>, c: &mut ModelConfig) -> Result<(), ConfigError> {
    let rotated = keys.need("rope.dimension_count")?;
    // Files from before its keys and values were stored apart have these lengths under the usual names.
    let value = match keys.size("attention.value_length_mla")?.filter(|n| *n != 0) {
        None => keys.need("attention.value_length")?,
        Some(n) => n,
    };
    let plain = c.head_dim.saturating_sub(rotated);
    let q_rank = match gguf.has("blk.0.attn_q_a.weight") {
        true => Some(keys.need("attention.q_lora_rank")?),
        false => None,
    };
    let kv_rank = keys.need("attention.kv_lora_rank")?;
    c.latent = Some(Latent { q_rank, kv_rank, plain, rotated, value });
    (c.kv_heads, c.rope_width, c.rope_pairing) = (c.heads, rotated, Pairing::Neighbours);
    match &mut c.rope.scaling {
        RopeScaling::Long { .. } => return Err(keys.unsupported("rope.scaling.type")),
        // llama.cpp takes the two `mscale`s of the original for one number, which it has a tenth of in the file: cosine and
        // sine stay as they are, and the scores grow by the square.
        RopeScaling::Yarn { factor, attention_factor, .. } => {
            let key = "rope.scaling.yarn_log_multiplier";
            let tenth = keys.float(key)?.filter(|x| *x != 0.0).ok_or_else(|| keys.missing(key))?;
            let given = keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
            let mscale = given * yarn_mscale(*factor, tenth / 0.1);
            *attention_factor = Some(given);
            c.attention_scale = ((c.head_dim as f64).powf(-0.5) * mscale * mscale) as f32;
        }
        _ => {}
    }
    let dense = keys.size("leading_dense_block_count")?.unwrap_or(0);
    if dense >= c.layers {
        return Ok(());
    }
    let is_v3 = c.family == Family::DeepseekV3;
    let mut moe = moe(keys, c)?;
    let shared = keys.need("expert_shared_count")?.saturating_mul(moe.ffn);
    let groups = keys.size("expert_group_count")?.filter(|n| *n > 1);
    moe.groups = match groups {
        None => None,
        Some(count) => {
            let kept = keys.need("expert_group_used_count")?;
            Some(RouteGroups { count, kept, best: if is_v3 { 2 } else { 1 } })
        }
    };
    c.moe = Some(Moe {
        shared_ffn: Some(shared).filter(|n| *n != 0),
        score: if is_v3 { RouteScore::Sigmoid } else { RouteScore::Softmax },
        correction: gguf.has(&format!("blk.{dense}.exp_probs_b.bias")),
        normalise: keys.flag("expert_weights_norm", false)?,
        factor: keys.factor("expert_weights_scale")?.unwrap_or(1.0),
        layers: (0..c.layers).map(|i| i >= dense).collect(),
        ..moe
    });
    Ok(())
}
