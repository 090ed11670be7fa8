//! Levels: decode modules over the caches of all classes, which read weights once for all rows.
//!
//! Lengths chosen freely for every class are a product, and modules are few. A level holds what a group of a replay's steps
//! needs of every class. Groups are joined in pairs, always the two whose joining pads least, until few are left; one of them
//! holds every step there can be.

use super::buckets::fit;
use super::replay::{Lane, Replay};
use super::steps::{Marks, place};
use super::uses::LaneUse;
use crate::backend::neuron::decodes::Need;

/// What a module has of each class.
pub type Level = Vec<Need>;

/// The levels of 1, 2, ... `most` modules for the steps of `replay`; fewer where more cannot help. One of each set holds all
/// rows of `lanes` to their ends.
pub fn levels(lanes: &[Lane], replay: &Replay, most: usize) -> Vec<Vec<Level>> {
    let whole: Level = lanes.iter().map(|lane| Need { rows: lane.rows, len: lane.longest }).collect();
    let (steps, of_whole) = steps(replay, &marks(lanes, replay), &whole);
    let mut groups = Groups::new(lanes.len(), steps.into_iter().chain([(whole, of_whole)]));
    let mut pairs = Pairs::new(&groups);
    let mut sets = vec![];
    loop {
        if groups.len() <= most.max(1) {
            sets.push(groups.levels());
        }
        let Some((one, other)) = pairs.least() else { break };
        groups.join(one, other);
        pairs.join(&groups, one, other);
    }
    sets.reverse();
    sets
}

/// Some of the steps rounded up to `marks`, ascending, with how many there are of each; those of all rows to their ends by
/// themselves.
fn steps(replay: &Replay, marks: &[Marks], whole: &[Need]) -> (Vec<(Level, u64)>, u64) {
    // A need is one of a few marks: all of them are digits of a number that is in the order of the needs.
    let order = |level: &[Need]| {
        let mut order = 0_u128;
        for (need, marks) in level.iter().zip(marks) {
            let lens = marks.lens.len();
            let digit = if need.rows == 0 {
                0
            } else {
                1 + place(&marks.rows, need.rows) * lens + place(&marks.lens, need.len)
            };
            order = order.wrapping_mul((1 + marks.rows.len() * lens) as u128).wrapping_add(digit as u128);
        }
        order
    };
    let (mut needed, mut counts, mut sorted) = (Vec::<Need>::new(), Vec::<u64>::new(), Vec::<u128>::new());
    let mut whole_is = None;
    replay.steps(marks, |number, needs, n| {
        if number == counts.len() {
            if needs == whole {
                whole_is = Some(number);
            } else {
                sorted.push(order(needs) << 32 | number as u128);
            }
            needed.extend_from_slice(needs);
            counts.push(0);
        }
        counts[number] += n;
    });
    sorted.sort_unstable();
    let numbers: Vec<(usize, u64)> = sorted.iter().map(|o| *o as u32 as usize).map(|i| (i, counts[i])).collect();
    let level = |i: usize| needed[i * whole.len()..][..whole.len()].to_vec();
    let steps = sample(numbers).into_iter().map(|(i, n)| (level(i), n)).collect();
    (steps, whole_is.map_or(0, |i| counts[i]))
}

/// What joining two groups pads, of each with those before it, and with which of them least: the first of those.
struct Pairs {
    /// Of so many groups at the beginning, a row of so many each.
    width: usize,
    pads: Vec<u128>,
    least: Vec<(u128, usize)>,
}

impl Pairs {
    fn new(groups: &Groups) -> Pairs {
        let (width, view) = (groups.len(), groups.view());
        let mut pads = vec![0; width * width];
        let (cells, mut i) = (&mut pads[..], 0);
        while i < width {
            let mut j = 0;
            while j < i {
                cells[i * width + j] = view.joined_pads(i, j);
                j += 1;
            }
            i += 1;
        }
        let least = (0..width).map(|i| least_of(&pads[i * width..][..i])).collect();
        Pairs { width, pads, least }
    }

    /// The two that pad least, the earlier one first; of equals, the pair with the earliest.
    fn least(&self) -> Option<(usize, usize)> {
        let (mut best, mut pair, mut i) = (NONE, None, 1);
        let rows = &self.least[..];
        while i < rows.len() {
            let (pads, j) = rows[i];
            let better = match pair {
                Some((one, _)) => pads < best || (pads == best && j < one),
                None => true,
            };
            if better {
                (best, pair) = (pads, Some((j, i)));
            }
            i += 1;
        }
        pair
    }

    /// Group `one` is now what it was and `other`, and in place of that stands the group that was the last.
    fn join(&mut self, groups: &Groups, one: usize, other: usize) {
        self.least.pop();
        let (view, width, last) = (groups.view(), self.width, self.least.len());
        let (pads, rows) = (&mut self.pads[..], &mut self.least[..]);
        let mut i = 0;
        while i < last {
            let row = i * width;
            if i == other || i == one {
                let mut j = 0;
                while j < i {
                    pads[row + j] = if i == one { view.joined_pads(i, j) } else { pads[last * width + j] };
                    j += 1;
                }
            }
            if i > other {
                pads[row + other] = pads[last * width + i];
            }
            if i > one {
                pads[row + one] = view.joined_pads(i, one);
            }
            let (_, with) = rows[i];
            if i == one || i == other || with == one || with == other {
                rows[i] = least_of(&pads[row..row + i]);
            } else {
                // What it padded least with is what it was: what changed may be less.
                rows[i] = lesser(rows[i], one, i, pads[row + one]);
                rows[i] = lesser(rows[i], other, i, pads[row + other]);
            }
            i += 1;
        }
    }
}

