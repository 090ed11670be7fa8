//! What the prefix cache, guesses and turns must not change: every request gets what it gets alone without them, and
//! nothing is left behind.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::test_runner::TestRunner;

use super::*;
use crate::request::{CancelToken, MaskError, MaskStream, RequestHandle, TokenMask};

/// Rows of every sequence, per step.
type Log = Arc<Mutex<Vec<Vec<usize>>>>;

/// An engine on a mock that loops, so that guesses are right now and then.
fn looping(capacity: Capacity, config: impl FnOnce(&mut EngineConfig)) -> (Engine, Arc<Gate>, Log) {
    let mut executor = MockExecutor::new(capacity, VOCAB);
    executor.loops = true;
    let mut settings = EngineConfig::new(capacity);
    config(&mut settings);
    (executor.budget, executor.chunk) = (settings.token_budget, settings.prefill_chunk);
    executor.border = settings.limits.rope_border;
    let (gate, log) = (executor.gate.clone(), executor.log.clone());
    gate.set(true);
    (Engine::start(Box::new(executor), VOCAB, settings).unwrap(), gate, log)
}

/// Allows what does not make the sum of the answer a multiple of three; wants its tokens in order, each once.
struct NoThrees;

struct NoThreesStream {
    seen: Vec<u32>,
}

impl TokenMask for NoThrees {
    fn start(self: Arc<Self>, _: &[u32]) -> Box<dyn MaskStream> {
        Box::new(NoThreesStream { seen: vec![] })
    }
}

impl MaskStream for NoThreesStream {
    fn fill(&mut self, generated: &[u32], allowed: &mut [u32]) -> Result<(), MaskError> {
        if !generated.starts_with(&self.seen) {
            return Err(MaskError(format!("{generated:?} after {:?}", self.seen)));
        }
        self.seen = generated.to_vec();
        let sum: u32 = generated.iter().sum();
        for id in (0..VOCAB as u32).filter(|id| !(sum + id).is_multiple_of(3)) {
            allowed[id as usize / 32] |= 1 << (id % 32);
        }
        Ok(())
    }
}

prop_compose! {
    fn any_request()(
        // A few beginnings, so that prompts share them.
        stem in 0u32..3,
        stem_len in 0u32..20,
        tail in prop::collection::vec(0u32..VOCAB as u32, 1..5),
        max_new in 0usize..28,
        temperature in prop::sample::select(vec![0.0f32, 0.7, 1.5]),
        top_k in prop::sample::select(vec![0usize, 5]),
        frequency_penalty in prop::sample::select(vec![0.0f32, 0.0, 0.5]),
        seed: u64,
        eos in 0u32..VOCAB as u32,
        min_tokens in 0usize..4,
        outputs in prop::sample::select(vec![0, 0, 0, 0, 1, 2]),
        logprobs in prop::option::of(0usize..3),
        ends in prop::sample::select(vec![0, 0, 1, 2]),
        bias in prop::option::weighted(0.3, (0u32..VOCAB as u32, -5.0f32..5.0)),
        who in (0i64..3, 0u64..3, prop::sample::select(vec![None, Some("a"), Some("b")])),
    ) -> Request {
        let mut prompt: Vec<u32> = (0..stem_len).map(|i| (stem * 17 + i * 7) % VOCAB as u32).collect();
        prompt.extend(tail);
        let text: Option<Arc<dyn TokenText>> = (ends == 1).then(|| Arc::new(Letters) as _);
        Request {
            sampling: SamplingParams {
                temperature, top_k, frequency_penalty,
                seed: Some(seed),
                logit_bias: bias.into_iter().collect(),
                ..SamplingParams::default()
            },
            eos_ids: vec![eos],
            min_tokens: min_tokens.min(max_new),
            prompt_logits: outputs == 1,
            prompt_logprobs: (outputs == 2).then_some(1),
            logprobs,
            stop: if ends == 1 { vec!["cab".into(), "éb".into()] } else { vec![] },
            text,
            mask: (ends == 2).then(|| Arc::new(NoThrees) as _),
            priority: who.0,
            client: who.1,
            cache_salt: who.2.map(str::to_owned),
            ..Request::new(prompt, max_new)
        }
    }
}

