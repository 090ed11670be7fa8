//! Tokenizers from `tokenizer.json` and `tokenizer_config.json`.
//!
//! The vocabulary and the merges are read straight into the tables of [`super::bpe`]; the small parts (normaliser,
//! pre-tokenizer) are handed to the tokenizers library after a check that it supports, and survives, what they say.
//! Truncation and padding in the file are ignored, as transformers does.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::added::AddedToken;
use super::bpe::{Bpe, Merges};
use super::detokenize::Detokenizer;
use super::length::Kept;
use super::vocab::Vocab;
use super::{Parts, Specials, Tokenizer, TokenizerError};

pub(super) fn from_files(dir: &Path) -> Result<Tokenizer, TokenizerError> {
    let path = dir.join("tokenizer.json");
    let main = std::fs::read(&path).map_err(|source| TokenizerError::Read { path, source })?;
    let config = optional(&dir.join("tokenizer_config.json"))?;
    let template = optional(&dir.join("chat_template.jinja"))?;
    let template = template.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    from_bytes(&main, config.as_deref(), template)
}

fn optional(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read { path: path.to_owned(), source }),
    }
}

/// The tokenizer of these file contents.
pub(super) fn from_bytes(
    main: &[u8],
    config: Option<&[u8]>,
    template: Option<String>,
) -> Result<Tokenizer, TokenizerError> {
    let file: File = parse("tokenizer.json", main)?;
    let config: Config = match config {
        Some(bytes) => parse("tokenizer_config.json", bytes)?,
        None => Config::default(),
    };
    let model = file.model;
    if let Some(kind) = model.unsupported() {
        return Err(TokenizerError::Unsupported { part: "model", kind });
    }
    let vocab = Vocab::new(model.vocab.0.iter().map(|(text, id)| (text.as_ref(), *id)))?;
    let mut added: Vec<AddedToken> = Vec::with_capacity(file.added_tokens.len());
    for token in &file.added_tokens {
        // The library gives a token that the model knows the model's id, whatever the list says.
        add(&mut added, token.with_id(vocab.id(&token.content).unwrap_or(token.id)));
    }
    for (id, token) in &config.added_tokens_decoder {
        if let Ok(id) = id.parse::<u32>() {
            add(&mut added, token.with_id(vocab.id(&token.content).unwrap_or(id)));
        }
    }
    let find = |added: &[AddedToken], text: &str| {
        added.iter().find(|t| t.content == text).map(|t| t.id).or_else(|| vocab.id(text))
    };
    for text in config.special_texts() {
        if let Some(token) = added.iter_mut().find(|t| t.content == text) {
            token.special = true;
        } else if let Some(id) = vocab.id(text) {
            added.push(AddedToken::verbatim(id, text, true));
        }
    }
    added.retain(|t| !t.content.is_empty());
    let count = vocab.slots() + added.len();
    if let Some(far) = added.iter().map(|t| t.id).max().filter(|&id| id as usize > count + MAX_GAP) {
        return Err(TokenizerError::IdTooLarge { id: far, count });
    }

    let unk = match &model.unk_token {
        Some(text) => Some(
            vocab
                .id(text)
                .ok_or_else(|| TokenizerError::NoSuchToken { field: "model.unk_token", token: text.clone() })?,
        ),
        None => None,
    };
    let mut control = vec![false; vocab.slots()];
    for token in added.iter().filter(|t| t.special && !t.normalized) {
        if let Some(slot) = control.get_mut(token.id as usize) {
            *slot = true;
        }
    }
    let mut pairs = Vec::with_capacity(model.merges.len());
    for (index, merge) in model.merges.iter().enumerate() {
        pairs.push(merge.pair().ok_or_else(|| TokenizerError::BadMerge { index, text: merge.shown() })?);
    }
    let excluded = |id: u32| control.get(id as usize).copied().unwrap_or(false);
    let merges = Merges::ranked(&vocab, pairs.into_iter(), excluded)?;

    let special = Specials {
        bos: config.bos_token.as_ref().and_then(|t| find(&added, t.text())),
        eos: config.eos_token.as_ref().and_then(|t| find(&added, t.text())).into_iter().collect(),
        unk: config.unk_token.as_ref().and_then(|t| find(&added, t.text())).or(unk),
        pad: config.pad_token.as_ref().and_then(|t| find(&added, t.text())),
    };
    let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
    surroundings(&file.post_processor, &mut prefix, &mut suffix)?;
    if config.rebuilds_post_processor() {
        if let Some(wanted) = config.add_bos_token {
            prefix = special.bos.filter(|_| wanted).into_iter().collect();
        }
        if let Some(wanted) = config.add_eos_token {
            suffix = special.eos.first().copied().filter(|_| wanted).into_iter().collect();
        }
    }
    Tokenizer::assemble(Parts {
        model: Bpe {
            bytes: model.byte_fallback.then(|| Bpe::byte_tokens(&vocab)),
            merges,
            unk,
            fuse_unk: model.fuse_unk,
            ignore_merges: model.ignore_merges,
            control,
            vocab,
        },
        kept: Kept::of(&file.normalizer, &file.pre_tokenizer),
        normalizer: part("normalizer", file.normalizer)?,
        pre_tokenizer: part("pre_tokenizer", file.pre_tokenizer)?,
        detokenizer: Detokenizer::from_json(&file.decoder)?,
        added,
        prefix,
        suffix,
        special,
        chat_templates: templates(template, config.chat_template),
    })
}