/// The least of a row up to `end`, where `pads` stands in place `j` of it.
fn lesser(least: (u128, usize), j: usize, end: usize, pads: u128) -> (u128, usize) {
    if j < end && (pads < least.0 || (pads == least.0 && j < least.1)) { (pads, j) } else { least }
}

/// The least of a row and the first place of it.
fn least_of(row: &[u128]) -> (u128, usize) {
    let (mut least, mut at, mut place) = (NONE, 0, 0);
    while place < row.len() {
        if row[place] < least {
            (least, at) = (row[place], place);
        }
        place += 1;
    }
    (least, at)
}

/// Rows and lengths that steps are rounded to, so that many have the same.
fn marks(lanes: &[Lane], replay: &Replay) -> Vec<Marks> {
    let of_lane = |(lane, done): (&Lane, &LaneUse)| {
        let last = |histogram: &[(usize, u64)], most, cover| {
            fit(histogram, most, cover).pop().map_or(vec![cover], |fitted| fitted.buckets)
        };
        let (rows, lens) = (done.by_rows(), done.by_len(|rows| rows));
        Marks { rows: last(&rows, ROWS, lane.rows), lens: last(&lens, LENS, lane.longest) }
    };
    lanes.iter().zip(&replay.lanes).map(of_lane).collect()
}

/// Of many steps some, evenly among all rounds.
fn sample(mut steps: Vec<(usize, u64)>) -> Vec<(usize, u64)> {
    if steps.len() <= MOST_STEPS {
        return steps;
    }
    let all: u64 = steps.iter().map(|(_, n)| n).sum();
    let (mut before, mut taken) = (0, 0);
    steps.retain_mut(|(_, n)| {
        before += *n;
        // How many of the evenly spaced rounds are up to here.
        let reached = u128::from(before) * MOST_STEPS as u128 / u128::from(all.max(1));
        *n = (reached - taken) as u64; // at most `MOST_STEPS`
        taken = reached;
        *n > 0
    });
    steps
}

/// Groups of steps, each with the level that it runs at.
struct Groups {
    classes: usize,
    /// Levels, one after another.
    needs: Vec<Need>,
    steps: Vec<u64>,
    positions: Vec<u64>,
}

impl Groups {
    fn new(classes: usize, steps: impl Iterator<Item = (Level, u64)>) -> Groups {
        let mut groups = Groups { classes, needs: vec![], steps: vec![], positions: vec![] };
        for (level, n) in steps {
            groups.positions.push(positions(&level));
            groups.needs.extend(level);
            groups.steps.push(n);
        }
        groups
    }

    fn len(&self) -> usize {
        self.steps.len()
    }

    fn level(&self, group: usize) -> &[Need] {
        &self.needs[group * self.classes..][..self.classes]
    }

    fn levels(&self) -> Vec<Level> {
        (0..self.len()).map(|group| self.level(group).to_vec()).collect()
    }

    /// The `other` one leaves, into `one`, and the last takes its place.
    fn join(&mut self, one: usize, other: usize) {
        let larger = |(a, b): (&Need, &Need)| Need { rows: a.rows.max(b.rows), len: a.len.max(b.len) };
        let both: Level = self.level(one).iter().zip(self.level(other)).map(larger).collect();
        self.positions[one] = positions(&both);
        self.needs[one * self.classes..][..self.classes].copy_from_slice(&both);
        self.steps[one] += self.steps.swap_remove(other);
        self.positions.swap_remove(other);
        let last = self.len() * self.classes;
        self.needs.copy_within(last.., other * self.classes);
        self.needs.truncate(last);
    }

    fn view(&self) -> View<'_> {
        View { classes: self.classes, needs: &self.needs, steps: &self.steps, positions: &self.positions }
    }
}

/// Groups as slices. Most of the time of a search is spent here, and much of that of tests, which are hardly optimised: hence
/// plain loops.
struct View<'a> {
    classes: usize,
    needs: &'a [Need],
    steps: &'a [u64],
    positions: &'a [u64],
}

impl View<'_> {
    /// Positions that all steps of both read more when they are one.
    fn joined_pads(&self, one: usize, other: usize) -> u128 {
        let (mut a, mut b) = (one * self.classes, other * self.classes);
        let (mut both, end) = (0, a + self.classes);
        while a < end {
            let (x, y) = (&self.needs[a], &self.needs[b]);
            let rows = if x.rows > y.rows { x.rows } else { y.rows };
            let len = if x.len > y.len { x.len } else { y.len };
            both += rows as u64 * len as u64; // at most MAX_ROWS of MAX_CONTEXT
            (a, b) = (a + 1, b + 1);
        }
        let one = ((both - self.positions[one]) as u128).wrapping_mul(self.steps[one] as u128);
        one + ((both - self.positions[other]) as u128).wrapping_mul(self.steps[other] as u128)
    }
}

fn positions(level: &[Need]) -> u64 {
    level.iter().map(|need| need.rows as u64 * need.len as u64).sum()
}

/// More than anything pads.
const NONE: u128 = u128::MAX;
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
                done.steps(&vec![Marks::default(); lanes.len()], |_, needs, n| {
                    let level = set.iter().filter(|level| holds(level, needs)).map(work).min();
                    padded += level.expect("one holds all") * n as usize;
                });
                let mut most = 0;
                done.steps(&vec![Marks::default(); lanes.len()], |_, _, n| most += work(&sets[0][0]) * n as usize);
                prop_assert!(padded <= most, "{} levels read {padded}, one {most}", i + 1);
            }
        }
    }
}
