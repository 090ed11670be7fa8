//! From the engine's thread to a connection: what the answers of one HTTP request have become since it was last looked at.
//!
//! The engine never waits: an event is merged into its sequence's part under a short lock. A client that does not read
//! piles up text and log-probabilities, no events, and only up to a limit: then its sequences are cancelled. What was asked
//! of a prompt is delivered whole and does not count. What waits is taken in pieces: as JSON it is many times larger.
//!
//! Invariant: every sequence has at most one [`End`], and after [`Mailbox::fail`] nothing more arrives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use njoule_runtime::request::{EventSink, SinkClosed, StopMatch, Usage};
use njoule_runtime::sampler::TokenLogprob;
use njoule_runtime::{Event, FinishReason};

use crate::error::ApiError;
use crate::metrics::Metrics;

/// What one sequence has become.
#[derive(Debug, Default, PartialEq)]
pub struct Part {
    /// New text.
    pub text: String,
    /// Number of new tokens.
    pub tokens: usize,
    /// One for each of them.
    pub steps: Vec<Step>,
    /// Of the new tokens, if asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// Of further prompt tokens, if asked for.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// The end.
    pub end: Option<End>,
}

/// A token of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its id.
    pub id: u32,
    /// Bytes of the part's text when it had come.
    pub end: usize,
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Why.
    pub reason: FinishReason,
    /// What matched.
    pub matched: Option<StopMatch>,
    /// Figures.
    pub usage: Usage,
}

impl Part {
    /// Tokens of its prompt that were in the cache; known at the end.
    pub fn cached(&self) -> usize {
        self.end.as_ref().map_or(0, |end| end.usage.cached_tokens)
    }

    /// Ids of its tokens.
    pub fn ids(&self) -> Vec<u32> {
        self.steps.iter().map(|step| step.id).collect()
    }

    /// Appends `more`.
    pub fn merge(&mut self, more: Part) {
        let before = self.text.len();
        self.steps.extend(more.steps.into_iter().map(|step| Step { end: before + step.end, ..step }));
        self.text.push_str(&more.text);
        self.tokens += more.tokens;
        self.logprobs.extend(more.logprobs);
        self.prompt_logprobs.extend(more.prompt_logprobs);
        self.end = more.end.or(self.end.take());
    }

    /// Moves out what about `most` bytes of JSON are written of, one token at least: its prompt's log-probabilities, tokens,
    /// and with the last of them its end. The rest, which has tokens, stays. Also says how many bytes are written of it.
    fn split(&mut self, most: usize) -> (Part, usize) {
        let (mut tokens, mut written, mut from) = (0, FRAME, 0);
        while tokens < self.steps.len() && (tokens == 0 || written < most) {
            let step = self.steps[tokens];
            written += rendered(step.end - from, self.logprobs.get(tokens));
            (tokens, from) = (tokens + 1, step.end);
        }
        if tokens == self.steps.len() {
            return (std::mem::take(self), written);
        }
        let mut steps = self.steps.split_off(tokens);
        steps.iter_mut().for_each(|step| step.end -= from);
        let logprobs = self.logprobs.split_off(tokens.min(self.logprobs.len()));
        let text = self.text.split_off(from);
        let rest = Part { text, tokens: steps.len(), steps, logprobs, end: self.end.take(), ..Part::default() };
        let part = std::mem::replace(self, rest);
        (Part { tokens, ..part }, written)
    }

    /// Bytes that it takes in memory, about, but for those of its prompt.
    fn kept(&self) -> usize {
        self.text.len() + self.steps.len() * size_of::<Step>() + self.logprobs.iter().map(kept_logprob).sum::<usize>()
    }
}

/// What a sequence stands for in the figures.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Choices that it answers.
    pub copies: usize,
    /// Whether it is the first of its prompt, which counts once.
    pub first: bool,
}

/// The parts of all sequences of one HTTP request.
#[derive(Debug)]
pub struct Mailbox(Mutex<State>);

