//! Cache rows that hold one sequence each, and what idle ones still hold.
//!
//! A row that its sequence has left keeps the sequence's tokens: a prompt that begins with them starts behind what they have
//! in common. Rows are numbered through all classes, in order of the classes' lengths.
//!
//! Invariant: a row is taken by at most one sequence; what is remembered of an idle row is what was written to it, and is
//! forgotten when the row is taken.

use crate::backend::{BlockId, Limits};

/// All rows of one executor.
#[derive(Debug)]
pub struct RowPool {
    rows: Vec<Row>,
    classes: Vec<Class>,
    row_len: usize,
    border: Option<usize>,
    /// Whether prompts may start behind what idle rows hold.
    reuse: bool,
    used: usize,
}

#[derive(Debug)]
struct Row {
    taken: bool,
    /// Tokens whose keys and values it holds; empty while it is taken.
    tokens: Vec<u32>,
    salt: Option<String>,
    /// Whether its keys are those of a long sequence.
    long: bool,
}

#[derive(Debug)]
struct Class {
    start: usize,
    end: usize,
    max_len: usize,
}

/// What a sequence looks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Its prompt.
    pub prompt: &'a [u32],
    /// Prompt and most new tokens.
    pub len: usize,
    /// Whose prefixes it shares.
    pub salt: Option<&'a str>,
    /// Whether it may start behind a prefix.
    pub reuse: bool,
}

/// A row for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub row: BlockId,
    /// Tokens of the prompt that it holds.
    pub prefix: usize,
}

impl RowPool {
    /// Idle rows of `limits.classes`, which are in order of their length and of at most `row_len` tokens. The caller
    /// guarantees that row numbers fit into 32 bits.
    pub fn new(limits: &Limits, row_len: usize, reuse: bool) -> Self {
        let (mut rows, mut classes) = (Vec::new(), Vec::new());
        for class in &limits.classes {
            let start = rows.len();
            let idle = || Row { taken: false, tokens: Vec::with_capacity(class.max_len), salt: None, long: false };
            rows.extend(std::iter::repeat_with(idle).take(class.rows));
            classes.push(Class { start, end: rows.len(), max_len: class.max_len });
        }
        RowPool { rows, classes, row_len, border: limits.rope_border, reuse, used: 0 }
    }

    /// Distance of two rows in slots.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// Rows that a sequence holds.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Idle rows.
    pub fn free(&self) -> usize {
        self.rows.len() - self.used
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// The shortest class that holds a sequence of `len` tokens; the number of classes if none does.
    pub fn class_for(&self, len: usize) -> usize {
        self.classes.partition_point(|class| class.max_len < len)
    }

    /// The idle row of a class before `end` that suits best: the one that holds most of the prompt, the lowest of equals;
    /// without a prefix that is worth it the first of the shortest class. At least one token of the prompt is left to run.
    pub fn find(&self, wish: Wish<'_>, end: usize) -> Option<Found> {
        let mut best: Option<Found> = None;
        for class in self.classes.get(self.class_for(wish.len)..end)? {
            for (i, row) in (class.start..class.end).zip(&self.rows[class.start..class.end]) {
                if row.taken {
                    continue;
                }
                let prefix = self.shared(row, wish);
                if best.is_none_or(|best| prefix > best.prefix) {
                    best = Some(Found { row: BlockId(u32::try_from(i).ok()?), prefix });
                }
            }
        }
        best
    }

    fn shared(&self, row: &Row, wish: Wish<'_>) -> usize {
        if !self.reuse || !wish.reuse || row.salt.as_deref() != wish.salt || row.long != self.is_long(wish.len) {
            return 0;
        }
        let same = wish.prompt.iter().zip(&row.tokens).take_while(|(a, b)| a == b).count();
        let prefix = same.min(wish.prompt.len().saturating_sub(1));
        if prefix < LEAST_REUSED { 0 } else { prefix }
    }

    fn is_long(&self, len: usize) -> bool {
        self.border.is_some_and(|border| len > border)
    }

    /// Gives an idle row to a sequence.
    pub fn take(&mut self, row: BlockId) {
        let row = &mut self.rows[row.0 as usize];
        assert!(!row.taken, "a row belongs to one sequence");
        row.taken = true;
        row.tokens.clear();
        row.salt = None;
        self.used += 1;
    }

    /// Takes the row back from a sequence of `len` tokens at most that has written `tokens` to it.
    pub fn release(&mut self, row: BlockId, tokens: &[u32], len: usize, salt: Option<String>) {
        let long = self.is_long(len);
        let row = &mut self.rows[row.0 as usize];
        assert!(row.taken, "a row is released once");
        row.taken = false;
        row.tokens.extend_from_slice(tokens);
        (row.salt, row.long) = (salt, long);
        self.used -= 1;
    }
}

/// Shorter prefixes are not worth a row out of order.
const LEAST_REUSED: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::RowClass;

