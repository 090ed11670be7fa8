//! How requests take the rows of classes, round by round.
//!
//! Requests wait in order in a bounded window. Each is of the class with the shortest rows that it fits and takes the
//! lowest free row of it, or of a longer class that nobody waits for: such a row is read anyway. A round decodes each
//! sequence once and runs one prefill chunk of each that still needs one. The load is as high as the rows allow: somebody
//! always waits until the trace ends.
//!
//! Time goes from one admission or end to the next, since nothing else changes who is in a row; what happened in between
//! is counted afterwards. A test holds it to the same rules played round by round.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::lengths::Request;
use super::uses::{LaneUse, Stay, chunks, used};

/// One class of rows, as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Sequences at once.
    pub rows: usize,
    /// Tokens of a sequence at most.
    pub longest: usize,
    /// Prefill chunks, ascending.
    pub chunks: Vec<usize>,
}

/// What all of them did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Rounds.
    pub rounds: u64,
    /// Requests that ended.
    pub served: u64,
    /// Requests that are too long for every class.
    pub refused: u64,
    /// Tokens of answers.
    pub outputs: u64,
    /// Of each class.
    pub lanes: Vec<LaneUse>,
}

/// Runs `requests` through `lanes`, ascending in length. With `limit`, every request asks for room for that many tokens
/// (or what the longest lane leaves) and is put by that, as where clients do not know how long answers get. Without
/// `drain`, it ends when nobody waits any more: a steady load. Contexts are counted in steps of `grain`.
pub fn replay(lanes: &[Lane], requests: &[Request], limit: Option<usize>, drain: bool, grain: usize) -> Replay {
    let mut replay = uncounted(lanes, requests, limit, drain);
    for (lane, done) in lanes.iter().zip(&mut replay.lanes) {
        done.count_steps(lane.longest, grain);
    }
    replay
}

/// The same where nobody asks for decode steps by rows and context: they are not counted.
pub fn uncounted(lanes: &[Lane], requests: &[Request], limit: Option<usize>, drain: bool) -> Replay {
    let mut hall = Hall::new(lanes, requests.len() / lanes.len().max(1));
    let window = WINDOW * lanes.iter().map(|lane| lane.rows).sum::<usize>().max(1);
    let longest = lanes.last().map_or(0, |lane| lane.longest);
    let (mut round, mut next, mut refused) = (0, 0, 0);
    loop {
        while hall.queued < window && next < requests.len() {
            let request = requests[next];
            next += 1;
            let need = match limit {
                None => request.total(),
                Some(limit) => {
                    request.prompt.saturating_add(limit.max(request.output)).min(longest.max(request.total()))
                }
            };
            let mut lane = 0;
            while lane < lanes.len() && (lanes[lane].rows == 0 || need > lanes[lane].longest) {
                lane += 1;
            }
            match lane < lanes.len() {
                true => hall.wait(lane, request),
                false => refused += 1,
            }
        }
        hall.admit(round);
        let Some(first_end) = hall.first_end() else {
            if next >= requests.len() {
                break;
            }
            continue;
        };
        if next >= requests.len() && !drain && hall.queued == 0 {
            round += 1;
            break;
        }
        // Whoever is fetched in the next round may find a row.
        let fetches = hall.queued < window && next < requests.len();
        round = if fetches { round + 1 } else { first_end };
        hall.leave(round);
    }
    let mut replay = Replay { rounds: round, refused, ..Replay::default() };
    for ((lane, stays), left) in lanes.iter().zip(&hall.stays).zip(&hall.left) {
        for stay in stays.iter().filter(|stay| stay.end() <= round) {
            replay.served += 1;
            replay.outputs += stay.request.output.max(1) as u64;
        }
        replay.lanes.push(used(lane, stays, left, round));
    }
    replay
}

/// Rows and who waits for them.
struct Hall<'a> {
    lanes: &'a [Lane],
    free: Vec<Free>,
    waiting: Vec<VecDeque<Request>>,
    queued: usize,
    /// Ends, with lane and stay, as [`end`] packs them.
    ends: BinaryHeap<Reverse<u128>>,
    stays: Vec<Vec<Stay>>,
    /// Of each lane, who has left, in order of time.
    left: Vec<Vec<usize>>,
}

