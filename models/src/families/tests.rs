//! Options of the families that no fixture shows: defaults, derived lists, refusals.

mod experts;
mod gemma;
mod gpt2;
mod layers;
mod olmo;
mod parallel;
mod phi3;
mod published;
mod scaled;

/// What a class assumes on its own is a model, which can be traced.
#[test]
fn every_family_has_a_usual_model() {
    for family in crate::config::Family::ALL {
        let config = family.usual();
        assert_eq!((config.family, config.program().layers.len()), (family, config.layers));
    }
}
