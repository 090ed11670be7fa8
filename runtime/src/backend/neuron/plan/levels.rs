//! Levels: decode modules over the caches of all classes, which read weights once for all rows.
//!
//! Lengths chosen freely for every class are a product, and modules are few. A level holds what a group of a replay's steps
//! needs of every class. Groups are joined in pairs, always the two whose joining pads least, until few are left; one of them
//! holds every step there can be.

use std::collections::BTreeMap;

use super::buckets::fit;
use super::replay::{Lane, Marks, Replay};
use crate::backend::neuron::decodes::Need;

/// What a module has of each class.
pub type Level = Vec<Need>;

/// The levels of 1, 2, ... `most` modules for the steps of `replay`; fewer where more cannot help. One of each set holds all
/// rows of `lanes` to their ends.
pub fn levels(lanes: &[Lane], replay: &Replay, most: usize) -> Vec<Vec<Level>> {
    let whole: Level = lanes.iter().map(|lane| Need { rows: lane.rows, len: lane.longest }).collect();
    let mut steps: BTreeMap<Level, u64> = BTreeMap::new();
    replay.steps(&marks(lanes, replay), |needs, n| *steps.entry(needs.to_vec()).or_default() += n);
    let of_whole = steps.remove(&whole).unwrap_or(0);
    let mut groups: Vec<Group> = sample(steps).into_iter().map(|(level, n)| Group::new(level, n)).collect();
    groups.push(Group::new(whole, of_whole));
    let mut pairs = Pairs::new(&groups);
    let mut sets = vec![];
    loop {
        if groups.len() <= most.max(1) {
            sets.push(groups.iter().map(|group| group.level.clone()).collect());
        }
        let Some((one, other)) = pairs.least() else { break };
        // The later one leaves, and the last takes its place.
        let gone = groups.swap_remove(other);
        groups[one] = groups[one].with(&gone);
        pairs.shrink(&groups, [one, other]);
    }
    sets.reverse();
    sets
}

/// What joining two groups pads, of each with those before it, and with which of them least.
struct Pairs {
    pads: Vec<Vec<u128>>,
    least: Vec<Option<(u128, usize)>>,
}

impl Pairs {
    fn new(groups: &[Group]) -> Pairs {
        let pads: Vec<Vec<u128>> = (0..groups.len()).map(|i| row(groups, i)).collect();
        let least = pads.iter().map(|row| least_of(row)).collect();
        Pairs { pads, least }
    }

    /// The two that pad least, the earlier one first.
    fn least(&self) -> Option<(usize, usize)> {
        let rows = self.least.iter().enumerate().filter_map(|(i, least)| least.map(|(pads, j)| (pads, j, i)));
        rows.min().map(|(_, j, i)| (j, i))
    }

    /// There is one group less, and `changed` are others now, where there are so many.
    fn shrink(&mut self, groups: &[Group], changed: [usize; 2]) {
        self.pads.truncate(groups.len());
        self.least.truncate(groups.len());
        for i in 0..groups.len() {
            if changed.contains(&i) {
                self.pads[i] = row(groups, i);
                self.least[i] = least_of(&self.pads[i]);
                continue;
            }
            for j in changed.into_iter().filter(|j| *j < i) {
                self.pads[i][j] = groups[i].pads_with(&groups[j]);
            }
            self.least[i] = match self.least[i] {
                // It was with one that is another now.
                Some((_, j)) if changed.contains(&j) => least_of(&self.pads[i]),
                least => changed.into_iter().filter(|j| *j < i).map(|j| (self.pads[i][j], j)).chain(least).min(),
            };
        }
    }
}

fn row(groups: &[Group], i: usize) -> Vec<u128> {
    groups[..i].iter().map(|other| groups[i].pads_with(other)).collect()
}

fn least_of(row: &[u128]) -> Option<(u128, usize)> {
    row.iter().copied().zip(0..).min()
}

