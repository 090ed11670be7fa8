//! The engine against an executor that checks every batch; see [`super::mock`].

use std::num::NonZero;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::mock::{Fault, Gate, MockExecutor, logits_after};
use super::*;

mod device;
mod energy;
mod hidden;
mod load;
mod pace;
mod settled;
mod standby;
use crate::request::{Event, FinishReason, SinkClosed, StopMatch, TextStream, TokenText};
use crate::sampler::{History, Pick, Sampler, SamplingParams};

pub(super) const VOCAB: usize = 61;

pub(super) fn capacity() -> Capacity {
    Capacity { blocks: 32, block_len: 4, max_rows: 16, max_seqs: 8, max_outputs: 8, max_len: 64 }
}

fn start(fault: Option<Fault>) -> (Engine, Arc<Gate>) {
    let mut executor = MockExecutor::new(capacity(), VOCAB);
    executor.fault = fault;
    let gate = executor.gate.clone();
    let engine = Engine::start(Box::new(executor), VOCAB, EngineConfig::new(capacity())).unwrap();
    (engine, gate)
}

/// What the request's tokens must be: the sampler over the mock's logits, without an engine.
fn expected(request: &Request) -> Vec<u32> {
    let (mut tokens, mut sampler) = (request.prompt.clone(), Sampler::new(VOCAB));
    let mut history = History::new(&request.sampling, &request.prompt, request.max_new_tokens);
    let rope_len = request.prompt.len() + request.max_new_tokens;
    let mut mask = request.mask.clone().map(|mask| mask.start(&request.prompt));
    for index in 0..request.max_new_tokens {
        let mut logits = logits_after(&tokens, rope_len, VOCAB);
        let seed = request.sampling.seed.unwrap_or(0);
        let params = &request.sampling;
        let forbidden = if index < request.min_tokens { &request.eos_ids[..] } else { &[] };
        let allowed = mask.as_mut().map(|mask| {
            let mut allowed = vec![0; VOCAB.div_ceil(32)];
            mask.fill(&tokens[request.prompt.len()..], &mut allowed).unwrap();
            allowed
        });
        let mask = allowed.as_deref();
        let pick = Pick { params, history: &history, forbidden, mask, seed, index: index as u64 };
        let id = sampler.sample(&mut logits, &pick).unwrap();
        history.push(id);
        tokens.push(id);
        if request.eos_ids.contains(&id) {
            break;
        }
    }
    tokens.split_off(request.prompt.len())
}

fn prompt(len: u32, first: u32) -> Vec<u32> {
    (0..len).map(|i| (first + 7 * i) % VOCAB as u32).collect()
}

fn tokens(events: &[Event]) -> Vec<u32> {
    let id = |event: &Event| match event {
        Event::Token { id, .. } => Some(*id),
        _ => None,
    };
    events.iter().filter_map(id).collect()
}

#[test]
fn a_request_gets_its_tokens_and_figures() {
    let (engine, _) = start(None);
    let request = Request::new(prompt(21, 3), 9);
    let all = engine.submit(request.clone()).unwrap().wait().unwrap();
    assert_eq!(all.token_ids, expected(&request));
    assert_eq!(all.reason, FinishReason::Length);
    assert_eq!((all.usage.prompt_tokens, all.usage.generated_tokens), (21, 9));
    assert!(all.usage.ttft.is_some());
    let stats = engine.stats();
    assert_eq!((stats.prefill_tokens, stats.decode_tokens), (21, 8));
    assert_eq!(stats.generated_tokens, 9);
    assert_eq!((stats.running, stats.queued, stats.blocks_used), (0, 0, 0));
    assert_eq!((stats.finished, stats.failed), (1, 0));
}

