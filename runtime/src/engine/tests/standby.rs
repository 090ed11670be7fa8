//! A device that fails for good, with something that stands by.

use super::device::{classes, gaps};
use super::*;
use crate::backend::StepError;
use crate::engine::mock::{DeviceFault, MockDevice};

fn start(call: u64, fault: DeviceFault, overlaps: bool, standby: Standby) -> Engine {
    let mut device = MockDevice::new(&classes(), 16, VOCAB);
    device.limits.overlaps = overlaps;
    device.faults.insert(call, fault);
    let config = EngineConfig { limits: device.limits.clone(), ..EngineConfig::new(device.capacity()) };
    Engine::start_with_standby(Box::new(device), VOCAB, config, None, Some(standby)).unwrap()
}

/// What has no device: blocks, and logits.
fn paged() -> Standby {
    Box::new(|error| {
        assert!(error.to_string().contains("as told"), "{error}");
        Ok((Box::new(MockExecutor::new(capacity(), VOCAB)), EngineConfig::new(capacity())))
    })
}

/// One of every kind: greedy, drawn, masked, scored, with text that may end it, longer than a step.
fn requests() -> Vec<Request> {
    let sampling = SamplingParams { temperature: 0.8, top_k: 9, seed: Some(3), ..Default::default() };
    vec![
        Request::new(prompt(5, 1), 12),
        Request { sampling, logprobs: Some(2), ..Request::new(prompt(21, 2), 9) },
        Request { mask: gaps(7), ..Request::new(prompt(9, 3), 14) },
        Request { prompt_logprobs: Some(1), prompt_logits: true, ..Request::new(prompt(24, 4), 3) },
        Request { text: Some(Arc::new(Letters)), stop: vec!["never".into()], ..Request::new(prompt(3, 5), 11) },
        Request::new(prompt(40, 6), 20),
    ]
}

#[test]
fn it_goes_on_where_the_device_died_and_nothing_is_lost_or_told_twice() {
    let mut moved = 0;
    for fault in [DeviceFault::Dead, DeviceFault::DeadLate] {
        for (call, overlaps) in (1..=24).flat_map(|call| [(call, true), (call, false)]) {
            let engine = start(call, fault, overlaps, paged());
            let handles: Vec<_> = requests().into_iter().map(|request| engine.submit(request).unwrap()).collect();
            for (request, mut handle) in requests().iter().zip(handles) {
                let (mut ids, mut logits, mut scored) = (vec![], 0, 0);
                for event in &mut handle {
                    match event {
                        Event::Token { id, index, .. } => {
                            assert_eq!(index, ids.len(), "{fault:?} at {call}: a token twice, or none");
                            ids.push(id);
                        }
                        Event::PromptLogits { start, rows, .. } => {
                            assert_eq!(start, logits);
                            logits += rows.len() / VOCAB;
                        }
                        Event::PromptLogprobs { start, tokens } => {
                            assert_eq!(start, scored + 1);
                            scored += tokens.len();
                        }
                        Event::Finished { reason, .. } => assert_eq!(reason, FinishReason::Length),
                        Event::Failed(error) => panic!("{fault:?} at {call}: {error}"),
                    }
                }
                assert_eq!(ids, expected(request), "{fault:?} at {call}, overlaps: {overlaps}");
                let wanted = if request.prompt_logits { request.prompt.len() } else { 0 };
                assert_eq!((logits, scored), (wanted, wanted.saturating_sub(1)));
            }
            // Whoever comes later is served as well.
            let next = Request::new(prompt(6, 8), 5);
            assert_eq!(engine.submit(next.clone()).unwrap().wait().unwrap().token_ids, expected(&next));
            assert_eq!((engine.failure(), engine.stats().failed, engine.stats().running), (None, 0, 0));
            moved += usize::from(engine.moved().is_some_and(|why| why.contains("as told")));
        }
    }
    assert!(moved > 60, "the device died in {moved} of 96 runs");
}

#[test]
fn where_it_cannot_be_had_both_reasons_are_told_and_a_bug_is_no_reason_to_try() {
    let none: Standby = Box::new(|_| Err("no room for it".to_owned()));
    let error =
        start(2, DeviceFault::Dead, true, none).submit(Request::new(prompt(5, 1), 4)).unwrap().wait().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("as told") && text.contains("no room for it"), "{text}");
    let small: Standby = Box::new(|_| {
        let config = EngineConfig { token_budget: 0, ..EngineConfig::new(capacity()) };
        Ok((Box::new(MockExecutor::new(capacity(), VOCAB)), config))
    });
    let error =
        start(2, DeviceFault::Dead, true, small).submit(Request::new(prompt(5, 1), 4)).unwrap().wait().unwrap_err();
    assert!(error.to_string().contains("token_budget is 0"), "{error}");
    for fault in [DeviceFault::Panic, DeviceFault::NoToken] {
        let never: Standby = Box::new(|_| panic!("nobody asks for it"));
        let engine = start(2, fault, true, never);
        let error = engine.submit(Request::new(prompt(5, 1), 4)).unwrap().wait().unwrap_err();
        assert!(!error.to_string().contains("nobody") && engine.moved().is_none(), "{error}");
    }
}

#[test]
fn what_the_device_says_is_kept_apart_from_where_it_said_it() {
    let status = StepError::Status { what: "rank 0 of /opt/x: NRT_TIMEOUT (5)".into(), told: "NRT_TIMEOUT (5)".into() };
    assert_eq!(status.to_string(), "device failure: rank 0 of /opt/x: NRT_TIMEOUT (5)");
    let error = RequestError::Device { what: status.to_string(), told: "NRT_TIMEOUT (5)".into() };
    assert_eq!((error.code(), error.to_string()), ("engine_error", format!("step failed: {status}")));
}
