//! The engine against a device of contiguous rows that returns candidates.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::backend::RowClass;
use crate::engine::mock::{DeviceFault, MockDevice};
use crate::request::{MaskError, MaskStream, TokenMask};

pub(super) fn classes() -> Vec<RowClass> {
    vec![RowClass { rows: 4, max_len: 32 }, RowClass { rows: 2, max_len: 64 }]
}

fn start_device(device: MockDevice) -> Engine {
    let config = EngineConfig { limits: device.limits.clone(), ..EngineConfig::new(device.capacity()) };
    Engine::start(Box::new(device), VOCAB, config).unwrap()
}

/// Every `self.0`-th token behind the last one is not allowed.
struct Gaps(u32);

struct GapStream(u32);

impl TokenMask for Gaps {
    fn start(self: Arc<Self>, _: &[u32]) -> Box<dyn MaskStream> {
        Box::new(GapStream(self.0))
    }
}

impl MaskStream for GapStream {
    fn fill(&mut self, generated: &[u32], allowed: &mut [u32]) -> Result<(), MaskError> {
        let last = generated.last().copied().unwrap_or(0);
        if self.0 == 0 && generated.len() == 3 {
            return Err(MaskError("as told".into()));
        }
        let free = |id: &u32| self.0 == 0 || !(id + last).is_multiple_of(self.0);
        (0..VOCAB as u32).filter(free).for_each(|id| allowed[id as usize / 32] |= 1 << (id % 32));
        Ok(())
    }
}

pub(super) fn gaps(n: u32) -> Option<Arc<dyn TokenMask>> {
    Some(Arc::new(Gaps(n)))
}

#[test]
fn masks_bind_requests_on_every_backend_and_a_broken_one_fails_its_request_alone() {
    let (paged, _) = start(None);
    for engine in [paged, start_device(MockDevice::new(&classes(), 16, VOCAB))] {
        let request = Request { mask: gaps(2), ..Request::new(prompt(9, 3), 12) };
        let all = engine.submit(request.clone()).unwrap().wait().unwrap();
        assert_eq!(all.token_ids, expected(&request));
        let mut last = 0;
        for id in all.token_ids {
            assert_eq!((id + last) % 2, 1);
            last = id;
        }
        let broken = Request { mask: gaps(0), ..Request::new(prompt(9, 3), 12) };
        let (broken, mate) = (engine.submit(broken).unwrap(), Request::new(prompt(9, 4), 12));
        assert_eq!(engine.submit(mate.clone()).unwrap().wait().unwrap().token_ids, expected(&mate));
        assert_eq!(broken.wait(), Err(RequestError::Mask(MaskError("as told".into()))));
        // No token of 61 is left.
        let none = Request { mask: gaps(1), ..Request::new(prompt(9, 3), 12) };
        assert_eq!(engine.submit(none).unwrap().wait().unwrap_err().code(), "no_mask");
    }
}

/// These words, bits beyond the vocabulary included.
struct Words([u32; 2]);

impl TokenMask for Words {
    fn start(self: Arc<Self>, _: &[u32]) -> Box<dyn MaskStream> {
        Box::new(Words(self.0))
    }
}

impl MaskStream for Words {
    fn fill(&mut self, _: &[u32], allowed: &mut [u32]) -> Result<(), MaskError> {
        allowed.copy_from_slice(&self.0);
        Ok(())
    }
}

#[test]
fn a_mask_that_allows_what_min_tokens_forbids_alone_fails_its_request_and_no_cached_block() {
    let (paged, _) = start(None);
    for engine in [paged, start_device(MockDevice::new(&classes(), 16, VOCAB))] {
        let request = Request { eos_ids: vec![5], ..Request::new(prompt(30, 3), 4) };
        engine.submit(request.clone()).unwrap().wait().unwrap();
        let contradiction = |words| {
            let mask: Arc<dyn TokenMask> = Arc::new(Words(words));
            let request = Request { mask: Some(mask), min_tokens: 2, ..request.clone() };
            engine.submit(request).unwrap().wait()
        };
        let forbidden = Err(RequestError::Mask(MaskError("min_tokens forbids every token that is allowed".into())));
        assert_eq!(contradiction([1 << 5, 0]), forbidden);
        // There are 61 tokens.
        assert_eq!(contradiction([1 << 5, 7 << 29]), forbidden);
        assert_eq!(contradiction([1 << 5 | 1 << 7, 0]).unwrap().token_ids[..2], [7, 7]);
        // What the ones that failed had shared is still there.
        let before = engine.stats().cached_tokens;
        engine.submit(request).unwrap().wait().unwrap();
        assert!(engine.stats().cached_tokens >= before + 28);
    }
}

