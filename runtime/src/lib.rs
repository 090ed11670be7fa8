//! The njoule engine: continuous batching over any backend.
//!
//! The engine knows nothing of a backend but [`backend::Executor`]: it owns indices (blocks, slots, positions), the
//! backend owns bytes.
//!
//! ```
//! use std::num::NonZero;
//! use std::path::Path;
//!
//! use njoule_models::checkpoint::Checkpoint;
//! use njoule_runtime::backend::cpu::CpuBackend;
//! use njoule_runtime::backend::{Backend, Capacity, Quant};
//! use njoule_runtime::{Engine, EngineConfig, Event, Request};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open(Path::new("../testdata/llama_plain"))?;
//! let program = checkpoint.config.program();
//! let backend = CpuBackend::new(NonZero::<usize>::MIN, Quant::None)?;
//! let capacity = Capacity {
//!     blocks: 16,
//!     block_len: backend.limits(&program).block_len,
//!     max_rows: 64,
//!     max_seqs: 4,
//!     max_outputs: 4,
//!     max_len: 128,
//! };
//! let executor = backend.load(&program, &*checkpoint.weights, capacity)?;
//! let engine = Engine::start(executor, program.vocab(), EngineConfig::new(capacity))?;
//!
//! let mut ids = Vec::new();
//! for event in engine.submit(Request::new(vec![1, 153, 126, 119, 176], 5))? {
//!     match event {
//!         Event::Token { id, .. } => ids.push(id),
//!         Event::Finished { usage, .. } => assert_eq!(usage.generated_tokens, 5),
//!         Event::Failed(error) => return Err(error.into()),
//!         _ => {}
//!     }
//! }
//! assert_eq!(ids, [227, 200, 144, 256, 191]); // what transformers 4.57 gives
//! # Ok(())
//! # }
//! ```

pub mod backend;
pub mod engine;
pub mod histogram;
mod kv;
pub mod policy;
pub mod request;
pub mod sampler;
mod scheduler;
pub mod supported;

pub use engine::{Engine, EngineConfig, EngineStats, Speculate};
pub use request::{Event, FinishReason, Request, RequestHandle};
pub use sampler::SamplingParams;
