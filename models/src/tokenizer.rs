//! Text to token ids and back.
//!
//! A [`Tokenizer`] is read from a Hugging Face directory or from GGUF metadata and gives the ids that the tokenizers
//! library gives. Normalisers and pre-tokenizers are that library's; vocabulary, merging, added tokens, post-processing
//! and detokenising are here, because building them is on the path to the first token, because every file must give a
//! value or an error, and because [`Tokenizer::encode_plain`] must never produce a control token. A tokenizer is
//! immutable and may be used from several threads.

pub mod added;
pub mod bpe;
mod detokenize;
pub mod gguf;
mod json;
mod length;
mod pre;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
pub mod vocab;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tokenizers::normalizer::Range;
use tokenizers::{
    NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper, Token,
};

use added::{AddedToken, Matcher, Part};
use bpe::Bpe;
use detokenize::Detokenizer;
pub use gguf::GgufVocab;
use length::{Kept, Longest};
pub use stream::DecodeStream;

/// Why a tokenizer cannot be built, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{what} is not understood: {source}")]
    Json {
        /// Which part of which file.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The file uses a kind of model, normaliser, ... that is not supported.
    #[error("{part} of type `{kind}` is not supported")]
    Unsupported {
        /// Part of the tokenizer.
        part: &'static str,
        /// Its type.
        kind: String,
    },
    /// A GGUF's `tokenizer.ggml.pre` is not known.
    #[error("pre-tokenizer `{0}` (tokenizer.ggml.pre) is not supported")]
    UnknownPre(String),
    /// A token id is out of proportion.
    #[error("token id {id} is far beyond the {count} tokens of the vocabulary")]
    IdTooLarge {
        /// The id.
        id: u32,
        /// Number of tokens.
        count: usize,
    },
    /// More text than an index holds.
    #[error("the vocabulary is too large ({bytes} bytes)")]
    VocabularyTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A merge uses or makes something that is not a token.
    #[error("merge {index} needs the token {token:?}, which is not in the vocabulary")]
    MergeOutOfVocabulary {
        /// Position in the merge list.
        index: usize,
        /// What is missing.
        token: String,
    },
    /// A merge is not two tokens.
    #[error("merge {index} is not a pair of tokens: {text:?}")]
    BadMerge {
        /// Position in the merge list.
        index: usize,
        /// What stands there.
        text: String,
    },
    /// A field has the wrong number of entries.
    #[error("{field} has {got} entries, not {expected}")]
    Length {
        /// Which.
        field: &'static str,
        /// Entries it has.
        got: usize,
        /// Entries it should have.
        expected: usize,
    },
    /// A field names a token that does not exist.
    #[error("{field} names the token {token}, which is not in the vocabulary")]
    NoSuchToken {
        /// Which.
        field: &'static str,
        /// Text or id.
        token: String,
    },
    /// The added tokens cannot be searched for.
    #[error("cannot search for the added tokens: {0}")]
    AddedTokens(String),
    /// A text cannot be encoded.
    #[error("cannot encode the text: {0}")]
    Encode(String),
    /// A text has more tokens than are wanted.
    #[error("the text has at least {least} tokens, the limit is {most}")]
    TooLong {
        /// Tokens that it has, or more.
        least: usize,
        /// Limit.
        most: usize,
    },
}

/// Text to token ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    model: Bpe,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    /// By id order.
    added: Vec<AddedToken>,
    raw: Matcher,
    normalized: Matcher,
    detokenizer: Detokenizer,
    /// Ids that `add_special` puts before and after.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    special: Specials,
    chat_templates: Vec<(String, String)>,
    kept: Kept,
    /// Found when a long text comes.
    longest: OnceLock<Longest>,
}

