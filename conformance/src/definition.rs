//! The mathematics of a program in f64, one sequence at a time and without a cache: each op written from its definition in
//! [`njoule_models::program`], sharing no code with a backend.

use half::bf16;
use njoule_models::program::*;
use njoule_models::weights::WeightSource;

/// Rows of an activation.
pub type Rows = Vec<Vec<f64>>;

/// A program with its weights.
pub struct Definition<'a> {
    program: &'a Program,
    weights: Vec<Vec<f64>>,
    bf16: bool,
}

impl<'a> Definition<'a> {
    /// Reads the weights. With `bf16`, values are rounded where the table of `njoule_runtime::backend::candle` says.
    pub fn new(program: &'a Program, source: &dyn WeightSource, bf16: bool) -> Self {
        let read = |decl: &WeightDecl| {
            let mut values = vec![0.0; decl.all_rows() * decl.cols];
            source.get(decl).expect("a weight").read_f32(0..decl.all_rows(), &mut values);
            let stored = |x: &f32| match bf16 && decl.usage != WeightUse::Vector {
                true => bf16::from_f32(*x).to_f64(),
                false => f64::from(*x),
            };
            values.iter().map(stored).collect()
        };
        Definition { program, weights: program.weights.iter().map(read).collect(), bf16 }
    }

    /// Logits at every position of a sequence.
    pub fn logits(&self, ids: &[u32], rope_len: usize) -> Rows {
        let mut vals: Vec<Rows> = vec![vec![]; self.program.vals.len()];
        for op in &self.program.ops {
            let outs = self.op(op, &vals, ids, rope_len);
            for (val, rows) in op.outputs().into_iter().zip(outs) {
                assert!(rows.iter().all(|r| r.len() == self.program.info(val).cols), "{op:?}");
                vals[val.0 as usize] = rows;
            }
        }
        vals.swap_remove(self.program.logits.0 as usize)
    }

    fn op(&self, op: &Op, vals: &[Rows], ids: &[u32], rope_len: usize) -> Vec<Rows> {
        let val = |v: &Val| &vals[v.0 as usize];
        let each = |x: &Val, f: &dyn Fn(f64) -> f64| -> Vec<Rows> {
            vec![val(x).iter().map(|r| r.iter().map(|x| f(*x)).collect()).collect()]
        };
        match op {
            Op::Embed { table, index, .. } => {
                let entry = |(p, id): (usize, &u32)| match index {
                    EmbedIndex::Tokens => *id as usize,
                    EmbedIndex::Positions { offset } => p + offset,
                };
                let cols = self.program.weight(*table).cols;
                let row = |e: usize| self.weight(*table)[e * cols..][..cols].to_vec();
                vec![ids.iter().enumerate().map(entry).map(row).collect()]
            }
            Op::Norm { x, norm, group, .. } => vec![val(x).iter().map(|r| self.norm(r, norm, *group)).collect()],
            Op::AddNorm { x, delta, norm, .. } => {
                let sum = zip(val(x), val(delta), |a, b| a + b);
                let out = sum.iter().map(|r| self.norm(r, norm, NormGroup::Row)).collect();
                vec![sum, out]
            }
            Op::LinearN { x, parts } => parts.iter().map(|p| self.linear(val(x), p.weight, p.bias, 0)).collect(),
            Op::GatedMlpIn { x, gate, up, gate_bias, up_bias, glu, .. } => {
                let (gate, up) = (self.linear(val(x), *gate, *gate_bias, 0), self.linear(val(x), *up, *up_bias, 0));
                vec![zip(&gate, &up, |g, u| meet(*glu, g, u))]
            }
            Op::Act { x, act, .. } => each(x, &|x| activate(*act, x)),
            Op::Rope { x, table, head_dim, pairing, .. } => {
                let table = &self.program.ropes[table.0 as usize];
                let long = table.long.as_ref().filter(|long| rope_len > long.beyond);
                let frequencies = long.map_or(&table.inv_freq, |long| &long.inv_freq);
                let mut out = val(x).clone();
                for (p, row) in out.iter_mut().enumerate() {
                    for head in row.chunks_mut(*head_dim) {
                        for (i, f) in frequencies.iter().enumerate() {
                            let (a, b) = match pairing {
                                Pairing::Half => (i, i + frequencies.len()),
                                Pairing::Neighbours => (2 * i, 2 * i + 1),
                            };
                            // The angle is f32 by definition.
                            let (sin, cos) = f64::from(p as f32 * f).sin_cos();
                            let (x, y, amplitude) = (head[a], head[b], f64::from(table.amplitude));
                            (head[a], head[b]) = (amplitude * (x * cos - y * sin), amplitude * (y * cos + x * sin));
                        }
                    }
                }
                vec![out]
            }
            Op::Attend { .. } => vec![self.attend(op, vals)],
            Op::Add { x, y, .. } => vec![zip(val(x), val(y), |a, b| a + b)],
            Op::Mul { x, y, .. } => {
                let row = |(x, y): (&Vec<f64>, &Vec<f64>)| {
                    x.iter().enumerate().map(|(i, x)| x * if y.len() == 1 { y[0] } else { y[i] }).collect()
                };
                vec![val(x).iter().zip(val(y)).map(row).collect()]
            }
            Op::Scale { x, factor, .. } => each(x, &|x| x * f64::from(*factor)),
            Op::Softcap { x, cap, .. } => each(x, &|x| f64::from(*cap) * (x / f64::from(*cap)).tanh()),
            Op::Clamp { x, bound, .. } => each(x, &|x| x.clamp(-f64::from(*bound), f64::from(*bound))),
            Op::JoinHeads { x, y, lengths: [a, b], .. } => {
                let row = |(x, y): (&Vec<f64>, &Vec<f64>)| {
                    let part = |h: usize| if y.len() == *b { &y[..] } else { &y[h * b..][..*b] };
                    x.chunks(*a).enumerate().flat_map(|(h, x)| [x, part(h)].concat()).collect()
                };
                vec![val(x).iter().zip(val(y)).map(row).collect()]
            }
            Op::Route { x, routing, .. } => {
                let bias = routing.bias.map(|w| self.weight(w));
                vec![val(x).iter().map(|r| route(r, routing, bias)).collect()]
            }
            Op::MoeMlp { x, shares, gate, up, down, glu, .. } => {
                let row = |(x, shares): (&Vec<f64>, &Vec<f64>)| {
                    let x = vec![x.clone()];
                    let mut out = vec![0.0; self.program.weight(down.weight).rows];
                    for (e, share) in shares.iter().enumerate().filter(|(_, s)| **s != 0.0) {
                        let [g, u] = [gate, up].map(|w| self.linear(&x, w.weight, w.bias, e));
                        let y = self.linear(&zip(&g, &u, |g, u| meet(*glu, g, u)), down.weight, down.bias, e);
                        out.iter_mut().zip(&y[0]).for_each(|(o, y)| *o += share * y);
                    }
                    out
                };
                vec![val(x).iter().zip(val(shares)).map(row).collect()]
            }
            Op::TakeOutputs { x, .. } => vec![val(x).clone()],
        }
    }

