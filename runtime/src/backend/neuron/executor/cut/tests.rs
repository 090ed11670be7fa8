use proptest::prelude::*;

use super::*;
use crate::backend::neuron::artifact::tests::layout as small;
use crate::backend::neuron::{CacheShape, ModuleSpec, Part};
use crate::backend::{BlockId, SeqSpan};

/// Two classes: 4 rows of 40 positions, 2 of 100.
fn layout() -> Layout {
    let (short, long) = (CacheShape { rows: 4, positions: 40 }, CacheShape { rows: 2, positions: 100 });
    let spec = |class, kind, len| ModuleSpec::of(class, kind, len);
    let mut modules = vec![];
    for (class, lens) in [(short, [16, 40]), (long, [40, 100])] {
        for len in lens {
            for batch in [1, class.rows] {
                modules.push(spec(class, ModuleKind::Decode { batch }, len));
            }
            for tokens in [4, 8] {
                modules.push(spec(class, ModuleKind::Prefill { tokens }, len));
            }
        }
        modules.push(spec(class, ModuleKind::Score { tokens: 4 }, class.positions));
    }
    Layout { classes: vec![short, long], modules, context: 90, ..small() }
}

/// The same classes, decoded together at two levels and beside them the longer one by itself.
fn together() -> Layout {
    let alone = layout();
    let [short, long] = alone.classes[..] else { unreachable!() };
    let part = |class, rows, len| Part { class, rows, len };
    let mut modules = alone.modules.clone();
    modules.retain(|m| !matches!(m.kind, ModuleKind::Decode { .. }));
    modules.push(ModuleSpec::decode(vec![part(short, 4, 40), part(long, 2, 100)]));
    modules.push(ModuleSpec::decode(vec![part(short, 2, 16), part(long, 2, 40)]));
    modules.push(ModuleSpec::of(long, ModuleKind::Decode { batch: 2 }, 40));
    Layout { modules, ..alone }
}

/// Sequences as (block, tokens before, tokens now, output of the last).
fn batch(seqs: &[(u32, usize, usize, bool)], wants: Wants) -> Batch {
    let mut b = Batch { wants, ..Batch::default() };
    for &(block, before, now, output) in seqs {
        let first = b.tokens.len();
        for position in before..before + now {
            b.tokens.push(position as u32);
            b.positions.push(position as u32);
            b.slots.push(block * 90 + position as u32);
        }
        let table = b.tables.len()..b.tables.len() + 1;
        b.tables.push(BlockId(block));
        b.seqs.push(SeqSpan { rows: first..first + now, context: before + now, table, rope_len: before + now });
        if output {
            b.outputs.push((first + now - 1) as u32);
        }
    }
    b
}

fn kinds(b: &Batch) -> Result<Vec<(ModuleKind, usize, Vec<usize>)>, StepError> {
    kinds_in(&layout(), b)
}

fn kinds_in(layout: &Layout, b: &Batch) -> Result<Vec<(ModuleKind, usize, Vec<usize>)>, StepError> {
    let mut cut = Cut::default();
    cut.cut(b, &Buckets::new(layout))?;
    let call = |c: &Call| {
        let spec = &layout.modules[c.module];
        (spec.kind, spec.longest(), cut.lines[c.lines.clone()].iter().map(|l| l.row).collect())
    };
    Ok(cut.calls.iter().map(call).collect())
}

#[test]
fn rows_of_a_class_decode_together_in_the_smallest_bucket_that_covers_them() {
    let decode = |batch| ModuleKind::Decode { batch };
    let one = batch(&[(0, 16, 1, true)], Wants::Tokens);
    assert_eq!(kinds(&one).unwrap(), [(decode(1), 16, vec![0])], "a sequence of exactly the bucket's length");
    let longer = batch(&[(0, 17, 1, true)], Wants::Tokens);
    assert_eq!(kinds(&longer).unwrap(), [(decode(1), 40, vec![0])]);
    let mixed = batch(&[(5, 50, 1, true), (2, 3, 1, true), (1, 20, 1, true)], Wants::Tokens);
    assert_eq!(kinds(&mixed).unwrap(), [(decode(4), 40, vec![1, 2]), (decode(2), 100, vec![1])]);
}

