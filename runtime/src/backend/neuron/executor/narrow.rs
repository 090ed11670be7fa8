//! Whose index was out of bounds: the device says which run failed, not which row of it.
//!
//! A run of one line names its sequence. One of several is run again by halves, the other rows idle, and halves that fail by
//! halves of theirs: what passes is proven fine, what fails alone is refused. A decode step's rows write the same places
//! again, so nothing comes of running them twice. `n` rows of which `k` fail take at most about `2 k log2(n)` runs.
//!
//! Where every half passes, nothing is known: the step is run again as a whole, once, and if that fails in the same way
//! all sequences of the run are refused.

use std::ops::Range;
use std::time::Instant;

use super::NeuronExecutor;
use super::is_out_of_bounds;
use crate::backend::StepError;

impl NeuronExecutor {
    /// What becomes of a step whose run number `run` failed. All ranks have answered.
    pub(super) fn narrow(&mut self, run: usize, what: String) -> StepError {
        let Some(call) = self.cut.calls.get(run).cloned() else {
            return StepError::Batch(format!("run {run} of {} failed: {what}", self.cut.calls.len()));
        };
        let first = call.lines.start;
        let refused = match self.guilty(run, call.lines.clone()) {
            Ok(refused) => refused,
            Err(error) => return error,
        };
        let seq = |line: usize| self.cut.lines[line].seq;
        if !refused.is_empty() {
            self.unexplained = false;
            return StepError::OutOfBounds { seqs: refused.into_iter().map(seq).collect(), what };
        }
        if std::mem::replace(&mut self.unexplained, true) {
            self.unexplained = false;
            return StepError::OutOfBounds { seqs: (first..call.lines.end).map(seq).collect(), what };
        }
        StepError::Busy(format!("{what}, and no sequence of that run has such an index alone"))
    }

    /// Lines that fail alone.
    fn guilty(&mut self, run: usize, lines: Range<usize>) -> Result<Vec<usize>, StepError> {
        if lines.len() == 1 {
            return Ok(vec![lines.start]);
        }
        let mut guilty = vec![];
        let mut suspects = halves(lines.clone());
        // What the ranks were given, as it was: probes are made from it.
        let given: Vec<_> = self.works.iter_mut().map(Option::take).collect();
        while let Some(part) = suspects.pop() {
            let idle = || lines.clone().filter(|line| !part.contains(line)).map(|line| self.cut.lines[line].row);
            let io = &self.ios[self.cut.calls[run].module];
            for (work, given) in self.works.iter_mut().zip(&given) {
                *work = given.as_deref().map(|given| Box::new(given.probe(run, io, idle())));
            }
            self.send()?;
            match self.wait(Instant::now(), 1)? {
                None => {}
                Some((_, failure)) if is_out_of_bounds(&failure) => match part.len() {
                    1 => guilty.push(part.start),
                    _ => suspects.extend(halves(part)),
                },
                Some((_, failure)) => return Err(StepError::Busy(failure.to_string())),
            }
        }
        self.works = given;
        guilty.sort_unstable();
        Ok(guilty)
    }
}

/// The later half first: it is taken off the end.
fn halves(range: Range<usize>) -> Vec<Range<usize>> {
    let middle = range.start + range.len() / 2;
    vec![middle..range.end, range.start..middle]
}