    fn weight(&self, id: WeightId) -> &[f64] {
        &self.weights[id.0 as usize]
    }

    fn rounded(&self, x: f64) -> f64 {
        if self.bf16 { bf16::from_f32(x as f32).to_f64() } else { x }
    }

    fn linear(&self, x: &Rows, weight: WeightId, bias: Option<WeightId>, expert: usize) -> Rows {
        let WeightDecl { rows, cols, .. } = *self.program.weight(weight);
        let matrix = &self.weight(weight)[expert * rows * cols..][..rows * cols];
        let bias = bias.map(|b| &self.weight(b)[expert * rows..][..rows]);
        let row = |x: &Vec<f64>| {
            let x: Vec<f64> = x.iter().map(|x| self.rounded(*x)).collect();
            let out = |(i, w): (usize, &[f64])| {
                w.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>() + bias.map_or(0.0, |bias| bias[i])
            };
            matrix.chunks(cols).enumerate().map(out).collect()
        };
        x.iter().map(row).collect()
    }

    fn norm(&self, x: &[f64], norm: &Norm, group: NormGroup) -> Vec<f64> {
        let len = if let NormGroup::Head(len) = group { len } else { x.len() };
        let at = |w: Option<WeightId>, i: usize| w.map(|w| self.weight(w)[i % self.weight(w).len()]);
        let mut out = vec![];
        for (g, x) in x.chunks(len).enumerate() {
            let mean = |f: &dyn Fn(f64) -> f64| x.iter().map(|x| f(*x)).sum::<f64>() / len as f64;
            let centre = if norm.kind == NormKind::Layer { mean(&|x| x) } else { 0.0 };
            let divisor = (mean(&|x| (x - centre).powi(2)) + f64::from(norm.eps)).sqrt();
            out.extend(x.iter().enumerate().map(|(i, x)| {
                let (weight, bias) = (at(norm.weight, g * len + i), at(norm.bias, g * len + i));
                (x - centre) / divisor * weight.unwrap_or(1.0) + bias.unwrap_or(0.0)
            }));
        }
        out
    }