#[test]
fn what_the_device_cannot_do_is_refused_by_name() {
    let mut device = MockDevice::new(&classes(), 5, VOCAB);
    (device.limits.masks, device.limits.logits) = (false, false);
    let engine = start_device(device);
    let refused = |request: Request| engine.submit(request).err().unwrap().to_string();
    let base = Request::new(prompt(5, 1), 4);
    assert_eq!(
        refused(Request { logprobs: Some(6), ..base.clone() }),
        "logprobs asks for 6 alternatives, the limit is 5"
    );
    assert_eq!(
        refused(Request { prompt_logprobs: Some(1), ..base.clone() }),
        "prompt_logprobs needs the logits of the prompt, which this backend does not return"
    );
    assert_eq!(
        refused(Request { mask: gaps(2), ..base.clone() }),
        "structured output needs masks of allowed tokens, which the artifact was built without; build it anew with --masks"
    );
    let biased = |n: u32| SamplingParams { logit_bias: (0..n).map(|i| (i, 1.0)).collect(), ..Default::default() };
    let request = Request { sampling: biased(5), min_tokens: 1, eos_ids: vec![4, 7, 8, 900], ..base.clone() };
    assert_eq!(refused(request), "7 tokens have a bias or are forbidden by min_tokens, the backend was built for 6");
    assert!(engine.submit(Request { sampling: biased(6), ..base }).is_ok());
    assert!(refused(Request::new(prompt(60, 1), 5)).contains("exceed the longest sequence of 64 tokens"));
    let wrong = EngineConfig { limits: MockDevice::new(&classes(), 5, VOCAB).limits, ..EngineConfig::new(capacity()) };
    let error = Engine::start(Box::new(MockExecutor::new(capacity(), VOCAB)), VOCAB, wrong).err().unwrap();
    assert!(error.to_string().starts_with("6 cache rows of up to 64 tokens"), "{error}");
}

#[test]
fn a_conversation_starts_behind_what_its_row_holds_unless_the_salt_differs() {
    let engine = start_device(MockDevice::new(&classes(), 16, VOCAB));
    let first = Request::new(prompt(20, 3), 6);
    let answer = engine.submit(first.clone()).unwrap().wait().unwrap();
    assert_eq!(answer.usage.cached_tokens, 0);
    let mut next = first.prompt.clone();
    next.extend(&answer.token_ids);
    next.extend([5, 6]);
    let next = Request { max_new_tokens: 4, ..Request::new(next, 4) };
    let all = engine.submit(next.clone()).unwrap().wait().unwrap();
    assert_eq!(all.token_ids, expected(&next));
    // The last token of an answer is never run.
    assert_eq!((all.usage.cached_tokens, engine.stats().cached_tokens), (25, 25));
    let salted = Request { cache_salt: Some("mine".into()), ..next.clone() };
    let all = engine.submit(salted.clone()).unwrap().wait().unwrap();
    assert_eq!((all.token_ids, all.usage.cached_tokens), (expected(&next), 0));
    assert_eq!(engine.submit(salted).unwrap().wait().unwrap().usage.cached_tokens, 27);
    let scored = Request { prompt_logprobs: Some(1), ..next };
    let all = engine.submit(scored).unwrap().wait().unwrap();
    assert_eq!((all.prompt_logprobs.len(), all.usage.cached_tokens), (27, 0));
}

/// Notes for every token whether a step was running when its event came.
struct Flights(Arc<AtomicBool>, Arc<Mutex<Vec<bool>>>);

impl EventSink for Flights {
    fn send(&mut self, event: Event) -> Result<(), SinkClosed> {
        if let Event::Token { .. } = event {
            self.1.lock().unwrap().push(self.0.load(Ordering::Relaxed));
        }
        Ok(())
    }
}

