//! Running a step: the program's ops one after the other, each activation a tensor `[rows, cols]` in f32 that lives until
//! its last reader is done.

use std::collections::HashMap;

use candle_core::{DType, Device, Error, Result, Tensor};
use njoule_models::program::{
    EmbedIndex, ExpertWeights, Glu, Norm, NormGroup, Op, RopeId, Routing, RowSet, Val, WeightId,
};

use super::attention::Attention;
use super::ops::{self, Angles};
use super::{CandleExecutor, Weights, noise};
use crate::backend::{Batch, Routes, Streams};

/// A step in the making.
#[derive(Default)]
struct Step {
    vals: HashMap<Val, Tensor>,
    angles: HashMap<RopeId, Angles>,
}

impl Step {
    fn val(&self, val: Val) -> Result<&Tensor> {
        self.vals.get(&val).ok_or_else(|| Error::Msg(format!("{val:?} is read before it is written")))
    }
}

impl CandleExecutor {
    /// Runs a checked batch; the logits, unless none are wanted.
    pub(super) fn run(&mut self, batch: &Batch) -> Result<Option<Tensor>> {
        let mut step = Step::default();
        for i in 0..self.program.ops.len() {
            let writes_outputs = |v: &Val| self.program.info(*v).rows == RowSet::Outputs;
            // Tensors without rows are nothing that every device can compute with.
            if batch.outputs.is_empty() && self.program.ops[i].outputs().iter().any(writes_outputs) {
                continue;
            }
            self.op(i, batch, &mut step)?;
            if let Some(noise) = &mut self.noise {
                for val in noise::summed(&self.program.ops[i]) {
                    let disturbed = noise.on(step.val(val)?)?;
                    step.vals.insert(val, disturbed);
                }
            }
            if let Some((vals, streams)) = &self.streams {
                let written = self.program.ops[i].outputs();
                for (number, val) in vals.iter().enumerate().filter(|(_, val)| written.contains(val)) {
                    step.vals.insert(*val, stream(streams, number, batch, &self.device)?);
                }
            }
            self.last_uses[i].iter().for_each(|v| drop(step.vals.remove(v)));
        }
        Ok(step.vals.remove(&self.program.logits))
    }

    fn op(&mut self, i: usize, batch: &Batch, step: &mut Step) -> Result<()> {
        let weights = &self.weights;
        let optional = |id: &Option<WeightId>| id.map(|id| weights.get(id));
        let (out, value) = match &self.program.ops[i] {
            Op::Embed { table, index, out } => (out, self.embed(*table, *index, batch)?),
            Op::Norm { x, norm, group, out } => (out, normed(weights, step.val(*x)?, norm, *group)?),
            Op::AddNorm { x, delta, norm, sum, out } => {
                let total = (step.val(*x)? + step.val(*delta)?)?;
                let value = normed(weights, &total, norm, NormGroup::Row)?;
                step.vals.insert(*sum, total);
                (out, value)
            }
            Op::LinearN { x, parts } => {
                let x = step.val(*x)?.clone();
                for part in parts {
                    let value = ops::linear(&x, weights.get(part.weight), optional(&part.bias))?;
                    step.vals.insert(part.out, value);
                }
                return Ok(());
            }
            Op::GatedMlpIn { x, gate, up, gate_bias, up_bias, glu, out } => {
                let x = step.val(*x)?;
                let gate = ops::linear(x, weights.get(*gate), optional(gate_bias))?;
                let up = ops::linear(x, weights.get(*up), optional(up_bias))?;
                (out, ops::glu(&gate, &up, *glu)?)
            }
            Op::Act { x, act, out } => (out, ops::act(step.val(*x)?, *act)?),
            Op::Rope { x, table, head_dim, pairing, out } => {
                if !step.angles.contains_key(table) {
                    step.angles.insert(*table, self.angles(*table, batch)?);
                }
                (out, ops::rope(step.val(*x)?, &step.angles[table], *head_dim, *pairing)?)
            }
            Op::Attend { q, k, v, cache, heads, scale, window, softcap, sinks, alibi, out } => {
                let sinks = optional(sinks);
                let alibi = alibi.as_deref();
                let attention =
                    Attention { heads: *heads, scale: *scale, window: *window, softcap: *softcap, sinks, alibi };
                let cache = &mut self.caches[cache.0 as usize];
                cache.write(step.val(*k)?, step.val(*v)?, batch)?;
                (out, cache.attend(step.val(*q)?, batch, &attention)?)
            }
            Op::Add { x, y, out } => (out, (step.val(*x)? + step.val(*y)?)?),
            Op::Mul { x, y, out } => (out, step.val(*x)?.broadcast_mul(step.val(*y)?)?),
            Op::Scale { x, factor, out } => (out, (step.val(*x)? * f64::from(*factor))?),
            Op::Softcap { x, cap, out } => (out, ops::cap(step.val(*x)?, *cap)?),
            Op::Clamp { x, bound, out } => (out, step.val(*x)?.clamp(-bound, *bound)?),
            Op::JoinHeads { x, y, lengths, out } => (out, ops::join_heads(step.val(*x)?, step.val(*y)?, *lengths)?),
            Op::Route { x, routing, out } => {
                let bias = routing.bias.map(|w| weights.get(w).flatten_all()?.to_vec1::<f32>()).transpose()?;
                let shares = route(step.val(*x)?, routing, bias.as_deref())?;
                if let Some(routes) = &mut self.routes {
                    note(routes, &shares, batch)?;
                }
                (out, shares)
            }
            Op::MoeMlp { x, shares, gate, up, down, glu, out } => {
                (out, experts(weights, step.val(*x)?, step.val(*shares)?, [gate, up, down], *glu)?)
            }
            Op::TakeOutputs { x, out } => {
                let rows = Tensor::new(batch.outputs.as_slice(), &self.device)?;
                (out, step.val(*x)?.index_select(&rows, 0)?)
            }
        };
        step.vals.insert(*out, value);
        Ok(())
    }

