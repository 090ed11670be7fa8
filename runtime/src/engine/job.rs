//! What the engine keeps of a request beside the scheduler's part: how to sample it, when it ends, what to tell.
//!
//! Invariant: nothing in here depends on the cache or the batch, so that preemption leaves it alone.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Instant;

use super::EngineConfig;
use super::energy::{Later, RequestEnergy};
use super::inbox::Submission;
use super::late::Late;
use super::metering::Account;
use super::stop::StopMatcher;
use crate::backend::Masks;
use crate::request::{Event, FinishReason, MaskError, MaskStream, Reply, RequestError, StopMatch, TextStream, Usage};
use crate::sampler::{History, SamplingParams, TokenLogprob};
use crate::scheduler::Sequence;

/// The engine's part of a sequence.
pub struct Job {
    pub reply: Reply,
    pub sampling: SamplingParams,
    pub seed: u64,
    pub history: History,
    /// Tokens that are not sampled before `min_tokens`.
    forbidden: Vec<u32>,
    /// For a backend that returns candidates: biases before and from `min_tokens` on.
    biases: [Vec<(u32, f32)>; 2],
    pub mask: Option<Box<dyn MaskStream>>,
    /// Whether its next mask may be made while the step runs.
    pub late: Late,
    pub min_tokens: usize,
    pub logprobs: Option<usize>,
    pub prompt_logprobs: Option<usize>,
    pub prompt_logits: bool,
    pub deadline: Option<Instant>,
    pub end: Option<End>,
    /// Its place in the books, from its first step on.
    pub account: Option<Account>,
    pub wants_energy: bool,
    pub started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    submitted: Instant,
    eos_ids: Vec<u32>,
    stop_token_ids: Vec<u32>,
    text: Option<Text>,
    /// A token whose event is still to be sent.
    pending: Option<Pending>,
    /// Text that the terminal event will carry.
    tail: String,
}

struct Pending {
    id: u32,
    index: usize,
    logprob: Option<TokenLogprob>,
    /// Whether it has text: one that ends the answer has none.
    spelled: bool,
}

struct Text {
    stream: Box<dyn TextStream>,
    matcher: StopMatcher,
    stops: Vec<String>,
}

/// What a request has used when it ends.
#[derive(Clone, Debug)]
pub struct Spent {
    pub prompt_tokens: usize,
    pub generated_tokens: usize,
    pub cached_tokens: usize,
    pub preemptions: u32,
    pub energy: Option<(RequestEnergy, Option<Later>)>,
}

impl<J> From<&Sequence<J>> for Spent {
    fn from(sequence: &Sequence<J>) -> Spent {
        Spent {
            prompt_tokens: sequence.prompt_len,
            generated_tokens: sequence.generated(),
            cached_tokens: sequence.cached,
            preemptions: sequence.preemptions,
            energy: None,
        }
    }
}

/// How a request ends.
#[derive(Debug)]
pub enum End {
    Finished(FinishReason, Option<StopMatch>),
    Failed(RequestError),
}

impl Job {
    /// Makes a sequence of an accepted request.
    pub fn sequence(submission: Submission, config: &EngineConfig, vocab: usize) -> Box<Sequence<Job>> {
        let Submission { id, request, reply, submitted } = submission;
        let text = request.text.map(|text| Text {
            stream: text.start(&request.prompt),
            matcher: StopMatcher::new(request.stop.clone(), request.include_stop),
            stops: request.stop,
        });
        let eos_ids = if request.ignore_eos { Vec::new() } else { request.eos_ids };
        let mut forbidden = Vec::new();
        if request.min_tokens > 0 {
            forbidden.extend(eos_ids.iter().chain(&request.stop_token_ids));
        }
        let sparse = |forbidden: &[u32]| match config.limits.candidates {
            Some(_) => request.sampling.biases(forbidden, vocab),
            None => Vec::new(),
        };
        let biases = [sparse(&forbidden), sparse(&[])];
        let wants_prompt = request.prompt_logits || request.prompt_logprobs.is_some();
        let job = Job {
            reply,
            seed: request.sampling.seed.unwrap_or_else(|| {
                // A RandomState carries fresh randomness from the system in each thread and differs from call to call.
                RandomState::new().hash_one(id)
            }),
            history: History::new(&request.sampling, &request.prompt, request.max_new_tokens),
            sampling: request.sampling,
            forbidden,
            biases,
            mask: request.mask.map(|mask| mask.start(&request.prompt)),
            late: Late::default(),
            min_tokens: request.min_tokens,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            prompt_logits: request.prompt_logits,
            deadline: request.deadline,
            end: None,
            account: None,
            wants_energy: request.energy,
            started: None,
            first_token: None,
            last_token: None,
            submitted,
            eos_ids,
            stop_token_ids: request.stop_token_ids,
            text,
            pending: None,
            tail: String::new(),
        };
        let order = (request.priority, id);
        let block_len = config.capacity.block_len;
        let mut sequence = Sequence::new(order, request.prompt, request.max_new_tokens, block_len, job);
        sequence.salt = request.cache_salt;
        sequence.client = request.client;
        if wants_prompt {
            sequence.next_prompt_output = 0;
        }
        if request.prompt_logits {
            sequence.prompt_allowance = config.max_unread_rows;
        }
        Box::new(sequence)
    }

    /// Tokens that output token number `index` must not be.
    pub fn forbidden(&self, index: usize) -> &[u32] {
        if index < self.min_tokens { &self.forbidden } else { &[] }
    }

