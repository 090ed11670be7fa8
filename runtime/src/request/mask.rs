//! Which tokens may come next: grammars and schemas hook in here.
//!
//! Invariant: a mask depends on the tokens alone, so that a preempted request gets the same ones again.

use std::sync::Arc;

/// Says which tokens may come next, answer by answer.
pub trait TokenMask: Send + Sync {
    /// Starts the answer to `prompt`.
    fn start(self: Arc<Self>, prompt: &[u32]) -> Box<dyn MaskStream>;
}

impl std::fmt::Debug for dyn TokenMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenMask")
    }
}

/// The masks of one answer.
pub trait MaskStream: Send {
    /// Sets in `allowed`, which is all 0, the bits of the tokens that may follow `generated`: bit `i % 32` of word `i / 32`
    /// for token `i`. Called on the engine thread before every step that draws a token, or while it runs, also more than once
    /// after the same tokens; it should take microseconds.
    fn fill(&mut self, generated: &[u32], allowed: &mut [u32]) -> Result<(), MaskError>;
}

/// Why there is no mask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MaskError(pub String);