    fn attend(&self, op: &Op, vals: &[Rows]) -> Rows {
        let Op::Attend { q, k, v, cache, heads, scale, window, softcap, sinks, alibi, .. } = op else { unreachable!() };
        let CacheInfo { kv_heads, k_dim, v_dim } = self.program.caches[cache.0 as usize];
        let [q, k, v] = [q, k, v].map(|v| -> Rows {
            vals[v.0 as usize].iter().map(|r| r.iter().map(|x| self.rounded(*x)).collect()).collect()
        });
        let row = |p: usize| {
            let first = window.map_or(0, |w| (p + 1).saturating_sub(w));
            let head = |h: usize| {
                let (kv, q) = (h / (heads / kv_heads), &q[p][h * k_dim..][..k_dim]);
                let score = |(at, k): (usize, &Vec<f64>)| {
                    let dot: f64 = k[kv * k_dim..][..k_dim].iter().zip(q).map(|(k, q)| k * q).sum();
                    let score = f64::from(*scale) * dot;
                    let score = softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
                    let before = (first + at) as f64 - p as f64;
                    score + alibi.as_ref().map_or(0.0, |slopes| f64::from(slopes[h]) * before)
                };
                let scores: Vec<f64> = k[first..=p].iter().enumerate().map(score).collect();
                let sink = sinks.map(|s| self.weight(s)[h]);
                let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
                let exps: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum = exps.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - max).exp());
                let mixed = |i: usize| {
                    let weighted = |(e, v): (&f64, &Vec<f64>)| self.rounded(*e) * v[kv * v_dim + i];
                    exps.iter().zip(&v[first..=p]).map(weighted).sum::<f64>() / sum
                };
                (0..v_dim).map(mixed).collect::<Vec<f64>>()
            };
            (0..*heads).flat_map(head).collect()
        };
        (0..q.len()).map(row).collect()
    }
}

fn zip(x: &Rows, y: &Rows, f: impl Fn(f64, f64) -> f64) -> Rows {
    x.iter().zip(y).map(|(x, y)| x.iter().zip(y).map(|(x, y)| f(*x, *y)).collect()).collect()
}

fn meet(glu: Glu, gate: f64, up: f64) -> f64 {
    match glu {
        Glu::Act(act) => activate(act, gate) * up,
        Glu::ClampedSwish { alpha, limit } => {
            let (alpha, limit) = (f64::from(alpha), f64::from(limit));
            let (g, u) = (gate.min(limit), up.clamp(-limit, limit));
            g / (1.0 + (-alpha * g).exp()) * (u + 1.0)
        }
    }
}

fn activate(act: Act, x: f64) -> f64 {
    match act {
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::Gelu => 0.5 * x * (1.0 + erf(x / 2_f64.sqrt())),
        Act::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Act::Relu => x.max(0.0),
        Act::Relu2 => x.max(0.0).powi(2),
        Act::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

/// Its Taylor series; beyond 4.5 it is one to ten digits.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.5 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn route(logits: &[f64], routing: &Routing, bias: Option<&[f64]>) -> Vec<f64> {
    let all: f64 = logits.iter().map(|x| x.exp()).sum();
    let score = |x: &f64| match routing.score {
        RouteScore::Softmax => x.exp() / all,
        RouteScore::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    };
    let scores: Vec<f64> = logits.iter().map(score).collect();
    let mut ranks: Vec<f64> = scores.iter().enumerate().map(|(e, s)| s + bias.map_or(0.0, |b| b[e])).collect();
    // One is kept unless so many others go before it.
    let is_kept = |ranks: &[f64], e: usize, most: usize| {
        let goes_before = |o: &usize| ranks[*o] > ranks[e] || (ranks[*o] == ranks[e] && *o < e);
        (0..ranks.len()).filter(goes_before).count() < most
    };
    if let Some(RouteGroups { count, kept, best }) = routing.groups {
        let size = ranks.len() / count;
        let sum = |group: &[f64]| -> f64 { (0..size).filter(|e| is_kept(group, *e, best)).map(|e| group[e]).sum() };
        let sums: Vec<f64> = ranks.chunks(size).map(sum).collect();
        for g in (0..count).filter(|g| !is_kept(&sums, *g, kept)) {
            ranks[g * size..(g + 1) * size].fill(f64::NEG_INFINITY);
        }
    }
    let kept = |e: usize| is_kept(&ranks, e, routing.top_k);
    let sum: f64 = (0..scores.len()).filter(|e| kept(*e)).map(|e| scores[e]).sum();
    let share = |e: usize| scores[e] / if routing.normalise { sum } else { 1.0 } * f64::from(routing.factor);
    (0..scores.len()).map(|e| if kept(e) { share(e) } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Abramowitz and Stegun, table 7.1.
    #[test]
    fn erf_has_the_tabulated_values() {
        for (x, want) in [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
            assert!((erf(x) - want).abs() < 1e-10 && (erf(-x) + want).abs() < 1e-10, "{x}");
        }
    }
}
