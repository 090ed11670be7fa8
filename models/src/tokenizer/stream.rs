//! Detokenising one id at a time.
//!
//! What has been given out is never taken back: the concatenation of all pieces equals the decode of all ids. Hence a
//! character is held until its last byte is there, and with byte-fallback vocabularies a run of byte tokens until the
//! run ends (one invalid byte turns the whole run into U+FFFD).

use std::ops::Deref;

use super::Tokenizer;
use super::detokenize::{Detokenizer, Pieces, byte_level};

/// State of an incremental decode; made by [`Tokenizer::decode_stream`], or with an `Arc<Tokenizer>` where it outlives the
/// borrow.
#[derive(Debug)]
pub struct DecodeStream<T> {
    tokenizer: T,
    skip_special: bool,
    /// Bytes that are not yet text.
    held: Vec<u8>,
    /// Tokens decoded so far, up to "some".
    started: bool,
    /// How much may still be stripped off the start.
    strip_left: usize,
}

impl<T: Deref<Target = Tokenizer> + Clone> DecodeStream<T> {
    /// Starts a decode; special tokens are left out if `skip_special` is set.
    pub fn new(tokenizer: T, skip_special: bool) -> Self {
        let strip_left = match &tokenizer.detokenizer {
            Detokenizer::Pieces(Pieces { strip: Some((_, n)), .. }) => *n,
            _ => 0,
        };
        DecodeStream { tokenizer, skip_special, held: Vec::new(), started: false, strip_left }
    }

    /// Takes the next id and appends the text that is now certain.
    pub fn push(&mut self, id: u32, text: &mut String) {
        if self.skip_special && self.tokenizer.is_special(id) {
            return;
        }
        let tokenizer = self.tokenizer.clone();
        let Some(token) = tokenizer.token_text(id) else { return };
        match &tokenizer.detokenizer {
            Detokenizer::ByteLevel => {
                self.held.extend(byte_level(token));
                self.flush_complete(text);
            }
            Detokenizer::Pieces(pieces) => {
                let first = !std::mem::replace(&mut self.started, true);
                if !first && !pieces.separator.is_empty() {
                    self.flush_run(pieces, text);
                    self.give(pieces, pieces.separator, text);
                }
                if let Some(byte) = pieces.byte(token) {
                    self.held.push(byte);
                    return;
                }
                self.flush_run(pieces, text);
                let piece = match pieces.drop_in_first.filter(|_| first) {
                    Some(c) => pieces.replaced(&token.replace(c, "")),
                    None => pieces.replaced(token),
                };
                self.give(pieces, &piece, text);
            }
        }
    }

    /// Appends what is still held: the ids have ended.
    pub fn finish(&mut self, text: &mut String) {
        let tokenizer = self.tokenizer.clone();
        match &tokenizer.detokenizer {
            Detokenizer::ByteLevel => {
                text.push_str(&String::from_utf8_lossy(&self.held));
                self.held.clear();
            }
            Detokenizer::Pieces(pieces) => self.flush_run(pieces, text),
        }
    }

    /// Gives out all but a character that has only begun; invalid sequences become U+FFFD.
    fn flush_complete(&mut self, text: &mut String) {
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    // Checked by from_utf8 just now, hence lossless.
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(bad) = e.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[bad..];
                }
            }
        }
        let keep = self.held.len() - rest.len();
        self.held.drain(..keep);
    }

    /// Gives out a finished run of byte tokens: text if all of it is UTF-8, else one U+FFFD per byte.
    fn flush_run(&mut self, pieces: &Pieces, text: &mut String) {
        if self.held.is_empty() {
            return;
        }
        let run = match String::from_utf8(std::mem::take(&mut self.held)) {
            Ok(run) => run,
            Err(e) => char::REPLACEMENT_CHARACTER.to_string().repeat(e.as_bytes().len()),
        };
        self.give(pieces, &run, text);
    }

    fn give(&mut self, pieces: &Pieces, mut piece: &str, text: &mut String) {
        while self.strip_left > 0 && !piece.is_empty() {
            match pieces.strip.and_then(|(c, _)| piece.strip_prefix(c)) {
                Some(rest) => {
                    piece = rest;
                    self.strip_left -= 1;
                }
                None => self.strip_left = 0,
            }
        }
        text.push_str(piece);
    }
}
