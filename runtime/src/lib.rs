//! The njoule engine: continuous batching over any backend.
//!
//! The engine knows nothing of a backend but [`backend::Executor`]: it owns indices (blocks, slots, positions), the
//! backend owns bytes.

pub mod backend;
pub mod engine;
mod kv;
pub mod request;
pub mod sampler;
mod scheduler;

pub use engine::{Engine, EngineConfig, EngineStats};
pub use request::{Event, FinishReason, Request, RequestHandle};
pub use sampler::SamplingParams;
