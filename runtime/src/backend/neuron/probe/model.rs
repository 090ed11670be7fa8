//! A whole model on the device against a reference: logits by its score modules, tokens by prefill and decode.

use serde::Serialize;

use super::batch::{Answer, Feed, likeliest};
use super::golden::{FOLLOWED, Golden, GoldenPrompt, log_sum_exp};
use super::outcome::{State, StepOutcome};
use super::{Fault, Profile, Stage};
use crate::backend::neuron::artifact::Layout;
use crate::backend::neuron::interface::{CacheShape, ModuleKind, Part};
use crate::backend::{Capacity, Executor, KvType, Quant, StepError, Wants};

/// A model that can be loaded in the forms that were chosen.
pub trait ProbeModel {
    /// Lowers, compiles and loads it.
    fn load(&mut self, profile: &Profile) -> Result<LoadedModel, Fault>;
}

/// A model on the device.
pub struct LoadedModel {
    /// It.
    pub executor: Box<dyn Executor>,
    /// What it was loaded for.
    pub capacity: Capacity,
    /// Tokens of a sequence in a step, at most.
    pub chunk: usize,
    /// A row of the longest ones: prompts run there.
    pub row: u32,
    /// Decode steps to be timed.
    pub decodes: Vec<DecodeBucket>,
    /// What a reference gives for it.
    pub golden: Option<Golden>,
    /// How far a logit may be from the reference's: what rounding to its stored types costs.
    pub tolerance: f64,
    /// Bytes per second that its cores read at most, as published; none where it does not run on such cores.
    pub bandwidth: Option<f64>,
    /// Whether no device is behind it.
    pub stand_in: bool,
    /// What was loaded, in words.
    pub words: String,
}

/// A decode step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeBucket {
    /// What it does of each class.
    pub parts: Vec<DecodeRows>,
}

/// Rows of a decode step, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeRows {
    /// The first, through all classes.
    pub first: u32,
    /// Sequences.
    pub rows: usize,
    /// Tokens of each before the step.
    pub len: usize,
}

impl DecodeBucket {
    /// Of a layout: all, or of many a few from the smallest to the largest.
    pub fn of_layout(layout: &Layout) -> Vec<DecodeBucket> {
        let before = |class: &CacheShape| {
            let rows = layout.classes.iter().take_while(|other| *other != class).map(|other| other.rows).sum::<usize>();
            u32::try_from(rows).unwrap_or(u32::MAX)
        };
        let decodes = layout.modules.iter().filter(|module| matches!(module.kind, ModuleKind::Decode { .. }));
        let rows = |part: &Part| DecodeRows { first: before(&part.class), rows: part.rows, len: part.len };
        let mut all: Vec<DecodeBucket> =
            decodes.map(|module| DecodeBucket { parts: module.parts.iter().map(rows).collect() }).collect();
        all.sort_by_key(|bucket| (bucket.batch(), bucket.longest(), bucket.parts.first().map(|part| part.first)));
        if all.len() > TIMED {
            let last = all.len() - 1;
            all = (0..TIMED).map(|i| all[i * last / (TIMED - 1)].clone()).collect();
        }
        all
    }

    /// Of one class.
    pub fn of(rows: DecodeRows) -> DecodeBucket {
        DecodeBucket { parts: vec![rows] }
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    /// Tokens before the step of those that have most.
    pub fn longest(&self) -> usize {
        self.parts.iter().map(|part| part.len).max().unwrap_or(0)
    }
}

/// How far logits of a model may be from those of a reference in f32, by its stored types.
pub fn tolerance(weights: Quant, kv: KvType) -> f64 {
    match (weights, kv) {
        (Quant::Int8 | Quant::Int4 | Quant::Auto, _) | (_, KvType::Int8) => 2.0,
        (Quant::None, KvType::F32) => 0.02,
        _ => 0.5,
    }
}

/// Buckets that are timed.
const TIMED: usize = 6;

/// Logits and tokens beside a reference's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogitsFound {
    /// Who computed what they are compared with.
    pub reference: String,
    /// Largest distance of a logit that is allowed.
    pub tolerance: f64,
    /// Largest that was found.
    pub error: f64,
    /// Each prompt.
    pub prompts: Vec<PromptFound>,
}

/// Of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptFound {
    /// Its length.
    pub tokens: usize,
    /// Largest distance among the reference's likeliest tokens, and of the logarithm of the sum over all.
    pub error: f64,
    /// Whether the likeliest token is the reference's, or as likely as rounding can tell.
    pub likeliest: bool,
    /// Tokens that followed as the reference's do, before its choice was a close call.
    pub followed: usize,
    /// The first that did not.
    pub parted_at: Option<usize>,
}

