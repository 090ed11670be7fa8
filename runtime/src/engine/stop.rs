//! Finds stop strings in an answer's text and holds back what may become one.
//!
//! A match is the one that ends first, and of those the longest, as if the text had come character by character: what is
//! found does not depend on where tokens begin and end.
//!
//! Invariant: released text plus held text is all text so far, and no stop string begins in released text.

/// The text of one answer on its way out.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    include: bool,
    held: String,
    /// Matches must end behind this many bytes of `held`.
    exempt: usize,
}

impl StopMatcher {
    /// Looks for `stops`; a match stays in the text if `include` is set.
    pub fn new(stops: Vec<String>, include: bool) -> Self {
        StopMatcher { stops, include, held: String::new(), exempt: 0 }
    }

    /// Where new text is appended before [`Self::advance`].
    pub fn text(&mut self) -> &mut String {
        &mut self.held
    }

    /// Looks through the text appended since the last call, unless it is `exempt`, and moves what can be shown to `out`.
    /// Returns the index of the stop string that ended the answer.
    pub fn advance(&mut self, exempt: bool, out: &mut String) -> Option<usize> {
        if self.stops.is_empty() {
            out.push_str(&self.held);
            self.held.clear();
            return None;
        }
        if exempt {
            self.exempt = self.held.len();
        } else if let Some((which, start, end)) = self.find() {
            out.push_str(&self.held[..if self.include { end } else { start }]);
            self.held.clear();
            return Some(which);
        }
        let safe = self.held.len() - self.partial();
        out.push_str(&self.held[..safe]);
        self.held.drain(..safe);
        self.exempt = self.exempt.saturating_sub(safe);
        None
    }

    /// Gives up everything that is held.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that ends first (the longest of those), its start and its end.
    fn find(&self) -> Option<(usize, usize, usize)> {
        let mut best: Option<(usize, usize, usize)> = None;
        for (which, stop) in self.stops.iter().enumerate() {
            let mut from = 0;
            while let Some(at) = self.held[from..].find(stop.as_str()) {
                let (start, end) = (from + at, from + at + stop.len());
                if end > self.exempt {
                    if best.is_none_or(|(_, s, e)| (end, start) < (e, s)) {
                        best = Some((which, start, end));
                    }
                    break;
                }
                from = start + self.held[start..].chars().next().map_or(1, char::len_utf8);
            }
        }
        best
    }

    /// Bytes at the end of the text that begin a stop string.
    fn partial(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = self.stops.iter().map(|stop| {
            let stop = stop.as_bytes();
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&n| held.ends_with(&stop[..n])).unwrap_or(0)
        });
        longest.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (String, Option<usize>) {
        let stops = stops.iter().map(|s| s.to_string()).collect();
        let mut matcher = StopMatcher::new(stops, include);
        let mut out = String::new();
        for piece in pieces {
            matcher.text().push_str(piece);
            if let Some(which) = matcher.advance(false, &mut out) {
                return (out, Some(which));
            }
        }
        out.push_str(&matcher.finish());
        (out, None)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_cut_off() {
        let pieces = ["Hello", " wor", "ld", "\n", "\n", "more"];
        assert_eq!(run(&["\n\n"], false, &pieces), ("Hello world".into(), Some(0)));
        assert_eq!(run(&["\n\n"], true, &pieces), ("Hello world\n\n".into(), Some(0)));
        assert_eq!(run(&["xyz"], false, &pieces).0, "Hello world\n\nmore");
    }

    #[test]
    fn the_stop_string_that_ends_first_wins_and_then_the_longest() {
        assert_eq!(run(&["cde", "bc"], false, &["abcdef"]), ("a".into(), Some(1)));
        assert_eq!(run(&["c", "abc"], false, &["xabc"]), ("x".into(), Some(1)));
    }

    #[test]
    fn only_the_possible_start_of_a_stop_string_is_held_back() {
        let mut matcher = StopMatcher::new(vec!["</s>".into()], false);
        let mut out = String::new();
        matcher.text().push_str("a<");
        assert_eq!(matcher.advance(false, &mut out), None);
        assert_eq!(out, "a");
        matcher.text().push_str("</");
        assert_eq!(matcher.advance(false, &mut out), None);
        assert_eq!(out, "a<");
        matcher.text().push('x');
        assert_eq!(matcher.advance(false, &mut out), None);
        assert_eq!(out, "a<</x");
    }

    #[test]
    fn exempt_text_cannot_end_a_match_but_can_begin_one() {
        let mut matcher = StopMatcher::new(vec!["ab".into()], false);
        let mut out = String::new();
        matcher.text().push_str("ab.a");
        assert_eq!(matcher.advance(true, &mut out), None);
        matcher.text().push_str("bc");
        assert_eq!(matcher.advance(false, &mut out), Some(0));
        assert_eq!(out, "ab.");
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_pieces(
            text in "[abé]{0,40}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(0usize..80, 0..10),
            include: bool,
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let single: Vec<&str> = chars.iter().map(String::as_str).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|c| text.is_char_boundary(*c)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let expected = run(&stops, include, &single);
            prop_assert_eq!(run(&stops, include, &pieces).0, expected.0.clone());
            prop_assert_eq!(run(&stops, include, &[text.as_str()]), expected);
        }
    }
}
