//! When what XLA computed counts as what the model says.

use anyhow::{bail, ensure};
use njoule_conformance::steps::{SEQUENCES, Script};
use njoule_models::program::{CacheId, Program};
use njoule_runtime::backend::candle::CandleExecutor;
use njoule_runtime::backend::neuron::evaluated::{Column, Evaluated};
use njoule_runtime::backend::neuron::interface::CachePart;

/// Two units in the last place of bf16, of which a unit is at most a 128th.
pub const BF16_ULPS: f32 = 2.0 / 128.0;

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

/// Keys and values that the steps have left on each core against candle's, of the positions that agree: each within `bound`
/// of its size, or of the cache's where it is smaller than that.
pub fn caches(
    got: &Evaluated,
    want: &CandleExecutor,
    (program, script): (&Program, Script),
    bound: f32,
    agrees: &dyn Fn(usize, usize) -> bool,
) -> anyhow::Result<String> {
    let mut tally = Tally::new(bound);
    for (cache, part, want) in parts(want, program)? {
        for seq in 0..SEQUENCES {
            let (first, slots) = script.slots(seq);
            let columns = (0..got.caches().len()).flat_map(|rank| got.cached(rank, cache, part, first, slots.len()));
            tally.sequence(columns, &want, &slots, &|position| agrees(seq, position))?;
        }
    }
    tally.verdict()
}

/// The same of the first row alone, whose positions lie in candle's first slots.
pub fn first_row(
    got: &Evaluated,
    want: &CandleExecutor,
    program: &Program,
    len: usize,
    bound: f32,
) -> anyhow::Result<String> {
    let (mut tally, slots): (_, Vec<usize>) = (Tally::new(bound), (0..len).collect());
    for (cache, part, want) in parts(want, program)? {
        let columns = (0..got.caches().len()).flat_map(|rank| got.cached_in(rank, (cache, part), (0, 0), len));
        tally.sequence(columns, &want, &slots, &|_| true)?;
    }
    tally.verdict()
}

/// How far the keys and values of the steps are off from those of other steps of candle's, of their size as above. An error where
/// none agree or one is no number: that says nothing.
pub fn between(got: &Kept, want: &Kept, script: Script, agrees: &dyn Fn(usize, usize) -> bool) -> anyhow::Result<f32> {
    let mut tally = Tally::new(f32::MAX);
    for ((_, _, got), (_, _, want)) in got.iter().zip(want) {
        for seq in 0..SEQUENCES {
            let (_, slots) = script.slots(seq);
            let column = |whole: usize| Column { whole, values: slots.iter().map(|slot| got[*slot][whole]).collect() };
            tally.sequence((0..got[0].len()).map(column), want, &slots, &|position| agrees(seq, position))?;
        }
    }
    tally.verdict()?;
    Ok(tally.largest)
}

/// Keys and values of each cache, `[slots, columns]`.
pub type Kept = Vec<(CacheId, CachePart, Vec<Vec<f32>>)>;

/// What candle has in its caches.
pub fn parts(of: &CandleExecutor, program: &Program) -> anyhow::Result<Kept> {
    let mut parts = vec![];
    for cache in (0..program.caches.len() as u32).map(CacheId) {
        parts.extend(PARTS.into_iter().zip(of.cached(cache)?).map(|(part, rows)| (cache, part, rows)));
    }
    Ok(parts)
}

/// Has candle's layers read what passed from layer to layer in XLA's, and its attention what the steps have left in XLA's caches.
pub fn follow(got: &Evaluated, want: &mut CandleExecutor, program: &Program, script: Script) -> anyhow::Result<()> {
    for cache in (0..program.caches.len() as u32).map(CacheId) {
        let mut rows = want.cached(cache)?;
        for (part, rows) in PARTS.into_iter().zip(&mut rows) {
            for (first, slots) in (0..SEQUENCES).map(|seq| script.slots(seq)) {
                let ranks = 0..got.caches().len();
                for column in ranks.flat_map(|rank| got.cached(rank, cache, part, first, slots.len())) {
                    column.values.iter().zip(&slots).for_each(|(value, slot)| rows[*slot][column.whole] = *value);
                }
            }
        }
        want.follow(cache, rows)?;
    }
    want.follow_streams(got.streams().clone());
    Ok(())
}

const PARTS: [CachePart; 2] = [CachePart::Keys, CachePart::Values];

/// Values of caches as they are compared.
struct Tally {
    bound: f32,
    compared: usize,
    largest: f32,
    /// Beyond the bound.
    wrong: usize,
}

impl Tally {
    fn new(bound: f32) -> Tally {
        Tally { bound, compared: 0, largest: 0.0, wrong: 0 }
    }

    /// Columns of a sequence against what candle has in its slots; each column must be there.
    fn sequence(
        &mut self,
        columns: impl Iterator<Item = Column>,
        want: &[Vec<f32>],
        slots: &[usize],
        agrees: &dyn Fn(usize) -> bool,
    ) -> anyhow::Result<()> {
        let size = size(slots.iter().flat_map(|slot| &want[*slot]).copied()).max(1e-6);
        let mut found = vec![false; want[0].len()];
        for column in columns {
            ensure!(column.values.len() == slots.len(), "a cache has {} positions", column.values.len());
            found[column.whole] = true;
            for (position, (value, slot)) in column.values.iter().zip(slots).enumerate() {
                if agrees(position) {
                    self.compare(*value, want[*slot][column.whole], size);
                }
            }
        }
        ensure!(found.iter().all(|found| *found), "no core has all columns of a cache");
        Ok(())
    }

    fn compare(&mut self, got: f32, want: f32, size: f32) {
        let off = (got - want).abs() / want.abs().max(size);
        self.compared += 1;
        self.largest = worst([self.largest, off].into_iter());
        // A NaN is within nothing.
        self.wrong += usize::from(!matches!(off, off if off <= self.bound));
    }

    fn verdict(&self) -> anyhow::Result<String> {
        let Tally { compared, largest, wrong, .. } = *self;
        ensure!(compared > 0, "no values of caches were compared");
        ensure!(
            wrong == 0,
            "caches are off by {largest} of their size: {wrong} of {compared} values are beyond the bound"
        );
        Ok(format!("caches within {largest:.1e}"))
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

    /// A cache of 600 values, of which some are off by so much.
    fn of(bound: f32, off: &[(usize, f32)]) -> anyhow::Result<String> {
        let mut tally = Tally::new(bound);
        for position in 0..600 {
            let more = off.iter().find(|(p, _)| *p == position).map_or(0.0, |(_, off)| *off);
            tally.compare(1.0 + more, 1.0, 1.0);
        }
        tally.verdict()
    }

    #[test]
    fn one_value_beyond_the_bound_is_too_many() {
        let ulp = 1.0 / 128.0;
        assert_eq!(of(2.0 * ulp, &[(4, ulp / 2.0), (7, 2.0 * ulp)]).unwrap(), "caches within 1.6e-2");
        for off in [3.0 * ulp, f32::NAN] {
            let error = of(2.0 * ulp, &[(4, ulp), (7, off)]).unwrap_err().to_string();
            assert!(error.contains("1 of 600 values are beyond the bound"), "{error}");
        }
        Tally::new(1e-4).verdict().unwrap_err();
    }
}