impl Hall<'_> {
    /// For so many requests of each lane, more or less.
    fn new(lanes: &[Lane], each: usize) -> Hall<'_> {
        Hall {
            lanes,
            free: lanes.iter().map(|lane| Free::new(lane.rows)).collect(),
            waiting: vec![VecDeque::new(); lanes.len()],
            queued: 0,
            ends: BinaryHeap::new(),
            stays: lanes.iter().map(|_| Vec::with_capacity(each)).collect(),
            left: lanes.iter().map(|_| Vec::with_capacity(each)).collect(),
        }
    }

    fn wait(&mut self, lane: usize, request: Request) {
        self.waiting[lane].push_back(request);
        self.queued += 1;
    }

    /// Gives free rows to those that wait, longest lane first.
    fn admit(&mut self, round: u64) {
        let mut lane = self.lanes.len();
        while lane > 0 && self.queued > 0 {
            lane -= 1;
            // Its own first; then the longest of the others.
            let mut from = lane + 1;
            while from > 0 && self.free[lane].rows > 0 {
                from -= 1;
                while let Some(request) = self.waiting[from].front().copied() {
                    let Some(row) = self.free[lane].take() else { break };
                    self.waiting[from].pop_front();
                    self.queued -= 1;
                    let chunks = chunks(&self.lanes[lane].chunks, request.prompt);
                    let stay = Stay { row, start: round, chunks, request };
                    self.ends.push(Reverse(end(stay.end(), lane, self.stays[lane].len())));
                    self.stays[lane].push(stay);
                }
            }
        }
    }

    fn first_end(&self) -> Option<u64> {
        self.ends.peek().map(|Reverse(packed)| (packed >> 64) as u64)
    }

    /// Frees the rows of those who are done before `round`.
    fn leave(&mut self, round: u64) {
        while let Some(Reverse(packed)) = self.ends.peek().copied().filter(|Reverse(end)| (end >> 64) as u64 <= round) {
            self.ends.pop();
            let (lane, stay) = ((packed >> 40) as usize & 0xff_ffff, packed as usize & 0xff_ffff_ffff);
            self.free[lane].give(self.stays[lane][stay].row);
            self.left[lane].push(stay);
        }
    }
}

/// A round, a lane and a stay in one number, ordered by round.
fn end(round: u64, lane: usize, stay: usize) -> u128 {
    u128::from(round) << 64 | (lane as u128) << 40 | stay as u128
}

/// Rows that nobody is in, a bit each.
struct Free {
    bits: Vec<u64>,
    rows: usize,
    /// No word before it has any.
    first: usize,
}

impl Free {
    fn new(rows: usize) -> Free {
        let mut free = Free { bits: vec![0; rows.div_ceil(64)], rows: 0, first: 0 };
        (0..rows).for_each(|row| free.give(row));
        free
    }

    /// The lowest.
    fn take(&mut self) -> Option<usize> {
        while self.first < self.bits.len() {
            let word = self.bits[self.first];
            if word != 0 {
                self.bits[self.first] = word & (word - 1);
                self.rows -= 1;
                return Some(self.first * 64 + word.trailing_zeros() as usize);
            }
            self.first += 1;
        }
        None
    }

    fn give(&mut self, row: usize) {
        self.bits[row / 64] |= 1 << (row % 64);
        self.rows += 1;
        if row / 64 < self.first {
            self.first = row / 64;
        }
    }
}

