//! A meter that does what a test says: counts, wraps, stands still, fails, goes backwards.

use std::collections::VecDeque;

use super::rapl::reading;
use super::{Meter, MeterError, MeterInfo, Reading, Scope};
use crate::clock::Now;
use crate::counter::Counter;
use crate::joules::Method;

/// A scripted counter of microjoules.
pub struct Mock {
    info: MeterInfo,
    counter: Counter,
    script: VecDeque<Result<u64, MeterError>>,
    last: Result<u64, MeterError>,
}

impl Mock {
    /// A counter that gives `script` value by value and then its last for ever; it wraps at `modulus` if there is one.
    pub fn new(id: &str, modulus: Option<u64>, script: impl IntoIterator<Item = Result<u64, MeterError>>) -> Mock {
        let info = MeterInfo {
            id: id.to_owned(),
            domain: "mock".into(),
            scope: Scope::Cpu,
            method: Method::Measured,
            source: "mock".into(),
            profile: None,
            unit_j: Some(1e-6),
            update_period_s: Some(1e-3),
            rel_uncertainty: Some(0.0),
            parent: None,
            counts_in_total: true,
            excluded: None,
        };
        let counter = modulus.map_or_else(Counter::endless, |modulus| Counter::wrapping(modulus, 1.0));
        let last = Err(MeterError::Silent("mock".into()));
        Mock { info, counter, script: script.into_iter().collect(), last }
    }
}

impl Meter for Mock {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn info_mut(&mut self) -> &mut MeterInfo {
        &mut self.info
    }

    fn read(&mut self, now: Now) -> Result<Reading, MeterError> {
        if let Some(next) = self.script.pop_front() {
            self.last = next;
        }
        let raw = self.last.clone()?;
        self.counter.advance(raw, now.mono_ns).map_err(|_| MeterError::Reset("mock".into()))?;
        reading(&self.counter, 1e-6, now)
    }
}
