//! Mixtures of experts against the same experts as dense layers, bit for bit, and against sums in f64.

use super::ops::{all_rows, rows};
use super::*;
use crate::buffer::Arena;
use crate::route::{RouteScore, Routing};

/// `experts`, `kept`, columns in, between and out.
const SHAPES: [(usize, usize, usize, usize, usize); 6] = [
    (1, 1, 32, 32, 32),
    (5, 2, 36, 50, 33),
    (4, 4, 33, 31, 64),
    (8, 3, 16, 17, 1),
    (60, 4, 20, 15, 48),
    (128, 8, 16, 16, 16),
];

struct Mixture {
    experts: usize,
    kept: usize,
    table: Matrix,
    router: Matrix,
    /// Gate, up, down: all experts' rows; and biases.
    stacks: [Matrix; 3],
    biases: Option<[Vec<f32>; 3]>,
    glu: Glu,
    set: RowSet,
}

impl Mixture {
    fn new(i: usize, (experts, kept, inp, mid, out): (usize, usize, usize, usize, usize)) -> Mixture {
        let noise = &mut Noise::new(i as u64);
        let stacks = [(mid, inp), (mid, inp), (out, mid)].map(|(r, c)| Matrix::random(experts * r, c, noise.bits()));
        let clamped = Glu::ClampedSwish { alpha: 1.7, limit: 0.9 };
        Mixture {
            experts,
            kept,
            table: Matrix::random(VOCAB, inp, noise.bits()),
            router: Matrix::random(experts, inp, noise.bits()),
            biases: (i % 2 == 1).then(|| [mid, mid, out].map(|n| noise.values(experts * n, 1.0))),
            stacks,
            glu: [Glu::Act(Act::Silu), clamped, Glu::Act(Act::GeluTanh)][i % 3],
            set: [RowSet::Tokens, RowSet::Outputs][i / 2 % 2],
        }
    }

    /// Matrix `m` of one expert, or of all.
    fn product(&self, m: usize, expert: Option<usize>, stored: Stored) -> Product {
        let stack = &self.stacks[m];
        let rows = stack.rows / self.experts;
        match expert {
            None => {
                let weight =
                    Packed::pack_stack(stack, self.experts, stored, &mut Arena::default()).expect("finite values");
                Product { weight: Arc::new(weight), bias: self.biases.as_ref().map(|b| b[m].as_slice().into()) }
            }
            Some(e) => {
                let values = stack.values[e * rows * stack.cols..][..rows * stack.cols].to_vec();
                let own = Matrix { rows, cols: stack.cols, values, blocks: None };
                let bias = self.biases.as_ref().map(|b| b[m][e * rows..][..rows].into());
                Product { weight: Arc::new(own.pack(stored)), bias }
            }
        }
    }

    /// A plan whose logits are what `body` makes of the tokens' rows and the shares.
    fn plan(&self, kernels: &'static Kernels, body: impl FnOnce(&mut PlanBuilder, Val, Val) -> Val) -> Plan {
        let mut b = PlanBuilder::new();
        let mut x = b.val(self.table.cols, RowSet::Tokens);
        b.embed(Arc::new(self.table.pack(Stored::F32)), Embedding::Token, x);
        if self.set == RowSet::Outputs {
            let taken = b.val(self.table.cols, RowSet::Outputs);
            b.take(x, taken);
            x = taken;
        }
        let (logits, shares) = (b.val(self.experts, self.set), b.val(self.experts, self.set));
        b.linear(x, vec![(plain(Arc::new(self.router.pack(Stored::F32))), logits)]);
        let routing = Routing {
            score: RouteScore::Softmax,
            bias: None,
            groups: None,
            top_k: self.kept,
            normalise: true,
            factor: 1.5,
        };
        b.route(logits, routing, shares);
        let mut out = body(&mut b, x, shares);
        if self.set == RowSet::Tokens {
            let cols = b.cols(out);
            let taken = b.val(cols, RowSet::Outputs);
            b.take(out, taken);
            out = taken;
        }
        b.logits(out);
        b.finish(kernels, PlanLimits { max_outputs: 40, ..LIMITS }).expect("memory")
    }

    fn mixed(&self, kernels: &'static Kernels, stored: Stored) -> Plan {
        self.plan(kernels, |b, x, shares| {
            let out = b.val(self.stacks[2].rows / self.experts, self.set);
            b.moe(x, shares, [0, 1, 2].map(|m| self.product(m, None, stored)), self.glu, out);
            out
        })
    }

    /// One expert as a dense layer.
    fn dense(&self, kernels: &'static Kernels, stored: Stored, expert: usize) -> Plan {
        self.plan(kernels, |b, x, _| {
            let [gate, up, down] = [0, 1, 2].map(|m| self.product(m, Some(expert), stored));
            let (inner, out) = (b.val(gate.weight.rows(), self.set), b.val(down.weight.rows(), self.set));
            b.gated(x, [gate, up], self.glu, inner);
            b.linear(inner, vec![(down, out)]);
            out
        })
    }
}

