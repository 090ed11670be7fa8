//! The njoule engine: continuous batching over any backend.
//!
//! The engine knows nothing of a backend but [`backend::Executor`]: it owns indices (blocks, slots, positions), the
//! backend owns bytes.

pub mod backend;
