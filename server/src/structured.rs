//! Structured output: what an answer must look like, as masks over the next token.
//!
//! Invariant: a grammar is compiled on a thread aside, within bounds of size, nesting, time and memory, and one that is too
//! much is refused; the engine's thread only fills masks, whose work is bounded too.

mod gbnf;
mod schema;
mod spec;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use njoule_models::tokenizer::Tokenizer;
use njoule_runtime::request::{MaskError, MaskStream, TokenMask};

use crate::error::{ApiError, grammar_words};
pub use spec::{MAX_CHOICES, Spec};

/// Makes masks for one vocabulary; built when the first grammar comes.
#[derive(Default)]
pub struct Grammars(OnceLock<Result<ParserFactory, String>>);

impl Grammars {
    /// Compiles `spec` for a model of `vocab` tokens whose answers end at `eos`. The mask lets everything pass until the tokens
    /// `after` have been generated, where there are some.
    pub fn compile(
        &self,
        spec: &Spec,
        tokenizer: &Tokenizer,
        vocab: usize,
        eos: &[u32],
        after: Vec<u32>,
    ) -> Result<Arc<dyn TokenMask>, ApiError> {
        let factory = self.0.get_or_init(|| factory(tokenizer, vocab, eos));
        let factory = factory.as_ref().map_err(|error| refused(spec, error))?;
        let grammar: TopLevelGrammar = spec.grammar().map_err(|error| refused(spec, &error))?;
        let compile = || {
            let mut matcher = Matcher::new(factory.create_parser(grammar));
            match matcher.get_error() {
                Some(error) => Err(error),
                None => try_out(&mut matcher, eos).map(|()| matcher),
            }
        };
        let matcher = with_room(compile).and_then(|made| made).map_err(|error| refused(spec, &error))?;
        Ok(Arc::new(Mask { matcher: Mutex::new(matcher), eos: eos.to_vec(), after }))
    }
}

/// Refuses here what cannot begin, or cannot go on however it begins, and not when the answer is due.
fn try_out(matcher: &mut Matcher, eos: &[u32]) -> Result<(), String> {
    let first = matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
    let words = first.as_slice();
    let ids = 0..u32::try_from(words.len()).unwrap_or(u32::MAX).saturating_mul(32);
    let mut failure = None;
    for id in ids.filter(|id| is_set(words, *id) && !eos.contains(id)).take(BEGINNINGS) {
        let mut begun = matcher.clone();
        match begun.consume_token(id).and_then(|()| begun.compute_mask_or_eos()) {
            Ok(_) => return Ok(()),
            Err(error) => failure = Some(error.to_string()),
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Does what calls itself as deep as rules refer to each other, which [`spec`] bounds.
fn with_room<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let done = thread.map(std::thread::ScopedJoinHandle::join);
        done.ok().and_then(Result::ok).ok_or_else(|| "it could not be read".to_owned())
    })
}

/// The mask of answers that a JSON schema describes, as `response_format` gives one: for whoever measures what it costs.
pub fn json_schema(
    schema: serde_json::Value,
    tokenizer: &Tokenizer,
    vocab: usize,
    eos: &[u32],
) -> Result<Arc<dyn TokenMask>, ApiError> {
    Grammars::default().compile(&Spec::json(schema)?, tokenizer, vocab, eos, Vec::new())
}

fn refused(spec: &Spec, error: &str) -> ApiError {
    let message = format!("the grammar cannot be used: {}", grammar_words(error));
    ApiError::coded("grammar_error", spec.param(), message)
}

fn factory(tokenizer: &Tokenizer, vocab: usize, eos: &[u32]) -> Result<ParserFactory, String> {
    let special =
        |id: u32| [&[TokTrie::SPECIAL_TOKEN_MARKER], tokenizer.token_text(id).unwrap_or_default().as_bytes()].concat();
    let word = |id: usize| {
        // The engine checked that ids fit.
        let id = u32::try_from(id).unwrap_or(u32::MAX);
        if tokenizer.is_special(id) || eos.contains(&id) {
            return special(id);
        }
        tokenizer.token_bytes(id).unwrap_or_default()
    };
    let words: Vec<Vec<u8>> = (0..vocab).map(word).collect();
    let Some(&end) = eos.iter().find(|id| usize::try_from(**id).is_ok_and(|id| id < vocab)) else {
        return Err("the model has no token that ends an answer".into());
    };
    let info = TokRxInfo::new(u32::try_from(vocab).unwrap_or(u32::MAX), end);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
    let mut factory = ParserFactory::new_simple(&env).map_err(|error| error.to_string())?;
    factory.quiet();
    *factory.limits_mut() =
        ParserLimits { max_lexer_states: MAX_LEXER_STATES, verbose_errors: false, ..ParserLimits::default() };
    Ok(factory)
}

/// A grammar that answers may be started with.
struct Mask {
    /// Fresh; cloned for each answer.
    matcher: Mutex<Matcher>,
    eos: Vec<u32>,
    /// Tokens that it begins behind.
    after: Vec<u32>,
}

impl TokenMask for Mask {
    fn start(self: Arc<Self>, _prompt: &[u32]) -> Box<dyn MaskStream> {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::new(Stream { matcher, seen: 0, waits: !self.after.is_empty(), mask: self })
    }
}

/// The masks of one answer.
struct Stream {
    mask: Arc<Mask>,
    matcher: Matcher,
    /// Generated tokens that were taken in.
    seen: usize,
    /// Whether the grammar has not begun yet.
    waits: bool,
}

impl MaskStream for Stream {
    fn fill(&mut self, generated: &[u32], allowed: &mut [u32]) -> Result<(), MaskError> {
        if generated.len() < self.seen {
            self.matcher.reset().map_err(failed)?;
            (self.seen, self.waits) = (0, !self.mask.after.is_empty());
        }
        for (at, &id) in generated.iter().enumerate().skip(self.seen) {
            if self.waits {
                self.waits = !generated[..=at].ends_with(&self.mask.after);
            } else if !self.matcher.is_stopped() {
                self.matcher.consume_token(id).map_err(failed)?;
            }
            // Else an end token that was not meant: `ignore_eos` goes on behind the end.
        }
        self.seen = generated.len();
        if self.waits {
            allowed.fill(u32::MAX);
            return Ok(());
        }
        let mask = self.matcher.compute_mask_or_eos().map_err(failed)?;
        for (word, bits) in allowed.iter_mut().zip(mask.as_slice()) {
            *word = *bits;
        }
        // The grammar knows one end token, the model may have several.
        if self.mask.eos.iter().any(|id| is_set(allowed, *id)) {
            self.mask.eos.iter().for_each(|id| set(allowed, *id));
        }
        Ok(())
    }
}

fn failed(error: impl std::fmt::Display) -> MaskError {
    MaskError(error.to_string())
}

fn place(id: u32) -> Option<(usize, u32)> {
    Some((usize::try_from(id / 32).ok()?, 1 << (id % 32)))
}

fn is_set(words: &[u32], id: u32) -> bool {
    place(id).is_some_and(|(at, bit)| words.get(at).is_some_and(|word| word & bit != 0))
}

fn set(words: &mut [u32], id: u32) {
    if let Some((at, bit)) = place(id)
        && let Some(word) = words.get_mut(at)
    {
        *word |= bit;
    }
}

/// States of a lexer take one to two KiB: 64 MiB.
const MAX_LEXER_STATES: usize = 32 << 10;
/// Beginnings of an answer that are tried, until one of them can go on.
const BEGINNINGS: usize = 4;
/// Addresses, of which as many become memory as are used.
const STACK: usize = 256 << 20;