#[test]
fn end_tokens_stop_tokens_and_minimum_lengths_are_respected() {
    let (engine, _) = start(None);
    let base = Request::new(prompt(5, 1), 12);
    let free = expected(&base);
    let end = free[4];
    let first = free.iter().position(|id| *id == end).unwrap();
    let run = |request: Request| engine.submit(request).unwrap().wait().unwrap();

    let eos = run(Request { eos_ids: vec![end], ..base.clone() });
    assert_eq!(eos.token_ids, free[..=first]);
    assert_eq!((eos.reason, eos.matched), (FinishReason::Stop, Some(StopMatch::Eos(end))));

    let ignored = run(Request { eos_ids: vec![end], ignore_eos: true, ..base.clone() });
    assert_eq!(ignored.token_ids, free);

    let stop = Request { stop_token_ids: vec![end], ignore_eos: true, ..base.clone() };
    assert_eq!(run(stop).matched, Some(StopMatch::Token(end)));

    let later = run(Request { eos_ids: vec![end], min_tokens: 12, ..base.clone() });
    assert_eq!(later.reason, FinishReason::Length);
    assert!(!later.token_ids.contains(&end));
}

/// Spells token `i` as the `i`-th of a few pieces.
struct Letters;

struct LetterStream;

impl TokenText for Letters {
    fn start(self: Arc<Self>, _: &[u32]) -> Box<dyn TextStream> {
        Box::new(LetterStream)
    }
}

impl TextStream for LetterStream {
    fn push(&mut self, id: u32, out: &mut String) {
        out.push_str(["a", "b", "ab", "c", "é", ""][id as usize % 6]);
    }

    fn finish(&mut self, out: &mut String) {
        out.push('.');
    }
}

#[test]
fn stop_strings_cut_the_text_and_streamed_text_equals_the_whole() {
    let (engine, _) = start(None);
    let text: Option<Arc<dyn TokenText>> = Some(Arc::new(Letters));
    let base = Request { text, ..Request::new(prompt(5, 1), 30) };
    let whole = engine.submit(base.clone()).unwrap().wait().unwrap();
    let mut spelled = String::new();
    for id in &whole.token_ids {
        LetterStream.push(*id, &mut spelled);
    }
    assert_eq!(whole.text, format!("{spelled}."));
    for (from, len) in [(4, 2), (7, 3), (9, 1)] {
        let chars: Vec<char> = spelled.chars().collect();
        let stop: String = chars[from..from + len].iter().collect();
        let at = spelled.find(&stop).unwrap();
        for include_stop in [false, true] {
            let request = Request { stop: vec![stop.clone()], include_stop, ..base.clone() };
            let cut = engine.submit(request).unwrap().wait().unwrap();
            let end = at + if include_stop { stop.len() } else { 0 };
            assert_eq!(cut.text, spelled[..end], "stop {stop:?}");
            assert_eq!(cut.matched, Some(StopMatch::Text(stop.clone())));
            assert_eq!(cut.token_ids, whole.token_ids[..cut.token_ids.len()]);
        }
    }
}

#[test]
fn log_probabilities_come_with_tokens_and_prompts() {
    let (engine, _) = start(None);
    let request =
        Request { logprobs: Some(2), prompt_logprobs: Some(3), prompt_logits: true, ..Request::new(prompt(19, 8), 3) };
    let all = engine.submit(request.clone()).unwrap().wait().unwrap();
    assert_eq!((all.logprobs.len(), all.prompt_logprobs.len()), (3, 18));
    assert_eq!(all.prompt_logits.len(), 19 * VOCAB);
    for (i, row) in all.prompt_logits.chunks(VOCAB).enumerate() {
        assert_eq!(row, logits_after(&request.prompt[..=i], 22, VOCAB));
        if let Some(next) = request.prompt.get(i + 1) {
            let alone = Sampler::new(VOCAB).logprob(row, *next, 3).unwrap();
            assert_eq!(all.prompt_logprobs[i], alone);
        }
    }
    for (id, logprob) in all.token_ids.iter().zip(&all.logprobs) {
        assert_eq!((*id, logprob.logprob), logprob.top[0], "greedy takes the likeliest");
    }
}

