//! What a reference implementation computes for a model: logits after prompts, and the tokens that follow.
//!
//! The file's form is that of `testdata/smollm2`, which Hugging Face transformers' results are kept in. Any text gives a
//! value or an error.

use serde::Deserialize;

use super::batch::{Answer, Feed};
use crate::backend::{Capacity, Executor, StepError, Wants};

/// A reference's results.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden {
    /// Who computed them, of which weights.
    pub reference: String,
    /// Each prompt alone.
    pub prompts: Vec<GoldenPrompt>,
}

/// Of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct GoldenPrompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The likeliest tokens after it with their logits, the likeliest first.
    pub top: Vec<(u32, f32)>,
    /// Logarithm of the sum of the exponentials of all logits.
    pub log_sum_exp: Option<f64>,
    /// The tokens that follow, each with the distance of its logit to the next one's.
    pub greedy: Vec<(u32, f32)>,
}

#[derive(Deserialize)]
struct File {
    made_with: Option<serde_json::Map<String, serde_json::Value>>,
    weights: Option<String>,
    prompts: Vec<Prompt>,
    results: Vec<After>,
}

#[derive(Deserialize)]
struct Prompt {
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct After {
    last_top50_ids: Vec<u32>,
    last_top50_logits: Vec<f32>,
    last_logsumexp: Option<f64>,
    #[serde(default)]
    greedy_ids: Vec<u32>,
    #[serde(default)]
    greedy_margins: Vec<f32>,
}

impl Golden {
    /// Reads a file's text; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Golden, String> {
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if file.prompts.len() != file.results.len() || file.prompts.is_empty() {
            return Err(format!("{} prompts and {} results", file.prompts.len(), file.results.len()));
        }
        let made_with = file.made_with.unwrap_or_default();
        let mut by: Vec<String> =
            made_with.iter().map(|(name, version)| format!("{name} {}", version.as_str().unwrap_or("?"))).collect();
        by.extend(file.weights);
        let prompts = file.prompts.into_iter().zip(file.results).enumerate().map(|(number, (prompt, result))| {
            let (ids, logits) = (result.last_top50_ids, result.last_top50_logits);
            if prompt.ids.is_empty() || ids.is_empty() || ids.len() != logits.len() {
                let (n, ids, logits) = (prompt.ids.len(), ids.len(), logits.len());
                return Err(format!("prompt {number} has {n} tokens, {ids} ids and {logits} logits after them"));
            }
            if logits.windows(2).any(|pair| !(pair[0] >= pair[1])) {
                return Err(format!("the logits after prompt {number} do not descend"));
            }
            let top = ids.into_iter().zip(logits).collect();
            let greedy = result.greedy_ids.into_iter().zip(result.greedy_margins).collect();
            Ok(GoldenPrompt { ids: prompt.ids, top, log_sum_exp: result.last_logsumexp, greedy })
        });
        let prompts = prompts.collect::<Result<_, String>>()?;
        Ok(Golden { reference: if by.is_empty() { "not named".to_owned() } else { by.join(", ") }, prompts })
    }

    /// Lets another executor of the same model be the reference: one that returns logits, loaded for `capacity`.
    pub fn by(
        reference: &str,
        executor: &mut dyn Executor,
        capacity: Capacity,
        prompts: &[Vec<u32>],
    ) -> Result<Golden, StepError> {
        let mut feed = Feed { executor, capacity, chunk: capacity.max_rows };
        let mut all = vec![];
        for ids in prompts {
            let mut logits = logits_of(feed.prompt(0, ids, Wants::Logits)?)?;
            let top = top_of(&logits, TOP);
            let log_sum_exp = Some(log_sum_exp(&logits));
            let mut greedy = vec![];
            for position in ids.len()..ids.len() + FOLLOWED {
                let next = top_of(&logits, 2);
                greedy.push((next[0].0, next[0].1 - next.get(1).map_or(f32::MIN, |second| second.1)));
                logits = logits_of(feed.decode(0, next[0].0, position, Wants::Logits)?)?;
            }
            all.push(GoldenPrompt { ids: ids.clone(), top, log_sum_exp, greedy });
        }
        Ok(Golden { reference: reference.to_owned(), prompts: all })
    }
}

fn logits_of(answer: Answer) -> Result<Vec<f32>, StepError> {
    match answer {
        Answer::Logits(logits) => Ok(logits),
        Answer::Token(_) => Err(StepError::Device("a reference gives logits".to_owned())),
    }
}

/// The largest, descending; the lowest id of equals first.
fn top_of(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(n);
    all
}

pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

const TOP: usize = 50;
/// Tokens after a prompt that are compared.
pub(super) const FOLLOWED: usize = 8;
