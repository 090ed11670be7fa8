//! When what XLA computed counts as what the model says.

use anyhow::{bail, ensure};
use njoule_conformance::steps::{SEQUENCES, Script};
use njoule_models::program::{CacheId, Program};
use njoule_runtime::backend::candle::CandleExecutor;
use njoule_runtime::backend::neuron::evaluated::Evaluated;
use njoule_runtime::backend::neuron::interface::CachePart;

/// How far logits may be off.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// The largest difference, as a share of the logits' size (their root mean square).
    Worst(f32),
    /// The mean difference.
    Mean(f64),
}

/// Rows of logits against candle's: those that are `kept`, and of the others the nearest as far as two thirds of all need them.
/// The likeliest tokens are equal but where the two best are nearer than twice the largest difference.
pub fn logits(got: &[&[f32]], want: &[&[f32]], bound: Bound, kept: &[bool]) -> anyhow::Result<String> {
    ensure!(got.len() == want.len() && kept.len() == got.len(), "{} rows, not {}", got.len(), want.len());
    let scale = size(want.iter().copied().flatten().copied());
    let each = got.iter().zip(want).map(|(got, want)| {
        // A step that chooses says nothing of what is no candidate.
        let known = || got.iter().zip(*want).filter(|(a, _)| **a != f32::MIN);
        let differences = || known().map(|(a, b)| (a - b).abs());
        let mean = differences().map(f64::from).sum::<f64>() / known().count().max(1) as f64;
        (mean, worst(differences()), *got, *want)
    });
    let (agreed, mut others): (Vec<_>, Vec<_>) = each.zip(kept).partition(|(_, kept)| **kept);
    others.sort_by(|(a, _), (b, _)| a.0.total_cmp(&b.0));
    let least = (got.len() * 2 / 3).max(agreed.len());
    let rows: Vec<(f64, f32, &[f32], &[f32])> =
        agreed.into_iter().chain(others).map(|(row, _)| row).take(least).collect();
    ensure!(!rows.is_empty(), "no rows");
    let largest = worst(rows.iter().map(|row| row.1));
    let mean = rows.iter().map(|row| row.0).sum::<f64>() / rows.len() as f64;
    let figures = match bound {
        Bound::Worst(bound) => {
            ensure!(largest / scale < bound, "logits are off by {} of their size", largest / scale);
            format!("logits within {:.1e} of their size", largest / scale)
        }
        Bound::Mean(bound) => {
            ensure!(mean <= bound, "logits are off by {mean} in the mean, bf16 itself by {bound}");
            format!("logits off by {mean:.1e} in the mean (bf16 itself: {bound:.1e})")
        }
    };
    let mut near = 0;
    for (_, _, got, want) in &rows {
        let [first, second] = best(want);
        if want[first] - want[second] < 2.0 * largest {
            near += 1;
        } else if best(got)[0] != first {
            bail!("token {} where candle has {first}", best(got)[0]);
        }
    }
    let left_out = got.len() - rows.len();
    let left_out = if left_out == 0 { String::new() } else { format!(" ({left_out} went to other experts)") };
    Ok(format!(
        "{figures}, {} of {} tokens equal{left_out}, the others too near to tell",
        rows.len() - near,
        rows.len()
    ))
}

/// The two likeliest tokens.
pub fn best(logits: &[f32]) -> [usize; 2] {
    let mut best = [0, 0];
    for (id, x) in logits.iter().enumerate().skip(1) {
        if *x > logits[best[0]] {
            best = [id, best[0]];
        } else if best[1] == best[0] || *x > logits[best[1]] {
            best[1] = id;
        }
    }
    best
}

/// How far keys and values may be off, as a share of their size, or of their cache's where they are smaller than that.
#[derive(Clone, Copy, Debug)]
pub enum Kept {
    /// Nothing was rounded: within this.
    Exact(f32),
    /// As bf16: within two units in the last place. A sum that falls between two bf16 numbers is rounded either way by the
    /// last bit of an f32; what layers above make of that may be as far off again, in at most one value of a thousand.
    Bf16,
}

/// Two units of bf16's eight bits, at most.
const TWO_ULP: f32 = 2.0 / 128.0;

/// Keys and values that the steps have left on each core against candle's, of the positions that agree.
pub fn caches(
    got: &Evaluated,
    want: &CandleExecutor,
    (program, script): (&Program, Script),
    kept: Kept,
    agrees: &dyn Fn(usize, usize) -> bool,
) -> anyhow::Result<String> {
    let mut tally = Tally::new(kept);
    for cache in (0..program.caches.len() as u32).map(CacheId) {
        for (part, want) in [CachePart::Keys, CachePart::Values].into_iter().zip(want.cached(cache)?) {
            for seq in 0..SEQUENCES {
                let (first, slots) = script.slots(seq);
                let size = size(slots.iter().flat_map(|slot| &want[*slot]).copied()).max(1e-6);
                let mut found = vec![false; want[0].len()];
                let cores = got.caches().len();
                for column in (0..cores).flat_map(|rank| got.cached(rank, cache, part, first, slots.len())) {
                    ensure!(column.values.len() == slots.len(), "{cache:?} has {} positions", column.values.len());
                    found[column.whole] = true;
                    for (position, (value, slot)) in column.values.iter().zip(&slots).enumerate() {
                        if agrees(seq, position) {
                            tally.compare(seq, position, *value, want[*slot][column.whole], size);
                        }
                    }
                }
                ensure!(found.iter().all(|found| *found), "no core has all columns of {cache:?}");
            }
        }
        tally.next_layer();
    }
    tally.verdict()
}

