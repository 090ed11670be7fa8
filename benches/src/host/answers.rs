//! Candidates of a model that wants what its masks allow, as one does that was told what to answer with.

use std::collections::HashMap;
use std::sync::Arc;

use njoule_runtime::backend::{Batch, BlockId, Candidates, Masks};
use njoule_runtime::request::{MaskStream, TokenMask};

/// What the sequences of a step have generated, and what may follow.
pub struct Answers {
    wanted: Option<Arc<dyn TokenMask>>,
    /// By cache row.
    answers: HashMap<BlockId, Answer>,
    asked: Vec<Asked>,
    allowed: Vec<u32>,
    words: usize,
    count: usize,
    /// The token that ends an answer: none of these does.
    end: u32,
    /// Tokens of each prompt.
    prompt: usize,
}

struct Answer {
    stream: Box<dyn MaskStream>,
    generated: Vec<u32>,
    /// Of the prompt's last token.
    position: u32,
}

/// An output of the step that runs.
struct Asked {
    block: BlockId,
    token: u32,
    position: u32,
    /// Whether the device applies its mask.
    masked: bool,
}

impl Answers {
    pub fn new(wanted: Option<Arc<dyn TokenMask>>, end: u32, prompt: usize) -> Answers {
        let (answers, asked, allowed) = (HashMap::new(), vec![], vec![]);
        Answers { wanted, answers, asked, allowed, words: 0, count: 0, end, prompt }
    }

    /// The same for others that want this.
    pub fn of(&self, wanted: Option<Arc<dyn TokenMask>>) -> Answers {
        Answers::new(wanted, self.end, self.prompt)
    }

    /// Takes a step in.
    pub fn ask(&mut self, batch: &Batch) {
        self.words = batch.masks.words;
        self.asked.clear();
        for (output, &row) in batch.outputs.iter().enumerate() {
            let row = row as usize;
            let Some(seq) = batch.seqs.iter().find(|seq| seq.rows.contains(&row)) else { continue };
            self.asked.push(Asked {
                block: batch.tables[seq.table.start],
                token: batch.tokens[row],
                position: batch.positions[row],
                masked: batch.masks.of(output).is_some(),
            });
        }
    }

    /// Candidates of that step: allowed ones first, in an order that differs from step to step.
    pub fn make_up(&mut self, out: &mut Candidates) {
        let (k, asked) = (out.count, std::mem::take(&mut self.asked));
        for (row, asked) in asked.iter().enumerate() {
            self.count += 1;
            let ids = &mut out.ids[row * k..(row + 1) * k];
            let good = match self.wanted.is_some() {
                true => self.list(asked, ids),
                false => {
                    ids.iter_mut().enumerate().for_each(|(i, id)| *id = 1 + (i as u32 * 7919) % 49_151);
                    k
                }
            };
            let mut sum = 0.0;
            for (i, value) in out.values[row * k..(row + 1) * k].iter_mut().enumerate() {
                *value = match (i < good, asked.masked) {
                    (true, _) => 10.0 - 0.15 * i as f32,
                    (false, true) => FORBIDDEN,
                    (false, false) => -6.0 - 0.05 * i as f32,
                };
                sum += f64::from(*value).exp();
            }
            out.log_sum_exp[row] = sum.ln() as f32;
            out.greedy[row] = out.ids[row * k];
        }
        self.asked = asked;
    }

    /// Lists what an answer may go on with, then others; returns how many may.
    fn list(&mut self, asked: &Asked, ids: &mut [u32]) -> usize {
        let Some(wanted) = &self.wanted else { return 0 };
        if asked.position as usize + 1 == self.prompt {
            let stream = wanted.clone().start(&[]);
            self.answers.insert(asked.block, Answer { stream, generated: vec![], position: asked.position });
        }
        let Some(answer) = self.answers.get_mut(&asked.block) else { return 0 };
        // A row that is run again has its token already.
        if answer.generated.len() < (asked.position - answer.position) as usize {
            answer.generated.push(asked.token);
        }
        self.allowed.clear();
        self.allowed.resize(self.words, 0);
        if answer.stream.fill(&answer.generated, &mut self.allowed).is_err() {
            return 0;
        }
        let (mask, words) = (&self.allowed, self.words);
        let at = |w: usize| (self.count * 31 + w * STRIDE) % words;
        let bits = (0..words).map(at).flat_map(|w| (0..32).map(move |b| (w, b)));
        let allowed = bits.map(|(w, b)| w as u32 * 32 + b).filter(|id| Masks::allows(mask, *id) && *id != self.end);
        let mut good = 0;
        ids.iter_mut().zip(allowed).take(MOST_WANTED).for_each(|(to, id)| (*to, good) = (id, good + 1));
        if good == 0 {
            // Nothing but the end is left.
            (ids[0], good) = (self.end, 1);
        }
        let (listed, rest) = ids.split_at_mut(good);
        let others = (0..u32::MAX).filter(|id| !listed.contains(id));
        rest.iter_mut().zip(others).for_each(|(to, id)| *to = id);
        good
    }
}

/// Of the candidates, what such a model wants; the others are what it would never say.
const MOST_WANTED: usize = 40;
/// Has no divisor in common with the words of SmolLM2's vocabulary.
const STRIDE: usize = 61;
/// What a device gives a token that its mask forbids.
const FORBIDDEN: f32 = -1e30;
