//! What requests ask for in each case.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use njoule_models::tokenizer::Tokenizer;
use njoule_runtime::request::{MaskError, MaskStream, TextStream, TokenMask, TokenText};
use njoule_runtime::{Request, SamplingParams};
use serde_json::json;

use super::vocabulary;

/// One of them.
pub struct Case {
    pub name: &'static str,
    sampling: SamplingParams,
    mask: Masked,
    logprobs: Option<usize>,
}

/// Which tokens rows allow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Masked {
    /// All, without a mask.
    No,
    /// Half of them, by a mask that costs nothing to compute.
    Half,
    /// What a JSON schema allows.
    Grammar,
}

/// From cheap to dear.
pub fn cases() -> Vec<Case> {
    let greedy = SamplingParams::default();
    let top = SamplingParams { temperature: 0.8, top_k: 20, top_p: 0.95, seed: Some(1), ..greedy.clone() };
    let penalised =
        SamplingParams { repetition_penalty: 1.1, presence_penalty: 0.1, frequency_penalty: 0.2, ..top.clone() };
    let case =
        |name, sampling: &SamplingParams, mask, logprobs| Case { name, sampling: sampling.clone(), mask, logprobs };
    vec![
        case("greedy", &greedy, Masked::No, None),
        case("greedy, masks", &greedy, Masked::Half, None),
        case("greedy, grammar", &greedy, Masked::Grammar, None),
        case("top-k, top-p", &top, Masked::No, None),
        case("top-k, top-p, penalties", &penalised, Masked::No, None),
        case("top-k, top-p, penalties, masks, logprobs", &penalised, Masked::Half, Some(5)),
        case("top-k, top-p, penalties, grammar, logprobs", &penalised, Masked::Grammar, Some(5)),
    ]
}

impl Case {
    /// What its answers are held to.
    pub fn mask(&self, masks: &Masks) -> Option<Arc<dyn TokenMask>> {
        match self.mask {
            Masked::No => None,
            Masked::Half => Some(Arc::new(Half)),
            Masked::Grammar => Some(masks.grammar.clone()),
        }
    }

    /// Request number `i`.
    pub fn request(&self, i: usize, prompt: usize, tokens: usize, masks: &Masks) -> Request {
        let mask = self.mask(masks);
        let seed = self.sampling.seed.map(|seed| seed + i as u64);
        Request {
            sampling: SamplingParams { seed, ..self.sampling.clone() },
            mask,
            logprobs: self.logprobs,
            text: Some(Arc::new(Word)),
            ignore_eos: true,
            ..Request::new(vec![i as u32 + 5; prompt], tokens)
        }
    }
}

/// Masks that take making.
pub struct Masks {
    grammar: Arc<dyn TokenMask>,
    /// The token that ends an answer.
    pub end: u32,
}

impl Masks {
    /// Over the vocabulary of a model's directory, or a made-up one, which is written to `dir`.
    pub fn new(tokenizer: &str, dir: &Path, vocab: usize) -> Result<Masks> {
        let tokenizer = match tokenizer {
            "" => {
                let dir = dir.join("vocabulary");
                vocabulary::write(&dir, vocab)?;
                Tokenizer::from_files(&dir)?
            }
            given => Tokenizer::from_files(Path::new(given))?,
        };
        let end = tokenizer.specials().eos.first().copied();
        let end = end.ok_or_else(|| anyhow!("the tokenizer has no token that ends an answer"))?;
        // Long enough that no answer ends.
        let item = json!({"type": "object", "properties": {
            "name": {"type": "string"}, "kind": {"enum": ["first", "second", "third"]}, "count": {"type": "integer"},
            "ratio": {"type": "number"}, "tags": {"type": "array", "items": {"type": "string"}},
        }, "required": ["name", "kind", "count", "ratio", "tags"], "additionalProperties": false});
        let schema = json!({"type": "array", "items": item, "minItems": 500});
        let grammar = njoule_server::json_schema(schema, &tokenizer, vocab, &[end]).map_err(|e| anyhow!("{e:?}"))?;
        Ok(Masks { grammar, end })
    }
}

struct Half;

impl TokenMask for Half {
    fn start(self: Arc<Self>, _: &[u32]) -> Box<dyn MaskStream> {
        Box::new(Half)
    }
}

impl MaskStream for Half {
    fn fill(&mut self, _: &[u32], allowed: &mut [u32]) -> Result<(), MaskError> {
        allowed.fill(0x5555_5555);
        Ok(())
    }
}

struct Word;

impl TokenText for Word {
    fn start(self: Arc<Self>, _: &[u32]) -> Box<dyn TextStream> {
        Box::new(Word)
    }
}

impl TextStream for Word {
    fn push(&mut self, _: u32, out: &mut String) {
        out.push_str(" word");
    }

    fn finish(&mut self, _: &mut String) {}
}