/// How far beyond the number of tokens an added token's id may lie.
const MAX_GAP: usize = 1 << 18;

fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, TokenizerError> {
    serde_json::from_slice(bytes).map_err(|source| TokenizerError::Json { what: what.to_owned(), source })
}

/// Replaces a token of the same text or id.
fn add(added: &mut Vec<AddedToken>, token: AddedToken) {
    added.retain(|t| t.content != token.content && t.id != token.id);
    added.push(token);
}

/// Hands a normaliser or pre-tokenizer to the library.
pub(super) fn part<T: DeserializeOwned>(what: &'static str, value: Value) -> Result<Option<T>, TokenizerError> {
    if value.is_null() {
        return Ok(None);
    }
    check(what, &value)?;
    let made = serde_json::from_value(value);
    made.map(Some).map_err(|source| TokenizerError::Json { what: format!("{what} of tokenizer.json"), source })
}

/// Refuses what the library cannot be trusted with: it panics on some values of the kinds not listed.
fn check(what: &'static str, value: &Value) -> Result<(), TokenizerError> {
    let known: &[&str] = match what {
        "normalizer" => &[
            "Sequence",
            "NFC",
            "NFD",
            "NFKC",
            "NFKD",
            "Lowercase",
            "Nmt",
            "Strip",
            "StripAccents",
            "Replace",
            "Prepend",
            "ByteLevel",
        ],
        _ => &["Sequence", "ByteLevel", "Split", "Digits", "Punctuation", "Metaspace", "Whitespace", "WhitespaceSplit"],
    };
    let kind = value["type"].as_str().unwrap_or("(none)");
    if !known.contains(&kind) {
        return Err(TokenizerError::Unsupported { part: what, kind: kind.to_owned() });
    }
    let inner = value["normalizers"].as_array().into_iter().chain(value["pretokenizers"].as_array());
    inner.flatten().try_for_each(|step| check(what, step))
}

/// What the post-processor puts around a single sequence.
fn surroundings(value: &Value, prefix: &mut Vec<u32>, suffix: &mut Vec<u32>) -> Result<(), TokenizerError> {
    let unsupported = |kind: &str| TokenizerError::Unsupported { part: "post_processor", kind: kind.to_owned() };
    match value["type"].as_str() {
        None if value.is_null() => {}
        Some("ByteLevel") => {}
        Some("Sequence") => {
            for step in value["processors"].as_array().into_iter().flatten() {
                surroundings(step, prefix, suffix)?;
            }
        }
        Some(kind @ "TemplateProcessing") => {
            let (mut before, mut after, mut seen) = (Vec::new(), Vec::new(), false);
            for piece in value["single"].as_array().into_iter().flatten() {
                if let Some(name) = piece["SpecialToken"]["id"].as_str() {
                    let ids = value["special_tokens"][name]["ids"].as_array().ok_or_else(|| unsupported(kind))?;
                    let ids: Option<Vec<u32>> =
                        ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect();
                    let ids = ids.ok_or_else(|| unsupported(kind))?;
                    if seen { after.extend(ids) } else { before.extend(ids) }
                } else if piece["Sequence"]["id"] == "A" && !seen {
                    seen = true;
                } else {
                    return Err(unsupported(kind));
                }
            }
            if !seen {
                return Err(unsupported(kind));
            }
            before.append(prefix);
            *prefix = before;
            suffix.append(&mut after);
        }
        Some(kind @ ("RobertaProcessing" | "BertProcessing")) => {
            let id = |v: &Value| v[1].as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| unsupported(kind));
            prefix.insert(0, id(&value["cls"])?);
            suffix.push(id(&value["sep"])?);
        }
        other => return Err(unsupported(other.unwrap_or("(none)"))),
    }
    Ok(())
}

