//! When what XLA computed counts as what the model says.

use anyhow::{bail, ensure};
use half::bf16;
use njoule_hlo::Tensor;
use njoule_runtime::backend::neuron::evaluated::Evaluated;

/// Rows of logits against candle's. Without `bf16_mean` the largest difference is at most 1e-4 of the logits' size; with it
/// the mean one is at most that. The likeliest tokens are equal but where the two best are nearer than twice the largest
/// difference. With `experts` in bf16 a third of the rows is left out: a near-tie may send them to other experts.
pub fn logits(got: &[&[f32]], want: &[&[f32]], bf16_mean: Option<f64>, experts: bool) -> anyhow::Result<String> {
    ensure!(got.len() == want.len() && !got.is_empty(), "{} rows, not {}", got.len(), want.len());
    let square: f32 = want.iter().flat_map(|row| row.iter()).map(|x| x * x).sum();
    let scale = (square / want.iter().map(|row| row.len()).sum::<usize>() as f32).sqrt();
    let each = got.iter().zip(want).map(|(got, want)| {
        // A step that chooses says nothing of what is no candidate.
        let known = || got.iter().zip(*want).filter(|(a, _)| **a != f32::MIN);
        let differences = || known().map(|(a, b)| (a - b).abs());
        // A NaN is the worst.
        let worst = differences().fold(0.0_f32, |a, b| if b <= a { a } else { b });
        let mean = differences().map(f64::from).sum::<f64>() / known().count().max(1) as f64;
        (mean, worst, *got, *want)
    });
    let mut rows: Vec<(f64, f32, &[f32], &[f32])> = each.collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    if experts && bf16_mean.is_some() {
        rows.truncate(rows.len() * 2 / 3);
    }
    let worst = rows.iter().fold(0.0_f32, |a, b| if b.1 <= a { a } else { b.1 });
    let mean = rows.iter().map(|row| row.0).sum::<f64>() / rows.len() as f64;
    let figures = match bf16_mean {
        None => {
            ensure!(worst / scale < 1e-4, "logits are off by {} of their size", worst / scale);
            format!("logits within {:.1e} of their size", worst / scale)
        }
        Some(bound) => {
            ensure!(mean <= bound, "logits are off by {mean} in the mean, bf16 itself by {bound}");
            format!("logits off by {mean:.1e} in the mean (bf16 itself: {bound:.1e})")
        }
    };
    let mut near = 0;
    for (_, _, got, want) in &rows {
        let [first, second] = best(want);
        if want[first] - want[second] < 2.0 * worst {
            near += 1;
        } else if best(got)[0] != first {
            bail!("token {} where candle has {first}", best(got)[0]);
        }
    }
    Ok(format!("{figures}, {} of {} tokens compared", rows.len() - near, rows.len()))
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

/// Caches after the same steps on XLA and in the evaluator: in f32 within 1e-4 of their size, in bf16 within two units of
/// the last place at that size.
pub fn caches(got: &Evaluated, want: &Evaluated, bf16: bool) -> anyhow::Result<String> {
    let mut worst = 0.0_f32;
    for (rank, (got, want)) in got.caches().iter().zip(want.caches()).enumerate() {
        ensure!(got.len() == want.len(), "{} caches, not {}", got.len(), want.len());
        for (role, want) in want {
            let (Some(got), Some(want)) = (got.get(role).and_then(floats), floats(want)) else {
                bail!("{role:?} of core {rank} is not there")
            };
            // Unwritten places hold 100 in both.
            let written: Vec<f32> = want.iter().copied().filter(|x| *x != 100.0).collect();
            let square: f32 = written.iter().map(|x| x * x).sum();
            let size = (square / written.len().max(1) as f32).sqrt().max(1e-6);
            for (a, b) in got.iter().zip(&want) {
                let off = (a - b).abs() / b.abs().max(size);
                worst = if off <= worst { worst } else { off };
            }
        }
    }
    let bound = if bf16 { 2.0 / 128.0 } else { 1e-4 };
    ensure!(worst <= bound, "caches are off by {worst} of their size");
    Ok(format!(", caches within {worst:.1e}"))
}

fn floats(tensor: &Tensor) -> Option<Vec<f32>> {
    let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect();
    tensor.as_slice::<f32>().map(<[f32]>::to_vec).or_else(|| tensor.as_slice().map(wide))
}