impl PromptFound {
    fn is_right(&self, tolerance: f64) -> bool {
        self.error <= tolerance && self.likeliest && self.parted_at.is_none()
    }
}

/// Loads the model and compares it; what is loaded is there to be timed, where it computes what it should.
pub(super) fn check(model: &mut dyn ProbeModel, profile: &Profile, done: &mut StepOutcome) -> Option<LoadedModel> {
    let mut loaded = match model.load(profile) {
        Ok(loaded) => loaded,
        Err(fault) => {
            done.says(Err(fault));
            return None;
        }
    };
    let Some(golden) = loaded.golden.clone() else {
        done.left_out("no reference of this model is known: give one with --golden");
        done.words = format!("{}; {}", loaded.words, done.words);
        return Some(loaded);
    };
    let mut found =
        LogitsFound { reference: golden.reference, tolerance: loaded.tolerance, error: 0.0, prompts: vec![] };
    let mut feed = Feed { executor: &mut *loaded.executor, capacity: loaded.capacity, chunk: loaded.chunk };
    for (number, prompt) in golden.prompts.iter().enumerate() {
        match compare(&mut feed, loaded.row, prompt, loaded.tolerance) {
            Ok(of_prompt) => {
                found.error = worse(found.error, of_prompt.error);
                found.prompts.push(of_prompt);
            }
            Err(error) => {
                done.says(Err(Fault { stage: Stage::Execute, words: format!("prompt {number}: {error}") }));
                done.logits = Some(found);
                return None;
            }
        }
    }
    let wrong = found.prompts.iter().position(|prompt| !prompt.is_right(loaded.tolerance));
    let followed: usize = found.prompts.iter().map(|prompt| prompt.followed).sum();
    done.state = if wrong.is_none() { State::Passed } else { State::Failed };
    let n = found.prompts.len();
    let told = format!(
        "{}: {n} prompts, largest error of a logit {:.3} of {} allowed, {followed} tokens followed",
        loaded.words, found.error, found.tolerance
    );
    done.words = match wrong {
        None => told,
        Some(number) => format!("{told}; prompt {number} is off: {}", said(&found.prompts[number])),
    };
    done.logits = Some(found);
    wrong.is_none().then_some(loaded)
}

/// The larger of two errors; what is no number is larger than all.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b <= a { a } else { b }
}

fn said(prompt: &PromptFound) -> String {
    let mut text = format!("error {:.3}", prompt.error);
    if !prompt.likeliest {
        text += ", another token is the likeliest";
    }
    if let Some(at) = prompt.parted_at {
        text += &format!(", token {at} after it is another by prefill and decode");
    }
    text
}

fn compare(feed: &mut Feed<'_>, row: u32, prompt: &GoldenPrompt, tolerance: f64) -> Result<PromptFound, StepError> {
    let Answer::Logits(logits) = feed.prompt(row, &prompt.ids, Wants::Logits)? else {
        return Err(StepError::Device("a step that scores gave no logits".to_owned()));
    };
    let at = |id: u32| logits.get(id as usize).map_or(f64::NAN, |x| f64::from(*x));
    let distances = prompt.top.iter().map(|(id, logit)| (at(*id) - f64::from(*logit)).abs());
    let sum = prompt.log_sum_exp.map(|sum| (log_sum_exp(&logits) - sum).abs());
    let error = distances.chain(sum).fold(0.0, worse);
    let best = likeliest(&logits);
    // Two logits may be off in opposite directions.
    let close = 2.0 * tolerance;
    let first = prompt.top[0];
    let likeliest = prompt.top.iter().any(|(id, logit)| *id == best && f64::from(first.1 - logit) <= close);

    let mut answer = feed.prompt(row, &prompt.ids, Wants::Tokens)?;
    let (mut followed, mut parted_at) = (0, None);
    for (number, (token, margin)) in prompt.greedy.iter().take(FOLLOWED).enumerate() {
        if f64::from(*margin) <= close {
            break;
        }
        if answer.token() != *token {
            parted_at = Some(number);
            break;
        }
        followed += 1;
        let position = prompt.ids.len() + number;
        if position + 1 >= feed.capacity.max_len {
            break;
        }
        answer = feed.decode(row, *token, position, Wants::Tokens)?;
    }
    Ok(PromptFound { tokens: prompt.ids.len(), error, likeliest, followed, parted_at })
}
