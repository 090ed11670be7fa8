//! The split: conserved whatever happens, and right on a device whose energy per operation is hidden from it.

use njoule_energy::Joules;
use njoule_energy::attribution::{AccountId, Amounts, Coefficients, Ledger, Purpose, Share, Used};
use proptest::prelude::*;

fn amounts(joules: f64) -> Amounts {
    Amounts { joules: Joules::new(joules), cpu_s: joules / 10.0, core_s: Some(joules / 5.0), util_s: None }
}

/// Something that happens to a ledger.
#[derive(Clone, Debug)]
enum Event {
    Open,
    Step { seconds: f64, weights: f64, work: Vec<(f64, f64, u8)>, padding: f64 },
    Idle(f64),
    Load(f64),
    Settle(f64),
    Unknown,
    Abort(usize),
    Close(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let work = prop::collection::vec((0.0..1e12, 0.0..1e9, 0u8..3), 0..6);
    prop_oneof![
        2 => Just(Event::Open),
        6 => (0.0..0.1, 0.0..1e10, work, 0.0..1e11).prop_map(|(seconds, weights, work, padding)| Event::Step { seconds, weights, work, padding }),
        1 => (0.0..2.0).prop_map(Event::Idle),
        1 => (0.0..2.0).prop_map(Event::Load),
        5 => (0.0..50.0).prop_map(Event::Settle),
        1 => Just(Event::Unknown),
        1 => any::<prop::sample::Index>().prop_map(|i| Event::Abort(i.index(1 << 16))),
        1 => any::<prop::sample::Index>().prop_map(|i| Event::Close(i.index(1 << 16))),
    ]
}

fn purpose(n: u8) -> Purpose {
    [Purpose::Prefill, Purpose::Decode, Purpose::Waste][usize::from(n)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn buckets_add_up_to_what_was_metered(events in prop::collection::vec(event(), 1..60), idle_w in prop::option::of(0.0..300.0)) {
        let mut ledger = Ledger::new(Coefficients { idle_w, ..Coefficients::default() });
        let mut open: Vec<AccountId> = vec![];
        let (mut metered, mut cpu) = (0.0, 0.0);
        for event in events {
            match event {
                Event::Open => open.push(ledger.open()),
                Event::Step { seconds, weights, work, padding } => {
                    let of = |(i, (flops, kv_bytes, n)): (usize, (f64, f64, u8))| Share {
                        account: open.get(i).copied(), purpose: purpose(n), flops, kv_bytes,
                    };
                    let mut shares: Vec<Share> = work.into_iter().enumerate().map(of).collect();
                    shares.push(Share { account: None, purpose: Purpose::Waste, flops: padding, kv_bytes: 0.0 });
                    ledger.step(seconds, weights, &shares);
                }
                Event::Idle(seconds) => ledger.idle(seconds),
                Event::Load(seconds) => ledger.load_for(seconds),
                Event::Settle(joules) => {
                    metered += joules;
                    cpu += joules / 10.0;
                    ledger.settle(&amounts(joules));
                }
                Event::Unknown => ledger.settle(&Amounts::default()),
                Event::Abort(i) if !open.is_empty() => ledger.abort(open[i % open.len()]),
                Event::Close(i) if !open.is_empty() => {
                    let used = ledger.close(open.swap_remove(i % open.len()));
                    prop_assert!(used.prefill_j >= 0.0 && used.decode_j >= 0.0 && used.wasted_j >= 0.0 && used.static_j >= 0.0);
                    prop_assert!(used.joules().is_none_or(|j| j.best() >= used.static_j * (1.0 - 1e-12) - 1e-12));
                }
                _ => {}
            }
            let split = ledger.split();
            let parts = [split.prefill_j, split.decode_j, split.wasted_j, split.idle_j, split.load_j, split.unattributed_j];
            prop_assert!(parts.iter().all(|part| *part >= 0.0), "{:?}", split);
            prop_assert!(ledger.tail().best() <= split.idle_j * (1.0 + 1e-12));
            prop_assert!((split.total() - metered).abs() <= 1e-9 * metered.max(1e-3), "{:?} of {}", split, metered);
            prop_assert!((ledger.cpu_s() - cpu).abs() <= 1e-9 * cpu.max(1e-3));
        }
    }

    /// The order of the sequences in a step changes nobody's share.
    #[test]
    fn no_order_matters(work in prop::collection::vec((1.0..1e12, 1.0..1e9, 0u8..2), 2..8), turn in 1usize..7, joules in 0.1..100.0) {
        let run = |turn: usize| {
            let mut ledger = Ledger::new(Coefficients { idle_w: Some(20.0), ..Coefficients::default() });
            let ids: Vec<AccountId> = work.iter().map(|_| ledger.open()).collect();
            let mut shares: Vec<Share> = work.iter().zip(&ids)
                .map(|(w, id)| Share { account: Some(*id), purpose: purpose(w.2), flops: w.0, kv_bytes: w.1 }).collect();
            shares.rotate_left(turn % work.len());
            ledger.step(0.01, 1e9, &shares);
            ledger.settle(&amounts(joules));
            ids.into_iter().map(|id| ledger.close(id)).collect::<Vec<Used>>()
        };
        for (a, b) in run(0).iter().zip(run(turn)) {
            let (a, b) = (a.joules().unwrap().best(), b.joules().unwrap().best());
            prop_assert!((a - b).abs() <= 1e-12 * a);
        }
    }
}

/// Any byte costs this much.
fn bytes_at(joules: f64) -> Coefficients {
    Coefficients {
        joules_per_flop: 0.0,
        joules_per_kv_byte: joules,
        joules_per_weight_byte: joules,
        idle_w: None,
        calibrated: true,
    }
}

#[test]
fn shares_of_a_known_step() {
    // 1 J per 1e12 operations, 1 J per 1e9 bytes, 10 W of idle.
    let coefficients = Coefficients { joules_per_flop: 1e-12, idle_w: Some(10.0), ..bytes_at(1e-9) };
    let mut ledger = Ledger::new(coefficients);
    let (a, b) = (ledger.open(), ledger.open());
    let share = |account, purpose, flops, kv_bytes| Share { account: Some(account), purpose, flops, kv_bytes };
    ledger.step(0.2, 2e9, &[share(a, Purpose::Prefill, 3e12, 0.0), share(b, Purpose::Decode, 1e12, 1e9)]);
    // Weights: a 3 + 1, b 1 + 1 + 1. Seven joules beside two of idling.
    ledger.settle(&Amounts {
        joules: Joules::within(8.1, 9.0, 9.9),
        cpu_s: 0.7,
        core_s: Some(1.4),
        util_s: Some(0.07),
    });
    let (a, b) = (ledger.close(a), ledger.close(b));
    let near = |x: f64, y: f64| assert!((x - y).abs() < 1e-12, "{x} is not {y}");
    near(a.prefill_j, 5.0);
    near(b.decode_j, 4.0);
    near(a.static_j, 1.0);
    near(a.bounds.unwrap().0, 4.5);
    near(a.cpu_s, 0.4);
    near(b.core_s.unwrap(), 0.6);
    near(b.util_s.unwrap(), 0.03);
    assert!(!a.interpolated && a.known);
}

/// A sequence with a part to waste beside its token is one sequence: it reads the weights once and holds one slot.
#[test]
fn a_sequence_of_two_shares_is_one() {
    let coefficients = Coefficients { joules_per_flop: 0.0, idle_w: Some(10.0), ..bytes_at(1e-9) };
    let mut ledger = Ledger::new(coefficients);
    let (a, b) = (ledger.open(), ledger.open());
    let share = |account, purpose| Share { account: Some(account), purpose, flops: 1.0, kv_bytes: 0.0 };
    ledger.step(0.2, 2e9, &[share(a, Purpose::Decode), share(a, Purpose::Waste), share(b, Purpose::Decode)]);
    ledger.settle(&amounts(12.0));
    let (a, b) = (ledger.close(a), ledger.close(b));
    assert_eq!((a.joules().unwrap().best(), a.static_j), (6.0, 1.0));
    assert_eq!((b.joules().unwrap().best(), b.static_j), (6.0, 1.0));
}

/// Cores whose seconds one period did not tell: their sum is unknown, not that of the others.
#[test]
fn a_sum_with_an_unknown_part_is_unknown() {
    let mut ledger = Ledger::new(Coefficients::default());
    let id = ledger.open();
    let share = Share { account: Some(id), purpose: Purpose::Decode, flops: 1e9, kv_bytes: 1.0 };
    for core_s in [Some(1.0), None, Some(2.0)] {
        ledger.step(0.1, 1e9, &[share]);
        ledger.settle(&Amounts { joules: Joules::new(1.0), cpu_s: 0.1, core_s, util_s: Some(0.5) });
    }
    let used = ledger.close(id);
    assert_eq!((used.core_s, used.util_s), (None, Some(1.5)));
}

#[test]
fn nobody_pays_for_idling_and_an_unknown_period_makes_a_request_unknown() {
    let mut ledger = Ledger::new(Coefficients::default());
    ledger.idle(5.0);
    ledger.settle(&amounts(50.0));
    assert_eq!(ledger.split().idle_j, 50.0);
    let id = ledger.open();
    let share = Share { account: Some(id), purpose: Purpose::Decode, flops: 1e9, kv_bytes: 1.0 };
    ledger.step(0.1, 1e9, &[share]);
    ledger.settle(&amounts(3.0));
    assert_eq!(ledger.used(id).joules().unwrap().best(), 3.0);
    ledger.step(0.1, 1e9, &[share]);
    ledger.settle(&Amounts { cpu_s: 0.2, ..Amounts::default() });
    let used = ledger.close(id);
    assert_eq!(used.joules(), None);
    // What is known stays known.
    assert!((used.cpu_s - 0.5).abs() < 1e-12);
}

#[test]
fn an_aborted_request_is_waste_with_what_it_has_pending() {
    let mut ledger = Ledger::new(Coefficients::default());
    let id = ledger.open();
    let share = Share { account: Some(id), purpose: Purpose::Prefill, flops: 1e9, kv_bytes: 1.0 };
    ledger.step(0.1, 1e9, &[share]);
    ledger.settle(&amounts(3.0));
    ledger.step(0.1, 1e9, &[share]);
    ledger.abort(id);
    ledger.settle(&amounts(2.0));
    assert_eq!((ledger.split().prefill_j, ledger.split().wasted_j), (0.0, 5.0));
    assert_eq!(ledger.close(id).wasted_j, 5.0);
}

/// A device whose energy per operation nobody knows. Its classes of work cost differently although the ledger knows two.
struct Device {
    /// Joules: per operation of a product, per operation of attention, per byte of weights, per byte of cache, per step.
    matmul: f64,
    attention: f64,
    weight: f64,
    cache: f64,
    launch: f64,
    idle_w: f64,
    /// State of the meter's noise.
    seed: u64,
    /// What its meter has not shown yet: it counts in millijoules.
    hidden: f64,
}

/// A request in the making.
#[derive(Clone, Debug)]
struct Sequence {
    prompt: usize,
    tokens: usize,
    arrives: usize,
    /// Tokens after which its client leaves.
    leaves: Option<usize>,
    done: usize,
    account: Option<AccountId>,
    truth: f64,
}

impl Device {
    const PARAMETERS: f64 = 1.2e9;
    const LAYERS: f64 = 24.0;
    const WIDTH: f64 = 2048.0;
    const KV_BYTES: f64 = 49_152.0;

    /// Runs a step of `(tokens, context)` per sequence; returns its seconds, weight bytes, and for each sequence operations,
    /// cache bytes and true joules; and the step's joules as metered.
    fn run(&mut self, work: &[(usize, usize)]) -> (f64, f64, Vec<(f64, f64, f64)>, f64) {
        let weights = Self::PARAMETERS * 2.0;
        let mut parts: Vec<(f64, f64, f64)> = vec![];
        let (mut flops, mut bytes) = (0.0, weights);
        for &(tokens, context) in work {
            let (tokens, context) = (tokens as f64, context as f64);
            let matmul = 2.0 * Self::PARAMETERS * tokens;
            let attention = 4.0 * Self::LAYERS * Self::WIDTH * tokens * (context - tokens / 2.0);
            let cache = Self::KV_BYTES * (context + tokens);
            let joules = self.matmul * matmul + self.attention * attention + self.cache * cache;
            (flops, bytes) = (flops + matmul + attention, bytes + cache);
            parts.push((matmul + attention, cache, joules));
        }
        let seconds = (bytes / 300e9 + flops / 40e12) + 0.0004;
        let shared = (self.weight * weights + self.launch + self.idle_w * seconds) / work.len() as f64;
        parts.iter_mut().for_each(|part| part.2 += shared);
        let truth: f64 = parts.iter().map(|part| part.2).sum();
        // Half a percent of noise, then whole millijoules.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let noise = (self.seed >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
        self.hidden += truth * (1.0 + 0.01 * noise);
        let shown = (self.hidden * 1e3).floor() * 1e-3;
        self.hidden -= shown;
        (seconds, weights, parts, shown)
    }
}

#[test]
fn eight_mixed_requests_get_their_true_joules_within_five_percent() {
    let mut device = Device {
        matmul: 1.0e-12,
        attention: 1.15e-12,
        weight: 60e-12,
        cache: 66e-12,
        launch: 0.004,
        idle_w: 45.0,
        seed: 7,
        hidden: 0.0,
    };
    let mut ledger = Ledger::new(Coefficients::default());
    // The device with nothing to do, then a warm-up sweep: prompts and batches of several sizes, alone.
    ledger.idle(10.0);
    ledger.settle(&Amounts { joules: Joules::new(10.0 * device.idle_w * 1.003), ..Amounts::default() });
    for round in 0..3 {
        for (tokens, context, batch) in [
            (256, 256, 1),
            (64, 128, 1),
            (1, 100, 1),
            (1, 400, 4),
            (1, 900, 8),
            (128, 512, 2),
            (1, 1500, 16),
            (512, 512, 1),
        ] {
            let work = vec![(tokens, context + round * 16); batch];
            let (seconds, weights, parts, joules) = device.run(&work);
            let shares: Vec<Share> = parts
                .iter()
                .map(|p| Share { account: None, purpose: Purpose::Waste, flops: p.0, kv_bytes: p.1 })
                .collect();
            ledger.step(seconds, weights, &shares);
            ledger.settle(&Amounts { joules: Joules::new(joules), ..Amounts::default() });
        }
    }
    let fitted = ledger.fit().solve(&Coefficients::default()).unwrap();
    ledger.set_coefficients(fitted);

    let request = |prompt, tokens, arrives, leaves| Sequence {
        prompt,
        tokens,
        arrives,
        leaves,
        done: 0,
        account: None,
        truth: 0.0,
    };
    let mut sequences = [
        request(900, 40, 0, None),
        request(30, 120, 0, None),
        request(400, 10, 5, None),
        request(1500, 30, 8, None),
        request(64, 64, 12, Some(20)),
        request(700, 5, 15, None),
        request(128, 90, 30, None),
        request(1200, 200, 31, Some(0)),
    ];
    let before = ledger.split().total();
    let mut metered = 0.0;
    let (mut true_total, mut pending) = (0.0, 0.0);
    let mut results: Vec<(usize, Used, f64)> = vec![];
    let mut shares: Vec<Share> = vec![];
    for step in 0..400 {
        for s in sequences.iter_mut().filter(|s| s.arrives == step) {
            s.account = Some(ledger.open());
        }
        // Every decode, and one chunk of a prompt.
        let mut chunk = 256;
        let mut batch: Vec<(usize, usize)> = vec![];
        for (i, s) in sequences.iter().enumerate().filter(|(_, s)| s.account.is_some()) {
            let tokens = if s.done >= s.prompt { 1 } else { (s.prompt - s.done).min(chunk) };
            if s.done < s.prompt {
                chunk -= tokens;
            }
            if tokens > 0 {
                batch.push((i, tokens));
            }
        }
        if batch.is_empty() {
            continue;
        }
        let work: Vec<(usize, usize)> = batch.iter().map(|&(i, tokens)| (tokens, sequences[i].done + tokens)).collect();
        let (seconds, weights, parts, joules) = device.run(&work);
        shares.clear();
        for (&(i, tokens), part) in batch.iter().zip(&parts) {
            let s = &mut sequences[i];
            let purpose = if s.done < s.prompt { Purpose::Prefill } else { Purpose::Decode };
            shares.push(Share { account: s.account, purpose, flops: part.0, kv_bytes: part.1 });
            s.done += tokens;
            s.truth += part.2;
            true_total += part.2;
        }
        ledger.step(seconds, weights, &shares);
        pending += joules;
        let ends = |s: &Sequence| {
            let generated = (s.done + 1).saturating_sub(s.prompt);
            s.account.is_some() && (generated >= s.tokens || s.leaves.is_some_and(|n| generated > n))
        };
        // The meter is read every third step, and before a request is answered.
        if step % 3 == 0 || sequences.iter().any(ends) {
            ledger.settle(&Amounts { joules: Joules::new(pending), ..Amounts::default() });
            metered += pending;
            pending = 0.0;
        }
        for (i, s) in sequences.iter_mut().enumerate() {
            if ends(s) {
                let id = s.account.take().unwrap();
                s.arrives = usize::MAX;
                if s.leaves.is_some() {
                    ledger.abort(id);
                }
                results.push((i, ledger.close(id), s.truth));
            }
        }
    }
    assert_eq!(results.len(), 8);
    for (i, used, truth) in &results {
        let joules = used.joules().unwrap().best();
        let off = joules / truth - 1.0;
        assert!(off.abs() < 0.05, "request {i}: {joules:.3} J, truly {truth:.3} J ({:+.1} %)", 100.0 * off);
        assert_eq!(used.wasted_j > 0.0, sequences[*i].leaves.is_some());
    }
    let given: f64 = results.iter().map(|(_, used, _)| used.joules().unwrap().best()).sum();
    assert!((given - metered).abs() < 1e-9 * metered && (metered / true_total - 1.0).abs() < 0.005);
    assert!((ledger.split().total() - before - metered).abs() < 1e-9 * metered);
    // An equal share, or one by tokens, is not right: the test can tell.
    let by_tokens: f64 = results.iter().map(|(i, ..)| sequences[*i].done as f64).sum();
    let worst =
        results.iter().map(|(i, _, truth)| (metered * sequences[*i].done as f64 / by_tokens / truth - 1.0).abs());
    assert!(worst.fold(0.0, f64::max) > 0.25);
}
