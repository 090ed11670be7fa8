//! Tokenizers from GGUF metadata (`tokenizer.ggml.*`).
//!
//! Two kinds of vocabulary exist: `gpt2` (byte-level BPE with a merge list; `pre` names the pre-tokenizer) and `llama`
//! (SentencePiece: merges follow from the scores). Either is rebuilt as the Hugging Face tokenizer it was converted from,
//! so that both give the same ids. Key names and token types: ggml-org/ggml `docs/gguf.md`.

use serde_json::json;

use super::added::AddedToken;
use super::bpe::{Bpe, Merges};
use super::detokenize::Detokenizer;
use super::length::Kept;
use super::pre::{self, Pre};
use super::vocab::Vocab;
use super::{Parts, Specials, Tokenizer, TokenizerError, json};

/// The tokenizer part of a GGUF's metadata, borrowed from whoever read it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocab<'a> {
    /// `tokenizer.ggml.model`: `gpt2` or `llama`.
    pub model: &'a str,
    /// `tokenizer.ggml.pre`.
    pub pre: Option<&'a str>,
    /// `tokenizer.ggml.tokens`.
    pub tokens: Vec<&'a str>,
    /// `tokenizer.ggml.scores`; empty where absent.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`; empty where absent.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`; empty where absent.
    pub merges: Vec<&'a str>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<&'a str>,
    /// `tokenizer.chat_template.NAME`: name and template.
    pub named_templates: Vec<(&'a str, &'a str)>,
}

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

pub(super) fn build(v: &GgufVocab) -> Result<Tokenizer, TokenizerError> {
    let expected = v.tokens.len();
    let lengths = [("tokenizer.ggml.token_type", v.token_types.len()), ("tokenizer.ggml.scores", v.scores.len())];
    for (field, got) in lengths {
        if got != 0 && got != expected {
            return Err(TokenizerError::Length { field, got, expected });
        }
    }
    let count = u32::try_from(expected).map_err(|_| TokenizerError::VocabularyTooLarge { bytes: expected })?;
    let vocab = Vocab::new(v.tokens.iter().copied().zip(0..count))?;
    let special = specials(v)?;
    let added = added_tokens(v, &special);
    let mut control = vec![false; expected];
    for token in added.iter().filter(|t| t.special) {
        control[token.id as usize] = true;
    }
    let kind = match v.model {
        "gpt2" => byte_level(v, &vocab, &control)?,
        "llama" => sentencepiece(v, &vocab)?,
        other => {
            return Err(TokenizerError::Unsupported { part: "tokenizer.ggml.model", kind: other.to_owned() });
        }
    };
    let bos = special.bos.filter(|_| v.add_bos.unwrap_or(kind.add_bos));
    let eos = v.eos.filter(|_| v.add_eos.unwrap_or(false));
    let mut chat_templates: Vec<(String, String)> = Vec::new();
    chat_templates.extend(v.chat_template.map(|t| ("default".to_owned(), t.to_owned())));
    chat_templates.extend(v.named_templates.iter().map(|(name, t)| (name.to_string(), t.to_string())));
    Tokenizer::assemble(Parts {
        model: Bpe {
            bytes: (v.model == "llama").then(|| Bpe::byte_tokens(&vocab)),
            vocab,
            merges: kind.merges,
            unk: special.unk.filter(|_| v.model == "llama"),
            fuse_unk: true,
            ignore_merges: kind.ignore_merges,
            control,
        },
        kept: Kept::of(&kind.normalizer, &kind.pre_tokenizer),
        normalizer: json::part("normalizer", kind.normalizer)?,
        pre_tokenizer: json::part("pre_tokenizer", kind.pre_tokenizer)?,
        added,
        detokenizer: kind.detokenizer,
        prefix: bos.into_iter().collect(),
        suffix: eos.into_iter().collect(),
        special,
        chat_templates,
    })
}

struct Kind {
    merges: Merges,
    ignore_merges: bool,
    add_bos: bool,
    normalizer: serde_json::Value,
    pre_tokenizer: serde_json::Value,
    detokenizer: Detokenizer,
}

