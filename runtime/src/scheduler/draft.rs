//! Guesses what comes next from a sequence's own tokens: what came after the last time that they ended like this.

/// Writes to `out`, which is empty, at most `most` tokens that may follow `tokens`: those behind the longest earlier
/// occurrence of their end, the latest of equals. Where that runs into the end itself, it is taken to repeat.
pub fn look_back(tokens: &[u32], most: usize, out: &mut Vec<u32>) {
    let Some((&last, before)) = tokens.split_last() else { return };
    // Length of the match and where it ends.
    let mut best = (LEAST - 1, 0);
    let mut end = before.len();
    'all: while end > 0 {
        let start = end.saturating_sub(RUN);
        // Most runs do not hold the token, and a loop without an exit takes many at once.
        if before[start..end].iter().fold(false, |found, token| found | (*token == last)) {
            for at in (start..end).rev().filter(|at| before[*at] == last) {
                let pairs = before[..at].iter().rev().zip(before.iter().rev());
                let length = 1 + pairs.take(LONGEST - 1).take_while(|(a, b)| a == b).count();
                if length > best.0 {
                    best = (length, at + 1);
                }
                if length == LONGEST {
                    break 'all;
                }
            }
        }
        end = start;
    }
    if best.1 == 0 {
        return;
    }
    for at in (best.1..).take(most) {
        let token = tokens.get(at).copied().unwrap_or_else(|| out[at - tokens.len()]);
        out.push(token);
    }
}

/// Tokens that must match.
const LEAST: usize = 2;
/// Longer matches say no more.
const LONGEST: usize = 8;
/// Tokens that are looked through at once.
const RUN: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drafts(tokens: &[u32], most: usize) -> Vec<u32> {
        let mut out = Vec::new();
        look_back(tokens, most, &mut out);
        out
    }

    #[test]
    fn what_followed_the_longest_and_latest_match_is_guessed() {
        assert_eq!(drafts(&[1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 4), [9, 2, 3, 8], "three tokens match at the start");
        assert_eq!(drafts(&[2, 3, 9, 7, 2, 3, 8, 5, 2, 3], 2), [8, 5], "the latest of equals");
        assert!(drafts(&[3, 9, 7, 3], 4).is_empty(), "one token is no match");
        assert!(drafts(&[1, 2], 4).is_empty());
        assert!(drafts(&[], 4).is_empty());
    }

    #[test]
    fn a_repetition_is_taken_to_go_on() {
        assert_eq!(drafts(&[9, 1, 2, 1, 2, 1], 5), [2, 1, 2, 1, 2]);
        assert_eq!(drafts(&[5, 5, 5], 3), [5, 5, 5]);
    }

    proptest! {
        #[test]
        fn the_search_finds_what_a_plain_one_finds(tokens in prop::collection::vec(0u32..4, 0..300), most in 0usize..20) {
            let n = tokens.len();
            let matched = |end: usize| (1..=end.min(LONGEST)).take_while(|k| tokens[end - k] == tokens[n - k]).count();
            let best = (1..n).map(|end| (matched(end), end)).max().filter(|(length, _)| *length >= LEAST);
            let wanted: Vec<u32> = best.map_or(vec![], |(_, end)| (0..most).map(|j| tokens[end + j % (n - end)]).collect());
            prop_assert_eq!(drafts(&tokens, most), wanted);
        }
    }
}
