//! What a class of rows did in a replay: steps by rows and context, chunks, and who decoded when.

use std::collections::BTreeMap;

use super::buckets::smallest;
use super::lengths::Request;
use super::replay::Lane;

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

impl LaneUse {
    /// Positions that steps read up to their longest context, by rows needed, ascending.
    pub fn by_rows(&self) -> Vec<(usize, u64)> {
        let mut sums: Vec<(usize, u64)> = vec![];
        for ((rows, len), n) in &self.decode {
            let positions = n.saturating_mul(*len as u64);
            match sums.last_mut() {
                Some((last, sum)) if last == rows => *sum = sum.saturating_add(positions),
                _ => sums.push((*rows, positions)),
            }
        }
        sums
    }

    /// Rows of steps by their longest context, ascending, where as many are run as `run` says for those that are needed.
    pub fn by_len(&self, run: impl Fn(usize) -> usize) -> Vec<(usize, u64)> {
        let mut sums: Vec<(usize, u64)> = vec![];
        let (mut of, mut at, mut runs) = (0, 0, 0);
        for ((rows, len), n) in &self.decode {
            if *rows != of {
                (of, at, runs) = (*rows, 0, run(*rows) as u64);
            }
            // Lengths of the same rows ascend.
            while at < sums.len() && sums[at].0 < *len {
                at += 1;
            }
            if at == sums.len() || sums[at].0 > *len {
                sums.insert(at, (*len, 0));
            }
            sums[at].1 = sums[at].1.saturating_add(n.saturating_mul(runs));
        }
        sums
    }

    /// Who decoded, in order of time.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// As if nobody had asked who decoded when.
    #[cfg(test)]
    pub fn forget_spans(&mut self) {
        self.spans.clear();
    }

    /// Counts decode steps by rows and context, the latter rounded up to `grain`, at most `longest`.
    pub fn count_steps(&mut self, longest: usize, grain: usize) {
        let grain = grain.max(1);
        let levels = longest.div_ceil(grain) + 1;
        let rows = self.spans.iter().map(|span| span.rows).max().unwrap_or(0);
        let mut counts = vec![0_u64; (rows + 1) * levels];
        for span in &self.spans {
            let of_rows = &mut counts[span.rows * levels..][..levels];
            let (mut at, end) = (span.context(span.from), span.context(span.until));
            while at < end {
                let level = at.div_ceil(grain).min(levels - 1);
                let next = if level + 1 < levels { (level * grain + 1).min(end) } else { end };
                of_rows[level] += (next - at) as u64;
                at = next;
            }
        }
        let entry = |(i, n): (usize, u64)| ((i / levels, (i % levels * grain).min(longest)), n);
        self.decode = counts.into_iter().enumerate().filter(|(_, n)| *n > 0).map(entry).collect();
    }
}

/// Rounds in which the same rows of a class decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first of them.
    pub from: u64,
    /// The one after the last.
    pub until: u64,
    /// Rows needed.
    pub rows: usize,
    /// The longest context in a round is the round and this.
    ahead: i64,
}

impl Span {
    /// At least the prompt's length.
    pub fn context(&self, round: u64) -> usize {
        (round as i64 + self.ahead) as usize
    }
}

/// A request in a row.
#[derive(Clone, Copy, Debug)]
pub struct Stay {
    /// Which.
    pub row: usize,
    /// Its first round.
    pub start: u64,
    /// Rounds of prefill; the last one gives the first token.
    pub chunks: u64,
    /// Who.
    pub request: Request,
}

impl Stay {
    /// The round after its last one.
    pub fn end(&self) -> u64 {
        self.start + self.chunks + self.request.output.max(1) as u64 - 1
    }

    fn first_decode(&self) -> u64 {
        self.start + self.chunks
    }

    /// Its context is the round and this.
    fn ahead(&self) -> i64 {
        self.request.prompt as i64 - self.first_decode() as i64
    }
}

/// How many chunks a prompt has: all but the last are of the largest size.
pub fn chunks(sizes: &[usize], prompt: usize) -> u64 {
    let largest = sizes.last().copied().unwrap_or(prompt).max(1);
    prompt.div_ceil(largest) as u64
}