#[test]
fn a_request_without_new_tokens_only_runs_its_prompt() {
    let (engine, _) = start(None);
    let plain = engine.submit(Request::new(prompt(30, 2), 0)).unwrap();
    let all = plain.wait().unwrap();
    assert_eq!((all.token_ids.len(), all.reason), (0, FinishReason::Length));
    let scored = Request { prompt_logits: true, ..Request::new(prompt(64, 2), 0) };
    let all = engine.submit(scored).unwrap().wait().unwrap();
    assert_eq!(all.prompt_logits.len(), 64 * VOCAB);
}

#[test]
fn a_client_that_does_not_read_its_logits_pauses_alone() {
    let executor = MockExecutor::new(capacity(), VOCAB);
    let config = EngineConfig { max_unread_rows: 5, ..EngineConfig::new(capacity()) };
    let engine = Engine::start(Box::new(executor), VOCAB, config).unwrap();
    let slow = Request { prompt_logits: true, ..Request::new(prompt(40, 2), 1) };
    let slow = engine.submit(slow).unwrap();
    let mate = Request::new(prompt(40, 9), 20);
    let all = engine.submit(mate.clone()).unwrap().wait().unwrap();
    assert_eq!(all.token_ids, expected(&mate));
    let mut unread = 0;
    while let Ok(event) = slow.events.try_recv() {
        if let Event::PromptLogits { rows, .. } = event {
            unread += rows.len() / VOCAB;
        }
    }
    assert_eq!(unread, 5);
    slow.cancel_token().rows_read(unread);
    let rest: usize = slow
        .map(|event| match event {
            Event::PromptLogits { rows, .. } => rows.len() / VOCAB,
            _ => 0,
        })
        .sum();
    assert_eq!(unread + rest, 40);
}

#[test]
fn a_client_that_does_not_read_its_tokens_stands_alone() {
    let executor = MockExecutor::new(capacity(), VOCAB);
    let engine = Engine::start(Box::new(executor), VOCAB, EngineConfig::new(capacity())).unwrap();
    let request = Request { max_unread_tokens: NonZero::new(3), ..Request::new(prompt(6, 2), 58) };
    let expected_of_it = expected(&request);
    let mate = Request::new(prompt(10, 9), 20);
    let made = |slow: &RequestHandle| {
        assert_eq!(engine.submit(mate.clone()).unwrap().wait().unwrap().token_ids, expected(&mate));
        let events = std::iter::from_fn(|| slow.events.try_recv().ok());
        events.filter(|event| matches!(event, Event::Token { .. })).count()
    };
    let slow = engine.submit(request.clone()).unwrap();
    assert_eq!(made(&slow), 3);
    assert_eq!(made(&slow), 0);
    // As many as are read, and no more.
    slow.cancel_token().tokens_read(2);
    assert_eq!(made(&slow), 2);
    // Somebody who is there and slow is not waited for.
    slow.cancel_token().reads_slowly(true);
    let rest =
        std::iter::from_fn(|| slow.events.recv_timeout(Duration::from_secs(10)).ok().filter(|e| !e.is_terminal()));
    assert_eq!(rest.count(), 53);
    // Nor is anybody while others wait for a place.
    let slow = engine.submit(request.clone()).unwrap();
    assert_eq!(made(&slow), 3);
    let many: Vec<_> = (0..2 * capacity().max_seqs).map(|_| engine.submit(mate.clone()).unwrap()).collect();
    assert!(many.into_iter().all(|mate| mate.wait().unwrap().token_ids.len() == 20));
    assert!(made(&slow) > 0, "it stood");
    drop(slow);
    // Whoever reads by the handle does not notice.
    assert_eq!(engine.submit(request).unwrap().wait().unwrap().token_ids, expected_of_it);
}

