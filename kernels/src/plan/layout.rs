//! Places values in the arena so that those alive in the same phase never overlap.

use super::{PlanLimits, RowSet};

/// Size of a stored value and the phases in which it is alive.
#[derive(Clone, Debug)]
pub struct Span {
    bytes: usize,
    phases: Option<(usize, usize)>,
}

impl Span {
    /// Not alive yet.
    pub fn new(bytes: usize) -> Self {
        Span { bytes: bytes.next_multiple_of(64), phases: None }
    }

    /// Alive in `phase` too.
    pub fn touch(&mut self, phase: usize) {
        let (first, last) = self.phases.unwrap_or((phase, phase));
        self.phases = Some((first.min(phase), last.max(phase)));
    }

    fn overlaps(&self, other: &Span) -> bool {
        match (self.phases, other.phases) {
            (Some((a, b)), Some((c, d))) => a <= d && c <= b,
            _ => false,
        }
    }
}

/// Row counts of a plan.
#[derive(Debug)]
pub struct Layout {
    limits: PlanLimits,
}

impl Layout {
    /// Of a plan with these limits.
    pub fn new(limits: PlanLimits) -> Self {
        Layout { limits }
    }

    /// Most rows of a set.
    pub fn rows(&self, set: RowSet) -> usize {
        match set {
            RowSet::Tokens => self.limits.max_rows,
            RowSet::Outputs => self.limits.max_outputs,
        }
    }

    /// Byte offset of each span, and the total: first fit, largest first.
    pub fn place(&self, spans: &[Span]) -> (Vec<usize>, usize) {
        let mut order: Vec<usize> = (0..spans.len()).filter(|i| spans[*i].phases.is_some()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(spans[*i].bytes));
        let mut offsets = vec![0; spans.len()];
        let mut placed: Vec<usize> = vec![];
        let mut total = 0;
        for i in order {
            let mut taken: Vec<(usize, usize)> = placed
                .iter()
                .filter(|p| spans[**p].overlaps(&spans[i]))
                .map(|p| (offsets[*p], offsets[*p] + spans[*p].bytes))
                .collect();
            taken.sort_unstable();
            let mut at = 0;
            for (start, end) in taken {
                if at + spans[i].bytes <= start {
                    break;
                }
                at = at.max(end);
            }
            offsets[i] = at;
            total = total.max(at + spans[i].bytes);
            placed.push(i);
        }
        (offsets, total)
    }
}
