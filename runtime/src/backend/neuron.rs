//! AWS Inferentia2 and Trainium: programs become HLO modules, neuronx-cc compiles them, libnrt runs them.
//!
//! * [`interface`]: what such a module takes and returns;
//! * [`mod@plan`]: which modules a model gets on an instance, and what that bounds;
//! * [`profile`]: which form of an idiom a device is known to take.
//!
//! Nothing here has run on Neuron hardware.

pub mod interface;
pub mod plan;
pub mod profile;

pub use interface::{CachePart, CacheShape, Input, ModelSpec, ModuleKind, ModuleSpec, Output, Port, WeightPart};
pub use profile::Profile;
