//! AWS Inferentia2 and Trainium: programs become HLO modules, neuronx-cc compiles them, libnrt runs them.
//!
//! * [`interface`]: what such a module takes and returns;
//! * [`profile`]: which form of an idiom a device is known to take;
//! * [`probe`]: finds that out on a device;
//! * `compiler`: modules become NEFFs, each once; [`neff`]: what such a file says of itself;
//! * [`artifact`]: all that serves a model, in a directory.
//!
//! Nothing here has run on Neuron hardware.

pub mod artifact;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod compiler;
mod digest;
pub mod interface;
pub mod neff;
pub mod probe;
pub mod profile;

pub use interface::{CachePart, CacheShape, Input, ModelSpec, ModuleKind, ModuleSpec, Output, Port, WeightPart};
pub use profile::Profile;
