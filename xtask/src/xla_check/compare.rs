//! When what XLA computed counts as what the model says.

use anyhow::{bail, ensure};
use njoule_conformance::steps::{self, SEQUENCES};
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

/// Keys and values that the steps have left on each core against candle's, of the positions that agree: each within `bound`
/// of its size, or of the cache's where it is smaller than that.
pub fn caches(
    got: &Evaluated,
    want: &CandleExecutor,
    program: &Program,
    bound: f32,
    agrees: &dyn Fn(usize, usize) -> bool,
) -> anyhow::Result<String> {
    let (mut largest, mut compared) = (0.0_f32, 0);
    for cache in (0..program.caches.len() as u32).map(CacheId) {
        for (part, want) in [CachePart::Keys, CachePart::Values].into_iter().zip(want.cached(cache)?) {
            for seq in 0..SEQUENCES {
                let (first, slots) = steps::slots(seq);
                let size = size(slots.iter().flat_map(|slot| &want[*slot]).copied()).max(1e-6);
                let mut found = vec![false; want[0].len()];
                let cores = got.caches().len();
                for column in (0..cores).flat_map(|rank| got.cached(rank, cache, part, first, slots.len())) {
                    ensure!(column.values.len() == slots.len(), "{cache:?} has {} positions", column.values.len());
                    found[column.whole] = true;
                    for (position, (value, slot)) in column.values.iter().zip(&slots).enumerate() {
                        let want = want[*slot][column.whole];
                        if agrees(seq, position) {
                            largest = worst([largest, (value - want).abs() / want.abs().max(size)].into_iter());
                            compared += 1;
                        }
                    }
                }
                ensure!(found.iter().all(|found| *found), "no core has all columns of {cache:?}");
            }
        }
    }
    ensure!(compared > 0 && largest <= bound, "caches are off by {largest} of their size");
    Ok(format!("caches within {largest:.1e}"))
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