/// What `stays` add up to in the first `rounds` rounds; those of `left` have ended, in this order.
pub fn used(lane: &Lane, stays: &[Stay], left: &[usize], rounds: u64) -> LaneUse {
    let mut done = LaneUse::default();
    let mut prefill = Prefill::of(&lane.chunks);
    // The rounds in which they begin to decode, and who.
    let mut come: Vec<(u64, usize)> = Vec::with_capacity(stays.len());
    for (i, stay) in stays.iter().enumerate() {
        let ran = stay.end().min(rounds) - stay.start;
        done.held += ran;
        done.prompt += prefill.add(stay.request.prompt, ran.min(stay.chunks));
        let decoded = ran.saturating_sub(stay.chunks);
        if decoded > 0 {
            done.decoded += decoded;
            done.positions += u128::from(decoded) * u128::from(2 * stay.request.prompt as u64 + decoded - 1) / 2;
            come.push((stay.first_decode(), i));
        }
    }
    done.prefill = prefill.counts();
    let come = by_round(come, rounds);
    let mut live = Live::new(lane.rows);
    let (mut come, mut left) = (&come[..], left);
    let mut round = 0;
    loop {
        // Those who leave before those who come: a row changes hands between two rounds.
        while let [first, rest @ ..] = left {
            let stay = &stays[*first];
            match (stay.end() > stay.first_decode(), stay.end() <= round) {
                (true, true) => live.leave(stay.row),
                (true, false) => break,
                // Its last chunk gave all of its answer.
                (false, _) => {}
            }
            left = rest;
        }
        while let [first, rest @ ..] = come
            && first.0 <= round
        {
            let stay = &stays[first.1];
            live.come(stay.row, stay.ahead());
            come = rest;
        }
        let mut until = rounds;
        if let Some(first) = left.first() {
            until = until.min(stays[*first].end());
        }
        if let Some(first) = come.first() {
            until = until.min(first.0);
        }
        if live.rows > 0 && until > round {
            done.spans.push(Span { from: round, until, rows: live.rows, ahead: live.most });
        }
        if until >= rounds || until <= round {
            return done;
        }
        round = until;
    }
}

/// In the order of rounds, all of which are below `rounds`: counted where there are not many more of them.
fn by_round(mut come: Vec<(u64, usize)>, rounds: u64) -> Vec<(u64, usize)> {
    let most = 8 * come.len() + 64;
    if rounds > most as u64 {
        come.sort_unstable();
        return come;
    }
    let (mut places, mut sorted) = (vec![0_usize; rounds as usize + 1], vec![(0, 0); come.len()]);
    let (starts, targets) = (&mut places[..], &mut sorted[..]);
    for (round, _) in &come {
        starts[*round as usize + 1] += 1;
    }
    let mut round = 1;
    while round < starts.len() {
        starts[round] += starts[round - 1];
        round += 1;
    }
    for entry in &come {
        let place = &mut starts[entry.0 as usize];
        targets[*place] = *entry;
        *place += 1;
    }
    sorted
}

/// Prefill steps of a lane.
struct Prefill<'a> {
    sizes: &'a [usize],
    /// Of the largest size, by how many there were before; a prompt without sizes is one chunk.
    whole: Vec<u64>,
    /// Last chunks of prompts, by size and tokens before them.
    last: BTreeMap<(usize, usize), u64>,
}

impl Prefill<'_> {
    fn of(sizes: &[usize]) -> Prefill<'_> {
        Prefill { sizes, whole: vec![], last: BTreeMap::new() }
    }

    /// The first `ran` chunks of a prompt, and the tokens in them.
    fn add(&mut self, prompt: usize, ran: u64) -> u64 {
        let all = chunks(self.sizes, prompt);
        let largest = self.sizes.last().copied().unwrap_or(prompt).max(1);
        let whole = ran.min(all.saturating_sub(1)) as usize;
        if self.whole.len() < whole {
            self.whole.resize(whole, 0);
        }
        for n in &mut self.whole[..whole] {
            *n += 1;
        }
        if ran < all || all == 0 {
            return (whole * largest) as u64;
        }
        let start = whole * largest;
        let size = smallest(self.sizes, prompt - start).unwrap_or(largest);
        *self.last.entry((size, start)).or_default() += 1;
        prompt as u64
    }

    fn counts(self) -> BTreeMap<(usize, usize), u64> {
        let (mut counts, largest) = (self.last, self.sizes.last().copied().unwrap_or(1));
        for (before, n) in self.whole.into_iter().enumerate().filter(|(_, n)| *n > 0) {
            *counts.entry((largest, before * largest)).or_default() += n;
        }
        counts
    }
}

/// Who decodes in a lane: how far each row's context is ahead of the round.
struct Live {
    ahead: Vec<i64>,
    /// Up to the highest that somebody is in.
    rows: usize,
    /// The largest of `ahead`.
    most: i64,
}

impl Live {
    fn new(rows: usize) -> Live {
        Live { ahead: vec![NOBODY; rows], rows: 0, most: NOBODY }
    }

    fn come(&mut self, row: usize, ahead: i64) {
        self.ahead[row] = ahead;
        self.rows = self.rows.max(row + 1);
        self.most = self.most.max(ahead);
    }

    fn leave(&mut self, row: usize) {
        let ahead = std::mem::replace(&mut self.ahead[row], NOBODY);
        while self.rows > 0 && self.ahead[self.rows - 1] == NOBODY {
            self.rows -= 1;
        }
        if ahead == self.most {
            self.most = NOBODY;
            for ahead in &self.ahead[..self.rows] {
                if *ahead > self.most {
                    self.most = *ahead;
                }
            }
        }
    }
}

/// In a row.
const NOBODY: i64 = i64::MIN;