fn byte_level(v: &GgufVocab, vocab: &Vocab, control: &[bool]) -> Result<Kind, TokenizerError> {
    let Pre { steps, nfc, ignore_merges, add_bos } = pre::find(v.pre.unwrap_or("default"))?;
    let mut pairs = Vec::with_capacity(v.merges.len());
    for (index, merge) in v.merges.iter().enumerate() {
        // A left part may begin with a space, never a right one.
        let cut = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let pair = cut.and_then(|at| Some((merge.get(..at)?, merge.get(at + 1..)?)));
        pairs.push(pair.ok_or_else(|| TokenizerError::BadMerge { index, text: merge.to_string() })?);
    }
    let excluded = |id: u32| control.get(id as usize).copied().unwrap_or(false);
    Ok(Kind {
        merges: Merges::ranked(vocab, pairs.into_iter(), excluded)?,
        ignore_merges,
        add_bos,
        normalizer: if nfc { json!({"type": "NFC"}) } else { serde_json::Value::Null },
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
        detokenizer: Detokenizer::ByteLevel,
    })
}

fn sentencepiece(v: &GgufVocab, vocab: &Vocab) -> Result<Kind, TokenizerError> {
    if v.scores.len() != v.tokens.len() {
        let (got, expected) = (v.scores.len(), v.tokens.len());
        return Err(TokenizerError::Length { field: "tokenizer.ggml.scores", got, expected });
    }
    let merges_at = |id: usize| matches!(v.token_types.get(id), None | Some(&NORMAL) | Some(&USER_DEFINED));
    // Where a text occurs twice only the token that the text stands for merges.
    let found = |id: usize, text: &str| vocab.id(text).is_some_and(|i| i as usize == id);
    let scores: Vec<Option<f32>> = v
        .scores
        .iter()
        .enumerate()
        .map(|(id, &score)| (merges_at(id) && found(id, v.tokens[id])).then_some(score))
        .collect();
    let prefix = v.add_space_prefix.unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let normalizer = match prefix {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, spaces]}),
        false => spaces,
    };
    Ok(Kind {
        merges: Merges::scored(&scores),
        ignore_merges: false,
        add_bos: true,
        normalizer,
        pre_tokenizer: serde_json::Value::Null,
        detokenizer: Detokenizer::sentencepiece(prefix),
    })
}

fn specials(v: &GgufVocab) -> Result<Specials, TokenizerError> {
    let known = |field: &'static str, id: Option<u32>| match id {
        Some(id) if id as usize >= v.tokens.len() => Err(TokenizerError::NoSuchToken { field, token: id.to_string() }),
        other => Ok(other),
    };
    let mut eos = Vec::new();
    let ends = [
        ("tokenizer.ggml.eos_token_id", v.eos),
        ("tokenizer.ggml.eot_token_id", v.eot),
        ("tokenizer.ggml.eom_token_id", v.eom),
    ];
    for (field, id) in ends {
        eos.extend(known(field, id)?.filter(|id| !eos.contains(id)));
    }
    let unk_by_type = || v.token_types.iter().position(|&t| t == UNKNOWN).and_then(|i| u32::try_from(i).ok());
    Ok(Specials {
        bos: known("tokenizer.ggml.bos_token_id", v.bos)?,
        eos,
        unk: known("tokenizer.ggml.unknown_token_id", v.unk)?.or_else(unk_by_type),
        pad: known("tokenizer.ggml.padding_token_id", v.pad)?,
    })
}

/// Tokens cut out of the text: control tokens, user-defined ones, and whatever begins or ends a sequence (older files
/// call those normal).
fn added_tokens(v: &GgufVocab, special: &Specials) -> Vec<AddedToken> {
    let is_marker = |id: u32| special.bos == Some(id) || special.eos.contains(&id);
    let kind = |id: usize| v.token_types.get(id).copied().unwrap_or(NORMAL);
    let wanted = |&(id, text): &(u32, &str)| {
        let kind = kind(id as usize);
        let is_added = matches!(kind, CONTROL | USER_DEFINED) || is_marker(id);
        (is_added || (kind == UNKNOWN && v.model == "llama")) && !text.is_empty()
    };
    (0..)
        .zip(v.tokens.iter().copied())
        .filter(wanted)
        .map(|(id, text)| AddedToken::verbatim(id, text, kind(id as usize) != USER_DEFINED))
        .collect()
}
