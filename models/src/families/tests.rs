//! Options of the families that no fixture shows: defaults, derived lists, refusals.

mod experts;
mod phi3;