    /// Biases of output token number `index`, forbidden tokens included, for a backend that applies them.
    pub fn biases(&self, index: usize) -> &[(u32, f32)] {
        &self.biases[usize::from(index >= self.min_tokens)]
    }

    /// The mask of the token after `generated`, written to `allowed`, which is empty and stays so without one.
    pub fn allow(&mut self, generated: &[u32], vocab: usize, allowed: &mut Vec<u32>) -> Result<(), MaskError> {
        if self.mask.is_none() {
            return Ok(());
        }
        allowed.resize(Masks::words_for(vocab), 0);
        self.fill_mask(generated, vocab, allowed)
    }

    /// The same into `allowed`, which is all 0 and as long as `vocab` tokens need: what may follow is allowed and not
    /// forbidden, and there is at least one such token.
    pub fn fill_mask(&mut self, generated: &[u32], vocab: usize, allowed: &mut [u32]) -> Result<(), MaskError> {
        let Some(mask) = &mut self.mask else { return Ok(()) };
        mask.fill(generated, allowed)?;
        if let (Some(last), rest @ 1..) = (allowed.last_mut(), vocab % 32) {
            *last &= (1 << rest) - 1;
        }
        let any = |allowed: &[u32]| allowed.iter().any(|word| *word != 0);
        if !any(allowed) {
            return Err(MaskError("no token is allowed".into()));
        }
        for id in self.forbidden(generated.len()) {
            if let Some(word) = allowed.get_mut(*id as usize / 32) {
                *word &= !(1 << (id % 32));
            }
        }
        match any(allowed) {
            true => Ok(()),
            false => Err(MaskError("min_tokens forbids every token that is allowed".into())),
        }
    }

    /// Since when it waits for its next token.
    pub fn since(&self) -> Instant {
        self.last_token.unwrap_or(self.submitted)
    }

    /// Whether the client or the clock has ended it.
    pub fn given_up(&self, now: Instant) -> Option<FinishReason> {
        if self.reply.control().is_cancelled() {
            Some(FinishReason::Cancelled)
        } else if self.deadline.is_some_and(|deadline| now >= deadline) {
            Some(FinishReason::Deadline)
        } else {
            None
        }
    }

    /// Takes in generated token number `index`; `last` says that the request's limit is reached with it. Its event waits for
    /// [`Job::deliver`], unless the text is looked through for stop strings.
    pub fn take(&mut self, id: u32, index: usize, last: bool, logprob: Option<TokenLogprob>, now: Instant) {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.history.push(id);
        let mut matched = if self.eos_ids.contains(&id) {
            Some(StopMatch::Eos(id))
        } else if self.stop_token_ids.contains(&id) {
            Some(StopMatch::Token(id))
        } else {
            None
        };
        self.pending = Some(Pending { id, index, logprob, spelled: matched.is_none() });
        if self.text.as_ref().is_some_and(|text| !text.stops.is_empty()) {
            matched = matched.or(self.deliver());
        }
        self.end = match matched {
            Some(matched) => Some(End::Finished(FinishReason::Stop, Some(matched))),
            None if last => Some(End::Finished(FinishReason::Length, None)),
            None => None,
        };
    }

    /// Sends the event of the token that was taken in last, if it was not sent; the stop string that its text completes.
    pub fn deliver(&mut self) -> Option<StopMatch> {
        let Pending { id, index, logprob, spelled } = self.pending.take()?;
        let mut text = String::new();
        let matched = self.text.as_mut().filter(|_| spelled).and_then(|state| {
            state.stream.push(id, state.matcher.text());
            let exempt = index < self.min_tokens;
            let which = state.matcher.advance(exempt, &mut text)?;
            Some(StopMatch::Text(state.stops[which].clone()))
        });
        self.reply.send(Event::Token { id, index, text, logprob });
        matched
    }

    /// Sends what is pending and the terminal event; `end` must have been set.
    pub fn finish(&mut self, spent: Spent, now: Instant) {
        self.deliver();
        let Spent { prompt_tokens, generated_tokens, cached_tokens, preemptions, energy } = spent;
        let (energy, energy_later) = energy.map_or((None, None), |(energy, later)| (Some(Box::new(energy)), later));
        let event = match self.end.take() {
            None => Event::Failed(RequestError::ShutDown),
            Some(End::Failed(error)) => Event::Failed(error),
            Some(End::Finished(reason, matched)) => {
                self.release_text(matches!(matched, Some(StopMatch::Text(_))));
                let started = self.started.unwrap_or(now);
                let first = self.first_token;
                Event::Finished {
                    reason,
                    matched,
                    text: std::mem::take(&mut self.tail),
                    usage: Usage {
                        prompt_tokens,
                        generated_tokens,
                        queued: started.saturating_duration_since(self.submitted),
                        ttft: first.map(|t| t.saturating_duration_since(self.submitted)),
                        prefill: first.unwrap_or(now).saturating_duration_since(started),
                        decode: first.map_or(Default::default(), |t| now.saturating_duration_since(t)),
                        preemptions,
                        cached_tokens,
                        energy,
                        energy_later,
                    },
                }
            }
        };
        self.reply.send(event);
    }

    /// Moves held text and an incomplete character to the tail, unless a stop string has cut the text off.
    fn release_text(&mut self, cut: bool) {
        if let Some(state) = self.text.as_mut().filter(|_| !cut) {
            state.stream.finish(state.matcher.text());
            self.tail = state.matcher.finish();
        }
    }
}
