//! What decode steps need of all classes at once: the spans of a replay, one class beside another.
//!
//! Searches ask this of thousands of replays, so a step costs little: a class is looked at where its need changes, and steps
//! that need the same have the same number, which stands for whatever is worked out of them.

use super::replay::Replay;
use super::uses::Span;
use crate::backend::neuron::decodes::Need;

/// Rows and lengths, ascending, that those of a class's decode steps are rounded up to; as they are beyond the last.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// Of rows.
    pub rows: Vec<usize>,
    /// Of lengths.
    pub lens: Vec<usize>,
}

impl Replay {
    /// What decode steps need of all classes at once, rounded up to `marks`, with how many rounds in a row do. The first
    /// argument is the number of the need: from 0, in the order in which they are met.
    pub fn steps(&self, marks: &[Marks], mut each: impl FnMut(usize, &[Need], u64)) {
        let mut lanes: Vec<Course<'_>> =
            self.lanes.iter().zip(marks).map(|(lane, marks)| Course { spans: lane.spans(), marks }).collect();
        let mut needs = vec![Need::default(); lanes.len()];
        let mut until = vec![0; lanes.len()];
        let mut known = Known::new(lanes.len());
        let (mut round, mut hash, mut busy) = (0, 0_u64, 0);
        let last = self.lanes.iter().filter_map(|l| l.spans().last()).map(|s| s.until).max().unwrap_or(0);
        while round < last {
            let (mut next, mut class) = (last, 0);
            for until in &mut until {
                if *until <= round {
                    let need = &mut needs[class];
                    hash = hash.wrapping_sub(mixed(class, *need));
                    busy -= usize::from(need.rows > 0);
                    (*need, *until) = lanes[class].at(round);
                    busy += usize::from(need.rows > 0);
                    hash = hash.wrapping_add(mixed(class, *need));
                }
                if *until < next {
                    next = *until;
                }
                class += 1;
            }
            if busy > 0 {
                each(known.number(hash, &needs), &needs, next - round);
            }
            round = next;
        }
    }
}

/// What is left of a class's spans.
struct Course<'a> {
    spans: &'a [Span],
    marks: &'a Marks,
}

impl Course<'_> {
    /// What is needed in `round`, no earlier than the last one that was asked for, and the round in which that changes.
    fn at(&mut self, round: u64) -> (Need, u64) {
        while let [span, rest @ ..] = self.spans {
            if span.until > round {
                if span.from > round {
                    return (Need::default(), span.from);
                }
                let context = span.context(round);
                let len = up(&self.marks.lens, context);
                let need = Need { rows: up(&self.marks.rows, span.rows), len };
                let passed = round + (len - context) as u64 + 1;
                return (need, if passed < span.until { passed } else { span.until });
            }
            self.spans = rest;
        }
        (Need::default(), u64::MAX)
    }
}

/// The first of `marks` that is no less.
pub fn up(marks: &[usize], n: usize) -> usize {
    match marks.get(place(marks, n)) {
        Some(mark) => *mark,
        None => n,
    }
}

/// How many of `marks` are less.
pub fn place(marks: &[usize], n: usize) -> usize {
    let (mut low, mut high) = (0, marks.len());
    while low < high {
        let middle = (low + high) / 2;
        match marks[middle] < n {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    low
}

/// Numbers of needs, by hash.
struct Known {
    classes: usize,
    needs: Vec<Need>,
    hashes: Vec<u64>,
    /// Numbers and 1, by the last bits of their hashes or the next free place; a power of two, half of them free.
    slots: Vec<usize>,
}

impl Known {
    fn new(classes: usize) -> Known {
        Known { classes, needs: vec![], hashes: vec![], slots: vec![0; 64] }
    }

    fn number(&mut self, hash: u64, needs: &[Need]) -> usize {
        let mut slot = self.slot(hash);
        while let Some(number) = self.slots[slot].checked_sub(1) {
            if self.hashes[number] == hash && self.needs[number * self.classes..][..self.classes] == *needs {
                return number;
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        let number = self.hashes.len();
        self.slots[slot] = number + 1;
        self.hashes.push(hash);
        self.needs.extend_from_slice(needs);
        if self.hashes.len() * 2 > self.slots.len() {
            self.grow();
        }
        number
    }

    fn slot(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.slots.len() - 1)
    }

    fn grow(&mut self) {
        self.slots = vec![0; self.slots.len() * 4];
        for number in 0..self.hashes.len() {
            let mut slot = self.slot(self.hashes[number]);
            while self.slots[slot] > 0 {
                slot = (slot + 1) & (self.slots.len() - 1);
            }
            self.slots[slot] = number + 1;
        }
    }
}

/// A class's part of a hash.
fn mixed(class: usize, need: Need) -> u64 {
    let whole = (class as u64) << 48 ^ (need.rows as u64) << 28 ^ need.len as u64;
    let whole = whole.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (whole ^ whole >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}
