//! Which columns (or rows) of a whole each core holds.

use std::ops::Range;

/// A division of columns over cores, in equally many on each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Columns of the whole.
    pub whole: usize,
    /// What each core has, one run after the other.
    ranks: Vec<Vec<Run>>,
    /// How many cores have a column: one, or, of keys and values with fewer heads than cores, several.
    pub copies: usize,
}

/// Consecutive columns on a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first of them in the whole; where absent they are zeros.
    pub from: Option<usize>,
    /// How many.
    pub len: usize,
}

impl Split {
    /// `n` columns in order, as many on each core, those of the last padded.
    pub fn even(n: usize, tp: usize) -> Split {
        Split::in_order(n, n.div_ceil(tp), tp)
    }

    /// The same in multiples of 32: a vocabulary, whose masks are words of 32 bits.
    pub fn vocabulary(n: usize, tp: usize) -> Split {
        Split::in_order(n, n.div_ceil(32 * tp) * 32, tp)
    }

    fn in_order(n: usize, per: usize, tp: usize) -> Split {
        let rank = |r: usize| {
            let (start, end) = ((r * per).min(n), ((r + 1) * per).min(n));
            runs((start..end).map(Some).chain(std::iter::repeat_n(None, per - (end - start))), 1)
        };
        Split { whole: n, ranks: (0..tp).map(rank).collect(), copies: 1 }
    }

    /// Key/value heads of `k_dim` and `v_dim` columns, `group` query heads each: how queries, keys, values and mixed values
    /// are divided, and the heads a core has of each kind.
    pub fn heads(kv_heads: usize, group: usize, [k_dim, v_dim]: [usize; 2], tp: usize) -> Heads {
        let (mut kv, mut q, mut copies) = (vec![], vec![], 1);
        if tp <= kv_heads {
            let per = kv_heads.div_ceil(tp);
            for rank in 0..tp {
                let heads = (rank * per..(rank + 1) * per).map(|h| Some(h).filter(|h| *h < kv_heads));
                q.push(heads.clone().flat_map(|h| (0..group).map(move |i| h.map(|h| h * group + i))).collect());
                kv.push(heads.collect::<Vec<_>>());
            }
        } else {
            copies = tp / kv_heads;
            let per = group.div_ceil(copies);
            for rank in 0..tp {
                let head = Some(rank / copies).filter(|h| *h < kv_heads);
                let first = rank % copies * per;
                kv.push(vec![head]);
                let query = |i: usize| head.filter(|_| i < group).map(|h| h * group + i);
                q.push((first..first + per).map(query).collect::<Vec<_>>());
            }
        }
        let split = |heads: &[Vec<Option<usize>>], n: usize, dim: usize, copies: usize| Split {
            whole: n * dim,
            ranks: heads.iter().map(|h| runs(h.iter().copied(), dim)).collect(),
            copies,
        };
        let heads = kv_heads * group;
        Heads {
            queries: split(&q, heads, k_dim, 1),
            keys: split(&kv, kv_heads, k_dim, copies),
            values: split(&kv, kv_heads, v_dim, copies),
            mixed: split(&q, heads, v_dim, 1),
            each: split(&q, heads, 1, 1),
            local: [q[0].len(), kv[0].len()],
        }
    }

    /// Columns on a core.
    pub fn local(&self) -> usize {
        self.ranks.first().map_or(0, |runs| runs.iter().map(|r| r.len).sum())
    }

    /// What core `rank` has.
    pub fn of_rank(&self, rank: usize) -> &[Run] {
        &self.ranks[rank]
    }

    /// Cores.
    pub fn tp(&self) -> usize {
        self.ranks.len()
    }

    /// Whether every core's columns are whole units of `len` columns.
    pub fn is_of_units(&self, len: usize) -> bool {
        self.ranks.iter().flatten().all(|r| r.len.is_multiple_of(len) && r.from.is_none_or(|f| f.is_multiple_of(len)))
    }

    /// The same of units of `len` columns, of which every core's columns are whole ones ([`Split::is_of_units`]).
    pub fn units(&self, len: usize) -> Split {
        let unit = |r: &Run| Run { from: r.from.map(|from| from / len), len: r.len / len };
        let ranks = self.ranks.iter().map(|runs| runs.iter().map(unit).collect()).collect();
        Split { whole: self.whole / len, ranks, copies: self.copies }
    }

    /// With `len` columns in each one's place.
    pub fn times(&self, len: usize) -> Split {
        let column = |r: &Run| Run { from: r.from.map(|from| from * len), len: r.len * len };
        let ranks = self.ranks.iter().map(|runs| runs.iter().map(column).collect()).collect();
        Split { whole: self.whole * len, ranks, copies: self.copies }
    }

    /// Where the whole's columns stand when all cores' columns lie one after the other, padding left out: ranges that,
    /// put together, are the whole in order.
    pub fn places(&self) -> Vec<Range<usize>> {
        let mut found: Vec<(usize, usize, usize)> = vec![];
        for (rank, runs) in self.ranks.iter().enumerate() {
            let mut at = rank * self.local();
            for run in runs {
                if let Some(from) = run.from
                    && !found.iter().any(|f| f.0 == from)
                {
                    found.push((from, at, run.len));
                }
                at += run.len;
            }
        }
        found.sort_unstable();
        let mut places: Vec<Range<usize>> = vec![];
        for (_, at, len) in found {
            match places.last_mut() {
                Some(last) if last.end == at => last.end += len,
                _ => places.push(at..at + len),
            }
        }
        places
    }
}

/// How an attention's heads are divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Columns of queries.
    pub queries: Split,
    /// Columns of keys.
    pub keys: Split,
    /// Columns of values.
    pub values: Split,
    /// Columns of the result.
    pub mixed: Split,
    /// Query heads.
    pub each: Split,
    /// Query heads and key/value heads on a core.
    pub local: [usize; 2],
}

/// Units of `dim` columns as runs; nothing where a unit is padding.
fn runs(units: impl Iterator<Item = Option<usize>>, dim: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = vec![];
    for unit in units {
        let from = unit.map(|u| u * dim);
        match runs.last_mut() {
            Some(last) if last.from.map(|f| f + last.len) == from && last.from.is_some() == from.is_some() => {
                last.len += dim;
            }
            _ => runs.push(Run { from, len: dim }),
        }
    }
    runs
}
