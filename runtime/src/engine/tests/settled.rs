//! Meters that tell after the answer, as a driver that tells whole minutes: nothing is lost, nothing is made up.

use super::energy::{leave_midway, near};
use super::*;
use crate::engine::{Character, Energy, EnergySource, Later, Metered, Reading, RequestEnergy, Utilised};
use njoule_energy::{Joules, Method};
use serde_json::Value;

/// What the next reading says beside CPU time, and what all have said.
#[derive(Default)]
struct Driver {
    next: Option<(Utilised, Metered)>,
    /// How long ago that was over.
    lag_s: f64,
    told: [f64; 2],
}

/// Tells a minute when the test says that it is over.
struct Minutes {
    driver: Arc<Mutex<Driver>>,
    since: Instant,
}

impl EnergySource for Minutes {
    fn read(&mut self) -> Reading {
        let mut driver = self.driver.lock().unwrap();
        let (util, energy) = driver.next.take().unwrap_or((Utilised::NotYet, Metered::NotYet));
        if let Utilised::Known(seconds) = util {
            driver.told[0] += seconds;
        }
        if let Metered::Known(joules, _) = energy {
            driver.told[1] += joules.best();
        }
        Reading { cpu_s: 0.25, core_s: None, util, energy, lag_s: driver.lag_s }
    }

    fn describe(&self) -> Value {
        Value::Null
    }

    fn character(&self) -> Character {
        Character { since: Some(self.since), late: true, idle_w: Some(IDLE_W) }
    }
}

const IDLE_W: f64 = 0.01;

/// An engine that was loaded for a second.
fn driven() -> (Engine, Arc<Gate>, Arc<Mutex<Driver>>) {
    let driver = Arc::default();
    let (engine, gate) = loaded_for(Duration::from_secs(1), &driver);
    (engine, gate, driver)
}

fn loaded_for(time: Duration, driver: &Arc<Mutex<Driver>>) -> (Engine, Arc<Gate>) {
    let mut executor = MockExecutor::new(Capacity { blocks: 80, ..capacity() }, VOCAB);
    executor.cores = Some(2);
    let gate = executor.gate.clone();
    let since = Instant::now().checked_sub(time).unwrap();
    let source = Minutes { driver: driver.clone(), since };
    // Nobody waits for joules that come late anyway: with this one would see it.
    let config = EngineConfig { energy_wait: Duration::from_secs(100), ..EngineConfig::new(executor.capacity) };
    let engine = Engine::start_metered(Box::new(executor), VOCAB, config, Some(Box::new(source))).unwrap();
    (engine, gate)
}

fn joules(best: f64) -> Metered {
    Metered::Known(Joules::within(0.5 * best, best, 2.0 * best).unwrap(), Method::Derived)
}

/// The driver tells a minute, and the engine has it.
fn minute(engine: &Engine, driver: &Mutex<Driver>, util: Utilised, energy: Metered) {
    driver.lock().unwrap().next = Some((util, energy));
    wait("the minute", || driver.lock().unwrap().next.is_none() && !engine.stats().energy.owed);
}

