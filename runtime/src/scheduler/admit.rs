//! Lets waiting sequences run: into blocks that are free, or into a row of their own.
//!
//! Invariant: nobody overtakes for what somebody before him waits for.

use super::{Kinds, Scheduler, Sequence};
use crate::kv::{BlockPool, Found, Kv, RowPool, Wish};

/// What is left of a step's limits.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub rows: usize,
    pub outputs: usize,
}

impl Room {
    pub fn take(&mut self, taken: (usize, usize)) {
        (self.rows, self.outputs) = (self.rows - taken.0, self.outputs - taken.1);
    }
}

impl<J> Scheduler<J> {
    /// Admits what `kinds` and `room` allow. Of the scheduler's running sequences `room` was taken already.
    pub(super) fn admit(&mut self, kinds: Kinds, room: Room, admitted: &mut impl FnMut(&mut Sequence<J>)) {
        match &self.kv {
            Kv::Blocks(_) => self.admit_to_blocks(kinds, room, admitted),
            Kv::Rows(_) => self.admit_to_rows(kinds, room, admitted),
        }
    }

    fn admit_to_blocks(&mut self, kinds: Kinds, mut room: Room, admitted: &mut impl FnMut(&mut Sequence<J>)) {
        while room.rows > 0 && self.running.len() < self.limits.running {
            let Kv::Blocks(pool) = &mut self.kv else { return };
            let Some(turn) = self.waiting.next(None) else {
                break;
            };
            let Some(sequence) = self.waiting.get_mut(turn.key).filter(|s| kinds.admits(s, &self.limits)) else {
                break;
            };
            let found = sequence.look_up(pool);
            let taken = sequence.plan(self.limits.chunk.min(room.rows), room.outputs);
            // What the running ones will take soon is spoken for, and a block more lets them go on for a while.
            let soon = |s: &Sequence<J>| pool.blocks_for(s.tokens.len() + 1).saturating_sub(s.blocks.len());
            let spoken: usize = self.running.iter().map(|s| soon(s)).sum();
            let needed = pool.blocks_for(sequence.tokens.len()) - found.owned + spoken;
            if taken.0 == 0 || (!self.running.is_empty() && needed >= pool.free()) {
                sequence.forget_found();
                break;
            }
            let Some(mut sequence) = self.waiting.remove(turn.key) else {
                break;
            };
            sequence.blocks.iter().for_each(|block| pool.share(*block));
            if sequence.preemptions == 0 {
                sequence.cached = sequence.computed;
            }
            let until = pool.blocks_for(sequence.computed + sequence.chunk);
            let grown = pool.grow(&mut sequence.blocks, until);
            debug_assert!(grown, "the free blocks were counted");
            room.take(taken);
            self.start(sequence, admitted);
        }
    }

    /// A sequence that finds no row bars its class and the longer ones for all behind it.
    fn admit_to_rows(&mut self, kinds: Kinds, mut room: Room, admitted: &mut impl FnMut(&mut Sequence<J>)) {
        let Kv::Rows(pool) = &self.kv else { return };
        let (mut barred, mut after) = (pool.classes(), None);
        while room.rows > 0 && barred > 0 && self.running.len() < self.limits.running {
            let Kv::Rows(pool) = &mut self.kv else { return };
            let Some(turn) = self.waiting.next(after).filter(|_| pool.free() > 0) else {
                break;
            };
            let Some(sequence) = self.waiting.get_mut(turn.key) else {
                break;
            };
            after = Some(turn);
            let found = match kinds.admits(sequence, &self.limits) {
                true => pool.find(sequence.wish(), barred),
                false => None,
            };
            let Some(found) = found else {
                barred = barred.min(pool.class_for(sequence.max_tokens));
                continue;
            };
            sequence.computed = found.prefix;
            let taken = sequence.plan(self.limits.chunk.min(room.rows), room.outputs);
            if taken.0 == 0 {
                sequence.computed = 0;
                break;
            }
            sequence.cached = found.prefix;
            pool.take(found.row);
            sequence.blocks.push(found.row);
            room.take(taken);
            if let Some(sequence) = self.waiting.remove(turn.key) {
                // It was charged: turns may have changed, what is barred has not.
                after = None;
                self.start(sequence, admitted);
            }
        }
    }

    fn start(&mut self, mut sequence: Box<Sequence<J>>, admitted: &mut impl FnMut(&mut Sequence<J>)) {
        if sequence.preemptions == 0 {
            self.waiting.clients.charge(sequence.client, sequence.prompt_len - sequence.cached, 0);
        }
        admitted(&mut sequence);
        let at = self.running.partition_point(|s| s.order < sequence.order);
        self.running.insert(at, sequence);
    }
}

impl<J> Sequence<J> {
    /// Takes note of the listed blocks that it could start behind; they are not its own yet.
    fn look_up(&mut self, pool: &BlockPool) -> Found {
        let wanted = if self.scores() { self.next_prompt_output } else { usize::MAX };
        let most = (self.tokens.len() - 1).min(wanted) / pool.block_len();
        pool.digest(&mut self.chain, most, &self.tokens, self.salt.as_deref(), self.max_tokens);
        let chain = &self.chain[..most.min(self.chain.len())];
        let found = pool.look_up(chain, &self.tokens, &mut self.blocks);
        self.listed = found.blocks;
        self.computed = found.blocks * pool.block_len();
        found
    }

    fn forget_found(&mut self) {
        self.blocks.clear();
        (self.listed, self.computed, self.chunk) = (0, 0, 0);
    }

    fn wish(&self) -> Wish<'_> {
        Wish { prompt: &self.tokens, len: self.max_tokens, salt: self.salt.as_deref(), reuse: !self.scores() }
    }

    /// Gives its cache back; a row keeps what it has written.
    pub(super) fn release(&mut self, kv: &mut Kv) {
        match kv {
            Kv::Blocks(pool) => pool.release(&mut self.blocks),
            Kv::Rows(pool) => self.release_row(pool),
        }
    }

    fn release_row(&mut self, pool: &mut RowPool) {
        for row in self.blocks.drain(..) {
            pool.release(row, &self.tokens[..self.computed], self.max_tokens, self.salt.take());
        }
    }
}
