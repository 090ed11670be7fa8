//! Where a GGUF file has what a family calls by its Hugging Face name: tensor names (gguf-py `tensor_mapping.py`) and what
//! llama.cpp's converter does to the tensors (`convert_hf_to_gguf.py`).
//!
//! Every matrix is `[out, in]` there and every norm's weight whole, whatever the family has them as; experts are stacked. What
//! else differs is an [`As`] of the table.

use crate::config::Family;
use crate::program::{View, WeightDecl, WeightUse};

/// Where a file has a weight.
#[derive(Debug)]
pub struct Place {
    /// The tensor.
    pub name: String,
    /// The weight as a view of it.
    pub decl: WeightDecl,
    /// Whether the two halves of every head are interleaved.
    pub is_interleaved: bool,
}

/// How the file has a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    /// As the family has it.
    Is,
    /// In two: what is the first part of the family's is one tensor, what is another part the one of this name.
    Split(&'static str),
    /// What alternates in groups is gathered: all first parts, all second ones, all third ones.
    Gathered,
    /// Keys and values made from a latent, in two tensors of one matrix per head: the keys' transposed, and this one.
    Latent(&'static str),
}

/// Names within a layer: the family's, the file's.
const LAYER: &[(&str, &str, As)] = &[
    ("input_layernorm", "attn_norm", As::Is),
    ("ln_1", "attn_norm", As::Is),
    ("self_attn.q_proj", "attn_q", As::Is),
    ("self_attn.k_proj", "attn_k", As::Is),
    ("self_attn.v_proj", "attn_v", As::Is),
    ("self_attn.qkv_proj", "attn_qkv", As::Is),
    ("attn.c_attn", "attn_qkv", As::Is),
    ("attention.query_key_value", "attn_qkv", As::Gathered),
    ("self_attention.query_key_value", "attn_qkv", As::Gathered),
    ("self_attn.q_norm", "attn_q_norm", As::Is),
    ("self_attn.k_norm", "attn_k_norm", As::Is),
    ("self_attn.q_layernorm.norms.{}", "attn_q_norm", As::Is),
    ("self_attn.k_layernorm.norms.{}", "attn_k_norm", As::Is),
    ("self_attn.sinks", "attn_sinks", As::Is),
    ("self_attn.q_a_proj", "attn_q_a", As::Is),
    ("self_attn.q_a_layernorm", "attn_q_a_norm", As::Is),
    ("self_attn.q_b_proj", "attn_q_b", As::Is),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa", As::Is),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm", As::Is),
    ("self_attn.kv_b_proj", "attn_k_b", As::Latent("attn_v_b")),
    ("self_attn.o_proj", "attn_output", As::Is),
    ("self_attn.dense", "attn_output", As::Is),
    ("self_attention.dense", "attn_output", As::Is),
    ("attention.dense", "attn_output", As::Is),
    ("attn.c_proj", "attn_output", As::Is),
    ("post_attention_layernorm", "ffn_norm", As::Is),
    ("ln_2", "ffn_norm", As::Is),
    ("pre_feedforward_layernorm", "ffn_norm", As::Is),
    ("post_self_attn_layernorm", "post_attention_norm", As::Is),
    ("post_mlp_layernorm", "post_ffw_norm", As::Is),
    ("post_feedforward_layernorm", "post_ffw_norm", As::Is),
    ("mlp.gate_proj", "ffn_gate", As::Is),
    ("mlp.up_proj", "ffn_up", As::Is),
    ("mlp.gate_up_proj", "ffn_up", As::Is),
    ("mlp.fc1", "ffn_up", As::Is),
    ("mlp.c_fc", "ffn_up", As::Is),
    ("mlp.dense_h_to_4h", "ffn_up", As::Is),
    ("mlp.down_proj", "ffn_down", As::Is),
    ("mlp.fc2", "ffn_down", As::Is),
    ("mlp.c_proj", "ffn_down", As::Is),
    ("mlp.dense_4h_to_h", "ffn_down", As::Is),
    ("mlp.gate", "ffn_gate_inp", As::Is),
    ("mlp.router", "ffn_gate_inp", As::Is),
    ("block_sparse_moe.gate", "ffn_gate_inp", As::Is),
    ("block_sparse_moe.router.layer", "ffn_gate_inp", As::Is),
    ("mlp.gate.e_score_correction", "exp_probs_b", As::Is),
    ("mlp.experts.{}.gate_proj", "ffn_gate_exps", As::Is),
    ("mlp.experts.{}.up_proj", "ffn_up_exps", As::Is),
    ("mlp.experts.{}.down_proj", "ffn_down_exps", As::Is),
    ("mlp.experts.gate_up_proj", "ffn_gate_exps", As::Split("ffn_up_exps")),
    ("mlp.experts.down_proj", "ffn_down_exps", As::Is),
    ("block_sparse_moe.experts.{}.w1", "ffn_gate_exps", As::Is),
    ("block_sparse_moe.experts.{}.w3", "ffn_up_exps", As::Is),
    ("block_sparse_moe.experts.{}.w2", "ffn_down_exps", As::Is),
    ("block_sparse_moe.input_linear", "ffn_gate_exps", As::Split("ffn_up_exps")),
    ("block_sparse_moe.output_linear", "ffn_down_exps", As::Is),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp", As::Is),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp", As::Is),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp", As::Is),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp", As::Is),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp", As::Is),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp", As::Is),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp", As::Is),
    // Two norms beside each other; the second of them is the feed-forward part's, and first in the file.
    ("ln_attn", "attn_norm_2", As::Is),
    ("ln_mlp", "attn_norm", As::Is),
];

