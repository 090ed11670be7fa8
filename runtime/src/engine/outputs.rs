//! The worker's buffers: the batch's room, what a step must have returned, and the prompt's part of it.
//!
//! Invariant: no index into an output is followed before [`check_output`] has seen it.

use std::ops::Range;

use super::EngineConfig;
use super::job::Job;
use crate::backend::{Batch, Bias, Masks, Returned, StepOutput, Wants};
use crate::request::{Event, RequestError};
use crate::sampler::{NotFinite, Pick, Sampler, TokenLogprob, is_sound, mass};
use crate::scheduler::Sequence;

/// An empty batch that never grows. A shared block stands in several tables.
pub fn roomy_batch(config: &EngineConfig, vocab: usize) -> Batch {
    let (capacity, limits) = (&config.capacity, &config.limits);
    let (rows, outputs) = (capacity.max_rows, capacity.max_outputs.min(capacity.max_rows));
    let seqs = capacity.max_seqs.min(rows);
    let biases = if limits.candidates.is_some() { outputs.saturating_mul(limits.biases) } else { 0 };
    Batch {
        tokens: Vec::with_capacity(rows),
        positions: Vec::with_capacity(rows),
        slots: Vec::with_capacity(rows),
        seqs: Vec::with_capacity(seqs),
        tables: Vec::with_capacity(seqs.saturating_mul(capacity.max_len.div_ceil(capacity.block_len))),
        outputs: Vec::with_capacity(outputs),
        wants: Wants::Logits,
        biases: Vec::with_capacity(biases.min(MAX_ROOM)),
        masks: Masks { words: Masks::words_for(vocab), ..Masks::default() },
    }
}

/// An output of candidates that does not grow.
pub fn roomy_output(config: &EngineConfig) -> StepOutput {
    let (rows, count) = (config.capacity.max_seqs, config.limits.candidates.unwrap_or(0));
    let mut output = StepOutput::default();
    let all = rows.saturating_mul(count).min(MAX_ROOM);
    output.candidates.values.reserve(all);
    output.candidates.ids.reserve(all);
    if count > 0 {
        output.candidates.log_sum_exp.reserve(rows);
        output.candidates.greedy.reserve(rows);
    }
    output
}

/// Sends the outputs of prompt positions from `first` on.
pub fn prompt_outputs(
    sequence: &mut Sequence<Job>,
    first: usize,
    outputs: Range<usize>,
    output: &StepOutput,
    sampler: &mut Sampler,
) -> Result<(), RequestError> {
    let job = &mut sequence.job;
    let prompt = &sequence.tokens[..sequence.prompt_len];
    if let Some(top) = job.prompt_logprobs {
        let mut tokens = Vec::with_capacity(outputs.len());
        for (position, i) in (first..).zip(outputs.clone()) {
            let Some(&next) = prompt.get(position + 1) else {
                break;
            };
            let logprob =
                sampler.logprob(output.row(i), next, top).map_err(|_| RequestError::NonFiniteLogits { position })?;
            tokens.push(logprob);
        }
        if !tokens.is_empty() {
            job.reply.send(Event::PromptLogprobs { start: first + 1, tokens });
        }
    }
    if job.prompt_logits {
        let mut rows = Vec::with_capacity(outputs.len() * output.vocab);
        for (position, i) in (first..).zip(outputs) {
            if !is_sound(output.row(i)) {
                return Err(RequestError::NonFiniteLogits { position });
            }
            rows.extend_from_slice(output.row(i));
        }
        job.reply.send(Event::PromptLogits { start: first, vocab: output.vocab, rows });
    }
    Ok(())
}

/// One output of a step.
pub struct Row<'a> {
    pub output: &'a mut StepOutput,
    pub at: usize,
    pub biases: &'a [Bias],
    pub mask: Option<&'a [u32]>,
    /// Whether the mask was made after the step had begun.
    pub late: bool,
}

/// What an output gave.
pub enum Sampled {
    /// A token.
    Token(u32, Option<TokenLogprob>),
    /// Too little to tell: the row is to be run again with its mask.
    Again,
}

/// Draws a sequence's next token from an output.
pub fn sample(
    sequence: &mut Sequence<Job>,
    row: Row<'_>,
    sampler: &mut Sampler,
    renormalised: &mut u64,
) -> Result<Sampled, NotFinite> {
    let index = sequence.generated();
    let (job, Row { output, at, biases, mask, late }) = (&mut sequence.job, row);
    let pick = Pick {
        params: &job.sampling,
        history: &job.history,
        forbidden: job.forbidden(index),
        mask,
        seed: job.seed,
        index: index as u64,
    };
    match output.returned {
        Returned::Logits => {
            let start = at * output.stride;
            let logits = &mut output.logits[start..start + output.vocab];
            let id = sampler.sample(logits, &pick)?;
            let logprob = job.logprobs.map(|top| sampler.logprob(logits, id, top)).transpose()?;
            Ok(Sampled::Token(id, logprob))
        }
        Returned::Candidates => {
            let row = output.candidates.row(at);
            let drawn = match late {
                false => sampler.sample_candidates(row, biases, &pick)?,
                true => match sampler.sample_late(row, biases, &pick)? {
                    Some(drawn) => drawn,
                    None => {
                        job.late.failed();
                        return Ok(Sampled::Again);
                    }
                },
            };
            *renormalised += u64::from(drawn.renormalised);
            let logprob = job.logprobs.map(|top| sampler.candidate_logprob(row, biases, drawn.id, top)).transpose()?;
            if mask.is_some() && !late {
                job.late.applied(mass(row));
            }
            Ok(Sampled::Token(drawn.id, logprob))
        }
    }
}

/// Refuses an output that does not hold the rows that were asked for.
pub fn check_output(output: &StepOutput, batch: &Batch, vocab: usize) -> Result<(), RequestError> {
    let (rows, got) = (batch.outputs.len(), output.rows);
    let Some(last) = rows.checked_sub(1) else {
        return Ok(());
    };
    match output.returned {
        Returned::Logits => {
            let StepOutput { logits, vocab: columns, stride, .. } = output;
            if *columns == vocab && got == rows && *stride >= vocab && logits.len() >= last * stride + vocab {
                return Ok(());
            }
            Err(RequestError::Step(format!(
                "the backend returned {got} rows of {columns} logits, {stride} apart, {} in all, not {rows} rows of {vocab}",
                logits.len(),
            )))
        }
        Returned::Candidates => {
            let c = &output.candidates;
            let all = rows * c.count;
            let whole = c.values.len() >= all && c.ids.len() >= all;
            let single = c.log_sum_exp.len() >= rows && c.greedy.len() >= rows;
            if batch.wants != Wants::Tokens || c.count == 0 || got != rows || !whole || !single {
                return Err(RequestError::Step(format!(
                    "the backend returned {got} rows of {} candidates, not {rows} rows of {:?}",
                    c.count, batch.wants,
                )));
            }
            match c.ids[..all].iter().chain(&c.greedy[..rows]).find(|id| **id as usize >= vocab) {
                Some(id) => Err(RequestError::Step(format!("the backend returned token {id} of {vocab}"))),
                None => Ok(()),
            }
        }
    }
}

/// Biases, and numbers of candidates, for which room is reserved at the start; more take it when they come.
const MAX_ROOM: usize = 1 << 16;