#[test]
fn events_are_sent_while_the_next_step_runs_where_the_backend_overlaps() {
    for (overlaps, stop, wanted) in [
        (true, false, [true, true, true, false]), // after the last one there is no step
        (false, false, [false; 4]),
        (true, true, [false; 4]), // text that may end the answer is looked at first
    ] {
        let mut device = MockDevice::new(&classes(), 16, VOCAB);
        device.limits.overlaps = overlaps;
        let (flight, seen) = (device.in_flight.clone(), Arc::new(Mutex::new(Vec::new())));
        let engine = start_device(device);
        let text: Option<Arc<dyn TokenText>> = Some(Arc::new(Letters));
        let stop = if stop { vec!["never".into()] } else { vec![] };
        let request = Request { text, stop, ..Request::new(prompt(5, 3), 4) };
        engine.submit_to(request, Box::new(Flights(flight, seen.clone()))).unwrap();
        engine.shutdown(Duration::from_secs(60)).unwrap();
        assert_eq!(*seen.lock().unwrap(), wanted);
    }
}

#[test]
fn masks_are_made_while_steps_run_and_rows_for_which_they_come_too_late_are_run_again() {
    // Of 16 candidates all have to be allowed for the last of these.
    let kinds = [(0.0, 0, 0.0), (0.7, 5, 0.5), (0.7, 16, 0.0)];
    let request = |i: u32| {
        let (temperature, top_k, presence_penalty) = kinds[i as usize % kinds.len()];
        let seed = Some(u64::from(i));
        let sampling = SamplingParams { temperature, top_k, presence_penalty, seed, ..Default::default() };
        Request { mask: gaps(13), sampling, ..Request::new(prompt(6, i), 50) }
    };
    for overlaps in [true, false] {
        let mut device = MockDevice::new(&[RowClass { rows: 4, max_len: 64 }], 16, VOCAB);
        device.limits.overlaps = overlaps;
        let masked = device.masked.clone();
        let engine = start_device(device);
        let handles: Vec<_> = (0..24).map(|i| engine.submit(request(i)).unwrap()).collect();
        for (i, handle) in (0..24).zip(handles) {
            assert_eq!(handle.wait().unwrap().token_ids, expected(&request(i)), "request {i}");
        }
        let (masked, again) = (masked.load(Ordering::Relaxed), engine.stats().retried_steps);
        println!("{masked} masks for the device, {again} steps again, of 1200 tokens");
        match overlaps {
            true => assert!(masked < 1000 && again > 0, "{masked} masks for the device, {again} steps again"),
            false => assert_eq!((masked, again), (1200, 0)),
        }
    }
}