#[derive(Debug)]
struct State {
    parts: Vec<Part>,
    /// Sequences with something new.
    changed: Vec<usize>,
    failure: Option<ApiError>,
    /// Bytes that the parts take, about, but for those of prompts.
    bytes: usize,
    limit: usize,
    waker: Option<Waker>,
}

impl Mailbox {
    /// For `sequences` sequences that may leave `limit` bytes unread.
    pub fn new(sequences: usize, limit: usize) -> Mailbox {
        let mut parts = Vec::new();
        parts.resize_with(sequences, Part::default);
        Mailbox(Mutex::new(State { parts, changed: Vec::new(), failure: None, bytes: 0, limit, waker: None }))
    }

    /// Where sequence `index` sends its events, and how they are counted.
    pub fn sink(self: &Arc<Self>, index: usize, share: Share, metrics: &Arc<Metrics>) -> Box<dyn EventSink> {
        Box::new(Sink { mailbox: self.clone(), index, share, metrics: metrics.clone(), last: None })
    }

    /// Ends all of it by `error`, unless it has been ended before.
    pub fn fail(&self, error: ApiError) {
        let mut state = self.lock();
        state.failure.get_or_insert(error);
        wake(state);
    }

    /// Moves what is new to `out`, no more than about `most` bytes of JSON are written of; the rest is new the next time.
    pub fn poll(
        &self,
        context: &mut Context<'_>,
        most: usize,
        out: &mut Vec<(usize, Part)>,
    ) -> Poll<Result<(), ApiError>> {
        let mut state = self.lock();
        let State { parts, changed, bytes, .. } = &mut *state;
        if !changed.is_empty() {
            let (mut room, mut whole) = (most, 0);
            for &index in changed.iter() {
                let (part, written) = parts[index].split(room);
                *bytes -= part.kept();
                room = room.saturating_sub(written);
                out.push((index, part));
                whole += usize::from(parts[index].steps.is_empty());
                if room == 0 {
                    break;
                }
            }
            changed.drain(..whole);
            return Poll::Ready(Ok(()));
        }
        if let Some(failure) = &state.failure {
            return Poll::Ready(Err(failure.clone()));
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole at any point where a thread could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes who waits, without the lock.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

struct Sink {
    mailbox: Arc<Mailbox>,
    index: usize,
    share: Share,
    metrics: Arc<Metrics>,
    /// When the last token came.
    last: Option<Instant>,
}

impl EventSink for Sink {
    fn send(&mut self, event: Event) -> Result<(), SinkClosed> {
        self.count(&event);
        let mut state = self.mailbox.lock();
        if state.failure.is_some() {
            return Err(SinkClosed);
        }
        let bytes = kept(&event);
        if let Err(error) = put(&mut state.parts[self.index], event) {
            state.failure = Some(error);
            wake(state);
            return Err(SinkClosed);
        }
        if !state.changed.contains(&self.index) {
            state.changed.push(self.index);
        }
        state.bytes += bytes;
        if state.bytes > state.limit {
            state.failure = Some(ApiError::engine("slow_reader", "the answer was not read in time", false));
            self.metrics.slow_readers.add(1);
            wake(state);
            return Err(SinkClosed);
        }
        wake(state);
        Ok(())
    }
}

impl Sink {
    fn count(&mut self, event: &Event) {
        match event {
            Event::Token { .. } => {
                let now = Instant::now();
                if let Some(last) = self.last.replace(now) {
                    self.metrics.inter_token.observe((now - last).as_secs_f64());
                }
                self.metrics.generation_tokens.add(self.share.copies);
            }
            Event::Finished { reason, usage, .. } => self.metrics.finished(*reason, usage, self.share.first),
            Event::Failed(_) => self.metrics.failed(),
            Event::PromptLogits { .. } | Event::PromptLogprobs { .. } => {}
        }
    }
}

fn put(part: &mut Part, event: Event) -> Result<(), ApiError> {
    match event {
        Event::Token { id, text, logprob, .. } => {
            part.text.push_str(&text);
            part.tokens += 1;
            part.steps.push(Step { id, end: part.text.len() });
            part.logprobs.extend(logprob);
        }
        Event::PromptLogprobs { tokens, .. } => part.prompt_logprobs.extend(tokens),
        Event::Finished { reason, matched, text, usage } => {
            part.text.push_str(&text);
            part.end = Some(End { reason, matched, usage });
        }
        Event::Failed(error) => return Err(error.into()),
        Event::PromptLogits { .. } => {}
    }
    Ok(())
}

/// Bytes that an event adds to what [`Part::kept`] counts.
fn kept(event: &Event) -> usize {
    match event {
        Event::Token { text, logprob, .. } => text.len() + size_of::<Step>() + logprob.as_ref().map_or(0, kept_logprob),
        Event::Finished { text, .. } => text.len(),
        _ => 0,
    }
}

fn kept_logprob(l: &TokenLogprob) -> usize {
    size_of::<TokenLogprob>() + l.top.len() * size_of::<(u32, f32)>() + if l.top.is_empty() { 0 } else { BLOCK }
}

/// Bytes of JSON that are written of a token, about: its text, twice where it is a thought, its id, and each candidate with
/// its text and bytes.
fn rendered(text: usize, logprob: Option<&TokenLogprob>) -> usize {
    2 * text + ID + logprob.map_or(0, |l| (1 + l.top.len()) * CANDIDATE)
}

/// Bytes of JSON of a part without tokens, of a token's id, of a candidate; what a block of memory takes beyond its bytes.
const FRAME: usize = 256;
const ID: usize = 8;
const CANDIDATE: usize = 80;
const BLOCK: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Share = Share { copies: 1, first: true };

    fn token(text: &str) -> Event {
        Event::Token { id: 1, index: 0, text: text.into(), logprob: None }
    }

    fn poll(mailbox: &Mailbox) -> Poll<Result<Vec<(usize, Part)>, ApiError>> {
        poll_piece(mailbox, usize::MAX)
    }

    fn poll_piece(mailbox: &Mailbox, most: usize) -> Poll<Result<Vec<(usize, Part)>, ApiError>> {
        let mut out = Vec::new();
        mailbox.poll(&mut Context::from_waker(Waker::noop()), most, &mut out).map_ok(|()| out)
    }

    fn logprob(id: u32, top: usize) -> TokenLogprob {
        TokenLogprob { id, logprob: -12.345_678, top: vec![(id, -12.345_678); top] }
    }

    #[test]
    fn unread_tokens_are_merged_per_sequence() {
        let mailbox = Arc::new(Mailbox::new(2, 1000));
        let metrics = Arc::new(Metrics::default());
        let (mut a, mut b) = (mailbox.sink(0, ONE, &metrics), mailbox.sink(1, ONE, &metrics));
        assert!(poll(&mailbox).is_pending());
        a.send(token("x")).unwrap();
        b.send(token("1")).unwrap();
        a.send(token("y")).unwrap();
        let Poll::Ready(Ok(parts)) = poll(&mailbox) else { panic!("nothing arrived") };
        let seen: Vec<_> = parts.iter().map(|(i, p)| (*i, p.text.as_str(), p.tokens)).collect();
        assert_eq!(seen, [(0, "xy", 2), (1, "1", 1)]);
        assert!(poll(&mailbox).is_pending());
    }

    #[test]
    fn who_does_not_read_is_cut_off_after_what_was_there() {
        let mailbox = Arc::new(Mailbox::new(1, 10 * kept(&token("x"))));
        let mut sink = mailbox.sink(0, ONE, &Arc::new(Metrics::default()));
        assert!((0..10).all(|_| sink.send(token("x")).is_ok()));
        assert_eq!(sink.send(token("x")), Err(SinkClosed));
        assert!(matches!(poll(&mailbox), Poll::Ready(Ok(_))));
        assert!(matches!(poll(&mailbox), Poll::Ready(Err(e)) if e.code == "slow_reader"));
        assert_eq!(sink.send(token("x")), Err(SinkClosed));
    }

    #[test]
    fn what_is_taken_in_pieces_is_what_is_taken_at_once() {
        let metrics = Arc::new(Metrics::default());
        let filled = || {
            let mailbox = Arc::new(Mailbox::new(2, usize::MAX));
            for index in 0..2 {
                let mut sink = mailbox.sink(index, ONE, &metrics);
                sink.send(Event::PromptLogprobs { start: 1, tokens: vec![logprob(9, 20); 100] }).unwrap();
                for id in 0..50 {
                    let text = ["", "a", "öö"][id as usize % 3].into();
                    sink.send(Event::Token { id, index: 0, text, logprob: Some(logprob(id, 20)) }).unwrap();
                }
                let (reason, usage) = (FinishReason::Stop, Usage::default());
                sink.send(Event::Finished { reason, matched: None, text: "end".into(), usage }).unwrap();
            }
            mailbox
        };
        let merged = |most: usize| {
            let (mailbox, mut all, mut pieces) = (filled(), [Part::default(), Part::default()], 0);
            while let Poll::Ready(Ok(parts)) = poll_piece(&mailbox, most) {
                let tokens: usize = parts.iter().map(|(_, part)| part.tokens).sum();
                assert!(tokens == 1 || (tokens - 1) * 1688 < most, "{tokens} tokens in {most} bytes");
                parts.into_iter().for_each(|(index, part)| all[index].merge(part));
                pieces += 1;
            }
            assert_eq!(mailbox.lock().bytes, 0);
            (all, pieces)
        };
        let (whole, once) = merged(usize::MAX);
        assert_eq!((once, whole[1].tokens, whole[1].prompt_logprobs.len()), (1, 50, 100));
        for most in [1, 3000, 8000, 90_000] {
            let (all, pieces) = merged(most);
            assert_eq!(all, whole, "{most}");
            assert!(pieces > 1 && (most > 1 || pieces == 100), "{pieces} of {most} bytes");
        }
    }

    #[test]
    fn weights_are_what_is_kept_and_what_is_written() {
        let event = Event::Token { id: 1, index: 0, text: "abcd".into(), logprob: Some(logprob(1, 20)) };
        // Candidates alone.
        assert!(kept(&event) > 20 * 8 + 4);
        let candidate = serde_json::json!({"token": "abcd", "logprob": -12.345_678, "bytes": [97, 98, 99, 100]});
        let written = |top: usize| {
            let mut token = candidate.clone();
            token["top_logprobs"] = vec![candidate.clone(); top].into();
            serde_json::json!({"token_ids": [151_000], "content": "abcd", "logprobs": [token]}).to_string().len()
        };
        for top in [0, 1, 5, 20] {
            let (counted, written) = (FRAME + rendered(4, Some(&logprob(1, top))), written(top));
            assert!(counted >= written && counted < 2 * written + FRAME, "{top}: {counted} for {written}");
        }
    }

    #[test]
    fn what_was_asked_of_a_prompt_is_delivered_whole() {
        let mailbox = Arc::new(Mailbox::new(1, 1000));
        let mut sink = mailbox.sink(0, ONE, &Arc::new(Metrics::default()));
        for start in [1, 101] {
            sink.send(Event::PromptLogprobs { start, tokens: vec![logprob(9, 20); 100] }).unwrap();
        }
        sink.send(token("x")).unwrap();
        let Poll::Ready(Ok(parts)) = poll_piece(&mailbox, 1) else { panic!("nothing arrived") };
        assert_eq!((parts[0].1.prompt_logprobs.len(), parts[0].1.tokens), (200, 1));
    }
}
