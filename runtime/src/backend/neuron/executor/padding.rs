//! What the modules of a step compute for nobody: rows of a bucket without a sequence, and positions that its sequences do
//! not have.
//!
//! A module's work is that of its shapes, one of each class, filled or not. Invariant: a step's padding and the work of its batch are the work of
//! the modules that ran, weights apart; where a bucket's shapes are no more than its rows, nothing is padding.

use crate::backend::neuron::ModuleSpec;
use crate::backend::neuron::interface::ModuleKind;
use crate::backend::{Batch, Cost, CostModel, Padding};

use super::cut::{Cut, Line};

/// What a module computes of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    seqs: usize,
    /// Rows of each.
    rows: usize,
    /// Positions before them that it reads.
    context: usize,
    /// Outputs of each sequence.
    outputs: usize,
}

impl Shape {
    /// Those of a module.
    pub fn of(spec: &ModuleSpec) -> Vec<Shape> {
        let (rows, outputs) = match spec.kind {
            ModuleKind::Decode { .. } => (1, 1),
            ModuleKind::Prefill { tokens } => (tokens, 1),
            ModuleKind::Score { tokens } => (tokens, tokens),
        };
        spec.parts.iter().map(|part| Shape { seqs: part.rows, rows, context: part.len, outputs }).collect()
    }

    fn cost(&self, costs: &CostModel) -> Cost {
        let one = costs.cost(self.context, self.rows, self.outputs);
        let all = self.seqs as f64;
        Cost { flops: all * one.flops, kv_bytes: all * one.kv_bytes, weight_bytes: 0.0 }
    }
}

/// Of a step that was cut.
pub fn of(cut: &Cut, batch: &Batch, shapes: &[Vec<Shape>], costs: &CostModel) -> Padding {
    let mut padding = Padding::default();
    for call in &cut.calls {
        let Some(shapes) = shapes.get(call.module) else { continue };
        let (mut rows, mut used) = (0, Cost::default());
        for line in &cut.lines[call.lines.clone()] {
            let cost = line_cost(line, batch, costs);
            rows += line.tokens.len();
            used.flops += cost.flops;
            used.kv_bytes += cost.kv_bytes;
        }
        let (mut all, mut computed) = (Cost::default(), 0);
        for shape in shapes {
            let cost = shape.cost(costs);
            (all.flops, all.kv_bytes) = (all.flops + cost.flops, all.kv_bytes + cost.kv_bytes);
            computed += shape.seqs * shape.rows;
        }
        padding.rows += computed.saturating_sub(rows);
        padding.cost.flops += (all.flops - used.flops).max(0.0);
        padding.cost.kv_bytes += (all.kv_bytes - used.kv_bytes).max(0.0);
    }
    padding
}

fn line_cost(line: &Line, batch: &Batch, costs: &CostModel) -> Cost {
    let span = &batch.seqs[line.seq];
    let before = span.context - (span.rows.end - line.tokens.start);
    costs.cost(before, line.tokens.len(), line.outputs.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::neuron::CacheShape;
    use crate::backend::neuron::artifact::Layout;
    use crate::backend::neuron::artifact::tests::layout as small;
    use crate::backend::neuron::executor::cut::Buckets;
    use crate::backend::{BlockId, KvType, SeqSpan, Wants};

    /// Four rows of 40 positions; decodes of one and four, chunks of eight.
    fn layout() -> Layout {
        let class = CacheShape { rows: 4, positions: 40 };
        let spec = |kind| ModuleSpec::of(class, kind, 40);
        let modules = vec![
            spec(ModuleKind::Decode { batch: 1 }),
            spec(ModuleKind::Decode { batch: 4 }),
            spec(ModuleKind::Prefill { tokens: 8 }),
        ];
        Layout { classes: vec![class], modules, context: 30, ..small() }
    }

    /// Sequences as (block, tokens before, tokens now).
    fn padding(seqs: &[(u32, usize, usize)]) -> (Padding, Cost, f64) {
        let program = njoule_models::checkpoint::Checkpoint::random("synth-1b").unwrap().config.program();
        let costs = CostModel::new(&program, 0.0, KvType::F32);
        let mut b = Batch { wants: Wants::Tokens, ..Batch::default() };
        let mut used = Cost::default();
        for &(block, before, now) in seqs {
            let first = b.tokens.len();
            b.tokens.extend((before..before + now).map(|p| p as u32));
            let table = b.tables.len()..b.tables.len() + 1;
            b.tables.push(BlockId(block));
            b.seqs.push(SeqSpan { rows: first..first + now, context: before + now, table, rope_len: before + now });
            b.outputs.push((first + now - 1) as u32);
            let cost = costs.cost(before, now, 1);
            used.flops += cost.flops;
            used.kv_bytes += cost.kv_bytes;
        }
        let (layout, mut cut) = (layout(), Cut::default());
        cut.cut(&b, &Buckets::new(&layout)).unwrap();
        let shapes: Vec<Vec<Shape>> = layout.modules.iter().map(Shape::of).collect();
        let ran: f64 = cut.calls.iter().flat_map(|call| &shapes[call.module]).map(|s| s.cost(&costs).flops).sum();
        (of(&cut, &b, &shapes, &costs), used, ran)
    }

    #[test]
    fn rows_and_positions_beyond_the_batch_are_padding() {
        // Row 0 and row 2: the bucket of four has two rows too many, and the short ones read too far.
        let (two, used, ran) = padding(&[(0, 5, 1), (2, 9, 1)]);
        assert_eq!(two.rows, 2);
        assert!((two.cost.flops + used.flops - ran).abs() <= 1e-9 * ran, "{two:?} {used:?} {ran}");
        assert!(two.cost.kv_bytes > 0.0);
        // A chunk of five in a bucket of eight, and a decode beside it.
        let (mixed, used, ran) = padding(&[(1, 0, 5), (0, 3, 1)]);
        assert_eq!(mixed.rows, 3);
        assert!((mixed.cost.flops + used.flops - ran).abs() <= 1e-9 * ran, "{mixed:?} {used:?} {ran}");
    }

    #[test]
    fn a_bucket_that_is_filled_has_none_but_of_positions() {
        let (all, ..) = padding(&[(0, 29, 1), (1, 29, 1), (2, 29, 1), (3, 29, 1)]);
        let (shorter, ..) = padding(&[(0, 9, 1), (1, 9, 1), (2, 9, 1), (3, 9, 1)]);
        assert_eq!((all.rows, shorter.rows), (0, 0));
        assert!(all.cost.flops < shorter.cost.flops, "{all:?} {shorter:?}");
    }
}
