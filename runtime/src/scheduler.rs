//! Decides which rows run in a step.
//!
//! Decodes (one row each) come first, then prefill chunks in order of priority and arrival, then waiting sequences in the
//! order of the [queue], until the token budget is used up. Blocks are allocated when rows need them, in the same order;
//! when none is left, the last running sequence gives up its cache, keeps its tokens and waits again, before those that
//! have not run. That never stops everybody: the first sequence can take the blocks of all others, and none is admitted
//! that could not run alone. Where the cache consists of rows, a sequence gets one when it is admitted and keeps it: nobody
//! is preempted.
//!
//! Full blocks are listed when the step that filled them is done, and a sequence that is admitted starts behind what it
//! finds there: the beginning of another's, or its own from before it was preempted. At least one token is run.
//!
//! Invariant: a block that is written to, or a row, belongs to one sequence; a sequence's rows continue exactly where its
//! cache ends; `running` is in order of priority and arrival and no longer than any step can serve (sequences, rows and
//! outputs), so that no decode ever waits for budget.

use crate::backend::{Batch, Capacity, Limits};
use crate::kv::Kv;
use crate::policy::StepEnergy;

mod admit;
mod draft;
mod queue;
mod sequence;
mod speculate;

use admit::Room;
pub use queue::Key;
use queue::Queue;
pub use sequence::Sequence;
use speculate::StepCosts;
pub use speculate::{MOST_DRAFTS, Speculate};

#[cfg(test)]
mod tests;

/// Limits of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepLimits {
    /// Rows.
    pub rows: usize,
    /// Rows of one sequence.
    pub chunk: usize,
    /// Outputs.
    pub outputs: usize,
    /// Running sequences.
    pub running: usize,
    /// Whether chunks may stand beside decodes.
    pub mixed: bool,
    /// Whether steps that return the prompt's logits stand alone.
    pub apart: bool,
    /// Whether drafts can be run.
    pub drafts: bool,
}

impl StepLimits {
    /// Limits within `capacity`. `running` is such that every running sequence can decode in the same step.
    pub fn new(capacity: &Capacity, token_budget: usize, chunk: usize, limits: &Limits) -> Self {
        let rows = token_budget.min(capacity.max_rows);
        StepLimits {
            rows,
            chunk: chunk.min(rows).min(limits.chunk.unwrap_or(usize::MAX)),
            outputs: capacity.max_outputs,
            running: capacity.max_seqs.min(rows).min(capacity.max_outputs),
            mixed: limits.mixed_batches,
            apart: limits.candidates.is_some(),
            drafts: limits.can_draft(),
        }
    }
}

/// What a sequence's next rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One row.
    Decode,
    /// A chunk.
    Prefill,
    /// A chunk whose logits are wanted, where those stand apart.
    Score,
}

/// The kinds that a step may hold.
#[derive(Clone, Copy, Debug)]
struct Kinds {
    decode: bool,
    prefill: bool,
    score: bool,
}

impl Kinds {
    fn hold(self, kind: Kind) -> bool {
        match kind {
            Kind::Decode => self.decode,
            Kind::Prefill => self.prefill,
            Kind::Score => self.score,
        }
    }

    /// Whether a sequence may be admitted; those count as chunks.
    fn admits<J>(self, sequence: &Sequence<J>, limits: &StepLimits) -> bool {
        if limits.apart && sequence.scores() { self.score } else { self.prefill }
    }
}

impl StepLimits {
    /// Which kinds share a step, as numbers of groups.
    fn group(&self, kind: Kind) -> usize {
        match kind {
            Kind::Decode => 0,
            Kind::Prefill => usize::from(!self.mixed),
            Kind::Score if self.apart => 2,
            Kind::Score => self.group(Kind::Prefill),
        }
    }

    fn kind<J>(&self, sequence: &Sequence<J>) -> Kind {
        if self.apart && sequence.scores() {
            Kind::Score
        } else if sequence.pending() == 1 {
            Kind::Decode
        } else {
            Kind::Prefill
        }
    }

    /// Number of groups.
    fn groups(&self) -> usize {
        1 + usize::from(!self.mixed) + usize::from(self.apart)
    }
}

/// Rows of a step by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Rows that continue a sequence by its newest token.
    pub decode: usize,
    /// Other rows.
    pub prefill: usize,
    /// Rows of drafts.
    pub drafted: usize,
}

