//! AWS Inferentia2 and Trainium: programs become HLO modules, neuronx-cc compiles them, libnrt runs them.
//!
//! * [`interface`]: what such a module takes and returns;
//! * [`mod@plan`]: which modules a model gets on an instance, and what that bounds;
//! * [`profile`]: which form of an idiom a device is known to take;
//! * [`mod@shard`]: how a program is divided over cores;
//! * [`mod@lower`]: a module from a divided program;
//! * [`weights`]: a core's bytes of each weight;
//! * [`evaluated`]: modules run by the evaluator of `hlo`, what stands for a device in tests;
//! * [`probe`]: finds that out on a device;
//! * `compiler`: modules become NEFFs, each once; [`neff`]: what such a file says of itself;
//! * [`artifact`]: all that serves a model, in a directory; `build`: how one is made;
//! * `decodes`: which decode modules a step runs; `executor`: an artifact on cores.
//!
//! Nothing here has run on Neuron hardware.

pub mod artifact;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod build;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod compiler;
mod decodes;
mod digest;
pub mod evaluated;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod executor;
pub mod interface;
pub mod lower;
pub mod neff;
pub mod plan;
pub mod probe;
pub mod profile;
pub mod shard;
pub mod weights;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub use executor::NeuronBackend;
pub use interface::{CachePart, CacheShape, Input, ModelSpec, ModuleKind, ModuleSpec, Output, Part, Port, WeightPart};
pub use lower::{LowerError, Lowered, lower};
pub use profile::Profile;
pub use shard::{ShardError, Sharded, shard};
