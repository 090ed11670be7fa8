//! How many rows each class gets, and how long classes are for the rows that they have.
//!
//! A class with too few rows makes everybody wait, since requests are fetched in order; one with too many reads what nobody
//! needs. Requests overflow into longer rows and never into shorter ones.

use super::buckets::coarse;
use super::lengths::Request;
use super::replay::Lane;

/// How long requests hold rows.
#[derive(Clone, Debug)]
pub struct Held {
    /// Totals of requests, ascending, with the share of all rounds that those up to there hold a row.
    shares: Vec<(usize, f64)>,
    context: usize,
}

impl Held {
    /// Of requests in chunks of `chunk` tokens, within `context`.
    pub fn new(requests: &[Request], chunk: usize, context: usize) -> Held {
        let rounds = |r: &Request| (r.prompt.div_ceil(chunk.max(1)) + r.output.max(1) - 1) as f64;
        let mut shares: Vec<(usize, f64)> = requests.iter().map(|r| (r.total(), rounds(r))).collect();
        shares.sort_by_key(|(total, _)| *total);
        let (all, mut sum) = (shares.iter().map(|(_, rounds)| rounds).sum::<f64>().max(1.0), 0.0);
        for (_, rounds) in &mut shares {
            sum += *rounds;
            *rounds = sum / all;
        }
        Held { shares, context }
    }

    /// Lanes as long as what their rows are needed for, where they all decode together: a step reads every row, so whole
    /// numbers of rows are to be filled. `None` where some would be empty.
    pub fn balanced(&self, lanes: &[Lane], grain: usize) -> Option<Vec<Lane>> {
        let rows: usize = lanes.iter().map(|lane| lane.rows).sum();
        let slacks: Vec<f64> = slacks(lanes.len()).collect();
        let (mut longer, mut before) = (rows, 0);
        let mut balanced = lanes.to_vec();
        let last = lanes.len().checked_sub(1)?;
        for (i, lane) in balanced[..last].iter_mut().enumerate() {
            // Of the rows behind this class so many are needed; few are needed less evenly than many.
            longer -= lane.rows;
            let needed = (longer as f64 - SPREAD * (longer as f64).sqrt()) / slacks[i + 1];
            let at = self.shares.partition_point(|(_, up_to)| *up_to < 1.0 - needed / rows as f64);
            let longest = coarse(self.shares.get(at)?.0, grain, self.context).max(before + grain);
            if longest + grain > self.context {
                return None;
            }
            (lane.longest, before) = (longest, longest);
            lane.chunks.iter_mut().for_each(|chunk| *chunk = (*chunk).min(longest));
            lane.chunks.dedup();
        }
        Some(balanced)
    }
}

/// How many more rows each of so many classes gets than its requests need, as a factor.
pub fn slacks(classes: usize) -> impl Iterator<Item = f64> {
    let steps = classes.saturating_sub(1).max(1) as f64;
    (0..classes).map(move |i| 1.0 + SLACK * (i as f64 / steps).powi(2))
}

/// `rows` rows shared out, at least one to each lane.
pub fn with_rows(lanes: &[Lane], shares: &[f64], rows: usize) -> Vec<Lane> {
    let spare = rows.saturating_sub(lanes.len()) as f64;
    let mut lanes: Vec<Lane> = lanes
        .iter()
        .zip(shares)
        .map(|(lane, share)| Lane { rows: 1 + (spare * share) as usize, ..lane.clone() })
        .collect();
    let given: usize = lanes.iter().map(|l| l.rows).sum();
    let mut order: Vec<usize> = (0..lanes.len()).collect();
    let rest = |i: &usize| (spare * shares[*i]).fract();
    order.sort_by(|a, b| rest(b).total_cmp(&rest(a)));
    for i in order.into_iter().cycle().take(rows.saturating_sub(given)) {
        lanes[i].rows += 1;
    }
    lanes
}

/// How many more rows the longest class gets than its requests need, as a share; classes below it get less. On the halves
/// of the Azure trace, the one planned for and the other, more of it pads more and less of it leaves rows idle.
const SLACK: f64 = 0.1;
/// How many rows more than the mean those behind a class have, as a share of their number's root. On the Azure trace less makes
/// short rows wait for long ones when the mix drifts, more pads them.
const SPREAD: f64 = 0.5;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lanes_stay_in_order_and_keep_their_rows(
            rows in prop::collection::vec(1_usize..9, 1..6),
            requests in prop::collection::vec((1_usize..300, 1_usize..200), 1..80),
            grain in 1_usize..9,
        ) {
            let lane = |(i, rows): (usize, &usize)| Lane { rows: *rows, longest: 500 - 10 * i, chunks: vec![64] };
            let mut lanes: Vec<Lane> = rows.iter().enumerate().map(lane).collect();
            lanes.reverse();
            let requests: Vec<Request> = requests.iter().map(|(prompt, output)| Request { prompt: *prompt, output: *output }).collect();
            if let Some(balanced) = Held::new(&requests, 64, 500).balanced(&lanes, grain) {
                prop_assert!(balanced.windows(2).all(|pair| pair[0].longest < pair[1].longest), "{balanced:?}");
                prop_assert_eq!(balanced.last().unwrap().longest, 500);
                for (before, after) in lanes.iter().zip(&balanced) {
                    prop_assert!(before.rows == after.rows && after.chunks.iter().all(|chunk| *chunk <= after.longest));
                }
            }
        }
    }
}