#[test]
fn what_can_never_run_is_refused_with_numbers() {
    let small = Capacity { blocks: 4, ..capacity() };
    let engine = Engine::start(Box::new(MockExecutor::new(small, VOCAB)), VOCAB, EngineConfig::new(small)).unwrap();
    let refused = |request: Request| engine.submit(request).err().unwrap().to_string();
    assert_eq!(refused(Request::new(vec![], 1)), "the prompt is empty");
    assert_eq!(
        refused(Request::new(prompt(60, 0), 5)),
        "60 prompt tokens and 5 new tokens exceed the longest sequence of 64 tokens"
    );
    assert_eq!(
        refused(Request::new(prompt(10, 0), 8)),
        "10 prompt tokens and 8 new tokens need 5 cache blocks, but there are 4"
    );
    assert!(engine.submit(Request::new(prompt(10, 0), 7)).is_ok());
    assert!(refused(Request::new(prompt(1, 0), usize::MAX)).contains("exceed"));
    assert_eq!(refused(Request::new(vec![61], 1)), "prompt holds token id 61, but the vocabulary has 61 tokens");
    let base = Request::new(vec![1], 4);
    let many = Request { logprobs: Some(21), ..base.clone() };
    assert_eq!(refused(many), "logprobs asks for 21 alternatives, the limit is 20");
    let stop = Request { stop: vec!["x".into()], ..base.clone() };
    assert_eq!(refused(stop), "stop strings need a tokenizer, and this request has none");
    let min = Request { min_tokens: 5, ..base.clone() };
    assert_eq!(refused(min), "min_tokens is 5, but at most 4 tokens are generated");
    let hot = SamplingParams { temperature: f32::NAN, ..SamplingParams::default() };
    let hot = Request { sampling: hot, ..base };
    assert_eq!(refused(hot), "temperature is NaN, it must be between 0 and 2");
}

#[test]
fn a_full_queue_refuses_at_once() {
    let mut executor = MockExecutor::new(Capacity { max_seqs: 1, ..capacity() }, VOCAB);
    executor.gate = Arc::new(Gate::default());
    let gate = executor.gate.clone();
    gate.set(true);
    let config = EngineConfig { max_queue: 2, ..EngineConfig::new(executor.capacity) };
    let engine = Engine::start(Box::new(executor), VOCAB, config).unwrap();
    let mut handles = vec![engine.submit(Request::new(prompt(3, 1), 2)).unwrap()];
    while engine.stats().running == 0 {
        std::thread::yield_now();
    }
    handles.push(engine.submit(Request::new(prompt(3, 2), 2)).unwrap());
    handles.push(engine.submit(Request::new(prompt(3, 3), 2)).unwrap());
    assert_eq!(
        engine.submit(Request::new(prompt(3, 4), 2)).err(),
        Some(SubmitError::Overloaded { requests: 2, tokens: 6, max_requests: 2, max_tokens: 1 << 20 })
    );
    // A cancelled request gives its place back.
    handles.pop();
    gate.set(false);
    for handle in handles {
        assert_eq!(handle.wait().unwrap().token_ids.len(), 2);
    }
    assert!(engine.submit(Request::new(prompt(3, 4), 2)).is_ok());
}

#[test]
fn lower_priority_numbers_run_first() {
    let mut executor = MockExecutor::new(Capacity { max_seqs: 1, ..capacity() }, VOCAB);
    executor.gate = Arc::new(Gate::default());
    let (gate, capacity) = (executor.gate.clone(), executor.capacity);
    gate.set(true);
    let engine = Engine::start(Box::new(executor), VOCAB, EngineConfig::new(capacity)).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    struct Note(Arc<Mutex<Vec<i64>>>, i64);
    impl EventSink for Note {
        fn send(&mut self, event: Event) -> Result<(), SinkClosed> {
            if event.is_terminal() {
                self.0.lock().unwrap().push(self.1);
            }
            Ok(())
        }
    }
    for priority in [0, 5, -5, 5, 1] {
        let request = Request { priority, ..Request::new(prompt(3, 1), 2) };
        let sink = Box::new(Note(order.clone(), priority));
        engine.submit_to(request, sink).unwrap();
        while engine.stats().running == 0 {
            std::thread::yield_now();
        }
    }
    gate.set(false);
    engine.shutdown(Duration::from_secs(60)).unwrap();
    assert_eq!(*order.lock().unwrap(), [0, -5, 1, 5, 5]);
}

