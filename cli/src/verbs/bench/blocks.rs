//! The interval of a single run: a bootstrap over its blocks of about ten seconds.
//!
//! Blocks are drawn with replacement, as many as there are, and each draw's tokens per joule is the ratio of its sums. Drawn
//! values are narrower than the truth where blocks are few: by `sqrt((n - 1) / n)`, and as the normal distribution is narrower
//! than Student's. So the percentiles are taken that much further out (Hesterberg, What Teachers Should Know About the
//! Bootstrap, 2015, section 3.5: the expanded percentile interval), and further where neighbouring blocks are alike, as they are
//! when power stays high or low for many seconds: a sum of such varies by `1 + 2 r` of what it would, `r` being their
//! correlation. What differs from run to run is not in one run.

use njoule_runtime::sampler::uniform;

use super::interval::{beyond, student};
use crate::verbs::energy::polled::Block;

/// The 95 % interval of what was done per joule, or why there is none. The same blocks always have the same.
pub fn interval(blocks: &[Block]) -> Result<[f64; 2], String> {
    let n = blocks.len();
    if n < LEAST_BLOCKS {
        return Err(format!("{n} whole blocks of 10 s, and {LEAST_BLOCKS} are needed"));
    }
    let known: Vec<(f64, f64)> =
        blocks.iter().filter_map(|block| Some((block.done as f64, block.joules.filter(|j| *j > 0.0)?))).collect();
    if known.len() < n {
        return Err(format!("the meters did not tell the joules of {} of {n} blocks of 10 s", n - known.len()));
    }
    let mut index = 0;
    let mut draw = || {
        let (mut done, mut joules) = (0.0, 0.0);
        for _ in 0..n {
            index += 1;
            // Below n, as the number is below 1.
            let (more, cost) = known[(uniform(SEED, index) * n as f64) as usize];
            (done, joules) = (done + more, joules + cost);
        }
        done / joules
    };
    let mut drawn: Vec<f64> = (0..DRAWS).map(|_| draw()).collect();
    drawn.sort_by(f64::total_cmp);
    // A share of the draws that is below one half.
    let out = (tail(n, 1.0 + 2.0 * alike(&known)) * DRAWS as f64).floor() as usize;
    Ok([drawn[out], drawn[DRAWS - 1 - out]])
}

/// The share of draws on either side of the interval of `n` blocks whose sum varies by so much more than theirs would if they
/// had nothing to do with each other.
fn tail(n: usize, more: f64) -> f64 {
    let blocks = n as f64;
    // So many degrees of freedom are a normal distribution.
    0.5 * beyond((more * blocks / (blocks - 1.0)).sqrt() * student(n - 1), 1_000_000)
}

/// The correlation of neighbouring blocks, from 0 on: of how far each is from having the mean's joules.
fn alike(blocks: &[(f64, f64)]) -> f64 {
    let sum = |of: fn(&(f64, f64)) -> f64| blocks.iter().map(of).sum::<f64>();
    let each = sum(|block| block.0) / sum(|block| block.1);
    let off: Vec<f64> = blocks.iter().map(|(done, joules)| done - each * joules).collect();
    let square: f64 = off.iter().map(|x| x * x).sum();
    let together: f64 = off.windows(2).map(|pair| pair[0] * pair[1]).sum();
    // Of blocks that have nothing to do with each other it is below 0 by about 1/n.
    let found = together / square + 1.0 / blocks.len() as f64;
    if found > 0.0 { found.min(1.0) } else { 0.0 }
}

/// Blocks below which a draw says too little.
const LEAST_BLOCKS: usize = 5;

/// Draws, and what they come from.
const DRAWS: usize = 4000;
const SEED: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[(u64, f64)]) -> Vec<Block> {
        values.iter().map(|(done, joules)| Block { done: *done, joules: Some(*joules) }).collect()
    }

    #[test]
    fn blocks_that_are_alike_have_a_point_and_few_or_unknown_ones_a_reason() {
        assert_eq!(interval(&of(&[(500, 1000.0); 5])), Ok([0.5, 0.5]));
        assert!(interval(&of(&[(500, 1000.0); 4])).unwrap_err().contains("4 whole blocks of 10 s, and 5"));
        let mut blocks = of(&[(500, 1000.0); 6]);
        blocks[2].joules = None;
        assert!(interval(&blocks).unwrap_err().contains("1 of 6 blocks"));
        assert_eq!(interval(&[]).unwrap_err(), "0 whole blocks of 10 s, and 5 are needed");
    }

    /// The level of few blocks: of five, Student's 2.776 times the square root of 5/4 is 3.104, beyond which a normal variable is
    /// with 0.000955.
    #[test]
    fn percentiles_lie_further_out_for_few_blocks() {
        assert!((tail(5, 1.0) - 0.000_955).abs() < 5e-6, "{}", tail(5, 1.0));
        assert!((tail(10_000, 1.0) - 0.025).abs() < 1e-4, "{}", tail(10_000, 1.0));
        // The ratio is of sums: a block with more joules counts for more.
        let [low, high] =
            interval(&of(&[(10, 10.0), (30, 10.0), (10, 10.0), (30, 10.0), (20, 10.0), (20, 10.0)])).unwrap();
        assert!((1.0..1.5).contains(&low) && (2.5..=3.0).contains(&high), "{low} {high}");
        assert_eq!(interval(&of(&[(0, 10.0); 9])), Ok([0.0, 0.0]));
    }

    /// A made-up machine whose power is an AR(1) process of one step a second about 100 W, while it generates 50 tokens a second:
    /// how many of `runs` have the true tokens per joule within their interval.
    fn covered(runs: u64, blocks: usize, again: f64) -> f64 {
        let truth = 0.5;
        let mut index = 0;
        let mut number = || {
            index += 1;
            uniform(7, index)
        };
        // Twelve of them are near enough to a normal variable.
        let mut normal = || (0..12).map(|_| number()).sum::<f64>() - 6.0;
        let mut hits = 0;
        for _ in 0..runs {
            let mut off = 10.0 * normal();
            let mut run = vec![];
            for _ in 0..blocks {
                let mut joules = 0.0;
                for _ in 0..10 {
                    off = again * off + 10.0 * (1.0 - again * again).sqrt() * normal();
                    joules += 100.0 + off;
                }
                run.push(Block { done: 500, joules: Some(joules) });
            }
            let [low, high] = interval(&run).unwrap();
            hits += u64::from(low <= truth && truth <= high);
        }
        hits as f64 / runs as f64
    }

    #[test]
    fn the_interval_covers_the_truth_of_power_that_remembers() {
        for (blocks, again) in [(5, 0.5), (6, 0.8), (12, 0.5), (12, 0.8), (30, 0.0), (30, 0.8), (30, 0.9)] {
            let share = covered(300, blocks, again);
            assert!((0.85..=0.995).contains(&share), "{blocks} blocks, {again}: {share}");
        }
    }
}