/// All sequences of an engine and their blocks.
#[derive(Debug)]
pub struct Scheduler<J> {
    limits: StepLimits,
    kv: Kv,
    waiting: Queue<J>,
    running: Vec<Box<Sequence<J>>>,
    /// Group of the last step.
    last: usize,
    preemptions: u64,
    speculate: Speculate,
    /// Sequences beyond which [`Speculate::Auto`] does not guess.
    most_guessing: usize,
    costs: StepCosts,
    /// What a step costs in joules, where guesses are to save these and it is known.
    energy: Option<StepEnergy>,
}

impl<J> Scheduler<J> {
    pub fn new(limits: StepLimits, kv: Kv, speculate: Speculate) -> Self {
        Scheduler {
            limits,
            kv,
            waiting: Queue::new(),
            running: Vec::with_capacity(limits.running),
            last: GROUPS - 1,
            preemptions: 0,
            speculate,
            most_guessing: usize::MAX,
            costs: StepCosts::new(),
            energy: None,
        }
    }

    /// Lets [`Speculate::Auto`] guess while at most so many sequences run.
    pub fn guess_up_to(self, sequences: usize) -> Self {
        Scheduler { most_guessing: sequences, ..self }
    }

    /// Weighs guesses by joules, or by time where they are not known.
    pub fn weigh(&mut self, energy: Option<StepEnergy>) {
        self.energy = energy;
    }

    /// Queues a sequence.
    pub fn add(&mut self, sequence: Box<Sequence<J>>) {
        self.waiting.clients.arrive(sequence.client);
        self.waiting.insert(sequence);
    }

    /// Sequences that may run together.
    pub fn places(&self) -> usize {
        self.limits.running
    }

    pub fn kv(&self) -> &Kv {
        &self.kv
    }

    pub fn running(&self) -> &[Box<Sequence<J>>] {
        &self.running
    }

    pub fn running_mut(&mut self) -> &mut [Box<Sequence<J>>] {
        &mut self.running
    }