/// Requests that wait, per row.
const WINDOW: usize = 8;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::buckets::{coarse, smallest};
    use super::super::steps::{Marks, up};
    use super::*;
    use crate::backend::neuron::decodes::Need;
    use proptest::prelude::*;

    /// The rules, round by round, and what all lanes need together.
    fn played(lanes: &[Lane], requests: &[Request], drain: bool) -> (Replay, BTreeMap<Vec<Need>, u64>) {
        struct Row {
            request: Request,
            prefilled: usize,
            made: usize,
        }
        let mut steps = BTreeMap::new();
        let mut replay = Replay { lanes: vec![LaneUse::default(); lanes.len()], ..Replay::default() };
        let mut rows: Vec<Vec<Option<Row>>> = lanes.iter().map(|lane| (0..lane.rows).map(|_| None).collect()).collect();
        let mut waiting: Vec<VecDeque<Request>> = vec![VecDeque::new(); lanes.len()];
        let window = WINDOW * lanes.iter().map(|lane| lane.rows).sum::<usize>();
        let mut trace = requests.iter();
        loop {
            while waiting.iter().map(VecDeque::len).sum::<usize>() < window {
                let Some(request) = trace.next() else { break };
                match lanes.iter().position(|lane| lane.rows > 0 && request.total() <= lane.longest) {
                    Some(lane) => waiting[lane].push_back(*request),
                    None => replay.refused += 1,
                }
            }
            for lane in (0..lanes.len()).rev() {
                for slot in rows[lane].iter_mut().filter(|slot| slot.is_none()) {
                    let Some(from) = (0..=lane).rev().find(|from| !waiting[*from].is_empty()) else { break };
                    *slot = waiting[from].pop_front().map(|request| Row { request, prefilled: 0, made: 0 });
                }
            }
            let (mut busy, mut needs) = (false, vec![]);
            for ((lane, rows), done) in lanes.iter().zip(&mut rows).zip(&mut replay.lanes) {
                let (mut batch, mut len) = (0, 0);
                for (i, slot) in rows.iter_mut().enumerate() {
                    let Some(row) = slot else { continue };
                    busy = true;
                    done.held += 1;
                    if row.prefilled < row.request.prompt {
                        let left = row.request.prompt - row.prefilled;
                        let chunk = smallest(&lane.chunks, left).unwrap_or(*lane.chunks.last().unwrap());
                        *done.prefill.entry((chunk, row.prefilled)).or_default() += 1;
                        done.prompt += left.min(chunk) as u64;
                        row.prefilled += left.min(chunk);
                        row.made += usize::from(row.prefilled == row.request.prompt);
                    } else {
                        let context = row.request.prompt + row.made - 1;
                        (batch, len) = (i + 1, len.max(context));
                        done.positions += context as u128;
                        done.decoded += 1;
                        row.made += 1;
                    }
                    if row.made >= row.request.output {
                        replay.served += 1;
                        replay.outputs += row.made as u64;
                        *slot = None;
                    }
                }
                if batch > 0 {
                    *done.decode.entry((batch, len)).or_default() += 1;
                }
                needs.push(Need { rows: batch, len });
            }
            if needs.iter().any(|need| need.rows > 0) {
                *steps.entry(needs).or_default() += 1;
            }
            replay.rounds += u64::from(busy);
            let queued = waiting.iter().map(VecDeque::len).sum::<usize>();
            if trace.len() == 0 && (!busy || (!drain && queued == 0)) {
                return (replay, steps);
            }
        }
    }

    fn steps_of(replay: &Replay, marks: &[Marks]) -> BTreeMap<Vec<Need>, u64> {
        let mut steps = BTreeMap::new();
        replay.steps(marks, |_, needs, n| *steps.entry(needs.to_vec()).or_default() += n);
        steps
    }

    proptest! {
        #[test]
        fn time_that_jumps_counts_what_round_by_round_counts(
            shapes in prop::collection::vec((0_usize..4, 1_usize..30), 1..4),
            sizes in prop::collection::btree_set(1_usize..9, 1..3),
            requests in prop::collection::vec((1_usize..40, 1_usize..30), 0..60),
            drain in any::<bool>(),
        ) {
            let mut longest = 0;
            let chunks: Vec<usize> = sizes.into_iter().collect();
            let mut lanes: Vec<Lane> = shapes.iter().map(|(rows, more)| {
                longest += more;
                Lane { rows: *rows, longest, chunks: chunks.clone() }
            }).collect();
            lanes.last_mut().unwrap().rows += 1;
            let requests: Vec<Request> = requests.iter().map(|(prompt, output)| Request { prompt: *prompt, output: *output }).collect();
            let exact = replay(&lanes, &requests, None, drain, 1);
            let (played, together) = played(&lanes, &requests, drain);
            let mut alone = exact.clone();
            alone.lanes.iter_mut().for_each(LaneUse::forget_spans);
            prop_assert_eq!(&alone, &played);
            prop_assert_eq!(&steps_of(&exact, &vec![Marks::default(); lanes.len()]), &together);
            // Rounded steps are the exact ones, rounded.
            let marks: Vec<Marks> = lanes.iter().map(|lane| Marks {
                rows: vec![lane.rows.div_ceil(2), lane.rows],
                lens: vec![lane.longest / 3, lane.longest / 2, lane.longest],
            }).collect();
            let mut rounded = BTreeMap::new();
            for (needs, n) in &together {
                let up = |(need, marks): (&Need, &Marks)| match need.rows {
                    0 => *need,
                    rows => Need { rows: up(&marks.rows, rows), len: up(&marks.lens, need.len) },
                };
                *rounded.entry(needs.iter().zip(&marks).map(up).collect::<Vec<_>>()).or_default() += n;
            }
            prop_assert_eq!(&steps_of(&exact, &marks), &rounded);
            // Coarse lengths are those of the exact steps, rounded up.
            let rough = replay(&lanes, &requests, None, drain, 7);
            for ((lane, exact), rough) in lanes.iter().zip(&exact.lanes).zip(&rough.lanes) {
                let mut rounded = BTreeMap::new();
                for ((batch, len), n) in &exact.decode {
                    *rounded.entry((*batch, coarse(*len, 7, lane.longest))).or_default() += n;
                }
                prop_assert_eq!(&rounded, &rough.decode);
            }
        }
    }
}