    fn embed(&self, table: WeightId, index: EmbedIndex, batch: &Batch) -> Result<Tensor> {
        let entries = match index {
            EmbedIndex::Tokens => Tensor::new(batch.tokens.as_slice(), &self.device)?,
            EmbedIndex::Positions { offset } => {
                // The check has bounded the sum by the table's rows.
                let entries: Vec<u32> = batch.positions.iter().map(|p| *p + offset as u32).collect();
                Tensor::new(entries, &self.device)?
            }
        };
        self.weights.get(table).index_select(&entries, 0)?.to_dtype(DType::F32)
    }

    /// Computed here and not on the device: cosines of large angles differ from one device to the next.
    fn angles(&self, table: RopeId, batch: &Batch) -> Result<Angles> {
        let table = &self.program.ropes[table.0 as usize];
        let pairs = table.inv_freq.len();
        let (mut cos, mut sin) = (vec![], vec![]);
        for seq in &batch.seqs {
            let long = table.long.as_ref().filter(|long| seq.rope_len > long.beyond);
            let frequencies = long.map_or(&table.inv_freq, |long| &long.inv_freq);
            for position in &batch.positions[seq.rows.clone()] {
                let angles = || frequencies.iter().map(|f| *position as f32 * f);
                cos.extend(angles().map(|a| a.cos() * table.amplitude));
                sin.extend(angles().map(|a| a.sin() * table.amplitude));
            }
        }
        let shape = (batch.rows(), 1, pairs);
        Ok(Angles {
            cos: Tensor::from_vec(cos, shape, &self.device)?,
            sin: Tensor::from_vec(sin, shape, &self.device)?,
        })
    }
}

fn normed(weights: &Weights, x: &Tensor, norm: &Norm, group: NormGroup) -> Result<Tensor> {
    let [weight, bias] = [norm.weight, norm.bias].map(|id| id.map(|id| weights.get(id)));
    ops::norm(x, (norm.kind, norm.eps), (weight, bias), group)
}

fn route(x: &Tensor, routing: &Routing, bias: Option<&[f32]>) -> Result<Tensor> {
    let shares: Vec<f32> = x.to_vec2()?.iter().flat_map(|row: &Vec<f32>| ops::shares(row, routing, bias)).collect();
    Tensor::from_vec(shares, x.shape(), x.device())
}

/// Adds what a router chose; routers are called in order. A step that is run again adds to what it noted before.
fn note(routes: &mut Routes, shares: &Tensor, batch: &Batch) -> Result<()> {
    let shares: Vec<Vec<f32>> = shares.to_vec2()?;
    // In the last layer there are rows of outputs alone.
    let all = shares.len() == batch.rows();
    for seq in &batch.seqs {
        for row in seq.rows.clone() {
            let at = if all { Some(row) } else { batch.outputs.iter().position(|output| *output as usize == row) };
            let Some(shares) = at.and_then(|at| shares.get(at)) else { continue };
            let chosen = shares.iter().enumerate().filter(|(_, share)| **share != 0.0).map(|(expert, _)| expert);
            routes.entry((batch.tables[seq.table.start], batch.positions[row])).or_default().extend(chosen);
        }
    }
    Ok(())
}

/// A stream's rows of this step.
fn stream(streams: &Streams, number: usize, batch: &Batch, device: &Device) -> Result<Tensor> {
    let mut rows = vec![];
    for seq in &batch.seqs {
        for row in seq.rows.clone() {
            let (first, position) = (batch.tables[seq.table.start], batch.positions[row]);
            let of_token = streams.get(&(first, position)).and_then(|of_token| of_token.get(number));
            rows.push(
                of_token.ok_or_else(|| Error::Msg(format!("no stream {number} of position {position}")))?.clone(),
            );
        }
    }
    let columns = rows.first().map_or(0, Vec::len);
    Tensor::from_vec(rows.concat(), (rows.len(), columns), device)
}

/// Each expert on the rows that have a share in it, in the order of the experts' numbers.
fn experts(
    weights: &Weights,
    x: &Tensor,
    shares: &Tensor,
    [gate, up, down]: [&ExpertWeights; 3],
    glu: Glu,
) -> Result<Tensor> {
    let device = x.device();
    let table: Vec<Vec<f32>> = shares.to_vec2()?;
    let mut out = Tensor::zeros((x.dim(0)?, weights.get(down.weight).dim(1)?), DType::F32, device)?;
    for expert in 0..shares.dim(1)? {
        let (rows, factors): (Vec<u32>, Vec<f32>) =
            (0..).zip(&table).map(|(row, shares)| (row, shares[expert])).filter(|(_, share)| *share != 0.0).unzip();
        if rows.is_empty() {
            continue;
        }
        let linear = |x: &Tensor, w: &ExpertWeights| {
            let bias = w.bias.map(|bias| weights.get(bias).get(expert)).transpose()?;
            ops::linear(x, &weights.get(w.weight).get(expert)?, bias.as_ref())
        };
        let (factors, rows) = (Tensor::new(factors, device)?.unsqueeze(1)?, Tensor::new(rows, device)?);
        let x = x.index_select(&rows, 0)?;
        let y = linear(&ops::glu(&linear(&x, gate)?, &linear(&x, up)?, glu)?, down)?;
        out = out.index_add(&rows, &y.broadcast_mul(&factors)?, 0)?;
    }
    Ok(out)
}