    pub fn waiting(&self) -> impl Iterator<Item = &Sequence<J>> {
        self.waiting.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Times a sequence gave up its cache.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Waiting sequences that ran before.
    pub fn preempted_waiting(&self) -> usize {
        self.waiting.preempted()
    }

    /// Ends the running sequence `i` and frees its blocks.
    pub fn remove_running(&mut self, i: usize) -> Box<Sequence<J>> {
        let mut sequence = self.running.remove(i);
        sequence.release(&mut self.kv);
        self.waiting.clients.leave(sequence.client);
        sequence
    }

    /// The same for a sequence that has failed: what it has written is not to be found again.
    pub fn discard_running(&mut self, i: usize) -> Box<Sequence<J>> {
        let sequence = &mut self.running[i];
        match &mut self.kv {
            Kv::Blocks(pool) => pool.forget(&sequence.blocks),
            Kv::Rows(_) => sequence.computed = 0,
        }
        self.remove_running(i)
    }

    /// Ends a waiting sequence.
    pub fn remove_waiting(&mut self, key: Key) -> Option<Box<Sequence<J>>> {
        let sequence = self.waiting.remove(key)?;
        self.waiting.clients.leave(sequence.client);
        Some(sequence)
    }

    /// Ends everything.
    pub fn drain(&mut self) -> impl Iterator<Item = Box<Sequence<J>>> {
        for sequence in &mut self.running {
            sequence.release(&mut self.kv);
        }
        let waiting = self.waiting.drain();
        self.running.drain(..).chain(waiting)
    }

    /// Goes on with another cache: every running sequence gives up what it had and waits again, with its tokens.
    pub fn move_to(&mut self, limits: StepLimits, kv: Kv) {
        (self.limits, self.kv) = (limits, kv);
        (self.last, self.costs, self.energy) = (GROUPS - 1, StepCosts::new(), None);
        for mut sequence in std::mem::take(&mut self.running) {
            self.preemptions += 1;
            sequence.preemptions += 1;
            self.waiting.insert(sequence);
        }
        self.running.reserve(limits.running);
        let block_len = self.kv.block_len();
        for sequence in self.waiting.iter_mut() {
            sequence.blocks.clear();
            sequence.chain.clear();
            sequence.drafts.clear();
            (sequence.computed, sequence.chunk, sequence.listed) = (0, 0, 0);
            sequence.blocks.reserve(sequence.max_tokens.div_ceil(block_len));
            sequence.chain.reserve(sequence.max_tokens / block_len);
        }
    }

    /// Chooses the rows of the next step and fills `batch` with them; if both counts are 0, nothing can run until a client
    /// reads or something arrives. `admitted` is called with every sequence that leaves the queue.
    pub fn plan(&mut self, batch: &mut Batch, mut admitted: impl FnMut(&mut Sequence<J>)) -> Plan {
        batch.clear();
        self.choose(&mut admitted);
        let mut plan = self.fill(batch);
        for _ in 1..self.limits.groups() {
            if plan != Plan::default() {
                break;
            }
            // Nothing of one kind could run; it is another kind's turn now.
            self.choose(&mut admitted);
            plan = self.fill(batch);
        }
        plan
    }

    /// Marks the rows of the step as done, and lists the blocks that they filled.
    pub fn commit(&mut self) {
        for sequence in &mut self.running {
            sequence.computed += sequence.kept_rows();
            sequence.drafts.clear();
            sequence.chunk = 0;
            let generated = sequence.generated();
            self.waiting.clients.charge(sequence.client, 0, generated - sequence.charged);
            sequence.charged = generated;
            if let Kv::Blocks(pool) = &mut self.kv {
                sequence.list(pool);
            }
        }
    }

    fn choose(&mut self, admitted: &mut impl FnMut(&mut Sequence<J>)) {
        let limits = self.limits;
        let mut room = Room { rows: limits.rows, outputs: limits.outputs };
        let kinds = self.kinds();
        for decodes in [true, false] {
            for sequence in &mut self.running {
                let kind = limits.kind(sequence);
                if (kind == Kind::Decode) != decodes {
                    continue;
                }
                sequence.chunk = 0;
                sequence.drafts.clear();
                if kinds.hold(kind) && !sequence.stands {
                    room.take(sequence.plan(limits.chunk.min(room.rows), room.outputs));
                }
            }
        }
        if self.allocate() {
            if kinds.prefill || kinds.score {
                self.admit(kinds, room, admitted);
            }
            self.speculate();
        }
    }

    /// Which kinds of rows this step may hold.
    fn kinds(&mut self) -> Kinds {
        let limits = self.limits;
        if limits.groups() > 1 {
            let mut present = [false; GROUPS];
            for sequence in self.running.iter().filter(|s| !s.stands) {
                present[limits.group(limits.kind(sequence))] = true;
            }
            if self.running.len() < limits.running {
                for kind in [Kind::Prefill, Kind::Score] {
                    let fits = |s: &Sequence<J>| (limits.apart && s.scores()) == (kind == Kind::Score);
                    present[limits.group(kind)] |= self.waiting.iter().any(fits);
                }
            }
            // Taking turns starves none.
            let turns = (1..=GROUPS).map(|i| (self.last + i) % GROUPS);
            self.last = turns.into_iter().find(|group| present[*group]).unwrap_or(GROUPS - 1);
        } else {
            self.last = 0;
        }
        let hold = |kind| limits.group(kind) == self.last;
        Kinds { decode: hold(Kind::Decode), prefill: hold(Kind::Prefill), score: hold(Kind::Score) }
    }

    /// Gives the planned rows their blocks, in order; false if somebody has to wait for some.
    fn allocate(&mut self) -> bool {
        let Kv::Blocks(pool) = &mut self.kv else {
            return true;
        };
        let mut enough = true;
        let mut i = 0;
        while i < self.running.len() {
            let is_last = i + 1 == self.running.len();
            let sequence = &mut self.running[i];
            let needed = pool.blocks_for(sequence.computed + sequence.chunk);
            if pool.grow(&mut sequence.blocks, needed) {
                i += 1;
                continue;
            }
            enough = false;
            if !is_last {
                let mut last = self.running.pop().expect("it is longer than i + 1");
                pool.release(&mut last.blocks);
                (last.computed, last.chunk, last.listed) = (0, 0, 0);
                self.preemptions += 1;
                last.preemptions += 1;
                self.waiting.insert(last);
            } else {
                // The last one keeps what it has, takes what is left and waits for the others.
                let all = sequence.blocks.len() + pool.free();
                let fits = all * pool.block_len() - sequence.computed;
                sequence.chunk = sequence.chunk.min(fits);
                pool.grow(&mut sequence.blocks, all);
                i += 1;
            }
        }
        enough
    }

    /// Writes the planned rows to `batch`, single rows first.
    fn fill(&mut self, batch: &mut Batch) -> Plan {
        let mut plan = Plan::default();
        for single in [true, false] {
            for sequence in &mut self.running {
                if sequence.chunk == 0 || (sequence.chunk == 1) != single {
                    continue;
                }
                if sequence.generated() > 0 && sequence.pending() == 1 {
                    plan.decode += 1;
                } else {
                    plan.prefill += sequence.chunk - sequence.drafts.len();
                }
                plan.drafted += sequence.drafts.len();
                sequence.write(batch, self.kv.block_len());
            }
        }
        plan
    }
}

/// Groups of kinds there can be.
const GROUPS: usize = 3;
