//! Which activations are split: found from the end of the program to its beginning, then settled from the beginning on.
//!
//! An op asks of its inputs what it can work with; what splits by itself (attention by its heads, logits by the vocabulary)
//! asks for just that. An activation that some op needs split and another whole is split, and gathered for the other.

use std::collections::BTreeSet;
use std::sync::Arc;

use njoule_models::program::*;

use super::split::{Heads, Split};
use super::{Layout, Order, Part, ShardError, Sharded};

/// What the readers of an activation can work with.
#[derive(Clone, Debug, PartialEq)]
enum Want {
    /// It has none yet.
    Nothing,
    /// However it is made.
    Any,
    Whole,
    Split(Arc<Split>),
}

struct Flow<'a> {
    program: &'a Program,
    tp: usize,
    wants: Vec<Want>,
    /// By cache.
    heads: Vec<Option<Heads>>,
    layouts: Vec<Layout>,
    parts: Vec<Option<Part>>,
    reduced: BTreeSet<Val>,
}

pub(super) fn divide(program: &Program, tp: usize) -> Result<Sharded, ShardError> {
    let mut flow = Flow {
        program,
        tp,
        wants: vec![Want::Nothing; program.vals.len()],
        heads: vec![None; program.caches.len()],
        layouts: vec![None; program.vals.len()],
        parts: vec![None; program.weights.len()],
        reduced: BTreeSet::new(),
    };
    let logits = Arc::new(Split::vocabulary(program.vocab(), tp));
    flow.wants[program.logits.0 as usize] = Want::Split(logits);
    for (index, op) in program.ops.iter().enumerate().rev() {
        flow.ask(index, op)?;
    }
    for (index, op) in program.ops.iter().enumerate() {
        flow.settle(index, op)?;
    }
    Ok(flow.finish())
}