const OUTER: [(&str, &str); 11] = [
    ("model.embed_tokens", "token_embd"),
    ("transformer.wte", "token_embd"),
    ("transformer.word_embeddings", "token_embd"),
    ("gpt_neox.embed_in", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("model.norm", "output_norm"),
    ("model.final_layernorm", "output_norm"),
    ("transformer.ln_f", "output_norm"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("lm_head", "output"),
    ("embed_out", "output"),
];

/// What the layers are numbered below.
const LAYERS: [&str; 3] = ["model.layers.", "transformer.h.", "gpt_neox.layers."];

/// Families that norm what their parts give: the norm of this name is not the feed-forward part's there.
const POST_NORMED: [Family; 5] = [Family::Gemma2, Family::Gemma3Text, Family::Olmo2, Family::Exaone4, Family::GptOss];

/// Families whose queries and keys the converter interleaves: llama.cpp rotates their neighbours (`LLAMA_ROPE_TYPE_NORM`), the
/// family halves.
const INTERLEAVED: [Family; 6] =
    [Family::Llama, Family::Mixtral, Family::Granite, Family::GraniteMoe, Family::SmolLM3, Family::Olmo];

/// Where a file of `family` has what `decl` asks for; `rows` gives the rows of the file's tensors, of a vector the values.
pub fn place(family: Family, decl: &WeightDecl, rows: impl Fn(&str) -> Option<usize>) -> Option<Place> {
    let (stem, end) = split_end(&decl.name);
    let place = |name: String, decl: WeightDecl| Some(Place { name, decl: stored(decl), is_interleaved: false });
    if let Some((_, name)) = OUTER.iter().find(|(from, _)| *from == stem) {
        return place(format!("{name}.{end}"), decl.clone());
    }
    let (layer, stem) = LAYERS.iter().find_map(|prefix| stem.strip_prefix(prefix))?.split_once('.')?;
    let full = |name: &str| format!("blk.{layer}.{name}.{end}");
    if stem == "post_attention_layernorm" && POST_NORMED.contains(&family) {
        return place(full("post_attention_norm"), decl.clone());
    }
    let (_, name, how) = *LAYER.iter().find(|(from, _, _)| *from == stem)?;
    let View { of_rows, start, run, step, .. } = decl.view;
    let units = if decl.usage == WeightUse::Vector { decl.cols } else { decl.rows };
    let with_view = |view| WeightDecl { view, ..decl.clone() };
    match how {
        As::Is if rows(&full(name)).is_none() => match fused(name, units, |name| rows(&full(name))) {
            // For the error, of the name that it should have.
            None => place(full(name), decl.clone()),
            Some((fused, view)) => {
                let mut place = place(full(fused), with_view(view))?;
                place.is_interleaved = INTERLEAVED.contains(&family) && matches!(name, "attn_q" | "attn_k");
                Some(place)
            }
        },
        As::Is => {
            let mut place = place(full(name), decl.clone())?;
            place.is_interleaved = INTERLEAVED.contains(&family) && matches!(name, "attn_q" | "attn_k");
            Some(place)
        }
        As::Split(second) => place(full(if start == 0 { name } else { second }), with_view(View::whole(units))),
        As::Gathered => {
            let groups = units / run.max(1);
            place(full(name), with_view(View::part(groups.saturating_mul(start), units, of_rows)))
        }
        As::Latent(values) => {
            // Files from before they were stored apart.
            if rows(&full(name)).is_none() && rows(&full("attn_kv_b")).is_some() {
                return place(full("attn_kv_b"), decl.clone());
            }
            let heads = of_rows / step.max(1);
            let is_key = start == 0;
            let view = if is_key { View::whole(run).transposed() } else { View::whole(run) };
            let decl = WeightDecl { rows: run, view, experts: Some(heads), ..decl.clone() };
            let name = full(if is_key { name } else { values });
            Some(Place { name, decl, is_interleaved: false })
        }
    }
}

/// A part of a tensor that some files have instead of its own: the tensor's name, and the view of it.
fn fused(name: &str, units: usize, rows: impl Fn(&str) -> Option<usize>) -> Option<(&'static str, View)> {
    let (fused, from_end) = match name {
        "attn_q" => ("attn_qkv", None),
        "attn_k" => ("attn_qkv", Some(2)),
        "attn_v" => ("attn_qkv", Some(1)),
        "ffn_gate_exps" => ("ffn_gate_up_exps", None),
        "ffn_up_exps" => ("ffn_gate_up_exps", Some(1)),
        _ => return None,
    };
    let of_rows = rows(fused)?;
    let start = from_end.map_or(Some(0), |n: usize| of_rows.checked_sub(n.checked_mul(units)?))?;
    Some((fused, View::part(start, units, of_rows)))
}

/// The declaration as a view of the file's tensor: `[out, in]`, a norm's weight whole, experts in one stack.
fn stored(decl: WeightDecl) -> WeightDecl {
    WeightDecl { view: View { transposed: false, plus_one: false, ..decl.view }, ..decl }
}

/// A name without what it ends in: `weight` where it says nothing.
fn split_end(name: &str) -> (&str, &'static str) {
    let ends = [(".weight", "weight"), (".bias", "bias"), ("_bias", "bias")];
    let found = ends.into_iter().find_map(|(suffix, end)| Some((name.strip_suffix(suffix)?, end)));
    found.unwrap_or((name, "weight"))
}

/// Divisors of the rotary frequencies.
pub const ROPE_FREQS: &str = "rope_freqs.weight";
/// The same of LongRoPE, for short sequences and for long ones.
pub const ROPE_FACTORS: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];
