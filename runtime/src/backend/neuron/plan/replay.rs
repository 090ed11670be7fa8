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
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use super::buckets::{coarse, smallest};
use super::lengths::Request;
use crate::backend::neuron::decodes::Need;

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

/// What a class did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneUse {
    /// Decode steps by rows needed and longest context, the latter rounded up to the grain.
    pub decode: BTreeMap<(usize, usize), u64>,
    /// Contexts of all decoded tokens.
    pub positions: u128,
    /// Tokens decoded.
    pub decoded: u64,
    /// Prefill steps by chunk and tokens before it.
    pub prefill: BTreeMap<(usize, usize), u64>,
    /// Tokens prefilled.
    pub prompt: u64,
    /// Rounds that rows were held, over all rows.
    pub held: u64,
    /// Who decoded, in order of time.
    spans: Vec<Span>,
}

/// Rounds in which the same rows of a class decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: u64,
    until: u64,
    /// Rows needed.
    rows: usize,
    /// The longest context in a round is the round and this.
    ahead: i64,
}

impl Span {
    /// At least the prompt's length.
    fn context(&self, round: u64) -> usize {
        (round as i64 + self.ahead) as usize
    }
}

/// Rows and lengths, ascending, that those of a class's decode steps are rounded up to; as they are beyond the last.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// Of rows.
    pub rows: Vec<usize>,
    /// Of lengths.
    pub lens: Vec<usize>,
}

impl Replay {
    /// What decode steps need of all classes at once, rounded up to `marks`, with how many rounds in a row do.
    pub fn steps(&self, marks: &[Marks], mut each: impl FnMut(&[Need], u64)) {
        let mut left: Vec<&[Span]> = self.lanes.iter().map(|lane| &lane.spans[..]).collect();
        let mut needs = vec![Need::default(); left.len()];
        let (mut round, last) =
            (0, self.lanes.iter().filter_map(|l| l.spans.last()).map(|s| s.until).max().unwrap_or(0));
        while round < last {
            let mut next = last;
            for ((spans, need), marks) in left.iter_mut().zip(&mut needs).zip(marks) {
                while spans.first().is_some_and(|span| span.until <= round) {
                    *spans = &spans[1..];
                }
                *need = Need::default();
                let Some(span) = spans.first() else { continue };
                if span.from > round {
                    next = next.min(span.from);
                    continue;
                }
                let context = span.context(round);
                let len = up(&marks.lens, context);
                *need = Need { rows: up(&marks.rows, span.rows), len };
                next = next.min(span.until).min(round + (len - context) as u64 + 1);
            }
            if needs.iter().any(|need| need.rows > 0) {
                each(&needs, next - round);
            }
            round = next;
        }
    }
}

/// The first of `marks` that is no less.
fn up(marks: &[usize], n: usize) -> usize {
    marks.get(marks.partition_point(|mark| *mark < n)).copied().unwrap_or(n)
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

/// A request in a row.
#[derive(Clone, Copy, Debug)]
struct Stay {
    row: usize,
    /// Its first round.
    start: u64,
    /// Rounds of prefill; the last one gives the first token.
    chunks: u64,
    request: Request,
}

impl Stay {
    /// The round after its last one.
    fn end(&self) -> u64 {
        self.start + self.chunks + self.request.output.max(1) as u64 - 1
    }
}

/// Runs `requests` through `lanes`, ascending in length. With `limit`, every request asks for room for that many tokens
/// (or what the longest lane leaves) and is put by that, as where clients do not know how long answers get. Without
/// `drain`, it ends when nobody waits any more: a steady load. Contexts are counted in steps of `grain`.
pub fn replay(lanes: &[Lane], requests: &[Request], limit: Option<usize>, drain: bool, grain: usize) -> Replay {
    let mut hall = Hall::new(lanes);
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
            match lanes.iter().position(|lane| lane.rows > 0 && need <= lane.longest) {
                Some(lane) => hall.wait(lane, request),
                None => refused += 1,
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
    for (lane, stays) in lanes.iter().zip(&hall.stays) {
        for stay in stays.iter().filter(|stay| stay.end() <= round) {
            replay.served += 1;
            replay.outputs += stay.request.output.max(1) as u64;
        }
        replay.lanes.push(used(lane, stays, round, grain));
    }
    replay
}

/// Rows and who waits for them.
struct Hall<'a> {
    lanes: &'a [Lane],
    free: Vec<BTreeSet<usize>>,
    waiting: Vec<VecDeque<Request>>,
    queued: usize,
    /// Ends, with lane and row.
    ends: BinaryHeap<Reverse<(u64, usize, usize)>>,
    stays: Vec<Vec<Stay>>,
}

impl Hall<'_> {
    fn new(lanes: &[Lane]) -> Hall<'_> {
        Hall {
            lanes,
            free: lanes.iter().map(|lane| (0..lane.rows).collect()).collect(),
            waiting: vec![VecDeque::new(); lanes.len()],
            queued: 0,
            ends: BinaryHeap::new(),
            stays: vec![vec![]; lanes.len()],
        }
    }

    fn wait(&mut self, lane: usize, request: Request) {
        self.waiting[lane].push_back(request);
        self.queued += 1;
    }

    /// Gives free rows to those that wait, longest lane first.
    fn admit(&mut self, round: u64) {
        for lane in (0..self.lanes.len()).rev() {
            // Its own first; then the longest of the others.
            for from in (0..=lane).rev() {
                while !self.waiting[from].is_empty() {
                    let Some(row) = self.free[lane].pop_first() else { break };
                    let Some(request) = self.waiting[from].pop_front() else { break };
                    self.queued -= 1;
                    let chunks = chunks(&self.lanes[lane].chunks, request.prompt).count() as u64;
                    let stay = Stay { row, start: round, chunks, request };
                    self.ends.push(Reverse((stay.end(), lane, row)));
                    self.stays[lane].push(stay);
                }
            }
        }
    }

    fn first_end(&self) -> Option<u64> {
        self.ends.peek().map(|Reverse((end, ..))| *end)
    }

    /// Frees the rows of those who are done before `round`.
    fn leave(&mut self, round: u64) {
        while let Some(Reverse((_, lane, row))) = self.ends.peek().copied().filter(|Reverse((end, ..))| *end <= round) {
            self.ends.pop();
            self.free[lane].insert(row);
        }
    }
}

