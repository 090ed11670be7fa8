//! How tokens become text: the `decoder` part of a tokenizer, as data.
//!
//! Two kinds exist among language models: byte-level (each token is a string of bytes) and pieces (each token is text,
//! except that runs of `<0xAB>` tokens are bytes). Both are incremental: [`super::DecodeStream`] runs either, and a whole
//! decode is a stream that ends.

use std::sync::LazyLock;

use serde_json::Value;

use super::TokenizerError;

/// The decoder of a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Detokenizer {
    /// Tokens spell bytes in GPT-2's printable alphabet.
    ByteLevel,
    /// Tokens are text.
    Pieces(Pieces),
}

/// See [`Detokenizer::Pieces`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pieces {
    /// Replaced in every token, in this order.
    pub replace: Vec<(String, String)>,
    /// Whether runs of `<0xAB>` are bytes.
    pub byte_fallback: bool,
    /// Up to so many of this character are dropped at the very start.
    pub strip: Option<(char, usize)>,
    /// The character that means a space, dropped throughout the first token (Metaspace).
    pub drop_in_first: Option<char>,
    /// Put between tokens.
    pub separator: &'static str,
}

impl Detokenizer {
    /// Reads `decoder` of tokenizer.json.
    pub(super) fn from_json(decoder: &Value) -> Result<Detokenizer, TokenizerError> {
        let mut pieces = Pieces::default();
        if decoder.is_null() {
            pieces.separator = " ";
            return Ok(Detokenizer::Pieces(pieces));
        }
        let steps = match kind(decoder) {
            "Sequence" => decoder["decoders"].as_array().cloned().unwrap_or_default(),
            _ => vec![decoder.clone()],
        };
        let unsupported = |kind: &str| TokenizerError::Unsupported { part: "decoder", kind: kind.to_owned() };
        if let [only] = steps.as_slice()
            && kind(only) == "ByteLevel"
        {
            return Ok(Detokenizer::ByteLevel);
        }
        let mut fused = false;
        for step in &steps {
            match kind(step) {
                "Replace" if !fused && !pieces.byte_fallback => {
                    let (Some(from), Some(to)) = (step["pattern"]["String"].as_str(), step["content"].as_str()) else {
                        return Err(unsupported("Replace by a regular expression"));
                    };
                    pieces.replace.push((from.to_owned(), to.to_owned()));
                }
                "ByteFallback" if !fused => pieces.byte_fallback = true,
                "Fuse" => fused = true,
                "Strip" if fused && pieces.strip.is_none() => {
                    let content = step["content"].as_str().and_then(|s| s.chars().next());
                    let (Some(c), Some(0), Some(n)) = (content, step["stop"].as_u64(), step["start"].as_u64()) else {
                        return Err(unsupported("Strip at the end"));
                    };
                    pieces.strip = Some((c, usize::try_from(n).unwrap_or(usize::MAX)));
                }
                "Metaspace" if steps.len() == 1 => {
                    let c = step["replacement"].as_str().and_then(|s| s.chars().next()).unwrap_or('\u{2581}');
                    let never = step["prepend_scheme"] == "never" || step["add_prefix_space"] == false;
                    pieces.drop_in_first = (!never).then_some(c);
                    pieces.replace.push((c.to_string(), " ".to_owned()));
                }
                other => return Err(unsupported(other)),
            }
        }
        Ok(Detokenizer::Pieces(pieces))
    }

    /// SentencePiece's decoder; `strip` drops the space that the normaliser put in front.
    pub(super) fn sentencepiece(strip: bool) -> Detokenizer {
        Detokenizer::Pieces(Pieces {
            replace: vec![("\u{2581}".to_owned(), " ".to_owned())],
            byte_fallback: true,
            strip: strip.then_some((' ', 1)),
            ..Pieces::default()
        })
    }

    /// Bytes of one token.
    pub(super) fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Detokenizer::ByteLevel => byte_level(token),
            Detokenizer::Pieces(p) => match p.byte(token) {
                Some(byte) => vec![byte],
                None => p.replaced(token).into_bytes(),
            },
        }
    }
}

impl Pieces {
    /// The byte that a token of the form `<0xAB>` stands for.
    pub(super) fn byte(&self, token: &str) -> Option<u8> {
        let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
        let digits = self.byte_fallback && hex.len() == 2;
        digits.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
    }

    pub(super) fn replaced(&self, token: &str) -> String {
        self.replace.iter().fold(token.to_owned(), |text, (from, to)| match from.is_empty() {
            true => text,
            false => text.replace(from, to),
        })
    }
}

/// Bytes of a byte-level token. One that uses other characters is an added token: taken as it is written.
pub(super) fn byte_level(token: &str) -> Vec<u8> {
    let spelled = token.chars().map(byte_of);
    spelled.collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or("(none)")
}

/// The byte that a character of the byte-level alphabet stands for.
pub(super) fn byte_of(c: char) -> Option<u8> {
    BYTE_OF_CHAR.get(c as usize).copied().flatten()
}

/// GPT-2's alphabet (`bytes_to_unicode` in openai/gpt-2 `src/encoder.py`): printable bytes stand for themselves, the
/// others for U+0100 onwards.
static BYTE_OF_CHAR: LazyLock<Vec<Option<u8>>> = LazyLock::new(|| {
    let mut table = vec![None; 0x180];
    let mut next = 0x100;
    for byte in 0..=u8::MAX {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        if printable {
            table[usize::from(byte)] = Some(byte);
        } else {
            table[next] = Some(byte);
            next += 1;
        }
    }
    table
});
