//! Mixtures of experts: each expert works on the rows that have it, and reads its weights once for all of them.
//!
//! One worker lists the entries of the step (a row of an expert each), experts in the order of their numbers, rows of an
//! expert in theirs. All others phases run over entries or over panels of experts that have some; an expert without
//! rows is not touched. A row's result does not depend on the others: a tile's tokens are independent of each other
//! (see [`gemm`](crate::gemm)), and a row's experts are summed in the order of their numbers.
//!
//! The lists, in words of 32 bits:
//!
//! ```text
//! active   [1 + experts]       how many experts have rows, then their numbers
//! starts   [experts + 1]       first entry of each, and the end
//! rows     [entries]           row of an entry
//! experts  [entries]           expert of an entry
//! counts   [max_rows]          entries of a row
//! places   [max_rows][kept]    the row's entries, in the order of their experts
//! ```

use std::ops::Range;

use super::super::{ActRegion, Matrix, Region, Table};
use super::rows::clear_padding;
use super::{Context, panels_per_claim};
use crate::acts::Glu;
use crate::gemm::Tiles;
use crate::team::{Counter, Worker};

/// A step's lists.
struct Lists<'a> {
    active: &'a [u32],
    starts: &'a [u32],
    rows: &'a [u32],
    experts: &'a [u32],
    counts: &'a [u32],
    places: &'a [u32],
}

impl Table {
    /// Entries at most.
    pub(in crate::plan) fn entries(&self) -> usize {
        self.max_rows * self.kept
    }

    /// Words of all lists.
    pub(in crate::plan) fn words(&self) -> usize {
        self.parts()[5].end
    }

    /// Where each list lies, in the order above.
    fn parts(&self) -> [Range<usize>; 6] {
        let entries = self.entries();
        let mut at = 0;
        [1 + self.experts, self.experts + 1, entries, entries, self.max_rows, entries].map(|len| {
            at += len;
            at - len..at
        })
    }

    fn lists<'a>(&self, words: &'a [u32]) -> Lists<'a> {
        let [active, starts, rows, experts, counts, places] = self.parts().map(|part| &words[part]);
        Lists { active: &active[1..][..active[0] as usize], starts, rows, experts, counts, places }
    }

    /// Lists the entries of `rows` rows by their shares.
    fn fill<'s>(&self, words: &mut [u32], rows: usize, shares: impl Fn(usize) -> &'s [f32]) {
        let [active, starts, row_of, expert_of, counts, places] =
            words.get_disjoint_mut(self.parts()).expect("lists follow each other");
        starts.fill(0);
        for row in 0..rows {
            let own = &mut places[row * self.kept..][..self.kept];
            let mut count = 0;
            for (i, shares) in shares(row).chunks(SKIP).enumerate() {
                if shares.iter().all(|s| *s == 0.0) {
                    continue;
                }
                for (j, _) in shares.iter().enumerate().filter(|(_, s)| **s != 0.0) {
                    // A router keeps no more; were there more, they would have no place.
                    if count < self.kept {
                        own[count] = (i * SKIP + j) as u32;
                        starts[i * SKIP + j + 1] += 1;
                        count += 1;
                    }
                }
            }
            counts[row] = count as u32;
        }
        let mut used = 0;
        for expert in 0..self.experts {
            if starts[expert + 1] > 0 {
                used += 1;
                active[used] = expert as u32;
            }
            starts[expert + 1] += starts[expert];
        }
        active[0] = used as u32;
        for row in 0..rows {
            for place in &mut places[row * self.kept..][..counts[row] as usize] {
                let next = &mut starts[*place as usize];
                let entry = *next as usize;
                *next += 1;
                (row_of[entry], expert_of[entry]) = (row as u32, *place);
                *place = entry as u32;
            }
        }
        // Each start has moved to its expert's end: the next one's start.
        starts.copy_within(..self.experts, 1);
        starts[0] = 0;
    }
}

impl Lists<'_> {
    fn entries(&self) -> usize {
        self.starts[self.starts.len() - 1] as usize
    }

    /// `(first entry, entries)` of an expert.
    fn of(&self, expert: usize) -> (usize, usize) {
        let (start, end) = (self.starts[expert] as usize, self.starts[expert + 1] as usize);
        (start, end - start)
    }

    /// The tile that holds an entry: `(its first entry, the entry's place in it, its entries)`.
    fn tile(&self, entry: usize, size: usize) -> (usize, usize, usize) {
        let (start, count) = self.of(self.experts[entry] as usize);
        let (first, n) = Tiles::new(count, size).of(entry - start);
        (start + first, entry - start - first, n)
    }
}

