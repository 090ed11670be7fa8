//! Where the text of events comes from.
//!
//! Invariant: the pieces of an answer put together are its text; none is ever taken back.

use std::sync::Arc;

use njoule_models::tokenizer::{DecodeStream, Tokenizer};

/// Makes text of generated tokens; usually a tokenizer. The engine works without one as long as no stop string is asked
/// for.
pub trait TokenText: Send + Sync {
    /// Starts the text of one answer to `prompt` (the prompt itself is not part of the text).
    fn start(self: Arc<Self>, prompt: &[u32]) -> Box<dyn TextStream>;
}

impl std::fmt::Debug for dyn TokenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenText")
    }
}

/// The text of one answer, token by token.
pub trait TextStream: Send {
    /// Appends to `out` what token `id` completes: nothing while a character is incomplete, never half a character.
    fn push(&mut self, id: u32, out: &mut String);

    /// Appends what is left at the end (an incomplete character becomes U+FFFD).
    fn finish(&mut self, out: &mut String);
}

/// Text by a model's tokenizer.
#[derive(Debug)]
pub struct TokenizerText {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    continues: bool,
}

impl TokenizerText {
    /// Text by `tokenizer`, without special tokens if `skip_special` is set.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        TokenizerText { tokenizer, skip_special, continues: false }
    }

    /// Whether answers continue their prompt's own text: then the first token may begin with a space, and a character may
    /// have begun in the prompt.
    pub fn continuing(self, continues: bool) -> Self {
        TokenizerText { continues, ..self }
    }
}

impl TokenText for TokenizerText {
    fn start(self: Arc<Self>, prompt: &[u32]) -> Box<dyn TextStream> {
        let mut stream = DecodeStream::new(self.tokenizer.clone(), self.skip_special);
        if self.continues {
            let mut shown = String::new();
            prompt[prompt.len().saturating_sub(REACH)..].iter().for_each(|id| stream.push(*id, &mut shown));
        }
        Box::new(stream)
    }
}

impl TextStream for DecodeStream<Arc<Tokenizer>> {
    fn push(&mut self, id: u32, out: &mut String) {
        DecodeStream::push(self, id, out);
    }

    fn finish(&mut self, out: &mut String) {
        DecodeStream::finish(self, out);
    }
}

/// Tokens of the prompt that can matter to the text after it: more than the bytes of a character.
const REACH: usize = 16;