#[test]
fn cancelled_dropped_and_late_requests_end_and_free_their_blocks() {
    let (engine, gate) = start(None);
    gate.set(true);
    let cancelled = engine.submit(Request::new(prompt(8, 1), 50)).unwrap();
    let dropped = engine.submit(Request::new(prompt(8, 2), 50)).unwrap();
    let late = Request { deadline: Some(Instant::now()), ..Request::new(prompt(8, 3), 50) };
    let late = engine.submit(late).unwrap();
    let stays = engine.submit(Request::new(prompt(8, 4), 5)).unwrap();
    cancelled.cancel();
    drop(dropped);
    gate.set(false);
    assert_eq!(cancelled.wait().unwrap().reason, FinishReason::Cancelled);
    assert_eq!(late.wait().unwrap().reason, FinishReason::Deadline);
    assert_eq!(stays.wait().unwrap().token_ids.len(), 5);
    engine.shutdown(Duration::from_secs(60)).unwrap();
    let stats = engine.stats();
    assert_eq!((stats.finished, stats.cancelled, stats.blocks_used), (4, 3, 0));
}

#[test]
fn preempted_requests_get_the_tokens_they_would_have_got() {
    let tight = Capacity { blocks: 12, ..capacity() };
    let engine = Engine::start(Box::new(MockExecutor::new(tight, VOCAB)), VOCAB, EngineConfig::new(tight)).unwrap();
    let hot = |seed| SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() };
    let request = |seed| Request { sampling: hot(seed), ..Request::new(prompt(8, seed as u32), 30) };
    let requests: Vec<_> = (0..5).map(request).collect();
    let handles: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    let all: Vec<_> = handles.into_iter().map(|handle| handle.wait().unwrap()).collect();
    for (request, all) in requests.iter().zip(&all) {
        assert_eq!(all.token_ids, expected(request));
    }
    let preemptions: u32 = all.iter().map(|all| all.usage.preemptions).sum();
    assert!(preemptions > 0);
    assert_eq!(engine.stats().preemptions, u64::from(preemptions));
    assert!(engine.stats().prefill_tokens > 5 * 8, "recomputed rows are counted");
}

#[test]
fn a_failed_step_or_a_panic_fails_every_request_and_stops_the_engine() {
    for fault in [Fault::Error(3), Fault::Panic(3), Fault::WrongSize(3)] {
        let (engine, gate) = start(Some(fault));
        gate.set(true);
        let submit = |i| engine.submit(Request::new(prompt(8, i), 20)).unwrap();
        let handles: Vec<_> = (0..20).map(submit).collect();
        gate.set(false);
        for handle in handles {
            let error = handle.wait().unwrap_err();
            assert_eq!(error.code(), "engine_error", "{fault:?}");
        }
        engine.shutdown(Duration::from_secs(60)).unwrap();
        let refused = engine.submit(Request::new(prompt(8, 1), 2)).err();
        assert!(matches!(refused, Some(SubmitError::Stopped(_))), "{fault:?}");
        assert_eq!(engine.stats().failed, 20);
    }
}

#[test]
fn logits_that_are_not_finite_fail_their_request_alone() {
    let (engine, _) = start(Some(Fault::NotANumber { first: 7, position: 10 }));
    let broken = Request::new(prompt(8, 7), 20);
    let scored = Request { prompt_logprobs: Some(0), ..Request::new(prompt(14, 7), 0) };
    let shown = Request { prompt_logits: true, ..Request::new(prompt(14, 7), 0) };
    let mates: Vec<_> = (8..11).map(|i| Request::new(prompt(8, i), 20)).collect();
    let handles: Vec<_> = mates.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    let error = RequestError::NonFiniteLogits { position: 10 };
    assert_eq!(engine.submit(broken).unwrap().wait(), Err(error.clone()));
    assert_eq!(engine.submit(scored).unwrap().wait(), Err(error.clone()));
    assert_eq!(engine.submit(shown).unwrap().wait(), Err(error));
    for (request, handle) in mates.iter().zip(handles) {
        assert_eq!(handle.wait().unwrap().token_ids, expected(request));
    }
}