#[test]
fn rows_of_all_classes_decode_together_numbered_through_them() {
    let decode = |batch| ModuleKind::Decode { batch };
    let kinds = |seqs: &[(u32, usize, usize, bool)]| kinds_in(&together(), &batch(seqs, Wants::Tokens)).unwrap();
    assert_eq!(kinds(&[(5, 40, 1, true), (1, 16, 1, true), (0, 3, 1, true)]), [(decode(4), 40, vec![0, 1, 3])]);
    assert_eq!(kinds(&[(5, 40, 1, true), (2, 16, 1, true)]), [(decode(6), 100, vec![2, 5])], "a row too many");
    assert_eq!(kinds(&[(4, 41, 1, true), (0, 3, 1, true)]), [(decode(6), 100, vec![0, 4])], "a position too many");
    // One class alone: what reads least has it.
    assert_eq!(kinds(&[(1, 9, 1, true)]), [(decode(4), 40, vec![1])]);
    assert_eq!(kinds(&[(4, 9, 1, true)]), [(decode(2), 40, vec![0])]);
    assert_eq!(kinds(&[(4, 59, 1, true)]), [(decode(6), 100, vec![4])]);
    assert_eq!(Buckets::new(&together()).row_classes(), Buckets::new(&layout()).row_classes());
}

#[test]
fn a_chunk_takes_the_smallest_bucket_that_holds_it_and_several_where_none_does() {
    let prefill = |tokens| ModuleKind::Prefill { tokens };
    let cases = [
        (batch(&[(0, 0, 4, true)], Wants::Tokens), vec![(prefill(4), 16, vec![0])]),
        (batch(&[(3, 0, 5, true)], Wants::Tokens), vec![(prefill(8), 16, vec![3])]),
        (
            batch(&[(3, 10, 17, true)], Wants::Tokens),
            vec![(prefill(8), 16, vec![3]), (prefill(8), 40, vec![3]), (prefill(4), 40, vec![3])],
        ),
        (batch(&[(4, 0, 6, true)], Wants::Logits), vec![(ModuleKind::Score { tokens: 4 }, 100, vec![0]); 2]),
        (batch(&[(4, 0, 6, false)], Wants::Logits), vec![(prefill(8), 40, vec![0])]),
    ];
    for (batch, expected) in cases {
        assert_eq!(kinds(&batch).unwrap(), expected);
    }
}

#[test]
fn what_no_row_holds_is_refused() {
    let max = Buckets::new(&layout()).row_classes();
    assert_eq!(max, [RowClass { rows: 4, max_len: 36 }, RowClass { rows: 2, max_len: 90 }]);
    assert!(matches!(kinds(&batch(&[(0, 36, 1, true)], Wants::Tokens)), Err(StepError::Batch(_))));
    assert!(matches!(kinds(&batch(&[(6, 0, 1, true)], Wants::Tokens)), Err(StepError::Batch(_))));
    assert!(kinds(&batch(&[(0, 35, 1, true)], Wants::Tokens)).is_ok());
}

proptest! {
    #[test]
    fn every_token_runs_once_within_its_row_and_every_output_is_found(
        seqs in proptest::collection::vec((0usize..90, 1usize..40, any::<bool>()), 1..6), logits in any::<bool>(),
        joint in any::<bool>(),
    ) {
        let layout = if joint { together() } else { layout() };
        let classes = Buckets::new(&layout).row_classes();
        let seqs: Vec<_> = seqs.iter().enumerate().map(|(i, &(before, now, output))| {
            let max = if i < 4 { classes[0].max_len } else { classes[1].max_len };
            let before = before % max;
            (i as u32, before, now.min(max - before), output)
        }).collect();
        let b = batch(&seqs, if logits { Wants::Logits } else { Wants::Tokens });
        let mut cut = Cut::default();
        cut.cut(&b, &Buckets::new(&layout)).unwrap();
        let (mut ran, mut found) = (vec![0; b.rows()], vec![0; b.outputs.len()]);
        for call in &cut.calls {
            let spec = &layout.modules[call.module];
            for line in &cut.lines[call.lines.clone()] {
                line.tokens.clone().for_each(|t| ran[t] += 1);
                line.outputs.clone().for_each(|o| found[o] += 1);
                let start = b.positions[line.tokens.start] as usize;
                let block = b.tables[b.seqs[line.seq].table.start].0 as usize;
                let (class, row) = if block < 4 { (layout.classes[0], block) } else { (layout.classes[1], block - 4) };
                let part = spec.part(class).unwrap();
                prop_assert!(start <= part.len);
                match spec.kind {
                    ModuleKind::Decode { .. } => {
                        let before = spec.parts.iter().take_while(|p| p.class != class).map(|p| p.rows).sum::<usize>();
                        prop_assert!(line.row == before + row && row < part.rows && line.tokens.len() == 1);
                        // The last position is the idle rows'.
                        prop_assert!(start + 1 < class.positions);
                    }
                    kind => {
                        prop_assert!(line.row == row && line.tokens.len() <= kind.tokens());
                        prop_assert!(start + kind.tokens() <= class.positions);
                    }
                }
                if matches!(spec.kind, ModuleKind::Prefill { .. }) && !line.outputs.is_empty() {
                    prop_assert_eq!(b.outputs[line.outputs.start] as usize, line.tokens.end - 1);
                }
            }
        }
        prop_assert!(ran.iter().all(|n| *n == 1) && found.iter().all(|n| *n == 1));
    }
}
