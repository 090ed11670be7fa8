//! GGUF tensor names for Hugging Face ones (gguf-py `tensor_mapping.py`), as far as the supported families go.

/// Pairs of stems; `{}` in front of both is the layer.
const LAYER: [(&str, &str); 12] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("self_attn.rotary_emb", "attn_rot_embd"), // old files; derived from the config, never read
];

const OUTER: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// The GGUF name of a Hugging Face tensor.
pub fn gguf_name(hf: &str) -> Option<String> {
    let (stem, end) = hf.rsplit_once('.')?;
    if let Some((_, name)) = OUTER.iter().find(|(from, _)| *from == stem) {
        return Some(format!("{name}.{end}"));
    }
    let (layer, stem) = stem.strip_prefix("model.layers.")?.split_once('.')?;
    let (_, name) = LAYER.iter().find(|(from, _)| *from == stem)?;
    Some(format!("blk.{layer}.{name}.{end}"))
}

/// Whether a GGUF tensor is one that a model of `layers` layers may have; `head_norms` where queries and keys have norms.
pub fn is_known(gguf: &str, layers: usize, head_norms: bool) -> bool {
    if gguf == ROPE_FREQS {
        return true;
    }
    let Some((stem, "weight" | "bias")) = gguf.rsplit_once('.') else { return false };
    if OUTER.iter().any(|(_, name)| *name == stem) {
        return gguf.ends_with(".weight");
    }
    let Some((layer, stem)) = stem.strip_prefix("blk.").and_then(|s| s.split_once('.')) else { return false };
    let norm = stem.ends_with("_norm");
    layer.parse().is_ok_and(|n: usize| n < layers)
        && LAYER.iter().any(|(_, name)| *name == stem)
        && (head_norms || !matches!(stem, "attn_q_norm" | "attn_k_norm"))
        && !(norm && gguf.ends_with(".bias"))
}

/// Divisors of the rotary frequencies.
pub const ROPE_FREQS: &str = "rope_freqs.weight";
