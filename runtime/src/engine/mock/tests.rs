//! The mock itself: a batch that breaks the engine's books is noticed.

use super::super::tests::{VOCAB, capacity};
use super::*;
use crate::backend::BlockId;

#[test]
fn the_mock_notices_broken_batches() {
    let table = [BlockId(2), BlockId(5)];
    let span = |rows: std::ops::Range<usize>, context: usize, table: std::ops::Range<usize>| SeqSpan {
        rows,
        context,
        table,
        rope_len: 20,
    };
    let good = Batch {
        tokens: vec![1, 2, 3, 4, 5],
        positions: vec![0, 1, 2, 3, 4],
        slots: vec![8, 9, 10, 11, 20],
        seqs: vec![span(0..5, 5, 0..2)],
        tables: table.to_vec(),
        outputs: vec![4],
        ..Batch::default()
    };
    // Continues the sequence.
    let next = Batch {
        tokens: vec![6],
        positions: vec![5],
        slots: vec![21],
        seqs: vec![span(0..1, 6, 0..2)],
        tables: table.to_vec(),
        outputs: vec![0],
        ..Batch::default()
    };
    let fresh = || MockExecutor::new(capacity(), VOCAB);
    let mut mock = fresh();
    mock.submit(&good).unwrap();
    mock.submit(&next).unwrap();
    assert!(fresh().submit(&next).is_err(), "an unwritten cache");
    let broken: [fn(&mut Batch); 9] = [
        |b| b.positions[0] = 4,
        |b| b.slots[0] = 22,
        |b| b.tables[0] = BlockId(3),
        |b| b.tables[1] = BlockId(2),
        |b| b.tables.truncate(1),
        |b| b.seqs[0].context = 7,
        |b| b.seqs[0].table = 0..1,
        |b| b.outputs = vec![1],
        |b| b.tokens[0] = 61,
    ];
    for (i, break_it) in broken.iter().enumerate() {
        let (mut mock, mut batch) = (fresh(), next.clone());
        mock.submit(&good).unwrap();
        break_it(&mut batch);
        assert!(mock.submit(&batch).is_err(), "case {i}");
    }
    // A foreign entry: another sequence has written to one of its blocks.
    let mut mock = fresh();
    mock.submit(&good).unwrap();
    let other = Batch {
        tokens: vec![9],
        positions: vec![0],
        slots: vec![8],
        seqs: vec![span(0..1, 1, 0..1)],
        tables: vec![BlockId(2)],
        outputs: vec![0],
        ..Batch::default()
    };
    mock.submit(&other).unwrap();
    assert!(mock.submit(&next).is_err());
}