/// Chunks of a prompt: size, tokens before it, tokens in it.
fn chunks(sizes: &[usize], prompt: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let left = prompt - done;
        let largest = sizes.last().copied().unwrap_or(left).max(1);
        let size = smallest(sizes, left).unwrap_or(largest);
        let (start, tokens) = (done, left.min(size));
        done += tokens;
        (left > 0).then_some((size, start, tokens))
    })
}

/// What `stays` add up to in the first `rounds` rounds.
fn used(lane: &Lane, stays: &[Stay], rounds: u64, grain: usize) -> LaneUse {
    let mut done = LaneUse::default();
    let mut changes: Vec<(u64, bool, usize, i64)> = Vec::new();
    for stay in stays {
        let ran = stay.end().min(rounds) - stay.start;
        done.held += ran;
        for (size, start, tokens) in chunks(&lane.chunks, stay.request.prompt).take(ran.min(stay.chunks) as usize) {
            *done.prefill.entry((size, start)).or_default() += 1;
            done.prompt += tokens as u64;
        }
        let decoded = ran.saturating_sub(stay.chunks);
        if decoded > 0 {
            let (prompt, first) = (stay.request.prompt as u64, stay.start + stay.chunks);
            done.decoded += decoded;
            done.positions += u128::from(decoded) * u128::from(2 * prompt + decoded - 1) / 2;
            // Its context is the round and this.
            let ahead = prompt as i64 - first as i64;
            changes.push((first, true, stay.row, ahead));
            changes.push((first + decoded, false, stay.row, ahead));
        }
    }
    // Those who leave before those who come: a row changes hands between two rounds.
    changes.sort_unstable();
    let (mut live, mut ahead) = (BTreeSet::new(), BTreeMap::<i64, usize>::new());
    let mut changes = changes.into_iter().peekable();
    while let Some((round, comes, row, by)) = changes.next() {
        if comes {
            live.insert(row);
            *ahead.entry(by).or_default() += 1;
        } else {
            live.remove(&row);
            if let Some(n) = ahead.get_mut(&by) {
                *n -= 1;
                if *n == 0 {
                    ahead.remove(&by);
                }
            }
        }
        let until = changes.peek().map_or(round, |next| next.0);
        if let (Some(last), Some((most, _)), true) = (live.last(), ahead.last_key_value(), until > round) {
            let span = Span { from: round, until, rows: last + 1, ahead: *most };
            done.spans.push(span);
            let (mut at, end) = (span.context(round), span.context(until));
            while at < end {
                let level = coarse(at, grain, lane.longest);
                let steps = (level + 1).min(end).max(at + 1) - at;
                *done.decode.entry((span.rows, level)).or_default() += steps as u64;
                at += steps;
            }
        }
    }
    done
}

/// Requests that wait, per row.
const WINDOW: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
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
        replay.steps(marks, |needs, n| *steps.entry(needs.to_vec()).or_default() += n);
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
            alone.lanes.iter_mut().for_each(|lane| lane.spans.clear());
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