/// What a request gets on an engine of its own, without prefix cache and guesses.
fn alone(request: &Request, border: Option<usize>) -> Vec<Event> {
    let len = request.prompt.len() + request.max_new_tokens;
    let capacity = Capacity { blocks: len, block_len: 1, max_rows: 64, max_seqs: 1, max_outputs: 64, max_len: len };
    let (engine, gate, _) = looping(capacity, |config| {
        config.prefix_cache = false;
        config.limits.rope_border = border;
    });
    gate.set(false);
    engine.submit(request.clone()).unwrap().map(comparable).collect()
}

/// An event without what depends on the load.
fn comparable(event: Event) -> Event {
    match event {
        Event::Finished { reason, matched, text, .. } => {
            Event::Finished { reason, matched, text, usage: Default::default() }
        }
        event => event,
    }
}

/// Prompt outputs come in as many pieces as there were chunks.
fn joined(events: &[Event]) -> (Vec<f32>, Vec<crate::sampler::TokenLogprob>, Vec<Event>) {
    let (mut logits, mut logprobs, mut rest) = (vec![], vec![], vec![]);
    for event in events {
        match event {
            Event::PromptLogits { start, rows, .. } => {
                assert_eq!(*start, logits.len() / VOCAB);
                logits.extend_from_slice(rows);
            }
            Event::PromptLogprobs { start, tokens } => {
                assert_eq!(*start, 1 + logprobs.len());
                logprobs.extend_from_slice(tokens);
            }
            event => rest.push(comparable(event.clone())),
        }
    }
    (logits, logprobs, rest)
}

#[test]
fn prefixes_guesses_turns_and_preemptions_change_nothing_and_leave_nothing() {
    let totals = [const { AtomicU64::new(0) }; 4];
    let strategy = (
        // Wave after wave, each with the steps that run until the next and whether somebody leaves then.
        prop::collection::vec(
            (prop::collection::vec(any_request(), 1..6), 0u64..12, prop::option::of(0usize..8)),
            1..6,
        ),
        (1usize..6, 0usize..10, prop::option::of(10usize..40)),
        (4usize..40, 1usize..24, 1usize..9, 2usize..24),
        prop::sample::select(vec![Speculate::UpTo(1), Speculate::UpTo(4), Speculate::UpTo(15), Speculate::Auto]),
        prop::bool::weighted(0.9),
    );
    let config = ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
    let outcome =
        TestRunner::new(config).run(&strategy, |(waves, (block_len, spare, border), step, speculate, prefix_cache)| {
            let requests = || waves.iter().flat_map(|(requests, ..)| requests);
            let longest = requests().map(|r| r.prompt.len() + r.max_new_tokens).max().unwrap_or(1);
            let (max_rows, prefill_chunk, max_seqs, max_outputs) = step;
            let blocks = longest.div_ceil(block_len) + spare;
            let capacity = Capacity { blocks, block_len, max_rows, max_seqs, max_outputs, max_len: longest };
            let (engine, gate, _) = looping(capacity, |config| {
                (config.prefix_cache, config.speculate, config.prefill_chunk) =
                    (prefix_cache, speculate, prefill_chunk);
                (config.limits.rope_border, config.max_unread_rows) = (border, 1 << 20);
            });
            let mut running: Vec<(Request, Record, CancelToken, bool)> = vec![];
            for (requests, steps, leaves) in &waves {
                for request in requests {
                    let record = Record::default();
                    let (_, token) = engine.submit_to(request.clone(), Box::new(record.clone())).unwrap();
                    running.push((request.clone(), record, token, false));
                }
                gate.allow(Some(*steps));
                let idle = || {
                    let stats = engine.stats();
                    stats.running == 0 && stats.queued == 0
                };
                while !gate.is_closed() && !idle() {
                    std::thread::yield_now();
                }
                if let Some((_, _, token, cancelled)) = leaves.and_then(|i| running.get_mut(i)) {
                    token.cancel();
                    *cancelled = true;
                }
            }
            gate.set(false);
            engine.shutdown(Duration::from_secs(60)).unwrap();
            for (request, record, _, cancelled) in &running {
                let (got, wanted) = (joined(&record.events.lock().unwrap()), joined(&alone(request, border)));
                let ended = got.2.last();
                prop_assert!(ended.is_some_and(Event::is_terminal), "ended with {:?}", ended);
                if *cancelled && matches!(ended, Some(Event::Finished { reason: FinishReason::Cancelled, .. })) {
                    let n = got.2.len() - 1;
                    prop_assert_eq!(&got.2[..n], &wanted.2[..n]);
                    continue;
                }
                prop_assert_eq!(got, wanted);
            }
            let stats = engine.stats();
            prop_assert_eq!((stats.running, stats.queued, stats.blocks_used), (0, 0, 0));
            prop_assert_eq!(engine.failure(), None);
            prop_assert!(stats.accepted_tokens <= stats.drafted_tokens);
            prop_assert!(prefix_cache || stats.cached_tokens == 0 && stats.blocks_idle == 0);
            for (total, count) in
                totals.iter().zip([stats.cached_tokens, stats.drafted_tokens, stats.accepted_tokens, stats.preemptions])
            {
                total.fetch_add(count, Ordering::Relaxed);
            }
            Ok(())
        });
    outcome.unwrap();
    let totals = totals.each_ref().map(|total| total.load(Ordering::Relaxed));
    assert!(totals.iter().all(|total| *total > 20), "cached, drafted, accepted, preempted: {totals:?}");
}