/// Values of caches as they are compared, from the lowest layer up.
struct Tally {
    kept: Kept,
    compared: usize,
    largest: f32,
    /// Beyond the bound, but behind a rounding that fell the other way.
    behind: usize,
    /// Beyond what is allowed there.
    wrong: f32,
    /// By sequence, the first position that differs in a layer below, and in this one.
    differs: [[usize; 2]; SEQUENCES],
}

impl Tally {
    fn new(kept: Kept) -> Tally {
        let differs = [[usize::MAX; 2]; SEQUENCES];
        Tally { kept, compared: 0, largest: 0.0, behind: 0, wrong: 0.0, differs }
    }

    fn compare(&mut self, seq: usize, position: usize, got: f32, want: f32, size: f32) {
        let off = (got - want).abs() / want.abs().max(size);
        self.compared += 1;
        self.largest = worst([self.largest, off].into_iter());
        let [below, here] = &mut self.differs[seq];
        if got != want {
            *here = (*here).min(position);
        }
        let (bound, behind) = match self.kept {
            Kept::Exact(bound) => (bound, bound),
            Kept::Bf16 if position < *below => (TWO_ULP, TWO_ULP),
            Kept::Bf16 => (TWO_ULP, 2.0 * TWO_ULP),
        };
        // A NaN is within nothing.
        match off {
            off if off <= bound => {}
            off if off <= behind => self.behind += 1,
            off => self.wrong = worst([self.wrong, off].into_iter()),
        }
    }

    fn next_layer(&mut self) {
        for [below, here] in &mut self.differs {
            *below = (*below).min(std::mem::replace(here, usize::MAX));
        }
    }

    fn verdict(&self) -> anyhow::Result<String> {
        let Tally { compared, largest, behind, wrong, .. } = *self;
        ensure!(compared > 0, "no values of caches were compared");
        ensure!(wrong == 0.0, "caches are off by {wrong} of their size");
        ensure!(behind * 1000 <= compared, "{behind} of {compared} values of caches are off by more than 2 ulp");
        let behind = match behind {
            0 => String::new(),
            n => format!(" ({n} of {compared} beyond 2 ulp, behind a rounding that fell the other way)"),
        };
        Ok(format!("caches within {largest:.1e}{behind}"))
    }
}

/// The largest; a NaN is the worst.
fn worst(differences: impl Iterator<Item = f32>) -> f32 {
    differences.fold(0.0, |a, b| if b <= a { a } else { b })
}

/// Root mean square.
fn size(values: impl Iterator<Item = f32>) -> f32 {
    let (sum, count) = values.fold((0.0_f64, 0_usize), |(sum, n), x| (sum + f64::from(x * x), n + 1));
    (sum / count.max(1) as f64).sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache of `values` in each of two layers, of which some are off by so much.
    fn of(kept: Kept, off: &[(usize, usize, f32)], values: usize) -> anyhow::Result<String> {
        let mut tally = Tally::new(kept);
        for layer in 0..2 {
            for position in 0..values {
                let more = off.iter().find(|(l, p, _)| (*l, *p) == (layer, position)).map_or(0.0, |(_, _, off)| *off);
                tally.compare(0, position, 1.0 + more, 1.0, 1.0);
            }
            tally.next_layer();
        }
        tally.verdict()
    }

    #[test]
    fn beyond_two_ulp_is_only_what_stands_behind_another_rounding_and_rarely() {
        let (ulp, flip) = (1.0 / 128.0, (0, 4, 1.0 / 256.0));
        of(Kept::Bf16, &[(1, 7, 2.0 * ulp)], 600).unwrap();
        let told = of(Kept::Bf16, &[flip, (1, 7, 3.0 * ulp)], 600).unwrap();
        assert!(told.contains("1 of 1200 beyond 2 ulp"), "{told}");
        // Before that position, in that layer, twice in so few, and too far off.
        for off in [(1, 3, 3.0 * ulp), (0, 7, 3.0 * ulp), (1, 7, 4.1 * ulp), (1, 7, f32::NAN)] {
            of(Kept::Bf16, &[flip, off], 600).unwrap_err();
        }
        of(Kept::Bf16, &[flip, (1, 7, 3.0 * ulp), (1, 8, 3.0 * ulp)], 600).unwrap_err();
        of(Kept::Exact(1e-4), &[flip], 600).unwrap_err();
        of(Kept::Exact(1e-4), &[], 0).unwrap_err();
    }
}
