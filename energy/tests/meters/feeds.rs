//! Feeds that fall, end, hurry ahead and take their time.

use std::io::Write;
use std::os::unix::net::UnixListener;

use njoule_energy::meter::Scope;
use njoule_energy::meter::feed::FeedSource;
use njoule_energy::window::Flag;
use njoule_energy::{Meters, Window};

use crate::machine::{Machine, near, window};

/// A feed at the plug, of unknown uncertainty.
fn plug(m: &Machine, source: FeedSource) -> Meters {
    let mut wanted = m.wanted();
    wanted.feed = Some((source, Scope::Wall, None));
    m.meters(&wanted)
}

fn csv(m: &Machine, lines: &[&str]) -> FeedSource {
    let path = m.path("/pdu.csv");
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
    lines.iter().for_each(|line| writeln!(file, "{line}").unwrap());
    FeedSource::Csv(path)
}

fn unknown(w: &Window, words: &str) {
    assert_eq!(w.total.joules, None, "{w:?}");
    assert!(w.total.reasons[0].contains(words), "{:?}", w.total.reasons);
    assert!(w.flags.contains(&Flag::MeterGap), "{:?}", w.flags);
}

#[test]
fn a_fall_between_two_readings_is_seen() {
    let m = Machine::new();
    // What a file holds before it is opened is history, falls included.
    let mut meters = plug(&m, csv(&m, &["1725999999,900", "1726000000,50"]));
    let start = meters.snapshot();
    m.hands.pass(1.0);
    csv(&m, &["1726000000.4,60", "1726000000.6,5", "1726000001,70"]);
    unknown(&window(&start, &meters.snapshot()), "reset");
    m.hands.pass(1.0);
    csv(&m, &["1726000002,75"]);
    let after = meters.snapshot();
    unknown(&window(&start, &after), "1 spans of unknown energy");
    m.hands.pass(1.0);
    csv(&m, &["1726000003,95"]);
    near(window(&after, &meters.snapshot()).total.joules.unwrap().best(), 20.0);
}

#[test]
fn a_socket_that_ends_is_opened_again_also_for_every_line() {
    let m = Machine::new();
    let path = m.path("/feed.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // Three connections with a line each, the second without an end of line; then one that stays.
    let daemon = std::thread::spawn(move || {
        let say = |line: &str| {
            let (mut peer, _) = listener.accept().unwrap();
            peer.write_all(line.as_bytes()).unwrap();
            peer
        };
        ["1726000000,5\n", "1726000001,9", "1726000002,20\n"].into_iter().for_each(|line| drop(say(line)));
        say("1726000003,30\n")
    });
    let mut meters = plug(&m, FeedSource::Socket(path));
    let mut seen = vec![];
    for _ in 0..5000 {
        let total = meters.snapshot().meters[0].total.map(|total| total.best());
        if seen.last() != Some(&total) {
            seen.push(total);
        }
        if total >= Some(21.0) {
            break;
        }
        // The daemon is another thread, and may take its time.
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    // From the first line, or the second where the first reading saw both.
    assert!(matches!(seen.last(), Some(Some(25.0 | 21.0))), "{seen:?}");
    drop(daemon.join().unwrap());
}

#[test]
fn a_stamp_from_the_future_is_refused() {
    let m = Machine::new();
    let mut meters = plug(&m, csv(&m, &["1726000000,50"]));
    let start = meters.snapshot();
    m.hands.pass(2.0);
    // Milliseconds, or another clock.
    csv(&m, &["1726003602,70"]);
    unknown(&window(&start, &meters.snapshot()), "3600 s ahead");
}

/// What the meter is off by is unknown, and is said to be; what the ends may be off by is an interval.
#[test]
fn ends_are_an_interval_whatever_the_meter_is_off_by() {
    let m = Machine::new();
    let mut meters = plug(&m, csv(&m, &["1725999999,0"]));
    let start = meters.snapshot();
    m.hands.pass(100.0);
    csv(&m, &["1726000099,1000"]);
    let w = window(&start, &meters.snapshot());
    let (low, high) = w.total.joules.unwrap().bounds().unwrap();
    // 10 W, a second too early at both ends.
    assert!((low - 980.0).abs() < 1e-6 && (high - 1020.0).abs() < 1e-6, "{low} {high}");
    assert_eq!(w.meters[0].info.rel_uncertainty, None);
}

/// The window ends when its end was asked for, not when a command had answered.
#[test]
fn an_answer_from_behind_the_end_is_divided() {
    let m = Machine::new();
    m.put("/total", "1726000000,0\n");
    let mut meters = plug(&m, FeedSource::Command(format!("cat {}", m.path("/total").display())));
    let start = meters.snapshot();
    m.hands.pass(20.0);
    let mut end = meters.snapshot();
    m.hands.pass(5.0);
    m.put("/total", "1726000025,250\n");
    meters.refresh(&mut end);
    let w = window(&start, &end);
    let joules = w.total.joules.unwrap();
    near(w.duration_s, 20.0);
    assert!((joules.best() - 200.0).abs() < 1e-6, "{joules:?}");
    assert!(w.meters[0].edge_error_j.unwrap() >= 50.0 - 1e-6 && w.flags.contains(&Flag::ShortWindow), "{w:?}");
    // It was late as well.
    end.meters[0].late += 1;
    let late = window(&start, &end);
    assert!(late.flags.contains(&Flag::MeterGap) && late.total.joules == Some(joules), "{:?}", late.flags);
}
