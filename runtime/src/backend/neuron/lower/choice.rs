//! From logits to results: candidates, log-sum-exp and the likeliest token, or the logits themselves.

use njoule_hlo::idioms::{self, Sharded};
use njoule_hlo::op::Direction;
use njoule_hlo::{DType, Val as Array};

use super::{Input, Lowering, Output};

impl Lowering<'_> {
    /// Everything but the caches.
    pub(super) fn results(&mut self) -> Vec<(Output, Array)> {
        self.b.enter("results");
        let logits = self.val(self.sharded.program.logits);
        let results = if self.chooses() {
            self.choices(logits)
        } else {
            let all = self.all_gather(logits);
            let vocab = self.sharded.whole.vocab();
            let all = if all.dim(1) == vocab { all } else { self.b.slice_dim(all, 1, 0..vocab) };
            vec![(Output::Logits, all)]
        };
        self.b.leave();
        results
    }

    fn choices(&mut self, logits: Array) -> Vec<(Output, Array)> {
        let first_id = self.first_id(logits.dim(1));
        let logits = self.without_padding(logits, first_id);
        let sum = self.log_sum_exp(logits);
        let logits = self.biased(logits, first_id);
        let logits = self.masked(logits);
        let k = self.spec.candidates;
        let ([values, ids], greedy) = if self.sharded.tp == 1 {
            (idioms::top_k(&mut self.b, logits, k), idioms::arg_max(&mut self.b, logits, 1))
        } else {
            let shard = Sharded { first_id, groups: &self.groups };
            let greedy = idioms::sharded_arg_max(&mut self.b, logits, shard);
            (idioms::sharded_top_k(&mut self.b, logits, k, shard), greedy)
        };
        vec![
            (Output::CandidateValues, values),
            (Output::CandidateIds, ids),
            (Output::LogSumExp, sum),
            (Output::Greedy, greedy),
        ]
    }

    /// The lowest number where there is no token.
    fn without_padding(&mut self, logits: Array, first_id: Array) -> Array {
        let (dims, vocab) = (logits.dims(), self.sharded.whole.vocab());
        if dims[1] * self.sharded.tp == vocab {
            return logits;
        }
        let ids = self.b.iota(DType::S32, &dims[1..], 0);
        let first = self.b.broadcast(first_id, &[], &dims[1..]);
        let ids = self.b.add(ids, first);
        let end = self.b.full(&dims[1..], vocab as i32); // a dimension is below 2^31
        let is_token = self.b.compare(Direction::Lt, ids, end);
        let is_token = self.b.broadcast(is_token, &[1], &dims);
        let lowest = self.b.full_like(logits, f32::MIN);
        self.b.select(is_token, logits, lowest)
    }

    /// Of all cores' logits: of each core's, and of those.
    fn log_sum_exp(&mut self, logits: Array) -> Array {
        let sum = idioms::log_sum_exp(&mut self.b, logits, 1);
        if self.sharded.tp == 1 {
            return sum;
        }
        let sum = self.b.reshape(sum, &[sum.dim(0), 1]);
        let sums = self.all_gather(sum);
        idioms::log_sum_exp(&mut self.b, sums, 1)
    }

    /// Sparse biases added: one comparison of all ids for each, since a scatter that adds may pass through other types, and
    /// overwriting would lose one of two equal ids.
    fn biased(&mut self, mut logits: Array, first_id: Array) -> Array {
        if self.module.biases == 0 {
            return logits;
        }
        let dims = logits.dims();
        let (ids, values) = (self.input(Input::BiasIds), self.input(Input::BiasValues));
        let columns = self.b.iota(DType::S32, &dims, 1);
        let first = self.b.broadcast(first_id, &[], &ids.dims());
        // An unused id of -1 is below every core's first.
        let local = self.b.subtract(ids, first);
        for i in 0..self.module.biases {
            let [id, value] = [local, values].map(|x| {
                let one = self.b.slice_dim(x, 1, i..i + 1);
                let one = self.b.reshape(one, &[dims[0]]);
                self.b.broadcast(one, &[0], &dims)
            });
            let hit = self.b.compare(Direction::Eq, columns, id);
            let raised = self.b.add(logits, value);
            logits = self.b.select(hit, raised, logits);
        }
        logits
    }

    /// The lowest number where a token is not allowed.
    fn masked(&mut self, logits: Array) -> Array {
        if !self.module.mask {
            return logits;
        }
        let bits = self.input(Input::Mask);
        let allowed = idioms::from_bits(&mut self.b, bits, logits.dim(1));
        let lowest = self.b.full_like(logits, f32::MIN);
        self.b.select(allowed, logits, lowest)
    }
}
