//! Options of the families that no fixture shows: defaults, derived lists, refusals.

mod experts;
mod gemma;
mod gpt2;
mod olmo;
mod phi3;
mod published;
mod scaled;