impl Context<'_> {
    fn lists(&self, table: &Table) -> Lists<'_> {
        // SAFETY: the arena holds the table's words; `dispatch` wrote them in an earlier phase, and nobody else does.
        table.lists(unsafe { std::slice::from_raw_parts(self.arena.cast::<u32>().add(table.at), table.words()) })
    }

    /// Makes the step's lists; one worker's work.
    pub(super) fn dispatch(&self, rows: usize, shares: &Region, table: &Table) {
        // SAFETY: the arena holds the table's words, and only one worker is here.
        let words = unsafe { std::slice::from_raw_parts_mut(self.arena.cast::<u32>().add(table.at), table.words()) };
        table.fill(words, rows, |row| {
            // SAFETY: the region holds this row, which was written in an earlier phase.
            unsafe { std::slice::from_raw_parts(self.row(shares, row), table.experts) }
        });
    }

    /// Packs each entry's row of `x` beside the others of its expert.
    pub(super) fn gather(
        &self,
        x: &Region,
        acts: &[ActRegion],
        fine: bool,
        table: &Table,
        counter: &Counter,
        worker: Worker<'_>,
    ) {
        let lists = self.lists(table);
        self.claim_entries(&lists, counter, worker, |entry| {
            let (first, t, n) = lists.tile(entry, self.plan.kernels.tile);
            let row = self.row(x, lists.rows[entry] as usize);
            acts.iter().for_each(|act| self.pack(row, act, first, (t, n), fine));
        });
    }

    /// Packs each entry of `x` beside the others of its expert.
    pub(super) fn repack(&self, x: &Region, act: &ActRegion, table: &Table, counter: &Counter, worker: Worker<'_>) {
        let lists = self.lists(table);
        self.claim_entries(&lists, counter, worker, |entry| {
            let (first, t, n) = lists.tile(entry, self.plan.kernels.tile);
            // SAFETY: the region holds every entry, and this worker alone has this one.
            unsafe { clear_padding(self.row(x, entry), x) };
            self.pack(self.row(x, entry), act, first, (t, n), false);
        });
    }

    fn claim_entries(&self, lists: &Lists<'_>, counter: &Counter, worker: Worker<'_>, each: impl Fn(usize)) {
        let total = lists.entries();
        worker.claim(counter, total, total.div_ceil(worker.count * 4).clamp(1, 16), |claimed| claimed.for_each(&each));
    }

    /// Gate and up of every expert that has rows.
    pub(super) fn experts_in(
        &self,
        [gate, up]: [&Matrix; 2],
        glu: Glu,
        out: &Region,
        table: &Table,
        counter: &Counter,
        worker: Worker<'_>,
    ) {
        let lists = self.lists(table);
        let bytes = gate.weight.panel_bytes() + up.weight.panel_bytes();
        self.claim_panels(&lists, gate, bytes, counter, worker, |panels, rows| {
            self.gated_panel([gate, up], glu, out, panels, rows);
        });
    }

    /// Down of every expert that has rows.
    pub(super) fn experts_out(
        &self,
        down: &Matrix,
        out: &Region,
        table: &Table,
        counter: &Counter,
        worker: Worker<'_>,
    ) {
        let lists = self.lists(table);
        self.claim_panels(&lists, down, down.weight.panel_bytes(), counter, worker, |panels, rows| {
            self.product_panel(down, out, panels, rows);
        });
    }

    /// Calls `each` with `(panel of the stack, panel of its expert)` and `(first entry, entries)` of the expert.
    fn claim_panels(
        &self,
        lists: &Lists<'_>,
        stack: &Matrix,
        bytes: usize,
        counter: &Counter,
        worker: Worker<'_>,
        each: impl Fn((usize, usize), (usize, usize)),
    ) {
        let panels = stack.weight.panels();
        let total = lists.active.len() * panels;
        worker.claim(counter, total, panels_per_claim(total, bytes, worker.count), |claimed| {
            for i in claimed {
                let (expert, column) = (lists.active[i / panels] as usize, i % panels);
                each((expert * panels + column, column), lists.of(expert));
            }
        });
    }

    /// Sums a row's entries, each times its share.
    pub(super) fn combine(&self, entries: &Region, shares: &Region, table: &Table, out: &Region, row: usize) {
        let lists = self.lists(table);
        let (k, to) = (self.plan.kernels, self.row(out, row));
        let places = &lists.places[row * table.kept..][..lists.counts[row] as usize];
        if places.is_empty() {
            // SAFETY: the region holds this row, which only this worker touches in this phase.
            unsafe { std::ptr::write_bytes(to, 0, out.stride) };
        }
        for (i, entry) in places.iter().map(|p| *p as usize).enumerate() {
            let from = self.row(entries, entry);
            // SAFETY: as above; entries and shares were written in earlier phases, and regions are disjoint.
            unsafe {
                let share = *self.row(shares, row).add(lists.experts[entry] as usize);
                if i == 0 {
                    (k.scale)(from, share, to, out.stride);
                } else {
                    (k.add_scaled)(from, share, to, out.stride);
                }
            }
        }
    }
}

/// Shares that are looked at together: most are zero.
const SKIP: usize = 16;