#[test]
fn experts_are_the_dense_layers_of_their_matrices_bit_for_bit() {
    let step = all_rows();
    for (kernels, (i, shape)) in Kernels::available().flat_map(|k| SHAPES.into_iter().enumerate().map(move |s| (k, s)))
    {
        // Many experts take long; what their number changes does not depend on the stored type.
        let mixture = Mixture::new(i, shape);
        for stored in Stored::ALL.into_iter().filter(|s| shape.0 <= 8 || *s == Stored::Int4) {
            let got = rows(&mut mixture.mixed(kernels, stored), &step);
            let shares = rows(&mut mixture.plan(kernels, |_, _, shares| shares), &step);
            let experts: Vec<_> =
                (0..mixture.experts).map(|e| rows(&mut mixture.dense(kernels, stored, e), &step)).collect();
            for (row, got) in got.iter().enumerate() {
                let stride = got.len().next_multiple_of(crate::packed::GROUP);
                let mut sum = vec![f32::NAN; stride];
                let kept = (0..mixture.experts).filter(|e| shares[row][*e] != 0.0);
                for (n, e) in kept.enumerate() {
                    let from = crate::fixture::padded(&experts[e][row], stride);
                    let (share, to) = (shares[row][e], sum.as_mut_ptr());
                    let add = if n == 0 { kernels.scale } else { kernels.add_scaled };
                    // SAFETY: the kernels are available; both rows hold `stride` values.
                    unsafe { add(from.as_ptr(), share, to, stride) };
                }
                let at = format!("{} {} {shape:?} row {row}", kernels.isa.name(), stored.name());
                assert_eq!(bits(got), bits(&sum[..got.len()]), "{at}");
            }
        }
    }
}

#[test]
fn experts_equal_their_sum_in_f64() {
    let step = all_rows();
    for (kernels, (i, shape)) in Kernels::available().flat_map(|k| SHAPES.into_iter().enumerate().map(move |s| (k, s)))
    {
        let m = Mixture::new(i, shape);
        let (_, _, inp, mid, out) = shape;
        let shares = rows(&mut m.plan(kernels, |_, _, shares| shares), &step);
        let dot = |stack: usize, e: usize, r: usize, x: &[f64]| {
            let (matrix, rows) = (&m.stacks[stack], m.stacks[stack].rows / m.experts);
            let w = &matrix.values[(e * rows + r) * matrix.cols..][..matrix.cols];
            let bias = m.biases.as_ref().map_or(0.0, |b| f64::from(b[stack][e * rows + r]));
            w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + bias
        };
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (row, got) in rows(&mut m.mixed(kernels, Stored::F32), &step).iter().enumerate() {
            let x: Vec<f64> =
                m.table.values[step.tokens[row] as usize * inp..][..inp].iter().map(|x| f64::from(*x)).collect();
            let mut want = vec![0.0; out];
            for e in (0..m.experts).filter(|e| shares[row][*e] != 0.0) {
                let inner = |r: usize| {
                    let (g, u) = (dot(0, e, r, &x), dot(1, e, r, &x));
                    match m.glu {
                        Glu::Act(Act::Silu) => g * sigmoid(g) * u,
                        Glu::Act(_) => {
                            let c = (2.0 / std::f64::consts::PI).sqrt();
                            0.5 * g * (1.0 + (c * (g + 0.044715 * g.powi(3))).tanh()) * u
                        }
                        Glu::ClampedSwish { alpha, limit } => {
                            let (alpha, limit) = (f64::from(alpha), f64::from(limit));
                            let (g, u) = (g.min(limit), u.clamp(-limit, limit));
                            g * sigmoid(alpha * g) * (u + 1.0)
                        }
                    }
                };
                let inner: Vec<f64> = (0..mid).map(inner).collect();
                (0..out).for_each(|r| want[r] += f64::from(shares[row][e]) * dot(2, e, r, &inner));
            }
            let near = |(got, want): (&f32, &f64)| (f64::from(*got) - want).abs() <= 1e-5 * (1.0 + want.abs());
            assert!(
                got.iter().zip(&want).all(near),
                "{} {shape:?} row {row}: {got:?}, not {want:?}",
                kernels.isa.name()
            );
        }
    }
}

#[test]
fn a_row_of_experts_is_the_same_alone() {
    for (kernels, (i, shape)) in Kernels::available().flat_map(|k| SHAPES.into_iter().enumerate().map(move |s| (k, s)))
    {
        let (mixture, together) = (Mixture::new(i, shape), all_rows());
        for stored in Stored::ALL {
            let plan = &mut mixture.mixed(kernels, stored);
            let all = rows(plan, &together);
            for row in [0, 7, 19, 22] {
                let mut alone = Step::default();
                alone.add(together.tokens[row]..together.tokens[row] + 1, 0, &[2]);
                alone.outputs = vec![0];
                let at = format!("{} {} {shape:?} row {row}", kernels.isa.name(), stored.name());
                assert_eq!(bits(&rows(plan, &alone)[0]), bits(&all[row]), "{at}");
            }
        }
    }
}

#[test]
fn a_row_that_no_expert_has_is_zero_and_one_of_nan_stays_in_its_row() {
    for kernels in Kernels::available() {
        let mut mixture = Mixture::new(1, SHAPES[1]);
        mixture.biases = None;
        let inp = mixture.table.cols;
        // Token 5 is no number.
        mixture.table.values[5 * inp + 3] = f32::NAN;
        let step = all_rows();
        let got = rows(&mut mixture.mixed(kernels, Stored::F32), &step);
        for (token, row) in step.tokens.iter().zip(&got) {
            assert_eq!(*token == 5, row.iter().any(|x| x.is_nan()), "{} token {token}", kernels.isa.name());
        }
        let none = mixture.plan(kernels, |b, x, shares| {
            let (zero, out) = (b.val(mixture.experts, mixture.set), b.val(33, mixture.set));
            b.scale(shares, 0.0, zero);
            b.moe(x, zero, [0, 1, 2].map(|m| mixture.product(m, None, Stored::F32)), mixture.glu, out);
            out
        });
        let mut none = none;
        for (token, row) in step.tokens.iter().zip(rows(&mut none, &step)) {
            assert!(*token == 5 || row.iter().all(|x| *x == 0.0), "{}", kernels.isa.name());
        }
    }
}