/// Ids with a meaning of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Specials {
    /// Beginning of sequence.
    pub bos: Option<u32>,
    /// End of sequence, of turn, of message: generation stops at any of these.
    pub eos: Vec<u32>,
    /// Unknown text.
    pub unk: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where present, `tokenizer_config.json` and `chat_template.jinja` of a directory.
    pub fn from_files(dir: &Path) -> Result<Tokenizer, TokenizerError> {
        json::from_files(dir)
    }

    /// Builds the tokenizer that a GGUF's metadata describe.
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Tokenizer, TokenizerError> {
        gguf::build(vocab)
    }

    fn assemble(parts: Parts) -> Result<Tokenizer, TokenizerError> {
        let Parts {
            model,
            normalizer,
            pre_tokenizer,
            mut added,
            detokenizer,
            prefix,
            suffix,
            special,
            chat_templates,
            kept,
        } = parts;
        added.sort_by_key(|t| t.id);
        let (after, before): (Vec<_>, Vec<_>) = added.iter().cloned().partition(|t| t.normalized);
        let raw = Matcher::new(before.into_iter().map(|t| (t.content.clone(), t)).collect())?;
        let after = after.into_iter().map(|t| match &normalizer {
            None => Ok((t.content.clone(), t)),
            Some(n) => {
                let mut text = NormalizedString::from(t.content.as_str());
                guarded(|| n.normalize(&mut text))?;
                Ok((text.get().to_owned(), t))
            }
        });
        let normalized = Matcher::new(after.collect::<Result<_, TokenizerError>>()?)?;
        Ok(Tokenizer {
            model,
            normalizer,
            pre_tokenizer,
            added,
            raw,
            normalized,
            detokenizer,
            prefix,
            suffix,
            special,
            chat_templates,
            kept,
            longest: OnceLock::new(),
        })
    }

    /// Ids of `text`, in which added tokens are recognised; with `add_special` also what the model wants around a
    /// sequence (usually a beginning-of-sequence token).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if add_special {
            ids.extend(&self.prefix);
        }
        self.encode_into(text, Added::Recognised, &mut ids)?;
        if add_special {
            ids.extend(&self.suffix);
        }
        Ok(ids)
    }

    /// Ids of `text` taken as plain text: what looks like an added token is spelled out, and no control token results.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        self.encode_into(text, Added::Ignored, &mut ids)?;
        Ok(ids)
    }

    /// Ids of `text`, cut as `parts` say (in order and without gaps): tokens where they name one, plain text elsewhere.
    pub fn encode_split(&self, text: &str, parts: &[Part]) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        self.encode_into(text, Added::At(parts), &mut ids)?;
        Ok(ids)
    }

    /// Refuses a text that certainly has more than `most` tokens, without encoding it. One that passes may have more.
    pub fn check_length(&self, text: &str, most: usize) -> Result<(), TokenizerError> {
        // No token is shorter than a byte.
        if text.len() <= most {
            return Ok(());
        }
        let longest = self.longest.get_or_init(|| Longest::of(self.kept, &self.model, &self.added));
        let least = longest.least(text);
        if least > most { Err(TokenizerError::TooLong { least, most }) } else { Ok(()) }
    }

    /// Ids that [`Tokenizer::encode`] with `add_special` puts before a text and behind it.
    pub fn around(&self) -> (&[u32], &[u32]) {
        (&self.prefix, &self.suffix)
    }

    fn encode_into(&self, text: &str, added: Added, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if text.is_empty() {
            return Ok(());
        }
        let pieces = guarded(|| {
            let mut pieces = PreTokenizedString::from(text);
            match added {
                Added::Recognised => pieces.split(|_, piece| Ok(cut(&self.raw, piece)))?,
                Added::At(parts) => pieces.split(|_, piece| Ok(slices(&piece, parts)))?,
                Added::Ignored => {}
            }
            pieces.split(|_, mut piece| {
                if let Some(normalizer) = &self.normalizer {
                    normalizer.normalize(&mut piece)?;
                }
                Ok(match added {
                    Added::Recognised => cut(&self.normalized, piece),
                    _ => vec![(piece, None)],
                })
            })?;
            if let Some(pre_tokenizer) = &self.pre_tokenizer {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            Ok(pieces)
        })?;
        for (piece, _, tokens) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|t| t.id)),
                None => self.model.encode(piece, ids),
            }
        }
        Ok(())
    }

    /// `text` cut at its added tokens, as [`Tokenizer::encode`] cuts it before normalisation.
    pub fn split_added(&self, text: &str) -> Vec<Part> {
        self.raw
            .split(text)
            .into_iter()
            .flat_map(|part| match part.token {
                Some(_) => vec![part],
                // Added tokens that are looked for after normalisation: found here as they are written.
                None => self
                    .normalized
                    .split(&text[part.start..part.end])
                    .into_iter()
                    .map(|p| Part { start: part.start + p.start, end: part.start + p.end, token: p.token })
                    .collect(),
            })
            .collect()
    }

    /// Text of `ids`. Ids without a token give nothing; broken UTF-8 gives U+FFFD as the tokenizers library does.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = self.decode_stream(skip_special);
        let mut text = String::new();
        for &id in ids {
            stream.push(id, &mut text);
        }
        stream.finish(&mut text);
        text
    }

    /// A detokenizer to which ids are given one by one.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<&Tokenizer> {
        DecodeStream::new(self, skip_special)
    }

    /// A token as the vocabulary spells it (byte-level tokens in their printable form).
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.added_token(id).map(|t| t.content.as_str()).or_else(|| self.model.vocab.text(id))
    }

    /// The bytes that a token contributes to the text, apart from what depends on its neighbours.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        Some(self.detokenizer.bytes(self.token_text(id)?))
    }

    /// Id of a token by its spelling.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.added.iter().find(|t| t.content == text).map(|t| t.id).or_else(|| self.model.vocab.id(text))
    }

    /// The added token with this id.
    pub fn added_token(&self, id: u32) -> Option<&AddedToken> {
        self.added.binary_search_by_key(&id, |t| t.id).ok().map(|i| &self.added[i])
    }

    /// All added tokens, by id.
    pub fn added_tokens(&self) -> &[AddedToken] {
        &self.added
    }

    /// Whether decoding with `skip_special` drops the token.
    pub fn is_special(&self, id: u32) -> bool {
        self.added_token(id).is_some_and(|t| t.special)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        let added = self.added.last().map_or(0, |t| t.id as usize + 1);
        self.model.vocab.slots().max(added)
    }

    /// Ids with a meaning of their own.
    pub fn specials(&self) -> &Specials {
        &self.special
    }

    /// Spelling of the beginning-of-sequence token.
    pub fn bos_token(&self) -> Option<&str> {
        self.special.bos.and_then(|id| self.token_text(id))
    }

    /// Spelling of the first end-of-sequence token.
    pub fn eos_token(&self) -> Option<&str> {
        self.special.eos.first().and_then(|&id| self.token_text(id))
    }

    /// Chat templates that came with the tokenizer: name (`default`, `tool_use`, ...) and source.
    pub fn chat_templates(&self) -> &[(String, String)] {
        &self.chat_templates
    }
}