#[test]
fn a_shutdown_lets_requests_finish_and_fails_what_is_left_after_the_grace() {
    let (engine, gate) = start(None);
    gate.set(true);
    let handle = engine.submit(Request::new(prompt(8, 1), 20)).unwrap();
    engine.close();
    assert_eq!(engine.submit(Request::new(prompt(8, 1), 20)).err(), Some(SubmitError::Closed));
    gate.set(false);
    engine.shutdown(Duration::from_secs(60)).unwrap();
    assert_eq!(handle.wait().unwrap().token_ids.len(), 20);

    let (engine, gate) = start(None);
    gate.set(true);
    let handles: Vec<_> = (0..12).map(|i| engine.submit(Request::new(prompt(8, i), 20)).unwrap()).collect();
    let other = engine.clone();
    std::thread::scope(|scope| {
        let shutdown = scope.spawn(move || other.shutdown(Duration::ZERO));
        while engine.owner.shared.inbox.lock().unwrap().take(&mut Vec::new()) != inbox::Phase::Aborted {
            std::thread::yield_now();
        }
        gate.set(false);
        shutdown.join().unwrap().unwrap();
    });
    for handle in handles {
        assert_eq!(handle.wait(), Err(RequestError::ShutDown));
    }
}

#[test]
fn requests_outlive_the_last_handle_of_their_engine() {
    let (engine, gate) = start(None);
    gate.set(true);
    let mut handle = engine.submit(Request::new(prompt(8, 1), 20)).unwrap();
    drop(engine);
    assert_eq!(handle.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
    gate.set(false);
    assert_eq!(handle.wait().unwrap().token_ids.len(), 20);
}

#[test]
fn seeds_are_drawn_when_none_is_given() {
    let (engine, _) = start(None);
    let hot = SamplingParams { temperature: 2.0, ..SamplingParams::default() };
    let request = Request { sampling: hot, ..Request::new(prompt(8, 1), 20) };
    let run = || engine.submit(request.clone()).unwrap().wait().unwrap().token_ids;
    assert_ne!(run(), run());
}

/// Records every event and remembers that the terminal one has come.
#[derive(Clone, Default)]
struct Record {
    events: Arc<Mutex<Vec<Event>>>,
    /// Pretends to be gone after that many events.
    patience: Option<usize>,
}

impl EventSink for Record {
    fn send(&mut self, event: Event) -> Result<(), SinkClosed> {
        let mut events = self.events.lock().unwrap();
        events.push(event);
        match self.patience {
            Some(patience) if events.len() > patience => Err(SinkClosed),
            _ => Ok(()),
        }
    }
}

/// Submits all, each with its client's patience, and records what comes.
fn submit_all(engine: &Engine, requests: &[(Request, Option<usize>)]) -> Vec<Record> {
    let submit = |(request, patience): &(Request, Option<usize>)| {
        let record = Record { patience: *patience, ..Record::default() };
        engine.submit_to(request.clone(), Box::new(record.clone())).unwrap();
        record
    };
    requests.iter().map(submit).collect()
}

prop_compose! {
    fn any_request()(
        len in 1u32..24,
        first in 0u32..VOCAB as u32,
        max_new in 0usize..24,
        temperature in prop::sample::select(vec![0.0f32, 0.7, 1.5]),
        top_k in prop::sample::select(vec![0usize, 5]),
        top_p in prop::sample::select(vec![1.0f32, 0.8]),
        frequency_penalty in prop::sample::select(vec![0.0f32, 0.5]),
        seed: u64,
        eos in 0u32..VOCAB as u32,
        outputs in prop::sample::select(vec![0, 0, 0, 1, 2]),
        priority in 0i64..3,
    ) -> Request {
        Request {
            sampling: SamplingParams {
                temperature, top_k, top_p, frequency_penalty,
                seed: Some(seed),
                ..SamplingParams::default()
            },
            eos_ids: vec![eos],
            prompt_logits: outputs == 1,
            prompt_logprobs: (outputs == 2).then_some(1),
            priority,
            ..Request::new(prompt(len, first), max_new)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_request_gets_what_it_would_get_alone_and_one_end(
        requests in prop::collection::vec((any_request(), prop::option::weighted(0.2, 0usize..20)), 1..24),
        block_len in 1usize..6,
        spare_blocks in 0usize..20,
        max_rows in 1usize..24,
        budget in 1usize..24,
        prefill_chunk in 1usize..24,
        max_seqs in 1usize..9,
        max_outputs in 1usize..12,
        mixed_batches in prop::bool::weighted(0.7),
        closed_at_first: bool,
    ) {
        let longest = requests.iter().map(|(r, _)| r.prompt.len() + r.max_new_tokens).max().unwrap_or(1);
        let capacity = Capacity {
            blocks: longest.div_ceil(block_len) + spare_blocks,
            block_len, max_rows, max_seqs, max_outputs,
            max_len: longest,
        };
        let config = EngineConfig {
            token_budget: budget,
            prefill_chunk,
            limits: Limits { mixed_batches, ..Limits::paged(block_len) },
            max_unread_rows: 1 << 20,
            ..EngineConfig::new(capacity)
        };
        let mut executor = MockExecutor::new(capacity, VOCAB);
        (executor.budget, executor.chunk) = (budget, prefill_chunk);
        let gate = executor.gate.clone();
        gate.set(closed_at_first);
        let engine = Engine::start(Box::new(executor), VOCAB, config).unwrap();
        let records = submit_all(&engine, &requests);
        gate.set(false);
        engine.shutdown(Duration::from_secs(60)).unwrap();
        for ((request, patience), record) in requests.iter().zip(&records) {
            let events = record.events.lock().unwrap();
            let ends = events.iter().filter(|e| e.is_terminal()).count();
            prop_assert_eq!(ends, 1);
            let Some(Event::Finished { reason, usage, .. }) = events.last() else {
                return Err(TestCaseError::fail(format!("ended with {:?}", events.last())));
            };
            let (got, wanted) = (tokens(&events), expected(request));
            prop_assert_eq!(usage.generated_tokens, got.len());
            if *reason == FinishReason::Cancelled {
                prop_assert!(patience.is_some());
                prop_assert_eq!(&got[..], &wanted[..got.len()]);
                continue;
            }
            prop_assert_eq!(got, wanted);
            let mut position = 0;
            for event in events.iter() {
                if let Event::PromptLogits { start, rows, .. } = event {
                    prop_assert_eq!(*start, position);
                    for row in rows.chunks(VOCAB) {
                        position += 1;
                        let rope_len = request.prompt.len() + request.max_new_tokens;
                        prop_assert_eq!(row, &logits_after(&request.prompt[..position], rope_len, VOCAB)[..]);
                    }
                }
            }
            prop_assert_eq!(position, if request.prompt_logits { request.prompt.len() } else { 0 });
            let scored: usize = events.iter().map(|event| match event {
                Event::PromptLogprobs { tokens, .. } => tokens.len(),
                _ => 0,
            }).sum();
            prop_assert_eq!(scored, request.prompt_logprobs.map_or(0, |_| request.prompt.len() - 1));
        }
        let stats = engine.stats();
        prop_assert_eq!((stats.running, stats.queued, stats.blocks_used), (0, 0, 0));
        prop_assert_eq!(stats.finished, requests.len() as u64);
        prop_assert_eq!(engine.failure(), None);
    }
}
