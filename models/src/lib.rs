//! What a model *is*, apart from where it runs.
//!
//! A model is written once, as a plain function over a [`Tracer`]; tracing yields a [`Program`], a straight-line list of
//! coarse transformer operations. Backends compile programs; this crate knows no backend. It also reads checkpoints
//! (Hugging Face directories and GGUF files) as [`weights::WeightSource`]s, and text (tokenizers, chat templates).

pub(crate) mod blocks;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod cost;
pub mod families;
#[cfg(test)]
mod fixtures;
pub mod program;
pub mod rope;
pub mod tokenizer;
pub mod tracer;
pub mod weights;

pub use config::ModelConfig;
pub use families::Family;
pub use program::{Op, Program, Val, WeightId};
pub use tracer::Tracer;