/// Rows and lengths that steps are rounded to, so that many have the same.
fn marks(lanes: &[Lane], replay: &Replay) -> Vec<Marks> {
    let of_lane = |(lane, done): (&Lane, &super::replay::LaneUse)| {
        let rows: Vec<(usize, u64)> = done.decode.iter().map(|((rows, len), n)| (*rows, n * *len as u64)).collect();
        let lens: Vec<(usize, u64)> = done.decode.iter().map(|((rows, len), n)| (*len, n * *rows as u64)).collect();
        let last = |histogram: &[(usize, u64)], most, cover| {
            fit(histogram, most, cover).pop().map_or(vec![cover], |fitted| fitted.buckets)
        };
        Marks { rows: last(&rows, ROWS, lane.rows), lens: last(&lens, LENS, lane.longest) }
    };
    lanes.iter().zip(&replay.lanes).map(of_lane).collect()
}

/// Of many steps some, evenly among all rounds.
fn sample(steps: BTreeMap<Level, u64>) -> Vec<(Level, u64)> {
    if steps.len() <= MOST_STEPS {
        return steps.into_iter().collect();
    }
    let all: u64 = steps.values().sum();
    let (mut found, mut before, mut taken) = (vec![], 0, 0);
    for (level, n) in steps {
        before += n;
        // How many of the evenly spaced rounds are up to here.
        let reached = u128::from(before) * MOST_STEPS as u128 / u128::from(all.max(1));
        if reached > taken {
            found.push((level, (reached - taken) as u64)); // at most `MOST_STEPS`
            taken = reached;
        }
    }
    found
}

/// Steps that run at one level.
struct Group {
    level: Level,
    steps: u64,
    positions: u128,
}

impl Group {
    fn new(level: Level, steps: u64) -> Group {
        let positions = level.iter().map(|need| need.rows as u128 * need.len as u128).sum();
        Group { level, steps, positions }
    }

    fn with(&self, other: &Group) -> Group {
        let larger = |(a, b): (&Need, &Need)| Need { rows: a.rows.max(b.rows), len: a.len.max(b.len) };
        Group::new(self.level.iter().zip(&other.level).map(larger).collect(), self.steps + other.steps)
    }

    /// Positions that all steps of both read more when they are one.
    fn pads_with(&self, other: &Group) -> u128 {
        let larger = |(a, b): (&Need, &Need)| a.rows.max(b.rows) as u128 * a.len.max(b.len) as u128;
        let both: u128 = self.level.iter().zip(&other.level).map(larger).sum();
        let more = |group: &Group| (both - group.positions) * u128::from(group.steps);
        more(self) + more(other)
    }
}

/// Rows and lengths of a class that levels end at, at most.
const ROWS: usize = 3;
const LENS: usize = 8;
/// Steps that levels are made of.
const MOST_STEPS: usize = 160;

#[cfg(test)]
mod tests {
    use super::super::lengths::Request;
    use super::super::replay::replay;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn levels_hold_every_step_and_several_pad_no_more_than_one(
            shapes in prop::collection::vec((1_usize..4, 1_usize..40), 1..4),
            requests in prop::collection::vec((1_usize..40, 1_usize..30), 1..60),
            most in 1_usize..6,
        ) {
            let mut longest = 0;
            let lanes: Vec<Lane> = shapes.iter().map(|(rows, more)| {
                longest += more;
                Lane { rows: *rows, longest, chunks: vec![8] }
            }).collect();
            let requests: Vec<Request> = requests.iter().map(|(prompt, output)| Request { prompt: *prompt, output: *output }).collect();
            let done = replay(&lanes, &requests, None, true, 1);
            let sets = levels(&lanes, &done, most);
            prop_assert!(!sets.is_empty() && sets.len() <= most);
            let holds = |level: &Level, needs: &[Need]| level.iter().zip(needs).all(|(has, need)| {
                need.rows == 0 || (has.rows >= need.rows && has.len >= need.len)
            });
            let work = |level: &Level| level.iter().map(|need| need.rows * need.len).sum::<usize>();
            for (i, set) in sets.iter().enumerate() {
                prop_assert_eq!(set.len(), i + 1);
                let mut padded = 0;
                done.steps(&vec![Marks::default(); lanes.len()], |needs, n| {
                    let level = set.iter().filter(|level| holds(level, needs)).map(work).min();
                    padded += level.expect("one holds all") * n as usize;
                });
                let mut most = 0;
                done.steps(&vec![Marks::default(); lanes.len()], |_, n| most += work(&sets[0][0]) * n as usize);
                prop_assert!(padded <= most, "{} levels read {padded}, one {most}", i + 1);
            }
        }
    }
}
