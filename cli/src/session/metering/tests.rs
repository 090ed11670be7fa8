use std::path::Path;
use std::sync::{Arc, Mutex};

use njoule_energy::clock::{Clock, Now};
use njoule_energy::{Root, perf};

use super::*;

/// A clock that a test moves.
#[derive(Clone)]
pub struct Hands(pub Arc<Mutex<Now>>);

impl Clock for Hands {
    fn now(&self) -> Now {
        *self.0.lock().unwrap()
    }
}

/// What a counter of the whole machine shows.
fn show(root: &Path, joules: u64) {
    let zone = root.join("sys/class/powercap/intel-rapl:0");
    std::fs::create_dir_all(&zone).unwrap();
    std::fs::write(zone.join("name"), "psys\n").unwrap();
    std::fs::write(zone.join("max_energy_range_uj"), "262143328850\n").unwrap();
    std::fs::write(zone.join("energy_uj"), format!("{}\n", joules * 1_000_000)).unwrap();
}

fn hands() -> Hands {
    Hands(Arc::new(Mutex::new(Now { mono_ns: 1_000_000_000_000, unix_s: 60_015.0 })))
}

fn pass(hands: &Hands, seconds: f64) {
    let mut now = hands.0.lock().unwrap();
    now.mono_ns += (seconds * 1e9) as u64;
    now.unix_s += seconds;
}

#[test]
fn who_asks_beside_a_counter_that_stands_still_is_answered_at_once_until_it_moves() {
    let dir = tempfile::tempdir().unwrap();
    show(dir.path(), 50);
    let hands = hands();
    let wanted = Wanted::all(Root::at(dir.path()));
    let meters = Meters::open_with(&wanted, &perf::Elsewhere, Box::new(hands.clone()));
    let mut meters = MachineMeters::of(meters, Instant::now());
    let mut after = |seconds: f64| {
        pass(&hands, seconds);
        meters.read().energy
    };
    // The first reading marks where loading ends. A counter may be slow: for a second nobody knows.
    assert_eq!([after(0.3), after(0.3), after(0.3)], [Metered::NotYet; 3]);
    assert_eq!(after(0.5), Metered::Unknown);
    assert_eq!([after(0.01), after(0.01), after(0.5), after(2.0)], [Metered::Unknown; 4]);
    // It counts after all.
    show(dir.path(), 70);
    let moved = after(1.0);
    assert!(matches!(moved, Metered::Known(joules, _) if joules.best() == 20.0), "{moved:?}");
    assert_eq!(after(0.01), Metered::NotYet);
    show(dir.path(), 90);
    assert!(matches!(after(1.0), Metered::Known(joules, _) if joules.best() == 20.0));
}

#[test]
fn a_meter_outside_that_has_said_nothing_new_may_still() {
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("joules.csv");
    let says = |lines: &str| std::fs::write(&csv, lines).unwrap();
    says("60014,50\n");
    let hands = hands();
    let feed = Some((FeedSource::Csv(csv.clone()), Scope::Wall, None));
    let wanted = Wanted { feed, ..Wanted::all(Root::at(dir.path())) };
    let meters = Meters::open_with(&wanted, &perf::Elsewhere, Box::new(hands.clone()));
    let mut meters = MachineMeters::of(meters, Instant::now());
    let mut after = |seconds: f64| {
        pass(&hands, seconds);
        meters.read().energy
    };
    assert_eq!(after(0.5), Metered::NotYet);
    // It says that nothing was used in some seconds.
    says("60014,50\n60018,50\n");
    assert_eq!(after(3.0), Metered::Unknown);
    // And then what the next ones used, late.
    assert_eq!([after(0.5), after(1.0)], [Metered::NotYet; 2]);
    says("60014,50\n60018,50\n60020,90\n");
    assert!(matches!(after(0.5), Metered::Known(joules, _) if joules.best() == 40.0));
}
