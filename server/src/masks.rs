//! Masks of tokens that are no grammar: lists that are allowed, words that are not, thoughts that must end; and several
//! masks as one.
//!
//! Invariant: what a mask says depends on the generated tokens alone, and filling one allocates nothing.

use std::sync::Arc;

use njoule_runtime::request::{MaskError, MaskStream, TokenMask};

/// Tokens that pass every mask of these; `None` of none.
pub fn all(mut masks: Vec<Arc<dyn TokenMask>>) -> Option<Arc<dyn TokenMask>> {
    match masks.len() {
        0 | 1 => masks.pop(),
        _ => Some(Arc::new(All(masks))),
    }
}

struct All(Vec<Arc<dyn TokenMask>>);

struct AllStream {
    streams: Vec<Box<dyn MaskStream>>,
    /// What one of them says.
    one: Vec<u32>,
}

impl TokenMask for All {
    fn start(self: Arc<Self>, prompt: &[u32]) -> Box<dyn MaskStream> {
        let streams = self.0.iter().map(|mask| mask.clone().start(prompt)).collect();
        Box::new(AllStream { streams, one: Vec::new() })
    }
}

impl MaskStream for AllStream {
    fn fill(&mut self, generated: &[u32], allowed: &mut [u32]) -> Result<(), MaskError> {
        // Grows once.
        self.one.resize(allowed.len(), 0);
        allowed.fill(u32::MAX);
        for stream in &mut self.streams {
            self.one.fill(0);
            stream.fill(generated, &mut self.one)?;
            allowed.iter_mut().zip(&self.one).for_each(|(all, one)| *all &= one);
        }
        Ok(())
    }
}

/// `allowed_token_ids`: these tokens and no others.
pub struct Allowed(pub Vec<u32>);

impl TokenMask for Allowed {
    fn start(self: Arc<Self>, _prompt: &[u32]) -> Box<dyn MaskStream> {
        Box::new(Shared(self))
    }
}

/// `bad_words`: none of these sequences of tokens.
pub struct Without(pub Vec<Vec<u32>>);

impl TokenMask for Without {
    fn start(self: Arc<Self>, _prompt: &[u32]) -> Box<dyn MaskStream> {
        Box::new(Shared(self))
    }
}

/// A mask that remembers nothing.
trait Stateless: Send + Sync {
    fn fill(&self, generated: &[u32], allowed: &mut [u32]);
}

struct Shared<T>(Arc<T>);

impl<T: Stateless> MaskStream for Shared<T> {
    fn fill(&mut self, generated: &[u32], allowed: &mut [u32]) -> Result<(), MaskError> {
        self.0.fill(generated, allowed);
        Ok(())
    }
}

impl Stateless for Allowed {
    fn fill(&self, _generated: &[u32], allowed: &mut [u32]) {
        self.0.iter().for_each(|id| set(allowed, *id, true));
    }
}

impl Stateless for Without {
    fn fill(&self, generated: &[u32], allowed: &mut [u32]) {
        allowed.fill(u32::MAX);
        for word in &self.0 {
            if let Some((last, before)) = word.split_last()
                && generated.ends_with(before)
            {
                set(allowed, *last, false);
            }
        }
    }
}

/// `thinking_token_budget`: thoughts that end after so many tokens.
pub struct Budget {
    /// Tokens of thoughts at most.
    pub tokens: usize,
    /// What begins thoughts; without it they begin in the prompt or not at all.
    pub begin: Option<u32>,
    /// What ends them.
    pub end: u32,
    /// Whether the prompt has begun them.
    pub begun: bool,
}

struct BudgetStream {
    budget: Arc<Budget>,
    /// Generated tokens that were looked at.
    seen: usize,
    /// Where the thoughts began, as long as they go on.
    since: Option<usize>,
}

impl TokenMask for Budget {
    fn start(self: Arc<Self>, _prompt: &[u32]) -> Box<dyn MaskStream> {
        Box::new(BudgetStream { since: self.begun.then_some(0), seen: 0, budget: self })
    }
}

impl MaskStream for BudgetStream {
    fn fill(&mut self, generated: &[u32], allowed: &mut [u32]) -> Result<(), MaskError> {
        if generated.len() < self.seen {
            (self.seen, self.since) = (0, self.budget.begun.then_some(0));
        }
        for (at, &id) in generated.iter().enumerate().skip(self.seen) {
            if self.since.is_some() && id == self.budget.end {
                self.since = None;
            } else if self.since.is_none() && Some(id) == self.budget.begin {
                self.since = Some(at + 1);
            }
        }
        self.seen = generated.len();
        match self.since {
            Some(since) if generated.len() - since >= self.budget.tokens => set(allowed, self.budget.end, true),
            _ => allowed.fill(u32::MAX),
        }
        Ok(())
    }
}

/// Allows a token, or forbids it.
fn set(words: &mut [u32], id: u32, allow: bool) {
    let bit = 1 << (id % 32);
    if let Some(word) = usize::try_from(id / 32).ok().and_then(|at| words.get_mut(at)) {
        *word = if allow { *word | bit } else { *word & !bit };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens of 0..64 that may follow each prefix of `generated`.
    fn allowed(mask: impl TokenMask + 'static, generated: &[u32]) -> Vec<Vec<u32>> {
        let mut stream = Arc::new(mask).start(&[]);
        let mut fill = |generated: &[u32]| {
            let mut words = [0; 2];
            stream.fill(generated, &mut words).unwrap();
            (0..64).filter(|id| words[(id / 32) as usize] >> (id % 32) & 1 == 1).collect::<Vec<u32>>()
        };
        let forth: Vec<_> = (0..=generated.len()).map(|n| fill(&generated[..n])).collect();
        // A request that was preempted asks again.
        let again: Vec<_> = (0..=generated.len()).map(|n| fill(&generated[..n])).collect();
        assert_eq!(forth, again);
        forth
    }

    fn but(forbidden: &[u32]) -> Vec<u32> {
        (0..64).filter(|id| !forbidden.contains(id)).collect()
    }

    #[test]
    fn a_word_is_forbidden_where_its_beginning_was_generated() {
        let got = allowed(Without(vec![vec![7], vec![1, 2, 40]]), &[2, 1, 2, 3]);
        assert_eq!(got, [but(&[7]), but(&[7]), but(&[7]), but(&[7, 40]), but(&[7])]);
    }

    #[test]
    fn thoughts_end_after_their_budget_and_may_begin_again() {
        let budget = |begun, tokens| Budget { tokens, begin: Some(8), end: 9, begun };
        assert_eq!(allowed(budget(true, 0), &[9, 3]), [vec![9], but(&[]), but(&[])]);
        let got = allowed(budget(false, 2), &[5, 8, 1, 2, 9, 3, 3]);
        let free = but(&[]);
        assert_eq!(got, [&free, &free, &free, &free, &vec![9], &free, &free, &free].map(Clone::clone));
        assert_eq!(allowed(budget(true, 9), &[1, 9, 1]), vec![but(&[]); 4]);
    }

    #[test]
    fn several_masks_are_all_of_them() {
        let masks: Vec<Arc<dyn TokenMask>> =
            vec![Arc::new(Allowed(vec![1, 2, 3, 50])), Arc::new(Without(vec![vec![2], vec![1, 50]]))];
        assert_eq!(allowed(All(masks), &[1, 3]), [vec![1, 3, 50], vec![1, 3], vec![1, 3, 50]]);
        assert!(all(vec![]).is_none());
    }
}
