//! What holds of windows whatever the meters say.

use njoule_energy::meter::mock::Mock;
use njoule_energy::meter::{Meter, MeterError};
use njoule_energy::{Meters, Window};
use proptest::prelude::*;

use crate::machine::Hands;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Windows that follow each other add up to the one that spans them; no order of meters changes a total.
    #[test]
    fn windows_add_up_and_the_order_of_meters_does_not_matter(
        steps in prop::collection::vec((1u64..1_000_000, 1u64..1_000_000), 2..20), modulus in 1_000_001u64..1 << 40,
    ) {
        let script = |pick: fn(&(u64, u64)) -> u64, start: u64| {
            let mut raw = start % modulus;
            let mut script = vec![Ok(raw)];
            for step in &steps {
                raw = (raw + pick(step)) % modulus;
                script.push(Ok(raw));
            }
            script
        };
        let run = |swap: bool| {
            let hands = Hands::at(1e9);
            let mut found: Vec<Box<dyn Meter>> = vec![
                Box::new(Mock::new("a", Some(modulus), script(|s| s.0, 5))),
                Box::new(Mock::new("b", Some(modulus), script(|s| s.1, modulus - 1))),
            ];
            if swap {
                found.reverse();
            }
            let mut meters = Meters::of(found, Box::new(hands.clone()));
            let mut snapshots = vec![meters.snapshot()];
            for _ in &steps {
                hands.pass(1.0);
                snapshots.push(meters.snapshot());
            }
            let joules = |a: usize, b: usize| Window::between(&snapshots[a], &snapshots[b]).unwrap().total.joules.unwrap().best();
            let parts: f64 = (0..steps.len()).map(|i| joules(i, i + 1)).sum();
            (joules(0, steps.len()), parts)
        };
        let (whole, parts) = run(false);
        let truth: u64 = steps.iter().map(|s| s.0 + s.1).sum();
        prop_assert!((whole - truth as f64 * 1e-6).abs() < 1e-9 * whole, "{} {}", whole, truth);
        prop_assert!((whole - parts).abs() < 1e-9 * whole);
        prop_assert_eq!(run(true).0, whole);
    }

    /// Whatever a counter does, there is no negative energy and no figure without its method.
    #[test]
    fn no_script_gives_negative_energy(script in prop::collection::vec(prop::option::of(any::<u64>()), 1..12)) {
        let hands = Hands::at(1e9);
        let script = script.into_iter().map(|raw| raw.ok_or_else(|| MeterError::Silent("mock".into())));
        let mut meters = Meters::of(vec![Box::new(Mock::new("a", None, script))], Box::new(hands.clone()));
        let mut snapshots = vec![meters.snapshot()];
        for _ in 0..12 {
            hands.pass(0.5);
            snapshots.push(meters.snapshot());
        }
        for (i, a) in snapshots.iter().enumerate() {
            for b in &snapshots[i + 1..] {
                let total = Window::between(a, b).unwrap().total;
                prop_assert_eq!(total.joules.is_some(), total.method.is_some());
                prop_assert_eq!(total.joules.is_none(), !total.reasons.is_empty());
                if let Some(joules) = total.joules {
                    prop_assert!(joules.best() > 0.0 && joules.low().unwrap() >= 0.0);
                }
            }
        }
    }
}

#[test]
fn snapshots_of_two_sessions_or_in_the_wrong_order_make_no_window() {
    let hands = Hands::at(1e9);
    let one = Meters::of(vec![], Box::new(hands.clone())).snapshot();
    hands.pass(1.0);
    let other = Meters::of(vec![], Box::new(hands.clone())).snapshot();
    assert!(Window::between(&one, &other).unwrap_err().to_string().contains("started again"));
    assert!(Window::between(&one, &one).unwrap_err().to_string().contains("not later"));
    let mut foreign = one.clone();
    foreign.schema = "x".into();
    assert!(Window::between(&foreign, &one).unwrap_err().to_string().contains("\"x\""));
}
