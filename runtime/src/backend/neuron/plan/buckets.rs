//! Few buckets for many lengths, by dynamic programming.
//!
//! Every length runs in the smallest bucket that is not shorter; a bucket's work is its own length. For a given number of
//! buckets the sum of work over a histogram is the least there is. The largest bucket is always `cover`, so that every
//! admissible length has one.

/// A set of buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fitted {
    /// Ascending; the last is what was to be covered.
    pub buckets: Vec<usize>,
    /// Sum over the histogram of count times bucket.
    pub padded: u128,
}

/// The best sets of 1, 2, ... `most` buckets for `histogram`, pairs of length and count in any order. Fewer sets where
/// more buckets cannot help. Lengths beyond `cover` are not admissible and do not count.
///
/// O(`most` * n log n) for n distinct lengths: see [`coarse`].
pub fn fit(histogram: &[(usize, u64)], most: usize, cover: usize) -> Vec<Fitted> {
    let mut entries: Vec<(usize, u128)> = histogram
        .iter()
        .filter(|(len, count)| *len <= cover && *count > 0)
        .map(|(l, c)| (*l, u128::from(*c)))
        .collect();
    entries.push((cover, 0));
    entries.sort_unstable();
    entries.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 += next.1;
        }
        same
    });
    let n = entries.len();
    let mut before = vec![0_u128];
    for (_, count) in &entries {
        before.push(before.last().copied().unwrap_or(0) + count);
    }
    // Work of the first `end` lengths with the buckets so far; the cut says where the last bucket's lengths begin.
    let mut work: Vec<u128> = (1..=n).map(|end| before[end] * entries[end - 1].0 as u128).collect();
    let mut cuts: Vec<Vec<usize>> = vec![vec![0; n]];
    let mut sets = Vec::new();
    loop {
        let mut buckets = Vec::new();
        let mut end = n;
        for cut in cuts.iter().rev() {
            if end == 0 {
                break;
            }
            buckets.push(entries[end - 1].0);
            end = cut[end - 1];
        }
        buckets.reverse();
        sets.push(Fitted { buckets, padded: work[n - 1] });
        if sets.len() >= most.max(1) || cuts.len() >= n {
            return sets;
        }
        // One bucket for all of them leaves the others unused: never worse than before.
        let mut next = work.clone();
        let mut next_cuts = cuts.last().map_or_else(|| vec![0; n], Vec::clone);
        Layer { entries: &entries, before: &before, work: &work, next: &mut next, cuts: &mut next_cuts }
            .fill((1, n), (1, n));
        if next[n - 1] >= work[n - 1] {
            return sets;
        }
        work = next;
        cuts.push(next_cuts);
    }
}

/// One bucket more: of the first `end` lengths, those from a cut on are in the last one.
struct Layer<'a> {
    entries: &'a [(usize, u128)],
    /// Lengths before each.
    before: &'a [u128],
    /// With the buckets so far, and with one more.
    work: &'a [u128],
    next: &'a mut [u128],
    cuts: &'a mut [usize],
}

impl Layer<'_> {
    /// The best cuts, if they are better than what is there, for all ends from `first` to `last`; they are among `low` to
    /// `high`. The first of the best cuts moves only forward with the end: a later cut gains more the longer the last
    /// bucket is.
    fn fill(&mut self, (first, last): (usize, usize), (low, high): (usize, usize)) {
        if first > last {
            return;
        }
        let end = first.midpoint(last);
        let (before, work) = (self.before, self.work);
        let (longest, all) = (self.entries[end - 1].0 as u128, before[end]);
        let (mut best, mut at) = (u128::MAX, low);
        let mut cut = low;
        while cut <= high && cut < end {
            let cost = work[cut - 1] + (all - before[cut]).wrapping_mul(longest); // no more than the whole of it
            if cost < best {
                (best, at) = (cost, cut);
            }
            cut += 1;
        }
        if best < self.next[end - 1] {
            (self.next[end - 1], self.cuts[end - 1]) = (best, at);
        }
        self.fill((first, end - 1), (low, at));
        self.fill((end + 1, last), (at, high));
    }
}

/// A length rounded up to a multiple of `grain`, at most `cover`.
pub fn coarse(len: usize, grain: usize, cover: usize) -> usize {
    len.div_ceil(grain.max(1)).saturating_mul(grain.max(1)).min(cover)
}

/// The smallest bucket that is not shorter than `len`.
pub fn smallest(buckets: &[usize], len: usize) -> Option<usize> {
    buckets.iter().copied().filter(|b| *b >= len).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn work(histogram: &[(usize, u64)], buckets: &[usize]) -> u128 {
        histogram.iter().map(|(l, c)| smallest(buckets, *l).unwrap() as u128 * u128::from(*c)).sum()
    }

    #[test]
    fn exact_lengths_are_buckets_of_their_own() {
        let sets = fit(&[(512, 10), (513, 1), (1024, 5)], 8, 1024);
        assert_eq!(sets.last().unwrap().buckets, [512, 513, 1024]);
        assert_eq!(sets.last().unwrap().padded, 512 * 10 + 513 + 1024 * 5);
        assert_eq!(sets[0].buckets, [1024]);
    }

    #[test]
    fn nothing_to_fit_gives_the_one_that_covers() {
        assert_eq!(fit(&[], 4, 100), [Fitted { buckets: vec![100], padded: 0 }]);
        assert_eq!(fit(&[(7, 0), (101, 3)], 0, 100), [Fitted { buckets: vec![100], padded: 0 }]);
    }

    proptest! {
        #[test]
        fn no_set_of_buckets_is_better(
            histogram in prop::collection::vec((1_usize..12, 0_u64..20), 0..10),
            most in 1_usize..5,
        ) {
            let cover = 12;
            let sets = fit(&histogram, most, cover);
            prop_assert!(!sets.is_empty() && sets.len() <= most);
            // Every set of at most `most` buckets, by brute force.
            let mut best = vec![u128::MAX; most];
            for mask in 0_u32..1 << (cover - 1) {
                let mut buckets: Vec<usize> = (1..cover).filter(|l| mask >> (l - 1) & 1 == 1).collect();
                buckets.push(cover);
                if buckets.len() <= most {
                    let padded = work(&histogram, &buckets);
                    best[buckets.len() - 1..].iter_mut().for_each(|b| *b = padded.min(*b));
                }
            }
            for (i, best) in best.iter().enumerate() {
                let set = &sets[i.min(sets.len() - 1)];
                prop_assert_eq!(set.padded, *best, "{} buckets", i + 1);
                prop_assert_eq!(work(&histogram, &set.buckets), set.padded);
                prop_assert_eq!(set.buckets.last(), Some(&cover));
                prop_assert!(set.buckets.is_sorted() && set.buckets.len() <= i + 1);
            }
        }
    }
}
