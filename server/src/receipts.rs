//! What of a stream has gone out: from a connection to the engine, which lets a sequence stand while its last tokens have not.
//!
//! A token that a connection was not given time to write is not followed by others: a client that has gone meanwhile costs what
//! was made already and no more. Who is there and reads slowly is another matter: what is made for him piles up to a limit, in the
//! [mailbox](crate::mailbox), and does not hold a place in the batch.
//!
//! Invariant: whatever was taken out is told sooner or later, also where nothing is written of it, so that nobody stands for ever.

use std::sync::{Mutex, MutexGuard, PoisonError};

use njoule_runtime::request::CancelToken;

/// The receipts of one HTTP request's sequences.
pub struct Receipts {
    tokens: Vec<CancelToken>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Sequences and how many of their tokens were taken out and are not written.
    taken: Vec<(usize, usize)>,
    /// Whether the client takes nothing at the moment.
    stalled: bool,
}

impl Receipts {
    /// Of sequences that these cancel.
    pub fn new(tokens: Vec<CancelToken>) -> Receipts {
        Receipts { tokens, state: Mutex::default() }
    }

    /// So many tokens of `sequence` are about to be written.
    pub fn take(&self, sequence: usize, tokens: usize) {
        if tokens > 0 {
            self.lock().taken.push((sequence, tokens));
        }
    }

    /// Whether anything is about to be written.
    pub fn is_due(&self) -> bool {
        let state = self.lock();
        state.stalled || !state.taken.is_empty()
    }

    /// All that was taken out has been written, to a client that is there.
    pub fn passed(&self) {
        let mut state = self.lock();
        if std::mem::take(&mut state.stalled) {
            self.tokens.iter().for_each(|token| token.reads_slowly(false));
        }
        for (sequence, tokens) in state.taken.drain(..) {
            self.tokens[sequence].tokens_read(tokens);
        }
    }

    /// The client does not take what was written before.
    pub fn stalled(&self) {
        if !std::mem::replace(&mut self.lock().stalled, true) {
            self.tokens.iter().for_each(|token| token.reads_slowly(true));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole at any point where a thread could panic; the tasks of one connection alone use it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
