//! Joules of requests against the truth, through the engine: on devices whose joules per operation it does not know.

use std::collections::HashMap;

use super::super::mock::{Hidden, HiddenMeter, Prices};
use super::*;
use crate::policy::{Bounds, Objective};

/// Prompt and tokens of requests.
type Shape = (u32, usize);

/// What the engine learns from: prompts and answers of all lengths, alone and together.
const WARM_UP: [&[Shape]; 6] = [
    &[(200, 12)],
    &[(8, 40), (8, 40), (8, 40), (8, 40), (8, 40), (8, 40)],
    &[(120, 8), (16, 30), (60, 20)],
    &[(220, 25), (220, 25), (220, 25)],
    &[(4, 50)],
    &[(90, 4), (90, 4), (30, 35), (150, 10)],
];

/// Prompt, tokens, steps after which it comes, and tokens after which its client leaves.
const EIGHT: [(u32, usize, u64, Option<usize>); 8] = [
    (200, 20, 0, None),
    (10, 60, 0, None),
    (120, 10, 3, None),
    (160, 30, 6, None),
    (30, 40, 9, Some(12)),
    (150, 5, 14, None),
    (40, 45, 20, None),
    (180, 50, 24, Some(1)),
];

fn roomy() -> Capacity {
    Capacity { blocks: 8 * 64, block_len: 4, max_rows: 48, max_seqs: 8, max_outputs: 8, max_len: 256 }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(100);
    while !done() {
        assert!(Instant::now() < patience, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn run_together(engine: &Engine, shapes: &[Shape]) {
    let submit = |(i, &(len, tokens)): (usize, &Shape)| {
        let request = Request { energy: true, ..Request::new(prompt(len, 20 + i as u32), tokens) };
        engine.submit(request).unwrap()
    };
    let handles: Vec<_> = shapes.iter().enumerate().map(submit).collect();
    handles.into_iter().for_each(|handle| drop(handle.wait().unwrap()));
}

/// An engine on such a device that has seen it idle, and run so often all that there is to learn from.
fn warm(prices: Prices, objective: Objective, rounds: usize) -> (Engine, Arc<Hidden>, Arc<Mutex<f64>>) {
    let hidden = Arc::new(Hidden::new(prices));
    let mut executor = MockExecutor::new(roomy(), VOCAB);
    (executor.takes, executor.hidden) = (Duration::from_millis(3), Some(hidden.clone()));
    let told = Arc::new(Mutex::new(0.0));
    let meter = HiddenMeter::new(hidden.clone(), told.clone());
    let config = EngineConfig {
        prefill_chunk: 32,
        prefix_cache: false,
        energy_wait: Duration::from_secs(100),
        objective,
        ..EngineConfig::new(roomy())
    };
    let engine = Engine::start_metered(Box::new(executor), VOCAB, config, Some(Box::new(meter))).unwrap();
    let idle_w = || engine.stats().energy.costs.and_then(|costs| costs.idle_w);
    wait_for("the idle device was not seen", || idle_w().is_some());
    for _ in 0..rounds {
        WARM_UP.iter().for_each(|shapes| run_together(&engine, shapes));
    }
    assert_eq!(engine.stats().energy.costs.unwrap().calibrated, rounds > 0, "{:?}", engine.stats().energy);
    assert!((idle_w().unwrap() / prices.idle_w - 1.0).abs() < 0.05, "{:?}", idle_w());
    hidden.take_truth();
    (engine, hidden, told)
}

/// How far the joules of each of the eight are from the truth, those of the two that left together, after so many rounds of
/// learning.
fn errors(prices: Prices, rounds: usize) -> Vec<f64> {
    let (engine, hidden, told) = warm(prices, Objective::Latency, rounds);

    let begin = engine.stats().steps;
    let (mut stay, mut leave) = (vec![], vec![]);
    for (i, &(len, tokens, after, leaves)) in EIGHT.iter().enumerate() {
        wait_for("no steps", || engine.stats().steps >= begin + after);
        let request = Request { energy: true, ..Request::new(prompt(len, i as u32), tokens) };
        let handle = engine.submit(request).unwrap();
        match leaves {
            None => stay.push((i as u32, handle)),
            Some(most) => leave.push(std::thread::spawn(move || {
                let mut handle = handle;
                for _ in 0..most {
                    while !matches!(handle.next(), Some(Event::Token { .. })) {}
                }
                handle.cancel();
                assert_eq!(handle.wait().unwrap().reason, FinishReason::Cancelled);
            })),
        }
    }
    let used: HashMap<u32, f64> = stay
        .into_iter()
        .map(|(first, handle)| {
            (first, handle.wait().unwrap().usage.energy.unwrap().joules.expect("all was metered").best())
        })
        .collect();
    leave.into_iter().for_each(|client| client.join().unwrap());
    engine.shutdown(Duration::from_secs(100)).unwrap();
    let truth = hidden.take_truth();
    let split = engine.stats().energy.split.unwrap();
    let told = *told.lock().unwrap();
    assert!((split.total() - told).abs() <= 1e-9 * told, "{split:?} of {told}");
    let left: f64 = EIGHT.iter().enumerate().filter(|(_, e)| e.3.is_some()).map(|(i, _)| truth[&(i as u32)]).sum();
    let mut errors: Vec<f64> = used.iter().map(|(first, joules)| joules / truth[first] - 1.0).collect();
    errors.push(split.wasted_j / left - 1.0);
    errors
}

/// A row has 0.26 million operations of products, a token of context 192 cached values.
const BASE: Prices = Prices { product: 1e-9, attention: 1.2e-9, read: 3e-8, written: 5e-8, step: 2e-3, idle_w: 0.5 };

/// Weights, the cache or operations have most of the energy; the declared constants are right for none of these.
#[test]
fn eight_mixed_requests_get_their_true_joules_within_five_percent() {
    let devices = [
        ("weights", Prices { step: 0.02, ..BASE }),
        ("cache", Prices { read: 3e-7, written: 3e-7, ..BASE }),
        ("operations", Prices { product: 2e-8, attention: 2.2e-8, ..BASE }),
        ("idle", Prices { idle_w: 4.0, ..BASE }),
    ];
    let worst = |errors: &[f64]| errors.iter().map(|error| error.abs()).fold(0.0, f64::max);
    std::thread::scope(|scope| {
        let run = |prices, rounds| scope.spawn(move || errors(prices, rounds));
        let runs = devices.map(|(name, prices)| (name, run(prices, 4), run(prices, 0)));
        for (name, fitted, declared) in runs {
            let (fitted, declared) = (fitted.join().unwrap(), declared.join().unwrap());
            println!("{name}: fitted {fitted:+.3?}, as declared {declared:+.3?}");
            assert!(worst(&fitted) < 0.05, "{name}: {fitted:.3?}, as declared {declared:.3?}");
            // The test can tell: what nobody has fitted is wrong.
            assert!(worst(&declared) > 0.05 || name == "idle", "{name}: {declared:.3?}");
        }
    });
}

/// The time in which steps wait for company has idle power, which is theirs who hold a slot, wherever readings lie.
#[test]
fn waiting_for_company_is_static_energy_of_those_who_wait() {
    let prices = Prices { idle_w: 4.0, ..BASE };
    let bounds = Bounds { tpot: Duration::from_millis(40), ttft: Duration::from_millis(1) };
    let (engine, _, _) = warm(prices, Objective::TokensPerJoule(bounds), 0);
    let begun = Instant::now();
    // Long enough that one step which lacked the processor is not what is measured.
    let request = Request { energy: true, ..Request::new(prompt(8, 1), 120) };
    let used = engine.submit(request).unwrap().wait().unwrap().usage.energy.unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    assert!(seconds > 2.0, "steps wait: {seconds}");
    let share = used.static_j.unwrap() / (prices.idle_w * seconds);
    assert!((0.85..1.05).contains(&share), "{share} of the idle energy of {seconds} s");
    assert!(used.joules.unwrap().best() > used.static_j.unwrap());
}