impl Flow<'_> {
    fn want(&self, val: Val) -> &Want {
        &self.wants[val.0 as usize]
    }

    fn layout(&self, val: Val) -> &Layout {
        &self.layouts[val.0 as usize]
    }

    fn fail(&self, index: usize, what: &str) -> ShardError {
        ShardError::Op { index, op: self.program.ops[index].name(), tp: self.tp, what: what.to_owned() }
    }

    fn request(&mut self, index: usize, val: Val, want: Want) -> Result<(), ShardError> {
        let before = self.want(val).clone();
        self.wants[val.0 as usize] = match (before, want) {
            (Want::Nothing, want) | (want, Want::Nothing) => want,
            (Want::Split(a), Want::Split(b)) if a != b => {
                return Err(self.fail(index, "another op divides its input differently"));
            }
            (split @ Want::Split(_), _) | (_, split @ Want::Split(_)) => split,
            (Want::Any, Want::Any) => Want::Any,
            _ => Want::Whole,
        };
        Ok(())
    }

    /// What a product of `weight` makes of the wish for its output: the rows a core has, or nothing if all.
    fn column(&self, weight: WeightId, out: Val) -> Layout {
        let decl = self.program.weight(weight);
        match self.want(out) {
            Want::Split(split) => Some(Arc::clone(split)),
            Want::Any if decl.parallel == Parallel::Column => Some(Arc::new(Split::even(decl.rows, self.tp))),
            Want::Nothing | Want::Any | Want::Whole => None,
        }
    }

    fn ask(&mut self, index: usize, op: &Op) -> Result<(), ShardError> {
        let whole = |want: &Want| match want {
            Want::Split(split) => Want::Split(Arc::clone(split)),
            _ => Want::Whole,
        };
        match op {
            Op::Embed { .. } => {}
            Op::Norm { x, out, .. } | Op::Rope { x, out, .. } => {
                let want = whole(self.want(*out));
                self.request(index, *x, want)?;
            }
            Op::AddNorm { x, delta, .. } => {
                self.request(index, *x, Want::Whole)?;
                self.request(index, *delta, Want::Whole)?;
            }
            Op::LinearN { x, parts } => {
                let row = parts.iter().all(|p| self.column(p.weight, p.out).is_none());
                self.request(index, *x, if row { Want::Any } else { Want::Whole })?;
            }
            Op::JoinHeads { x, y, lengths: [a, b], out } => {
                let heads = match self.want(*out) {
                    Want::Split(split) if split.is_of_units(a + b) => Some(split.units(a + b)),
                    _ => None,
                };
                let of_heads =
                    |len: usize| heads.as_ref().map_or(Want::Whole, |heads| Want::Split(Arc::new(heads.times(len))));
                let (of_x, of_y) =
                    (of_heads(*a), if self.program.info(*y).cols == *b { Want::Whole } else { of_heads(*b) });
                self.request(index, *x, of_x)?;
                self.request(index, *y, of_y)?;
            }
            Op::GatedMlpIn { x, .. } | Op::Route { x, .. } => self.request(index, *x, Want::Whole)?,
            Op::MoeMlp { x, shares, .. } => {
                self.request(index, *x, Want::Whole)?;
                self.request(index, *shares, Want::Whole)?;
            }
            Op::Act { x, out, .. }
            | Op::Scale { x, out, .. }
            | Op::Softcap { x, out, .. }
            | Op::Clamp { x, out, .. }
            | Op::TakeOutputs { x, out } => {
                let want = self.want(*out).clone();
                self.request(index, *x, want)?;
            }
            Op::Add { x, y, out } | Op::Mul { x, y, out } => {
                let want = self.want(*out).clone();
                let of_y =
                    if self.program.info(*y).cols == self.program.info(*out).cols { want.clone() } else { Want::Whole };
                self.request(index, *x, want)?;
                self.request(index, *y, of_y)?;
            }
            Op::Attend { q, k, v, cache, heads, .. } => {
                let info = self.program.caches[cache.0 as usize];
                let group = heads / info.kv_heads;
                let heads = Split::heads(info.kv_heads, group, [info.k_dim, info.v_dim], self.tp);
                for (val, split) in [(q, &heads.queries), (k, &heads.keys), (v, &heads.values)] {
                    self.request(index, *val, Want::Split(Arc::new(split.clone())))?;
                }
                self.heads[cache.0 as usize] = Some(heads);
            }
        }
        Ok(())
    }

    fn settle(&mut self, index: usize, op: &Op) -> Result<(), ShardError> {
        match op {
            Op::Embed { table, index: by, out } => {
                let decl = self.program.weight(*table);
                let split = decl.parallel == Parallel::Column && *by == EmbedIndex::Tokens;
                let rows = split.then(|| Arc::new(Split::vocabulary(decl.rows, self.tp)));
                if split {
                    self.reduce(*out);
                }
                self.part(*table, Part { members: None, rows, cols: None, order: Order::OutIn })?;
            }
            Op::Norm { x, norm, group, out } => {
                let cols = self.program.info(*x).cols;
                let split = self.layout(*x).clone().filter(|split| match group {
                    NormGroup::Row => norm.kind == NormKind::Rms || self.tp == 1,
                    NormGroup::Head(len) => split.is_of_units(*len),
                });
                for weight in norm.weights() {
                    let decl = self.program.weight(weight);
                    if decl.experts.is_some() {
                        // A vector for each head: a core has those of its heads.
                        let members = split.as_ref().map(|split| Arc::new(split.units(decl.cols)));
                        self.part(weight, Part { members, rows: None, cols: None, order: Order::Vector })?;
                        continue;
                    }
                    let own = decl.cols == cols;
                    self.vector(weight, split.clone().filter(|_| own))?;
                }
                self.layouts[out.0 as usize] = split;
            }
            Op::AddNorm { norm, .. } => {
                for weight in norm.weights() {
                    self.vector(weight, None)?;
                }
            }
            Op::LinearN { x, parts } => self.linear(*x, parts)?,
            Op::GatedMlpIn { gate, up, gate_bias, up_bias, out, .. } => {
                let rows = self.column(*gate, *out);
                for (weight, bias) in [(gate, gate_bias), (up, up_bias)] {
                    self.part(*weight, Part { members: None, rows: rows.clone(), cols: None, order: Order::InOut })?;
                    bias.map_or(Ok(()), |bias| self.vector(bias, rows.clone()))?;
                }
                self.layouts[out.0 as usize] = rows;
            }
            Op::Rope { x, head_dim, out, .. } => {
                let split = self.layout(*x).clone().filter(|split| split.is_of_units(*head_dim));
                self.layouts[out.0 as usize] = split;
            }
            Op::Act { x, out, .. }
            | Op::Scale { x, out, .. }
            | Op::Softcap { x, out, .. }
            | Op::Clamp { x, out, .. }
            | Op::TakeOutputs { x, out } => self.layouts[out.0 as usize] = self.layout(*x).clone(),
            Op::Add { x, y, out } | Op::Mul { x, y, out } => {
                let whole_row = self.program.info(*y).cols != self.program.info(*out).cols;
                let same = whole_row || self.layout(*x) == self.layout(*y);
                self.layouts[out.0 as usize] = self.layout(*x).clone().filter(|_| same);
            }
            Op::Attend { q, k, v, cache, sinks, out, .. } => {
                let Some(heads) = self.heads[cache.0 as usize].clone() else { return Ok(()) };
                for (val, split, what) in
                    [(q, &heads.queries, "queries"), (k, &heads.keys, "keys"), (v, &heads.values, "values")]
                {
                    if self.layout(*val).as_deref() != Some(split) {
                        return Err(self.fail(index, &format!("its {what} do not come from a matrix product by heads")));
                    }
                }
                sinks.map_or(Ok(()), |sinks| self.vector(sinks, Some(Arc::new(heads.each))))?;
                self.layouts[out.0 as usize] = Some(Arc::new(heads.mixed));
            }
            Op::Route { routing, .. } => routing.bias.map_or(Ok(()), |bias| self.vector(bias, None))?,
            Op::JoinHeads { x, y, lengths: [a, b], out } => {
                let heads = self.layout(*x).as_ref().filter(|split| split.is_of_units(*a)).map(|split| split.units(*a));
                let one = self.program.info(*y).cols == *b;
                let fits = |heads: &Split| one || self.layout(*y).as_deref() == Some(&heads.times(*b));
                let joined = heads.filter(fits).map(|heads| Arc::new(heads.times(a + b)));
                self.layouts[out.0 as usize] = joined;
            }
            Op::MoeMlp { gate, up, down, out, .. } => {
                let inner = Arc::new(Split::even(self.program.weight(gate.weight).rows, self.tp));
                for w in [gate, up] {
                    self.part(
                        w.weight,
                        Part { members: None, rows: Some(Arc::clone(&inner)), cols: None, order: Order::InOut },
                    )?;
                    w.bias.map_or(Ok(()), |bias| self.vector(bias, Some(Arc::clone(&inner))))?;
                }
                self.part(down.weight, Part { members: None, rows: None, cols: Some(inner), order: Order::OutIn })?;
                down.bias.map_or(Ok(()), |bias| self.vector(bias, None))?;
                self.reduce(*out);
            }
        }
        for out in op.outputs() {
            if let Want::Split(want) = self.want(out)
                && self.layout(out).as_ref() != Some(want)
            {
                return Err(self.fail(index, "a later op needs its result divided, which it cannot make"));
            }
        }
        Ok(())
    }

    fn linear(&mut self, x: Val, parts: &[LinearPart]) -> Result<(), ShardError> {
        let columns: Vec<Layout> = parts.iter().map(|p| self.column(p.weight, p.out)).collect();
        let row = self.layout(x).clone().filter(|split| split.copies == 1 && columns.iter().all(Option::is_none));
        for (LinearPart { weight, bias, out }, rows) in parts.iter().zip(columns) {
            let table = self.program.weight(*weight).usage == WeightUse::Vocabulary;
            let order = if table || row.is_some() { Order::OutIn } else { Order::InOut };
            self.part(*weight, Part { members: None, rows: rows.clone(), cols: row.clone(), order })?;
            bias.map_or(Ok(()), |bias| self.vector(bias, rows.clone()))?;
            if row.is_some() {
                self.reduce(*out);
            }
            self.layouts[out.0 as usize] = rows;
        }
        Ok(())
    }

    fn reduce(&mut self, val: Val) {
        if self.tp > 1 {
            self.reduced.insert(val);
        }
    }

    fn vector(&mut self, weight: WeightId, cols: Layout) -> Result<(), ShardError> {
        self.part(weight, Part { members: None, rows: None, cols, order: Order::Vector })
    }

    fn part(&mut self, weight: WeightId, part: Part) -> Result<(), ShardError> {
        let slot = &mut self.parts[weight.0 as usize];
        if slot.as_ref().is_some_and(|before| *before != part) {
            return Err(ShardError::Weight { name: self.program.weight(weight).name.clone(), tp: self.tp });
        }
        *slot = Some(part);
        Ok(())
    }

    fn finish(self) -> Sharded {
        let mut program = self.program.clone();
        for (info, layout) in program.vals.iter_mut().zip(&self.layouts) {
            info.cols = layout.as_ref().map_or(info.cols, |split| split.local());
        }
        // A weight that no op reads is whole.
        let unused = |decl: &WeightDecl| match decl.usage {
            WeightUse::Vector => Order::Vector,
            WeightUse::Linear | WeightUse::Vocabulary => Order::OutIn,
        };
        let of = |(part, decl): (Option<Part>, &WeightDecl)| {
            part.unwrap_or_else(|| Part { members: None, rows: None, cols: None, order: unused(decl) })
        };
        let parts: Vec<Part> = self.parts.into_iter().zip(&self.program.weights).map(of).collect();
        for (decl, part) in program.weights.iter_mut().zip(&parts) {
            if let Some(members) = &part.members {
                decl.experts = Some(members.local());
            }
            decl.rows = part.rows.as_ref().map_or(decl.rows, |split| split.local());
            decl.cols = part.cols.as_ref().map_or(decl.cols, |split| split.local());
        }
        for op in &mut program.ops {
            if let Op::Attend { cache, heads, .. } = op
                && let Some(divided) = &self.heads[cache.0 as usize]
            {
                *heads = divided.local[0];
                program.caches[cache.0 as usize].kv_heads = divided.local[1];
            }
        }
        Sharded {
            program,
            whole: self.program.clone(),
            tp: self.tp,
            layouts: self.layouts,
            parts,
            reduced: self.reduced,
        }
    }
}
