//! Energy through the engine: conserved, and unknown where nobody tells.

use super::*;
use crate::backend::{Cost, Padding};
use crate::engine::{EnergySource, Metered, Reading, RequestEnergy, Utilised};
use njoule_energy::{Joules, Method};
use serde_json::{Value, json};

/// A meter that says what a test wants and adds up what it has said.
struct Scripted {
    says: Metered,
    /// What it says the first time, if that is something else.
    first: Option<Metered>,
    /// After how many readings there are utilisation-seconds, a minute's; none without.
    minute: Option<u32>,
    readings: u32,
    told: Arc<Mutex<Told>>,
}

impl Scripted {
    fn new(says: Metered, told: Arc<Mutex<Told>>) -> Scripted {
        Scripted { says, first: None, minute: None, readings: 0, told }
    }
}

#[derive(Default)]
struct Told {
    joules: f64,
    cpu_s: f64,
    util_s: f64,
    /// Whether it has nothing more to say.
    silent: bool,
}

impl EnergySource for Scripted {
    fn read(&mut self) -> Reading {
        let mut told = self.told.lock().unwrap();
        if told.silent {
            return Reading::default();
        }
        let energy = self.first.take().unwrap_or(self.says);
        if let Metered::Known(joules, _) = energy {
            told.joules += joules.best();
        }
        told.cpu_s += 0.25;
        self.readings += 1;
        let util = match self.minute {
            None => Utilised::Unknown,
            Some(minute) if self.readings.is_multiple_of(minute) => {
                told.util_s += 0.4;
                Utilised::Known(0.4)
            }
            Some(_) => Utilised::NotYet,
        };
        Reading { cpu_s: 0.25, core_s: Some(0.5), util, energy, lag_s: 0.0 }
    }

    fn describe(&self) -> Value {
        json!({"meters": ["scripted"]})
    }
}

fn metered(mut executor: MockExecutor, says: Metered, speculate: Speculate) -> (Engine, Arc<Gate>, Arc<Mutex<Told>>) {
    let capacity = executor.capacity;
    executor.loops = speculate != Speculate::Off;
    let gate = executor.gate.clone();
    let told = Arc::new(Mutex::new(Told::default()));
    let source = Scripted::new(says, told.clone());
    let config = EngineConfig { speculate, energy_wait: Duration::from_secs(100), ..EngineConfig::new(capacity) };
    let engine = Engine::start_metered(Box::new(executor), VOCAB, config, Some(Box::new(source))).unwrap();
    (engine, gate, told)
}

fn known() -> Metered {
    Metered::Known(Joules::within(2.7, 3.0, 3.3).unwrap(), Method::Measured)
}