#[test]
fn a_prompt_is_found_again_under_its_own_salt_alone() {
    let (engine, gate, _) = looping(Capacity { blocks: 64, ..capacity() }, |_| {});
    gate.set(false);
    let cached = |salt: Option<&str>, len: u32, max_new| {
        let request = Request { cache_salt: salt.map(str::to_owned), ..Request::new(prompt(len, 3), max_new) };
        engine.submit(request).unwrap().wait().unwrap().usage.cached_tokens
    };
    assert_eq!(cached(Some("a"), 21, 4), 0);
    assert_eq!(cached(Some("a"), 21, 4), 20, "whole blocks of four");
    assert_eq!(cached(Some("a"), 20, 4), 16, "a token is left to run");
    for salt in [None, Some(""), Some("b"), Some("a/"), Some("1/a")] {
        assert_eq!(cached(salt, 21, 4), 0, "{salt:?}");
    }
    let scored = Request { cache_salt: Some("a".into()), prompt_logprobs: Some(0), ..Request::new(prompt(21, 3), 2) };
    assert_eq!(engine.submit(scored).unwrap().wait().unwrap().usage.cached_tokens, 0);
    let stats = engine.stats();
    assert_eq!((stats.cached_tokens, stats.looked_up_tokens), (36, 7 * 21 + 20));
    assert_eq!((stats.blocks_used, stats.blocks_idle > 0), (0, true));

    let (engine, gate, _) = looping(Capacity { blocks: 64, ..capacity() }, |config| config.prefix_cache = false);
    gate.set(false);
    for _ in 0..2 {
        let all = engine.submit(Request::new(prompt(21, 3), 4)).unwrap().wait().unwrap();
        assert_eq!(all.usage.cached_tokens, 0);
    }
    assert_eq!((engine.stats().looked_up_tokens, engine.stats().blocks_idle), (0, 0));
}

#[test]
fn an_answer_is_found_again_as_part_of_the_next_prompt() {
    let (engine, gate, _) = looping(Capacity { blocks: 64, ..capacity() }, |_| {});
    gate.set(false);
    let mut talk = prompt(9, 3);
    talk.extend(engine.submit(Request::new(talk.clone(), 12)).unwrap().wait().unwrap().token_ids);
    talk.push(1);
    let next = engine.submit(Request::new(talk, 4)).unwrap().wait().unwrap();
    // The last token of an answer is never run.
    assert_eq!(next.usage.cached_tokens, 20);
}

#[test]
fn what_a_failed_request_has_written_is_not_found() {
    let mut executor = MockExecutor::new(capacity(), VOCAB);
    executor.fault = Some(Fault::NotANumber { first: 3, position: 20 });
    let engine = Engine::start(Box::new(executor), VOCAB, EngineConfig::new(capacity())).unwrap();
    for _ in 0..2 {
        let failed = engine.submit(Request::new(prompt(21, 3), 4)).unwrap().wait();
        assert_eq!(failed, Err(RequestError::NonFiniteLogits { position: 20 }));
        assert_eq!((engine.stats().blocks_idle, engine.stats().cached_tokens), (0, 0));
    }
}

