//! AWS Inferentia2 and Trainium: programs become HLO modules, neuronx-cc compiles them, libnrt runs them.
//!
//! * [`interface`]: what such a module takes and returns;
//! * [`profile`]: which form of an idiom a device is known to take;
//! * [`probe`]: finds that out on a device.
//!
//! Nothing here has run on Neuron hardware.

pub mod interface;
pub mod probe;
pub mod profile;

pub use interface::{CachePart, CacheShape, Input, ModelSpec, ModuleKind, ModuleSpec, Output, Port, WeightPart};
pub use profile::Profile;