/// Waits until the engine has taken in all that was told.
fn settled(engine: &Engine, told: &Mutex<Told>) -> EngineStats {
    told.lock().unwrap().silent = true;
    let cpu_s = told.lock().unwrap().cpu_s;
    let patience = Instant::now() + Duration::from_secs(100);
    loop {
        let stats = engine.stats();
        if (stats.energy.cpu_s - cpu_s).abs() < 1e-9 {
            return stats;
        }
        assert!(Instant::now() < patience, "{stats:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(super) fn near(value: f64, expected: f64) {
    assert!((value - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{value} is not {expected}");
}

/// Cancels a request that has run, and has cost something, through a gate that is closed; a step at a time, so that it cannot end
/// by itself before that. The gate is open then.
pub(super) fn leave_midway(mut handle: RequestHandle, gate: &Gate) {
    loop {
        match handle.recv_timeout(Duration::from_millis(2)) {
            Ok(Event::Token { .. }) => break,
            Ok(other) => panic!("{other:?}"),
            Err(_) => gate.allow(Some(1)),
        }
    }
    handle.cancel();
    gate.allow(None);
    assert_eq!(handle.wait().unwrap().reason, FinishReason::Cancelled);
}

/// Every joule that the meter told lies with a request or in a bucket that says why not; with preemption, guesses and a
/// client that leaves.
#[test]
fn what_was_metered_is_what_requests_and_buckets_have() {
    let (roomy, tight) = (Capacity { blocks: 80, ..capacity() }, Capacity { blocks: 12, ..capacity() });
    for (capacity, speculate) in [(roomy, Speculate::Off), (roomy, Speculate::UpTo(3)), (tight, Speculate::Off)] {
        let (engine, gate, told) = metered(MockExecutor::new(capacity, VOCAB), known(), speculate);
        gate.set(true);
        let submit = |i: u32| engine.submit(Request { energy: true, ..Request::new(prompt(8, i), 30) }).unwrap();
        let stays: Vec<_> = (0..5).map(submit).collect();
        let leaves = submit(9);
        leave_midway(leaves, &gate);
        let used: Vec<RequestEnergy> =
            stays.into_iter().map(|handle| *handle.wait().unwrap().usage.energy.unwrap()).collect();
        let energy = settled(&engine, &told).energy;
        let split = energy.split.unwrap();
        near(split.total(), told.lock().unwrap().joules);
        let joules: f64 = used.iter().map(|u| u.joules.unwrap().best()).sum();
        let part = |i: usize| used.iter().map(|u| u.parts.unwrap()[i]).sum::<f64>();
        near(joules, part(0) + part(1) + part(2));
        near(part(0), split.prefill_j);
        near(part(1), split.decode_j);
        // What is in vain of those who stayed, and all of the one that left.
        assert!(split.wasted_j >= part(2) * (1.0 - 1e-9), "{split:?}");
        near(joules + split.idle_j + split.load_j + split.unattributed_j + (split.wasted_j - part(2)), split.total());
        // Rows run again after a preemption, or refused guesses.
        let again = capacity == tight || speculate != Speculate::Off;
        assert_eq!(part(2) > 0.0, again, "{speculate:?} {capacity:?}: {used:?}");
        for used in &used {
            assert_eq!((used.method, used.util_s), (Some(Method::Measured), None));
            assert!(used.cpu_s > 0.0 && used.core_s.is_some());
            let (low, high) = used.joules.unwrap().bounds().unwrap();
            assert!(low < used.joules.unwrap().best() && used.joules.unwrap().best() < high);
        }
        assert_eq!(engine.meters().unwrap()["meters"], json!(["scripted"]));
    }
}

/// One that was never run has used nothing; one that leaves while it runs is waste, and nobody else pays for it.
#[test]
fn a_request_that_leaves_is_waste() {
    let (engine, gate, told) = metered(MockExecutor::new(capacity(), VOCAB), known(), Speculate::Off);
    gate.allow(Some(3));
    let mut leaves = engine.submit(Request::new(prompt(8, 1), 50)).unwrap();
    while !matches!(leaves.next(), Some(Event::Token { .. })) {}
    leaves.cancel();
    gate.set(false);
    assert_eq!(leaves.wait().unwrap().reason, FinishReason::Cancelled);
    // The next reading brings what its steps have used.
    let patience = Instant::now() + Duration::from_secs(100);
    while engine.stats().energy.split.is_none_or(|split| split.wasted_j == 0.0) {
        assert!(Instant::now() < patience, "{:?}", engine.stats().energy);
        std::thread::sleep(Duration::from_millis(5));
    }
    let split = settled(&engine, &told).energy.split.unwrap();
    assert_eq!((split.prefill_j, split.decode_j), (0.0, 0.0));
    near(split.total(), told.lock().unwrap().joules);
}

/// The first reading, before any step, is of loading; later ones without steps are of idling, also where that was unknown.
#[test]
fn loading_is_told_from_idling() {
    for (first, load_j) in [(None, 3.0), (Some(Metered::Unknown), 0.0)] {
        let told = Arc::new(Mutex::new(Told::default()));
        let source = Scripted { first, ..Scripted::new(known(), told.clone()) };
        let config = EngineConfig { energy_wait: Duration::from_secs(100), ..EngineConfig::new(capacity()) };
        let executor = Box::new(MockExecutor::new(capacity(), VOCAB));
        let engine = Engine::start_metered(executor, VOCAB, config, Some(Box::new(source))).unwrap();
        // The end brings a last reading.
        engine.shutdown(Duration::from_secs(100)).unwrap();
        let split = engine.stats().energy.split.unwrap();
        assert_eq!(split.load_j, load_j, "{split:?}");
        near(split.idle_j, told.lock().unwrap().joules - load_j);
    }
}

/// Loading is told from the first step even where that is asked for before the meters have said anything.
#[test]
fn the_first_step_waits_for_what_loading_used() {
    struct Slow(Scripted);
    impl EnergySource for Slow {
        fn read(&mut self) -> Reading {
            std::thread::sleep(Duration::from_millis(30));
            self.0.read()
        }

        fn describe(&self) -> Value {
            Value::Null
        }
    }
    let source = Slow(Scripted::new(known(), Arc::default()));
    let config = EngineConfig { energy_wait: Duration::from_secs(100), ..EngineConfig::new(capacity()) };
    let executor = Box::new(MockExecutor::new(capacity(), VOCAB));
    let engine = Engine::start_metered(executor, VOCAB, config, Some(Box::new(source))).unwrap();
    let request = Request { energy: true, ..Request::new(prompt(8, 1), 4) };
    let used = engine.submit(request).unwrap().wait().unwrap().usage.energy.unwrap();
    assert_eq!(engine.stats().energy.split.unwrap().load_j, 3.0);
    assert!(used.joules.is_some(), "{used:?}");
}

/// Rows that a device computes for nobody are waste, in joules; the seconds of its cores are theirs whom it ran for.
#[test]
fn padding_is_waste_and_conserved() {
    let cost = Cost { flops: 40.0, ..Cost::default() };
    let padding = Padding { rows: 3, cost };
    let mut executor = MockExecutor::new(capacity(), VOCAB);
    (executor.padding, executor.cores) = (padding, Some(2));
    let (engine, _, told) = metered(executor, known(), Speculate::Off);
    let submit = |i: u32| engine.submit(Request { energy: true, ..Request::new(prompt(8, i), 20) }).unwrap();
    let handles: Vec<_> = (0..3).map(submit).collect();
    let used: Vec<RequestEnergy> =
        handles.into_iter().map(|handle| *handle.wait().unwrap().usage.energy.unwrap()).collect();
    let stats = settled(&engine, &told);
    let split = stats.energy.split.unwrap();
    near(split.total(), told.lock().unwrap().joules);
    near(stats.energy.joules.unwrap().best(), split.total());
    let joules: f64 = used.iter().map(|u| u.joules.unwrap().best()).sum();
    near(joules + split.wasted_j + split.idle_j + split.load_j + split.unattributed_j, split.total());
    assert!(split.wasted_j > 0.0 && used.iter().all(|u| u.parts.unwrap()[2] == 0.0), "{split:?}");
    assert_eq!(stats.padded_rows, 3 * stats.steps);
}

/// Utilisation is told by the minute: who ran within told ones has a share, of the others it is unknown, and none is lost.
#[test]
fn utilisation_is_conserved_like_joules() {
    for minute in [1, 4] {
        let mut executor = MockExecutor::new(capacity(), VOCAB);
        executor.cores = Some(2);
        let told: Arc<Mutex<Told>> = Arc::default();
        let source = Scripted { minute: Some(minute), ..Scripted::new(known(), told.clone()) };
        let config = EngineConfig { energy_wait: Duration::from_secs(100), ..EngineConfig::new(executor.capacity) };
        let engine = Engine::start_metered(Box::new(executor), VOCAB, config, Some(Box::new(source))).unwrap();
        let used: Vec<RequestEnergy> = (0..6)
            .map(|i| engine.submit(Request { energy: true, ..Request::new(prompt(8, i), 20) }).unwrap())
            .map(|handle| *handle.wait().unwrap().usage.energy.unwrap())
            .collect();
        let total = settled(&engine, &told).energy.util_s().unwrap_or(0.0);
        near(total, told.lock().unwrap().util_s);
        assert!(used.iter().all(|u| !(u.extrapolated && u.settled)), "{used:?}");
        let known: Vec<f64> = used.iter().filter(|u| !u.extrapolated).filter_map(|u| u.util_s).collect();
        let given: f64 = known.iter().sum();
        match minute {
            // The first reading is of loading, later ones may be of idling.
            1 => assert!(known.len() == 6 && given > 0.0 && given <= total * (1.0 + 1e-9), "{given} of {total}"),
            _ => assert!(known.len() < 6 && given <= total * (1.0 + 1e-9), "{known:?} of {total}"),
        }
    }
}

#[test]
fn without_a_meter_joules_are_unknown_and_cpu_seconds_known() {
    let executor = MockExecutor::new(capacity(), VOCAB);
    let config = EngineConfig { energy_wait: Duration::from_secs(100), ..EngineConfig::new(capacity()) };
    let bare = Engine::start(Box::new(executor), VOCAB, config).unwrap();
    let (blind, _, _) = metered(MockExecutor::new(capacity(), VOCAB), Metered::Unknown, Speculate::Off);
    for engine in [&bare, &blind] {
        let request = Request { energy: true, ..Request::new(prompt(8, 1), 20) };
        let used = engine.submit(request).unwrap().wait().unwrap().usage.energy.unwrap();
        assert_eq!((used.joules, used.method, used.parts), (None, None, None));
        assert!(used.cpu_s > 0.0, "{used:?}");
        assert_eq!(engine.stats().energy.split, None);
        // Who does not ask does not wait, and is told nothing.
        let silent = engine.submit(Request::new(prompt(8, 1), 2)).unwrap().wait().unwrap();
        assert_eq!(silent.usage.energy, None);
    }
}

/// Meters that have nothing yet hold an answer up no longer than was said; CPU time is told anyway.
#[test]
fn a_slow_meter_delays_an_answer_for_a_bounded_time() {
    let executor = MockExecutor::new(capacity(), VOCAB);
    let source = Scripted::new(Metered::NotYet, Arc::default());
    let config = EngineConfig { energy_wait: Duration::from_millis(20), ..EngineConfig::new(capacity()) };
    let engine = Engine::start_metered(Box::new(executor), VOCAB, config, Some(Box::new(source))).unwrap();
    let request = Request { energy: true, ..Request::new(prompt(8, 1), 20) };
    let used = engine.submit(request).unwrap().wait().unwrap().usage.energy.unwrap();
    assert_eq!((used.joules, used.method), (None, None));
    engine.shutdown(Duration::from_secs(60)).unwrap();
    // An engine that ends answers those who still wait.
    let source = Scripted::new(Metered::NotYet, Arc::default());
    let config = EngineConfig { energy_wait: Duration::from_secs(1000), ..EngineConfig::new(capacity()) };
    let executor = MockExecutor::new(capacity(), VOCAB);
    let engine = Engine::start_metered(Box::new(executor), VOCAB, config, Some(Box::new(source))).unwrap();
    let waits = engine.submit(Request { energy: true, ..Request::new(prompt(8, 1), 3) }).unwrap();
    engine.shutdown(Duration::from_millis(100)).unwrap();
    assert_eq!(waits.wait().unwrap().token_ids.len(), 3);
}