/// Where a text has added tokens.
#[derive(Clone, Copy)]
enum Added<'a> {
    /// Wherever one is spelled.
    Recognised,
    /// Nowhere.
    Ignored,
    /// Where the caller says.
    At(&'a [Part]),
}

/// What a reader found; [`Tokenizer::assemble`] makes a tokenizer of it.
struct Parts {
    model: Bpe,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    added: Vec<AddedToken>,
    detokenizer: Detokenizer,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    special: Specials,
    chat_templates: Vec<(String, String)>,
    kept: Kept,
}

fn cut(matcher: &Matcher, piece: NormalizedString) -> Vec<(NormalizedString, Option<Vec<Token>>)> {
    if matcher.is_empty() {
        return vec![(piece, None)];
    }
    let parts = matcher.split(piece.get());
    slices(&piece, &parts)
}

fn slices(piece: &NormalizedString, parts: &[Part]) -> Vec<(NormalizedString, Option<Vec<Token>>)> {
    let slice = |part: &Part| {
        let slice = piece.slice(Range::Normalized(part.start..part.end))?;
        Some((slice, part.token.map(|id| vec![Token::new(id, String::new(), (0, part.end - part.start))])))
    };
    parts.iter().filter_map(slice).collect()
}

/// Runs library code on what a file describes. Its normalisers and pre-tokenizers index without checks in places that
/// only an absurd file reaches (a mutated pattern, an empty one): such a panic becomes an error.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TokenizerError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(done) => done.map_err(|e| TokenizerError::Encode(e.to_string())),
        Err(_) => Err(TokenizerError::Encode("the tokenizer's normaliser or pre-tokenizer is broken".into())),
    }
}
