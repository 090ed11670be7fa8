//! Experts: every one is computed for every token and weighted by its share, which is zero for most. A module cannot choose
//! which weights it reads; a token's own experts are few only where there are few tokens.

use njoule_hlo::op::{Binary, Direction, DotDims};
use njoule_hlo::{DType, Val as Array, idioms};
use njoule_models::program::{ExpertWeights, Glu, RouteGroups, RouteScore, Routing, WeightId};

use super::Lowering;

impl Lowering<'_> {
    /// A router's logits `[rows, experts]` as shares.
    pub(super) fn route(&mut self, x: Array, routing: &Routing) -> Array {
        let scores = match routing.score {
            RouteScore::Softmax => idioms::softmax(&mut self.b, x, 1),
            RouteScore::Sigmoid => self.b.logistic(x),
        };
        let dims = scores.dims();
        let mut ranks = scores;
        if let Some(bias) = routing.bias {
            let bias = self.along_last(self.values(bias), &dims);
            ranks = self.b.add(ranks, bias);
        }
        if let Some(groups) = &routing.groups {
            ranks = self.of_groups(ranks, groups);
        }
        let mut kept = self.kept(ranks, scores, routing.top_k);
        if routing.normalise {
            let sum = self.b.reduce(Binary::Add, kept, &[1]);
            let sum = self.b.broadcast(sum, &[0], &dims);
            kept = self.b.divide(kept, sum);
        }
        if routing.factor == 1.0 {
            return kept;
        }
        let factor = self.b.full_like(kept, routing.factor);
        self.b.multiply(kept, factor)
    }

    /// The `values [rows, n]` whose `ranks` are the `k` largest, zero elsewhere: rounds of the largest, the lowest number among
    /// equals.
    fn kept(&mut self, ranks: Array, values: Array, k: usize) -> Array {
        let dims = ranks.dims();
        let numbers = self.b.iota(DType::S32, &dims, 1);
        let lowest = self.b.full_like(ranks, f32::MIN);
        let mut kept = self.b.full_like(values, 0.0);
        let mut left = ranks;
        for round in 0..k {
            let largest = idioms::arg_max(&mut self.b, left, 1);
            let largest = self.b.broadcast(largest, &[0], &dims);
            let taken = self.b.compare(Direction::Eq, numbers, largest);
            kept = self.b.select(taken, values, kept);
            if round + 1 < k {
                left = self.b.select(taken, lowest, left);
            }
        }
        kept
    }

    /// Ranks `[rows, experts]` of the groups that rank first, the lowest number elsewhere.
    fn of_groups(&mut self, ranks: Array, groups: &RouteGroups) -> Array {
        let (rows, experts, RouteGroups { count, kept, best }) = (ranks.dim(0), ranks.dim(1), *groups);
        let each = self.b.reshape(ranks, &[rows * count, experts / count]);
        let best = self.kept(each, each, best);
        let sums = self.b.reduce(Binary::Add, best, &[1]);
        let sums = self.b.reshape(sums, &[rows, count]);
        let ones = self.b.full_like(sums, 1.0);
        let open = self.kept(sums, ones, kept);
        let open = self.b.reshape(open, &[rows * count]);
        let open = self.b.broadcast(open, &[0], &each.dims());
        let half = self.b.full_like(open, 0.5);
        let open = self.b.compare(Direction::Gt, open, half);
        let lowest = self.b.full_like(each, f32::MIN);
        let open = self.b.select(open, each, lowest);
        self.b.reshape(open, &[rows, experts])
    }

    /// `x [rows, in]` through every expert, weighted by `shares [rows, experts]`.
    pub(super) fn experts(
        &mut self,
        x: Array,
        shares: Array,
        [gate, up, down]: [&ExpertWeights; 3],
        glu: Glu,
    ) -> Array {
        let (rows, experts) = (shares.dim(0), shares.dim(1));
        let [gate, up] = [gate, up].map(|w| {
            // [rows, in] by [experts, in, ffn]: [rows, experts, ffn].
            let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![1], ..DotDims::default() };
            let product = self.stack_product(x, w.weight, dims, [1, 2]);
            match w.bias {
                None => product,
                Some(bias) => {
                    let bias = self.values(bias);
                    let bias = self.b.broadcast(bias, &[1, 2], &product.dims());
                    self.b.add(product, bias)
                }
            }
        });
        let inner = self.glu(gate, up, glu);
        // [rows, experts, ffn] by [experts, out, ffn]: [experts, rows, out].
        let dims =
            DotDims { lhs_batch: vec![1], rhs_batch: vec![0], lhs_contracting: vec![2], rhs_contracting: vec![2] };
        let each = self.stack_product(inner, down.weight, dims, [0, 2]);
        let by_expert = self.b.transpose(shares, &[1, 0]);
        let by_expert = self.b.broadcast(by_expert, &[0, 1], &[experts, rows, each.dim(2)]);
        let each = self.b.multiply(each, by_expert);
        let sum = self.b.reduce(Binary::Add, each, &[0]);
        let sum = self.all_reduce(sum);
        match down.bias {
            None => sum,
            Some(bias) => {
                let bias = self.b.matmul(shares, self.values(bias), false, DType::F32);
                self.b.add(sum, bias)
            }
        }
    }

    /// A product with a stack of matrices; the result's dimensions `at` are experts and output rows.
    fn stack_product(&mut self, x: Array, weight: WeightId, dims: DotDims, at: [usize; 2]) -> Array {
        let operands = self.operands(weight);
        let x = self.b.convert(x, operands);
        let values = self.b.convert(self.values(weight), operands);
        let product = self.b.product(x, values, dims);
        match self.scales(weight) {
            None => product,
            Some(scales) => {
                let scales = self.b.broadcast(scales, &at, &product.dims());
                self.b.multiply(product, scales)
            }
        }
    }
}
