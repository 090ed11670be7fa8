//! A program's costs as a few numbers, for those who ask at every step.
//!
//! Invariant: [`Rates::cost`] is [`Span::cost`] to the last digit, without a walk over the operations.

use super::{Cost, Span, per_token};
use crate::program::{Op, Program};

/// What rows, outputs and attended keys of a program cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    row_flops: u64,
    output_flops: u64,
    /// Attention by window: layers of one window are alike but for their sizes, which add up.
    attention: Vec<Attention>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attention {
    window: Option<usize>,
    /// Operations of a query and a key that it sees.
    pair_flops: u64,
    /// Cached values of a token.
    values: u64,
}

impl Rates {
    /// Of a program.
    pub fn of(program: &Program) -> Rates {
        let linear = |rows, outputs| Span { rows, context: 0, outputs }.cost(program).linear_flops;
        let mut attention: Vec<Attention> = vec![];
        for op in &program.ops {
            let Op::Attend { cache, heads, window, .. } = op else { continue };
            let cache = program.caches[cache.0 as usize];
            let pair_flops = 2 * *heads as u64 * (cache.k_dim as u64 + cache.v_dim as u64);
            let values = per_token(&cache);
            match attention.iter_mut().find(|known| known.window == *window) {
                Some(known) => {
                    known.pair_flops += pair_flops;
                    known.values += values;
                }
                None => attention.push(Attention { window: *window, pair_flops, values }),
            }
        }
        Rates { row_flops: linear(1, 0), output_flops: linear(0, 1), attention }
    }

    /// Of a program of which nothing is known: a row is an operation, and nothing else costs anything.
    pub fn rows_alone() -> Rates {
        Rates { row_flops: 1, ..Rates::default() }
    }

    /// Cost of a sequence's share of a step.
    pub fn cost(&self, span: Span) -> Cost {
        let (rows, outputs) = (span.rows as u64, span.outputs as u64);
        let mut cost = Cost {
            linear_flops: self.row_flops.saturating_mul(rows).saturating_add(self.output_flops.saturating_mul(outputs)),
            ..Cost::default()
        };
        for Attention { window, pair_flops, values } in &self.attention {
            cost += Cost {
                attention_flops: pair_flops.saturating_mul(span.attended_keys(*window)),
                kv_values_read: values.saturating_mul(span.distinct_keys(*window)),
                kv_values_written: values.saturating_mul(rows),
                ..Cost::default()
            };
        }
        cost
    }
}
