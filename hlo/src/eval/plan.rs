//! What is known of a computation before it runs: places of operands, where each is used last, how much work there is.

use std::collections::HashMap;

use crate::op::{Combiner, Direction, Op, comparator};
use crate::{Computation, Id, Module};

#[derive(Debug)]
pub(super) struct Plan {
    /// Of each instruction, the places of its operands.
    pub operands: Vec<Vec<usize>>,
    /// Of each instruction, who uses it last: instruction and operand number.
    pub last_use: Vec<(usize, usize)>,
    /// Of each instruction, elements written and multiplied.
    pub work: Vec<u64>,
    /// Of each instruction, the place of the computation it calls; 0 where it calls none.
    pub called: Vec<usize>,
    pub combiner: Vec<Option<Combiner>>,
    pub order: Vec<Option<Direction>>,
    pub root: usize,
}

impl Plan {
    /// The computation must be verified.
    pub(super) fn new(computation: &Computation, module: &Module) -> Plan {
        let instructions = &computation.instructions;
        let places: HashMap<Id, usize> = instructions.iter().enumerate().map(|(n, i)| (i.id, n)).collect();
        let computations: HashMap<Id, usize> = module.computations.iter().enumerate().map(|(n, c)| (c.id, n)).collect();
        let root = places.get(&computation.root).copied().unwrap_or_default();
        let mut plan = Plan {
            operands: vec![],
            last_use: vec![(usize::MAX, 0); instructions.len()],
            work: vec![],
            called: vec![],
            combiner: vec![],
            order: vec![],
            root,
        };
        // A small cache: combiners are recognised once per computation, however many call it.
        let mut known: HashMap<usize, (Option<Combiner>, Option<Direction>)> = HashMap::new();
        for (n, i) in instructions.iter().enumerate() {
            let operands: Vec<usize> = i.operands.iter().filter_map(|id| places.get(id).copied()).collect();
            for (k, &operand) in operands.iter().enumerate() {
                if operand != root {
                    plan.last_use[operand] = (n, k);
                }
            }
            let called = i.op.called().and_then(|id| computations.get(&id).copied());
            let (combiner, order) = called.map_or((None, None), |c| {
                let callee = &module.computations[c];
                *known.entry(c).or_insert_with(|| (Combiner::of(callee), comparator(callee)))
            });
            plan.called.push(called.unwrap_or_default());
            plan.combiner.push(combiner);
            plan.order.push(order);
            let elements = |n: usize| instructions[n].shape.parts().iter().map(|p| p.elements() as u64).sum::<u64>();
            let mut work = operands.iter().fold(elements(n), |sum, &o| sum.saturating_add(elements(o))).max(1);
            match &i.op {
                Op::Dot(d) => {
                    let depth: u64 = match operands.first().and_then(|&a| instructions[a].shape.array()) {
                        Some(a) => d.lhs_contracting.iter().map(|&c| a.dim(c) as u64).product(),
                        None => 1,
                    };
                    work = work.saturating_add(elements(n).saturating_mul(depth));
                }
                Op::Sort { .. } => work = work.saturating_mul(32),
                // Shared, not written; and what reads little of a large operand.
                Op::Reshape | Op::Copy | Op::Tuple | Op::GetTupleElement(_) => work = 1,
                Op::Gather(_) => {
                    let indices = operands.get(1).map_or(0, |&i| elements(i));
                    work = elements(n).saturating_add(indices).max(1);
                }
                Op::DynamicSlice(_) | Op::Slice(_) => work = elements(n).max(1),
                _ => {}
            }
            plan.work.push(work);
            plan.operands.push(operands);
        }
        plan
    }
}
