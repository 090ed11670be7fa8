//! Energy in answers: `usage.energy` and the header `x-njoule-energy`.
//!
//! Their form is the engine's ([`Energy`]), as that of `GET /v1/energy` is: other programs tell theirs the same way.

use njoule_runtime::engine::RequestEnergy;

pub use njoule_runtime::engine::Energy;

/// Adds what a sequence has used.
pub fn add(sum: &mut Option<Energy>, used: Option<RequestEnergy>) {
    if let Some(used) = used.map(Energy::from) {
        *sum = Some(sum.map_or(used, |sum| sum.plus(used)));
    }
}

/// The header that asks for energy, and that brings it.
pub const HEADER: &str = "x-njoule-energy";