#[test]
fn a_cancelled_request_is_in_no_step_but_the_one_that_runs() {
    let (engine, gate, log) = looping(capacity(), |config| config.speculate = Speculate::UpTo(4));
    let submit = |first| engine.submit(Request::new(prompt(5, first), 40)).unwrap();
    let (leaves, stays) = (submit(1), submit(2));
    gate.allow(Some(3));
    while !gate.is_closed() || engine.stats().step_running().is_none() || engine.stats().steps < 3 {
        std::thread::yield_now();
    }
    // The fourth step is planned with both.
    leaves.cancel();
    gate.set(false);
    assert_eq!(stays.wait().unwrap().token_ids.len(), 40);
    assert_eq!(leaves.wait().unwrap().reason, FinishReason::Cancelled);
    let log = log.lock().unwrap();
    // The first one may have begun before the other came.
    assert!(log[1..4].iter().all(|rows| rows.len() == 2), "{log:?}");
    assert!(log[4..].iter().all(|rows| rows.len() == 1), "{log:?}");
}

#[test]
fn a_thousand_that_leave_take_their_blocks_with_them() {
    let (engine, gate, _) = looping(capacity(), |config| config.speculate = Speculate::UpTo(4));
    let mut left = 0;
    for round in 0..125_u32 {
        gate.allow(Some(u64::from(round % 7)));
        let submit = |i: u32| engine.submit(Request::new(prompt(1 + (round * 3 + i) % 12, i), 40)).unwrap();
        let mut handles: Vec<RequestHandle> = (0..8).map(submit).collect();
        while !gate.is_closed() {
            std::thread::yield_now();
        }
        left += handles.len();
        handles.drain(..).rev().for_each(drop);
        gate.set(false);
        while engine.stats().running + engine.stats().queued > 0 {
            std::thread::yield_now();
        }
        assert_eq!(engine.stats().blocks_used, 0, "round {round}");
    }
    let stats = engine.stats();
    assert_eq!((left, stats.finished, stats.failed), (1000, 1000, 0));
    // Whoever has left gets no more than the step that was running: at most five tokens each.
    assert!(stats.generated_tokens <= 125 * 8 * 7 * 5, "{stats:?}");
    assert!(stats.blocks_idle > 0);
}

#[test]
fn one_request_does_not_wait_for_a_thousand_of_another_client() {
    let order = Arc::new(Mutex::new(Vec::new()));
    struct Note(Arc<Mutex<Vec<u64>>>, u64);
    impl EventSink for Note {
        fn send(&mut self, event: Event) -> Result<(), SinkClosed> {
            if event.is_terminal() {
                self.0.lock().unwrap().push(self.1);
            }
            Ok(())
        }
    }
    let (engine, gate, _) = looping(capacity(), |_| {});
    let submit = |client, i: u32| {
        let request = Request { client, ..Request::new(prompt(5, i), 10) };
        engine.submit_to(request, Box::new(Note(order.clone(), client))).unwrap();
    };
    (0..1000).for_each(|i| submit(1, i % 60));
    submit(2, 7);
    gate.set(false);
    engine.shutdown(Duration::from_secs(60)).unwrap();
    let order = order.lock().unwrap();
    let at = order.iter().position(|client| *client == 2).unwrap();
    assert_eq!(order.len(), 1001);
    // Those that were running before it came, and those that started beside it.
    assert!(at <= 16, "after {at}");
}

#[test]
fn a_deadline_ends_who_waits_and_who_was_preempted() {
    let tight = Capacity { blocks: 12, max_seqs: 4, ..capacity() };
    let (engine, gate, _) = looping(tight, |_| {});
    let soon = Instant::now() + Duration::from_millis(30);
    let request = |first, deadline| Request { deadline, ..Request::new(prompt(8, first), 30) };
    let first = engine.submit(request(1, None)).unwrap();
    let late: Vec<_> = (2..7).map(|i| engine.submit(request(i, Some(soon))).unwrap()).collect();
    gate.allow(Some(12));
    while !gate.is_closed() || Instant::now() < soon {
        std::thread::yield_now();
    }
    gate.set(false);
    for handle in late {
        let all = handle.wait().unwrap();
        assert_eq!(all.reason, FinishReason::Deadline);
        assert!(all.token_ids.len() < 30);
    }
    assert_eq!(first.wait().unwrap().reason, FinishReason::Length);
    assert_eq!(engine.stats().blocks_used, 0);
}
