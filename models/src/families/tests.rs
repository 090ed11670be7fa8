//! Options of the families that no fixture shows: defaults, derived lists, refusals.

mod gemma;
mod gpt2;
mod scaled;
