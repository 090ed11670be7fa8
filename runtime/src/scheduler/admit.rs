//! Lets waiting sequences run: into blocks that are free, or into a row of their own.
//!
//! Invariant: nobody overtakes for what somebody before him waits for.

use std::ops::Bound;

use super::{Kinds, Scheduler, Sequence};
use crate::kv::{BlockPool, Kv, RowPool, Wish};

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
            let Some(mut entry) = self.waiting.first_entry() else {
                break;
            };
            if !kinds.admits(entry.get(), &self.limits) {
                break;
            }
            let taken = entry.get_mut().plan(self.limits.chunk.min(room.rows), room.outputs);
            if taken.0 == 0 {
                break;
            }
            // What the running ones will take soon is spoken for, and a block more lets them go on for a while.
            let soon = |pool: &BlockPool, s: &Sequence<J>| pool.blocks_for(s.tokens.len() + 1) - s.blocks.len();
            let spoken: usize = self.running.iter().map(|s| soon(pool, s)).sum();
            let needed = pool.blocks_for(entry.get().tokens.len()) + spoken;
            if !self.running.is_empty() && needed >= pool.free() {
                break;
            }
            let mut sequence = entry.remove();
            self.preempted_waiting -= usize::from(sequence.preemptions > 0);
            let until = pool.blocks_for(sequence.chunk);
            let grown = pool.grow(&mut sequence.blocks, until);
            debug_assert!(grown, "the free blocks were counted");
            room.take(taken);
            self.start(sequence, admitted);
        }
    }

    /// A sequence that finds no row bars its class and the longer ones for all behind it.
    fn admit_to_rows(&mut self, kinds: Kinds, mut room: Room, admitted: &mut impl FnMut(&mut Sequence<J>)) {
        let Kv::Rows(pool) = &self.kv else { return };
        let (mut barred, mut after) = (pool.classes(), Bound::Unbounded);
        while room.rows > 0 && barred > 0 && self.running.len() < self.limits.running {
            let Kv::Rows(pool) = &mut self.kv else { return };
            let next = self.waiting.range_mut((after, Bound::Unbounded)).next().filter(|_| pool.free() > 0);
            let Some((&order, sequence)) = next else {
                break;
            };
            after = Bound::Excluded(order);
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
            if let Some(sequence) = self.waiting.remove(&order) {
                self.start(sequence, admitted);
            }
        }
    }

    fn start(&mut self, mut sequence: Box<Sequence<J>>, admitted: &mut impl FnMut(&mut Sequence<J>)) {
        admitted(&mut sequence);
        let at = self.running.partition_point(|s| s.order < sequence.order);
        self.running.insert(at, sequence);
    }
}

impl<J> Sequence<J> {
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