    fn pool(border: Option<usize>) -> RowPool {
        let classes = vec![RowClass { rows: 2, max_len: 32 }, RowClass { rows: 1, max_len: 100 }];
        RowPool::new(&Limits { paged: false, classes, rope_border: border, ..Limits::paged(100) }, 100, true)
    }

    fn wish(prompt: &[u32], len: usize) -> Wish<'_> {
        Wish { prompt, len, salt: None, reuse: true }
    }

    fn found(row: u32, prefix: usize) -> Option<Found> {
        Some(Found { row: BlockId(row), prefix })
    }

    #[test]
    fn the_shortest_class_that_holds_a_sequence_comes_first_and_its_lowest_row() {
        let mut pool = pool(None);
        let prompt: Vec<u32> = (0..40).collect();
        assert_eq!(pool.find(wish(&prompt[..20], 32), 2), found(0, 0));
        assert_eq!(pool.find(wish(&prompt, 33), 2), found(2, 0));
        assert_eq!(pool.find(wish(&prompt, 33), 1), None);
        assert_eq!(pool.find(wish(&prompt, 101), 2), None);
        pool.take(BlockId(0));
        assert_eq!(pool.find(wish(&prompt[..20], 32), 2), found(1, 0));
        pool.take(BlockId(1));
        assert_eq!(pool.find(wish(&prompt[..20], 32), 2), found(2, 0), "a longer class where the shorter is full");
        assert_eq!((pool.used(), pool.free()), (2, 1));
    }

    #[test]
    fn the_longest_prefix_wins_and_short_ones_do_not_count() {
        let mut pool = pool(None);
        let text: Vec<u32> = (0..40).collect();
        for (row, len) in [(0, 15), (1, 20), (2, 30)] {
            pool.take(BlockId(row));
            pool.release(BlockId(row), &text[..len], 32, None);
        }
        assert_eq!(pool.find(wish(&text[..25], 32), 2), found(2, 24), "one token is left to run");
        assert_eq!(pool.find(wish(&text[..20], 32), 2), found(1, 19), "the lowest of equals");
        assert_eq!(pool.find(wish(&text[..16], 32), 2), found(0, 0), "15 tokens are too few");
        assert_eq!(pool.find(Wish { reuse: false, ..wish(&text[..25], 32) }, 2), found(0, 0));
        pool.take(BlockId(2));
        pool.release(BlockId(2), &[], 32, None);
        assert_eq!(pool.find(wish(&text[..25], 32), 2), found(1, 20), "what was forgotten is not found");
    }

    #[test]
    fn prefixes_are_shared_by_the_same_salt_on_the_same_side_of_the_border() {
        let mut pool = pool(Some(50));
        let text: Vec<u32> = (0..40).collect();
        pool.take(BlockId(2));
        pool.release(BlockId(2), &text, 60, Some("a".into()));
        let salted = Wish { salt: Some("a"), ..wish(&text, 70) };
        assert_eq!(pool.find(salted, 2), found(2, 39));
        assert_eq!(pool.find(Wish { len: 50, ..salted }, 2), found(2, 0));
        assert_eq!(pool.find(Wish { salt: Some("b"), ..salted }, 2), found(2, 0));
        assert_eq!(pool.find(Wish { salt: None, ..salted }, 2), found(2, 0));
    }
}