prop_compose! {
    fn device_request()(
        base in any_request(),
        text in 0u32..3,
        len in 1u32..30,
        max_new in 0usize..20,
        top_k in 1usize..16,
        gap in prop::sample::select(vec![0u32, 0, 3, 7]),
        min_tokens in 0usize..6,
        bias in prop::collection::btree_map(0u32..VOCAB as u32, -3.0f32..3.0, 0..4),
        logprobs in prop::option::of(0usize..6),
        salt: bool,
    ) -> Request {
        Request {
            prompt: prompt(len, text),
            max_new_tokens: max_new,
            min_tokens: min_tokens.min(max_new),
            sampling: SamplingParams {
                top_k,
                frequency_penalty: 0.0,
                logit_bias: bias.into_iter().collect(),
                ..base.sampling.clone()
            },
            mask: if gap > 0 { gaps(gap) } else { None },
            logprobs,
            cache_salt: salt.then(|| "s".into()),
            ..base
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_device_gives_the_tokens_that_logits_would_give(
        requests in prop::collection::vec((device_request(), prop::option::weighted(0.1, 0usize..20)), 1..24),
        short in 1usize..5,
        overlaps: bool,
        mixed: bool,
        all_candidates: bool,
    ) {
        let classes = [RowClass { rows: short, max_len: 32 }, RowClass { rows: 2, max_len: 64 }];
        let mut device = MockDevice::new(&classes, if all_candidates { VOCAB } else { 16 }, VOCAB);
        (device.limits.overlaps, device.limits.mixed_batches) = (overlaps, mixed);
        let gate = device.gate.clone();
        gate.set(true);
        let engine = start_device(device);
        let records = submit_all(&engine, &requests);
        gate.set(false);
        engine.shutdown(Duration::from_secs(60)).unwrap();
        for ((request, patience), record) in requests.iter().zip(&records) {
            let events = record.events.lock().unwrap();
            prop_assert_eq!(events.iter().filter(|e| e.is_terminal()).count(), 1);
            let Some(Event::Finished { reason, usage, .. }) = events.last() else {
                return Err(TestCaseError::fail(format!("ended with {:?}", events.last())));
            };
            let (got, wanted) = (tokens(&events), expected(request));
            prop_assert_eq!(usage.preemptions, 0);
            if *reason == FinishReason::Cancelled {
                prop_assert!(patience.is_some());
                prop_assert_eq!(&got[..], &wanted[..got.len()]);
                continue;
            }
            prop_assert_eq!(&got, &wanted);
            let rows: usize = events.iter().map(|event| match event {
                Event::PromptLogits { rows, .. } => rows.len() / VOCAB,
                Event::PromptLogprobs { tokens, .. } => tokens.len(),
                _ => 0,
            }).sum();
            let scored = request.prompt_logprobs.map_or(0, |_| request.prompt.len() - 1);
            prop_assert_eq!(rows, if request.prompt_logits { request.prompt.len() } else { scored });
            let mut so_far = request.prompt.clone();
            for event in events.iter() {
                let Event::Token { id, logprob, .. } = event else { continue };
                if let Some(logprob) = logprob {
                    let rope_len = request.prompt.len() + request.max_new_tokens;
                    let logits = logits_after(&so_far, rope_len, VOCAB);
                    let exact = Sampler::new(VOCAB).logprob(&logits, *id, 0).unwrap();
                    prop_assert!((logprob.logprob - exact.logprob).abs() < 1e-5);
                }
                so_far.push(*id);
            }
        }
        let stats = engine.stats();
        prop_assert_eq!((stats.running, stats.queued, stats.blocks_used, stats.preemptions), (0, 0, 0, 0));
        prop_assert_eq!(stats.finished, requests.len() as u64);
        prop_assert_eq!(engine.failure(), None);
    }

    #[test]
    fn no_request_is_lost_wherever_the_device_fails(
        requests in prop::collection::vec(device_request(), 1..16),
        call in 1u64..40,
        fault in prop::sample::select(vec![
            DeviceFault::Busy, DeviceFault::BusyLate, DeviceFault::Dead, DeviceFault::DeadLate, DeviceFault::OutOfBounds,
            DeviceFault::OutOfBoundsNowhere, DeviceFault::NotANumber, DeviceFault::NoToken, DeviceFault::Panic,
        ]),
        twice: bool,
        overlaps: bool,
    ) {
        let mut device = MockDevice::new(&classes(), 16, VOCAB);
        device.limits.overlaps = overlaps;
        device.faults.insert(call, fault);
        if twice {
            device.faults.insert(call + 1, fault);
        }
        let gate = device.gate.clone();
        gate.set(true);
        let engine = start_device(device);
        let mut records = Vec::new();
        for request in &requests {
            let record = Record::default();
            match engine.submit_to(request.clone(), Box::new(record.clone())) {
                Ok(_) => records.push((request, record)),
                Err(error) => prop_assert!(matches!(error, SubmitError::Stopped(_)), "{}", error),
            }
        }
        gate.set(false);
        engine.shutdown(Duration::from_secs(60)).unwrap();
        let (stats, failure) = (engine.stats(), engine.failure());
        let survives = match fault {
            DeviceFault::Busy | DeviceFault::BusyLate => !twice,
            DeviceFault::OutOfBounds | DeviceFault::NotANumber => true,
            _ => false,
        };
        prop_assert!(!survives || failure.is_none(), "{:?}", failure);
        let mut refused = 0;
        for (request, record) in &records {
            let events = record.events.lock().unwrap();
            prop_assert_eq!(events.iter().filter(|e| e.is_terminal()).count(), 1);
            let (got, wanted) = (tokens(&events), expected(request));
            prop_assert!(wanted.starts_with(&got), "{:?} is no beginning of {:?}", got, wanted);
            match events.last() {
                Some(Event::Finished { .. }) => prop_assert_eq!(got, wanted),
                Some(Event::Failed(RequestError::Refused(_) | RequestError::NonFiniteLogits { .. })) => refused += 1,
                Some(Event::Failed(error)) => prop_assert_eq!(Some(error), failure.as_ref()),
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
        }
        prop_assert!(refused <= 1 + usize::from(twice));
        prop_assert_eq!(stats.finished + stats.failed, records.len() as u64);
        prop_assert_eq!(stats.step_running(), None);
    }
}
