//! The cases, from single operations to whole models.

pub mod models;
pub mod ops;

use njoule_models::program::{Parallel, Program, Val, WeightUse};
use njoule_models::tracer::{LinearWeight, Tracer};

use crate::Case;

/// Token ids of a case's vocabulary.
pub const VOCAB: usize = 97;

/// A program from embeddings of width `cols` through `body` to logits.
pub fn program(cols: usize, body: impl FnOnce(&mut Tracer, Val) -> Val) -> Program {
    let mut t = Tracer::new("case");
    let table = t.weight("embed", VOCAB, cols, WeightUse::Vocabulary, Parallel::Column);
    let x = t.embed(table);
    let x = t.layer("layer", |t| body(t, x));
    let x = if t.is_token_rows(x) { t.take_outputs(x) } else { x };
    let shape = (VOCAB, t.cols(x));
    let head = matrix(&mut t, "head", shape, false);
    let logits = t.linear(x, head);
    t.finish(logits)
}

/// The same, named.
fn case(name: String, cols: usize, body: impl FnOnce(&mut Tracer, Val) -> Val) -> Case {
    Case { name, program: program(cols, body) }
}

/// A matrix `[out, in]` with or without a bias.
pub fn matrix(t: &mut Tracer, name: &str, (out, inp): (usize, usize), bias: bool) -> LinearWeight {
    t.linear_weight(name, (out, inp), bias, Parallel::Column)
}

/// Every case that is not random.
pub fn all() -> Vec<Case> {
    [ops::cases(), models::cases()].concat()
}
