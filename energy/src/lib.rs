//! Joules with their method: meters, windows, reports and the split of a step's energy over its requests.
//!
//! Depends on nothing of njoule, so that any benchmark can use it. Three rules hold everywhere: what is unknown is `None` and
//! says why; every figure carries its [`Method`] and, where it is known, an interval; of overlapping meters one side counts.
//!
//! ```
//! use njoule_energy::{Meters, Wanted, Window};
//!
//! let mut meters = Meters::open(&Wanted::from_environment());
//! let start = meters.snapshot();
//! let sum: u64 = (0..1_000_000).sum();
//! let window = Window::between(&start, &meters.snapshot()).expect("two snapshots of one session, in order");
//! match window.total.joules {
//!     Some(joules) => println!("{sum}: {:.3} J, {:?}", joules.best(), window.total.method),
//!     None => println!("{sum}: energy unknown: {}", window.total.reasons.join("; ")),
//! }
//! ```
#![deny(unsafe_code)]

pub mod attribution;
pub mod bound;
pub mod calibrate;
pub mod clock;
pub mod conditions;
mod counter;
mod host;
mod integral;
mod joules;
pub mod load;
pub mod meter;
mod meters;
#[allow(unsafe_code)]
pub mod nvml;
#[allow(unsafe_code)]
pub mod perf;
pub mod profile;
pub mod report;
mod root;
pub mod snapshot;
pub mod table;
pub mod window;

pub use host::Host;
pub use joules::{Joules, Method};
pub use meters::{Meters, Wanted};
pub use report::Report;
pub use root::Root;
pub use snapshot::Snapshot;
pub use window::Window;