/// `chat_template.jinja` takes the place of the configuration's default template.
fn templates(file: Option<String>, config: Value) -> Vec<(String, String)> {
    let mut templates: Vec<(String, String)> = match config {
        Value::String(template) => vec![("default".to_owned(), template)],
        Value::Array(list) => list
            .iter()
            .filter_map(|t| Some((t["name"].as_str()?.to_owned(), t["template"].as_str()?.to_owned())))
            .collect(),
        _ => Vec::new(),
    };
    if let Some(file) = file {
        templates.retain(|(name, _)| name != "default");
        templates.insert(0, ("default".to_owned(), file));
    }
    templates
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<RawAdded>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(borrow)]
    model: RawModel<'a>,
}

#[derive(Clone, Debug, Deserialize)]
struct RawAdded {
    #[serde(default)]
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

impl RawAdded {
    fn with_id(&self, id: u32) -> AddedToken {
        let RawAdded { content, single_word, lstrip, rstrip, normalized, special, .. } = self.clone();
        AddedToken { id, content, special, single_word, lstrip, rstrip, normalized }
    }
}

#[derive(Deserialize)]
struct RawModel<'a> {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(borrow, default)]
    vocab: RawVocab<'a>,
    #[serde(borrow, default)]
    merges: Vec<RawMerge<'a>>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

impl RawModel<'_> {
    fn unsupported(&self) -> Option<String> {
        let kind = self.kind.as_deref().unwrap_or(if self.merges.is_empty() { "(none)" } else { "BPE" });
        let affix = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
        if kind != "BPE" {
            Some(kind.to_owned())
        } else if affix(&self.continuing_subword_prefix) {
            Some("BPE with continuing_subword_prefix".to_owned())
        } else if affix(&self.end_of_word_suffix) {
            Some("BPE with end_of_word_suffix".to_owned())
        } else {
            None
        }
    }
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// `"a b"` or `["a", "b"]`.
enum RawMerge<'a> {
    Joined(Cow<'a, str>),
    Pair(Cow<'a, str>, Cow<'a, str>),
}

impl<'de: 'a, 'a> Deserialize<'de> for RawMerge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = RawMerge<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a merge")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(RawMerge::Joined(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(RawMerge::Joined(Cow::Owned(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let missing = || serde::de::Error::custom("a merge of fewer than two tokens");
                let Text(left) = seq.next_element()?.ok_or_else(missing)?;
                let Text(right) = seq.next_element()?.ok_or_else(missing)?;
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(RawMerge::Pair(left, right)),
                    Some(_) => Err(serde::de::Error::custom("a merge of more than two tokens")),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl RawMerge<'_> {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            RawMerge::Joined(text) => text.split_once(' ').filter(|(_, right)| !right.contains(' ')),
            RawMerge::Pair(left, right) => Some((left, right)),
        }
    }

    fn shown(&self) -> String {
        match self {
            RawMerge::Joined(text) => text.to_string(),
            RawMerge::Pair(left, right) => format!("{left} {right}"),
        }
    }
}

/// The `vocab` object in file order, without a map in between.
#[derive(Default)]
struct RawVocab<'a>(Vec<(Cow<'a, str>, u32)>);

impl<'de: 'a, 'a> Deserialize<'de> for RawVocab<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawVocab<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of token ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(text), id)) = map.next_entry::<Text, u32>()? {
                    entries.push((text, id));
                }
                Ok(RawVocab(entries))
            }

            // Unigram's list: skipped, the model type is refused by name afterwards.
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(RawVocab::default())
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

#[derive(Default, Deserialize)]
struct Config {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    unk_token: Option<TokenText>,
    pad_token: Option<TokenText>,
    #[serde(default)]
    additional_special_tokens: Option<Vec<TokenText>>,
    #[serde(default)]
    added_tokens_decoder: std::collections::BTreeMap<String, RawAdded>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    tokenizer_class: Option<String>,
    #[serde(default)]
    chat_template: Value,
}

impl Config {
    fn special_texts(&self) -> impl Iterator<Item = &str> {
        let named = [&self.bos_token, &self.eos_token, &self.unk_token, &self.pad_token].into_iter().flatten();
        named.chain(self.additional_special_tokens.iter().flatten()).map(TokenText::text).filter(|t| !t.is_empty())
    }

    /// Classes of transformers that replace the file's post-processor by what `add_bos_token` and `add_eos_token` say.
    fn rebuilds_post_processor(&self) -> bool {
        let class = self.tokenizer_class.as_deref().unwrap_or("");
        let class = class.strip_suffix("Fast").unwrap_or(class);
        matches!(class, "LlamaTokenizer" | "CodeLlamaTokenizer" | "GemmaTokenizer" | "CohereTokenizer")
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Full { content: String },
}

impl TokenText {
    fn text(&self) -> &str {
        match self {
            TokenText::Plain(text) | TokenText::Full { content: text } => text,
        }
    }
}
