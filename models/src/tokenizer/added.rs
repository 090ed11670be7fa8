//! Added tokens: strings that are cut out of the text before anything else looks at it.
//!
//! Behaves as `AddedVocabulary` of the tokenizers crate: leftmost-longest matches, in the raw text for tokens with
//! `normalized: false`, in the normalised text for the others; `single_word`, `lstrip` and `rstrip` honoured.

use aho_corasick::{AhoCorasick, MatchKind};

use super::TokenizerError;

/// One added token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub content: String,
    /// Skipped by a decode that skips special tokens, and never produced from text that a user wrote.
    pub special: bool,
    /// Matches only between non-word characters.
    pub single_word: bool,
    /// Swallows white space to its left.
    pub lstrip: bool,
    /// Swallows white space to its right.
    pub rstrip: bool,
    /// Looked for in the normalised text rather than in the raw one.
    pub normalized: bool,
}

impl AddedToken {
    /// A token that is matched exactly as it is written.
    pub fn verbatim(id: u32, content: &str, special: bool) -> AddedToken {
        AddedToken {
            id,
            content: content.to_owned(),
            special,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
        }
    }
}

/// Part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// First byte.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
    /// The added token that stands there; `None` for ordinary text.
    pub token: Option<u32>,
}

/// A searcher for some added tokens.
#[derive(Debug)]
pub struct Matcher {
    search: Option<AhoCorasick>,
    /// By pattern.
    tokens: Vec<AddedToken>,
}

impl Matcher {
    /// Looks for `patterns[i]` as `tokens[i]`.
    pub fn new(tokens: Vec<(String, AddedToken)>) -> Result<Matcher, TokenizerError> {
        let tokens: Vec<_> = tokens.into_iter().filter(|(pattern, _)| !pattern.is_empty()).collect();
        let search = if tokens.is_empty() {
            None
        } else {
            let built = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(tokens.iter().map(|(pattern, _)| pattern));
            Some(built.map_err(|e| TokenizerError::AddedTokens(e.to_string()))?)
        };
        Ok(Matcher { search, tokens: tokens.into_iter().map(|(_, token)| token).collect() })
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.search.is_none()
    }

    /// The parts of `text`, in order and without gaps.
    pub fn split(&self, text: &str) -> Vec<Part> {
        let Some(search) = &self.search else {
            return vec![Part { start: 0, end: text.len(), token: None }];
        };
        let mut parts = Vec::new();
        let mut done = 0;
        for found in search.find_iter(text) {
            let token = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            if token.single_word {
                let inside = text[..start].chars().next_back().is_some_and(is_word)
                    || text[end..].chars().next().is_some_and(is_word);
                if inside {
                    continue;
                }
            }
            if token.lstrip {
                start = text[..start].trim_end_matches(char::is_whitespace).len().max(done);
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start_matches(char::is_whitespace).len();
            }
            // A token whose left neighbour swallowed its first bytes as white space.
            let start = start.max(done);
            let end = end.max(start);
            if done < start {
                parts.push(Part { start: done, end: start, token: None });
            }
            parts.push(Part { start, end, token: Some(token.id) });
            done = end;
        }
        if done < text.len() {
            parts.push(Part { start: done, end: text.len(), token: None });
        }
        parts
    }
}

/// `\w` of the regex crate, nearly: connector punctuation other than the underscore and joiners are left out.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(tokens: &[AddedToken], text: &str) -> Vec<(String, Option<u32>)> {
        let matcher = Matcher::new(tokens.iter().map(|t| (t.content.clone(), t.clone())).collect()).unwrap();
        matcher.split(text).into_iter().map(|p| (text[p.start..p.end].to_owned(), p.token)).collect()
    }

    #[test]
    fn longest_match_wins_and_gaps_are_text() {
        let tokens = [AddedToken::verbatim(1, "<a>", true), AddedToken::verbatim(2, "<a><b>", true)];
        let got = parts(&tokens, "x<a><b>y<a>");
        assert_eq!(got, [("x".into(), None), ("<a><b>".into(), Some(2)), ("y".into(), None), ("<a>".into(), Some(1))]);
    }

    #[test]
    fn stripping_tokens_swallow_white_space() {
        let both = AddedToken { lstrip: true, rstrip: true, ..AddedToken::verbatim(5, "<m>", true) };
        let got = parts(&[both], "a  <m> <m>\nb");
        assert_eq!(
            got,
            [("a".into(), None), ("  <m> ".into(), Some(5)), ("<m>\n".into(), Some(5)), ("b".into(), None)]
        );
    }

    #[test]
    fn single_words_do_not_match_inside_words() {
        let word = AddedToken { single_word: true, ..AddedToken::verbatim(5, "cat", false) };
        assert_eq!(parts(&[word], "concat cat"), [("concat ".into(), None), ("cat".into(), Some(5))]);
    }
}
