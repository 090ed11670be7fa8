//! Steps that wait for company: fewer of them, the same tokens, and nobody who leaves or arrives is kept waiting.

use std::num::NonZero;

use super::*;
use crate::policy::{Bounds, Objective};

/// An engine whose steps take 2 ms and wait for company, after it has measured one.
fn paced(tpot: Duration, ttft: Duration) -> Engine {
    let mut executor = MockExecutor::new(capacity(), VOCAB);
    executor.takes = Duration::from_millis(2);
    let objective = Objective::TokensPerJoule(Bounds { tpot, ttft });
    let config = EngineConfig { objective, prefix_cache: false, ..EngineConfig::new(capacity()) };
    let engine = Engine::start(Box::new(executor), VOCAB, config).unwrap();
    engine.submit(Request::new(prompt(1, 60), 1)).unwrap().wait().unwrap();
    engine
}

#[test]
fn requests_that_come_apart_share_their_steps() {
    let engine = paced(Duration::from_millis(80), Duration::from_millis(300));
    let before = engine.stats().steps;
    let requests: Vec<Request> = (0..4).map(|first| Request::new(prompt(1, first), 6)).collect();
    let submit = |request: &Request| {
        std::thread::sleep(Duration::from_millis(20));
        (request.clone(), engine.submit(request.clone()).unwrap())
    };
    let handles: Vec<_> = requests.iter().map(submit).collect();
    for (request, handle) in handles {
        let done = handle.wait().unwrap();
        assert_eq!(done.token_ids, expected(&request));
        // The first waits for the others.
        assert!(done.usage.ttft.unwrap() > Duration::from_millis(100), "{:?}", done.usage.ttft);
    }
    // 24 without company, 6 in the best.
    let steps = engine.stats().steps - before;
    assert!(steps < 16, "{steps}");
}

#[test]
fn few_threads_share_steps_while_latency_allows() {
    let shared_by = |objective, thrifty: Option<usize>| {
        let mut executor = MockExecutor::new(capacity(), VOCAB);
        (executor.workers, executor.takes) = (4, Duration::from_millis(2));
        let log = Arc::clone(&executor.shared_by);
        let thrifty_workers = thrifty.and_then(NonZero::new);
        let config = EngineConfig { objective, thrifty_workers, prefix_cache: false, ..EngineConfig::new(capacity()) };
        let engine = Engine::start(Box::new(executor), VOCAB, config).unwrap();
        for first in 0..3 {
            let request = Request::new(prompt(1, first), 6);
            let done = engine.submit(request.clone()).unwrap().wait().unwrap();
            assert_eq!(done.token_ids, expected(&request));
        }
        engine.shutdown(Duration::from_secs(60)).unwrap();
        let log = log.lock().unwrap();
        assert_eq!(log[0], 4, "nothing was known");
        log[1..].to_vec()
    };
    let within = |time: Duration| Objective::TokensPerJoule(Bounds { tpot: time, ttft: time });
    let steps = 17;
    assert_eq!(shared_by(Objective::Latency, None), vec![4; steps]);
    assert_eq!(shared_by(within(Duration::from_micros(1)), None), vec![4; steps]);
    // One takes as long as four here. A step that starts late on a busy machine is shared by the next larger crew, or all.
    for (thrifty, crews) in [(None, &[1, 2, 4][..]), (Some(3), &[3, 4])] {
        let few = crews[0];
        let shared = shared_by(within(Duration::from_millis(100)), thrifty);
        assert!(shared.len() == steps && shared.iter().all(|n| crews.contains(n)), "{shared:?}");
        assert!(shared.iter().filter(|n| **n == few).count() > steps / 2, "{shared:?}");
    }
}

#[test]
fn who_leaves_and_what_ends_does_not_wait() {
    let long = Duration::from_secs(3600);
    let engine = paced(long, long);
    let start = Instant::now();
    let cancelled = engine.submit(Request::new(prompt(2, 1), 9)).unwrap();
    let late = Request { deadline: Some(start + Duration::from_millis(50)), ..Request::new(prompt(2, 2), 9) };
    let late = engine.submit(late).unwrap();
    cancelled.cancel();
    assert_eq!(cancelled.wait().unwrap().reason, FinishReason::Cancelled);
    assert_eq!(late.wait().unwrap().reason, FinishReason::Deadline);
    // More than there is room for: nobody waits then.
    let all = (0..9).map(|first| engine.submit(Request::new(prompt(1, first), 2)).unwrap()).collect::<Vec<_>>();
    std::thread::sleep(Duration::from_millis(20));
    assert!(engine.stats().steps > 1, "a queue for a place is company enough");
    // At the end nobody else can come.
    engine.shutdown(Duration::from_secs(60)).unwrap();
    for handle in all {
        assert_eq!(handle.wait().unwrap().token_ids.len(), 2);
    }
    assert!(start.elapsed() < Duration::from_secs(60));
}
