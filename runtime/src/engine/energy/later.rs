//! What an answer has used, while meters have not told all of it.
//!
//! Invariant: the engine writes after a reading, never within a step; what is settled does not change any more.

use std::sync::{Arc, Mutex};

use super::RequestEnergy;
use crate::engine::inbox::lock;

/// What a sequence has used, kept up to date until it is settled, or the engine has ended before that.
#[derive(Clone, Debug)]
pub struct Later(Arc<Mutex<RequestEnergy>>);

impl Later {
    pub(in crate::engine) fn new(known: RequestEnergy) -> Later {
        Later(Arc::new(Mutex::new(known)))
    }

    /// As far as it is known now.
    pub fn now(&self) -> RequestEnergy {
        *lock(&self.0)
    }

    pub(in crate::engine) fn set(&self, known: RequestEnergy) {
        *lock(&self.0) = known;
    }
}

/// The same place.
impl PartialEq for Later {
    fn eq(&self, other: &Later) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