fn wait(what: &str, wanted: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(100);
    while !wanted() {
        assert!(Instant::now() < patience, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ask(engine: &Engine, i: u32) -> RequestHandle {
    engine.submit(Request { energy: true, ..Request::new(prompt(8, i), 20) }).unwrap()
}

/// What the answer said, and where the rest will be.
fn answered(handle: RequestHandle) -> (RequestEnergy, Later) {
    let usage = handle.wait().unwrap().usage;
    (*usage.energy.unwrap(), usage.energy_later.expect("a minute that is not over"))
}

fn settled(later: &Later) -> RequestEnergy {
    wait("an answer that is settled", || later.now().settled);
    later.now()
}

/// With a client that leaves while it runs: its part is waste, and nobody else has it.
#[test]
fn settled_answers_and_buckets_are_what_was_told() {
    let (engine, gate, driver) = driven();
    gate.set(true);
    let stays: Vec<_> = (0..5).map(|i| ask(&engine, i)).collect();
    let leaves = ask(&engine, 9);
    leave_midway(leaves, &gate);
    let answers: Vec<_> = stays.into_iter().map(answered).collect();
    for (known, later) in &answers {
        assert!(!known.settled && known.cpu_s > 0.0 && known.core_s.is_some(), "{known:?}");
        assert_eq!((known.joules, known.util_s, known.parts), (None, None, None));
        assert!(!later.now().settled);
    }
    assert!(engine.stats().energy.owed && engine.stats().energy.whole().joules.is_none());
    // The driver's minute tells of neither more nor less than what it was.
    minute(&engine, &driver, Utilised::Known(0.7), joules(5.0));
    let used: Vec<RequestEnergy> = answers.iter().map(|(_, later)| settled(later)).collect();
    let stats = engine.stats().energy;
    let (split, util) = (stats.split.unwrap(), stats.util.unwrap());
    let [util_s, told_j] = driver.lock().unwrap().told;
    near(split.total(), told_j);
    near(util.total(), util_s);
    near(stats.util_s().unwrap(), util_s);
    let theirs: f64 = used.iter().map(|u| u.joules.unwrap().best()).sum();
    near(theirs + split.wasted_j + split.idle_j + split.load_j + split.unattributed_j, told_j);
    let theirs: f64 = used.iter().map(|u| u.util_s.unwrap()).sum();
    near(theirs + util.wasted_j + util.idle_j + util.load_j + util.unattributed_j, util_s);
    assert!(split.wasted_j > 0.0 && util.wasted_j > 0.0 && used.iter().all(|u| u.parts.unwrap()[2] == 0.0));
    assert!(used.iter().all(|u| u.method == Some(Method::Derived)));
    // Nobody computes while the model is loaded, which has the idle power of its second.
    assert_eq!((util.load_j, util.idle_j), (0.0, 0.0));
    assert!((0.9 * IDLE_W..5.0 * IDLE_W).contains(&split.load_j), "{split:?}");
    // What is settled stays as it is.
    minute(&engine, &driver, Utilised::Known(0.1), joules(1.0));
    answers.iter().zip(&used).for_each(|((_, later), used)| assert_eq!(later.now(), *used));
}

/// Core-seconds of all requests, and their utilisation-seconds as they were told.
fn told_of_requests(engine: &Engine) -> (f64, f64) {
    let stats = engine.stats().energy;
    let util = stats.util.unwrap();
    (stats.core_s.unwrap(), util.prefill_j + util.decode_j)
}

/// What an answer has of minutes that are still to be told is as many for each of its core-seconds as in those that were, and
/// says so; what is told takes its place, and nothing else ever has the other.
#[test]
fn the_rest_of_a_minute_is_extrapolated_from_those_told_and_settled_as_told() {
    let (engine, gate, driver) = driven();
    gate.set(false);
    let (first, first_later) = answered(ask(&engine, 1));
    assert_eq!((first.util_s, first.extrapolated, first.settled), (None, false, false), "no minute was told");
    minute(&engine, &driver, Utilised::Known(0.7), joules(5.0));
    let first = settled(&first_later);
    let (cores, util) = told_of_requests(&engine);
    assert!(!first.extrapolated && util > 0.0);
    near(first.util_s.unwrap(), util);

    // All of it is still to be told.
    let (second, second_later) = answered(ask(&engine, 2));
    assert!(second.extrapolated && !second.settled && second.core_s.unwrap() > 0.0, "{second:?}");
    near(second.util_s.unwrap(), util / cores * second.core_s.unwrap());
    assert_eq!((second.joules, second.parts, second_later.now()), (None, None, second));
    let sum = Energy::from(second).plus(first.into());
    assert!(sum.extrapolated && !sum.settled);
    near(sum.util_s.unwrap(), first.util_s.unwrap() + second.util_s.unwrap());
    let stats = engine.stats().energy;
    near(stats.util_s().unwrap(), 0.7);
    near(stats.joules.unwrap().best(), 5.0);
    minute(&engine, &driver, Utilised::Known(0.5), joules(5.0));
    let second = settled(&second_later);
    let (_, both) = told_of_requests(&engine);
    assert!(!second.extrapolated);
    near(second.util_s.unwrap(), both - util);

    // A part of it is told.
    let before = told_of_requests(&engine);
    gate.set(true);
    let mut third = ask(&engine, 3);
    while !matches!(third.recv_timeout(Duration::from_millis(2)), Ok(Event::Token { .. })) {
        gate.allow(Some(1));
    }
    driver.lock().unwrap().next = Some((Utilised::Known(0.9), joules(5.0)));
    wait("a minute amid it", || driver.lock().unwrap().next.is_none());
    wait("a look at it", || {
        gate.allow(Some(1));
        engine.stats().energy.util_s().unwrap() > 2.0
    });
    let midway = told_of_requests(&engine);
    gate.allow(None);
    let (third, third_later) = answered(third);
    assert!(third.extrapolated && !third.settled, "{third:?}");
    let rest_s = third.core_s.unwrap() - (midway.0 - before.0);
    near(third.util_s.unwrap(), (midway.1 - before.1) + midway.1 / midway.0 * rest_s);
    minute(&engine, &driver, Utilised::Known(0.3), joules(5.0));
    let third = settled(&third_later);
    let (stats, (_, all)) = (engine.stats().energy, told_of_requests(&engine));
    near([first, second, third].iter().map(|used| used.util_s.unwrap()).sum(), all);
    near(stats.util.unwrap().total(), driver.lock().unwrap().told[0]);
    near(driver.lock().unwrap().told[0], 2.4);
    near(stats.split.unwrap().total(), 20.0);
}

/// What lies in a gap of the driver is made up of nothing, however much was told before.
#[test]
fn a_gap_is_not_extrapolated_over() {
    let (engine, gate, driver) = driven();
    gate.set(false);
    let (_, later) = answered(ask(&engine, 1));
    minute(&engine, &driver, Utilised::Known(0.7), joules(5.0));
    assert!(settled(&later).util_s.is_some());
    gate.set(true);
    let mut spans = ask(&engine, 2);
    while !matches!(spans.recv_timeout(Duration::from_millis(2)), Ok(Event::Token { .. })) {
        gate.allow(Some(1));
    }
    let unknown_s = engine.stats().energy.unknown_s;
    driver.lock().unwrap().next = Some((Utilised::Unknown, Metered::Unknown));
    wait("the gap", || driver.lock().unwrap().next.is_none());
    wait("a look at it", || {
        gate.allow(Some(1));
        engine.stats().energy.unknown_s > unknown_s
    });
    gate.allow(None);
    let (spans, _) = answered(spans);
    assert_eq!((spans.util_s, spans.extrapolated, spans.settled), (None, false, false));
}

/// Of a minute that the driver does not know, what an answer had of it will never be known: it is settled so.
#[test]
fn a_gap_of_the_driver_is_settled_and_unknown() {
    let (engine, gate, driver) = driven();
    let (_, gone) = answered(ask(&engine, 1));
    gate.set(true);
    let mut spans = ask(&engine, 2);
    while !matches!(spans.recv_timeout(Duration::from_millis(2)), Ok(Event::Token { .. })) {
        gate.allow(Some(1));
    }
    driver.lock().unwrap().next = Some((Utilised::Unknown, Metered::Unknown));
    wait("the gap", || driver.lock().unwrap().next.is_none());
    wait("what ended before it", || {
        // The engine looks at readings between steps.
        gate.allow(Some(1));
        gone.now().settled
    });
    gate.allow(None);
    let (_, spans) = answered(spans);
    let (_, behind) = answered(ask(&engine, 3));
    assert!(!spans.now().settled);
    minute(&engine, &driver, Utilised::Known(0.7), joules(5.0));
    let (gone, spans, behind) = (settled(&gone), settled(&spans), settled(&behind));
    for lost in [gone, spans] {
        assert_eq!((lost.joules, lost.method, lost.util_s), (None, None, None), "{lost:?}");
        assert!(lost.cpu_s > 0.0 && lost.core_s.is_some());
    }
    assert!(behind.joules.is_some() && behind.util_s.is_some_and(|s| s > 0.0 && s < 0.7), "{behind:?}");
    let stats = engine.stats().energy;
    near(stats.split.unwrap().total(), 5.0);
    near(stats.util_s().unwrap(), 0.7);
    // Loading was in the gap.
    assert!(!stats.load_known && stats.whole().joules.is_none());
    assert!(stats.unknown_s >= 1.0 && stats.util_unknown_s.unwrap() >= 1.0, "{stats:?}");
}

/// Minutes that were over while the model was loaded are loading's, and so is the part of the next in which that went on.
#[test]
fn loading_has_its_minutes_and_its_part_of_the_next() {
    let driver = Arc::<Mutex<Driver>>::default();
    *driver.lock().unwrap() =
        Driver { next: Some((Utilised::Known(0.3), joules(10.0))), lag_s: 40.0, ..Driver::default() };
    let (engine, _) = loaded_for(Duration::from_secs(100), &driver);
    let (_, later) = answered(ask(&engine, 1));
    wait("the first", || engine.stats().energy.split.is_some());
    assert!(engine.stats().energy.owed && engine.stats().energy.whole().split.is_none());
    driver.lock().unwrap().lag_s = 0.0;
    minute(&engine, &driver, Utilised::Known(0.7), joules(5.0));
    let stats = engine.stats().energy;
    let (split, util) = (stats.split.unwrap(), stats.util.unwrap());
    near(split.total(), 15.0);
    near(util.total(), 1.0);
    // A step may have been run before that is no second long.
    assert!((split.load_j - (10.0 + 40.0 * IDLE_W)).abs() < 2.0 * IDLE_W, "{split:?}");
    near(util.load_j, 0.3);
    assert!(stats.load_known && stats.whole().joules.is_some());
    assert!(settled(&later).joules.unwrap().best() > 4.0, "{stats:?}");
}

/// A run's energy is that from loading to its last step, however long the driver lets it wait.
#[test]
fn a_run_ends_with_its_last_step() {
    let (engine, _, driver) = driven();
    let (_, later) = answered(ask(&engine, 1));
    minute(&engine, &driver, Utilised::Known(0.7), joules(5.0));
    // A minute in which nothing was done.
    minute(&engine, &driver, Utilised::Known(0.0), joules(1.0));
    wait("both", || engine.stats().energy.joules.is_some_and(|joules| joules.best() == 6.0));
    let (all, whole) = (engine.stats().energy, engine.stats().energy.whole());
    let (split, run) = (all.split.unwrap(), whole.split.unwrap());
    near(whole.joules.unwrap().best(), run.total());
    near(run.total() + all.tail.unwrap().best(), 6.0);
    assert!(all.tail.unwrap().best() > 1.0, "{all:?}");
    assert_eq!((run.load_j, run.decode_j), (split.load_j, split.decode_j));
    // The ends of the interval stand to it as in what was told.
    let (low, high) = whole.joules.unwrap().bounds().unwrap();
    near(low, 0.5 * run.total());
    near(high, 2.0 * run.total());
    assert_eq!(whole.whole(), whole);
    // Another step, and idling before it was the run's.
    let used = settled(&later);
    let (_, next) = answered(ask(&engine, 2));
    minute(&engine, &driver, Utilised::Known(0.7), joules(5.0));
    let more = engine.stats().energy.whole();
    assert!(more.split.unwrap().idle_j > 1.0, "{more:?}");
    assert!(settled(&next).joules.is_some() && later.now() == used);
}
