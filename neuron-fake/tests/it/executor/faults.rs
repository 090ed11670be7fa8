//! Faults on one rank of several: what becomes of three requests, against what should.
//!
//! Every request ends in an answer, which is then the right one, or in an error that names what failed; nothing panics, and
//! nothing takes longer than its deadline.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use njoule_runtime::Request;
use njoule_runtime::backend::neuron::NeuronBackend;
use serde_json::{Value, json};

use super::{SMALL, Shape, backend, build, engine, environment, place, small_model};
use crate::child::{is_child, order, spawn};

/// Where a fault is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// While the second module is loaded.
    Load,
    /// Of device memory, while loading.
    Allocate,
    /// Of the first weights.
    LoadWrite,
    /// Of a step's inputs.
    Write,
    /// A run that the library does not take.
    Execute,
    /// A run that was taken.
    Compute,
    /// Of a step's results, by rank 0 alone.
    Read,
}

const PLACES: [Place; 7] =
    [Place::Load, Place::Allocate, Place::LoadWrite, Place::Write, Place::Execute, Place::Compute, Place::Read];

const STATUSES: [&str; 28] = [
    "1", "2", "3", "4", "5", "6", "7", "9", "10", "11", "13", "14", "15", "101", "1002", "1003", "1004", "1005",
    "1006", "1100", "1200", "1201", "1202", "1203", "1204", "1205", "1206", "9999",
];

/// What the stand-in can do beside returning a status; the last two where it computes alone.
const FAULTS: [&str; 5] = ["delay:60ms", "timeout", "hang", "oob", "nan"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// By the tokens of a run without faults.
    Answered,
    /// None of the requests; the device is given up.
    Refused,
    /// The requests of that run; the others are answered.
    NotFinite,
}

impl Place {
    fn is_loading(self) -> bool {
        matches!(self, Place::Load | Place::Allocate | Place::LoadWrite)
    }

    fn takes(self, action: &str) -> bool {
        self == Place::Compute || !matches!(action, "oob" | "nan")
    }

    fn fault(self, action: &str, rank: usize) -> String {
        // The third of what happens on that core after loading: in a decode step.
        let (function, nth) = match self {
            Place::Load => ("nrt_load_collectives", 2),
            Place::Allocate => ("nrt_tensor_allocate", 1),
            Place::LoadWrite => ("nrt_tensor_write", 1),
            Place::Write => ("nrt_tensor_write", 5),
            Place::Execute => ("nrta_execute_schedule", 5),
            Place::Compute => ("evaluate", 5),
            Place::Read => ("nrt_tensor_read", 3),
        };
        let rank = if self == Place::Read || action == "nan" { 0 } else { rank };
        format!("{function}/{rank}@{nth}={action}")
    }

    /// The table. Of several ranks one that fails leaves the others waiting in their collective: whatever the status, that
    /// group is at its end. Rank 0 reads when the run is over: what a step survives, it survives there.
    fn expected(self, action: &str) -> Outcome {
        match (action, self) {
            ("delay:60ms", _) => Outcome::Answered,
            ("nan", _) => Outcome::NotFinite,
            ("7", Place::Execute) => Outcome::Answered,
            ("7" | "1006", Place::Read) => Outcome::Answered,
            _ => Outcome::Refused,
        }
    }
}

/// Serves three requests and says what became of them.
fn serve() {
    let (model, mut backend) = (small_model(), backend(&place()));
    if let Some(limit) = std::env::var(HANGS).ok().and_then(|seconds| seconds.parse().ok()) {
        (backend.step_limit, backend.load_limit) = (Duration::from_secs(limit), Duration::from_secs(limit));
    }
    println!("{SAYS}{}", outcome(&model, &backend));
}

fn outcome(model: &njoule_models::checkpoint::Checkpoint, backend: &NeuronBackend) -> Value {
    let program = model.config.program();
    let executor = match backend.load_neuron(&program, model.weights.as_ref(), backend.capacity()) {
        Ok(executor) => executor,
        Err(error) => return json!({ "refused": error.to_string() }),
    };
    if let Ok(text) = std::env::var(ORDERS) {
        order(&text);
    }
    let engine = engine(backend, executor, &program);
    let request =
        |n: u32| Request { ignore_eos: true, ..Request::new((0..n).map(|i| (i * 37 + n) % 250 + 3).collect(), 6) };
    let handles: Vec<_> = [5, 13, 30].map(|n| engine.submit(request(n))).into_iter().collect();
    let ends = handles.into_iter().map(|handle| match handle.map(|handle| handle.wait()) {
        Ok(Ok(done)) => json!({ "ids": done.token_ids }),
        Ok(Err(error)) => json!({ "code": error.code(), "error": error.to_string() }),
        Err(error) => json!({ "code": "not taken", "error": error.to_string() }),
    });
    json!({ "requests": ends.collect::<Vec<_>>() })
}

/// One case in a process of its own; None in that process.
type Run<'a> = &'a (dyn Fn(&[(&str, &str)]) -> Option<std::process::Output> + Sync);

/// What waits for another in vain waits for `seconds`.
fn case(
    run: Run<'_>,
    place: &std::path::Path,
    fault: Option<(Place, &str, usize)>,
    seconds: &str,
) -> (Value, String, Duration) {
    let text = fault.map(|(place, action, rank)| place.fault(action, rank)).unwrap_or_default();
    let mut environment = [environment(place), vec![("NEURON_RT_EXEC_TIMEOUT", seconds)]].concat();
    if let Some((place, action, _)) = fault {
        environment.push((if place.is_loading() { "NJOULE_FAKE_FAULTS" } else { ORDERS }, &text));
        if action == "hang" {
            environment.push((HANGS, seconds));
        }
    }
    let started = Instant::now();
    let output = run(&environment).expect("the parent");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let line = stdout.lines().find_map(|line| line.split_once(SAYS));
    let (_, line) = line.unwrap_or_else(|| panic!("{text}: {stdout}\n{stderr}"));
    assert!(output.status.success() && !stderr.contains("panicked"), "{text}: {stdout}\n{stderr}");
    (serde_json::from_str(line).unwrap(), text, started.elapsed())
}

/// Compares the cases with the table, and prints what was seen.
fn compare(run: Run<'_>, tp: usize, cases: &[(Place, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    build(&small_model().config.program(), Shape { tp, ..SMALL }, dir.path());
    let (healthy, ..) = case(run, dir.path(), None, PATIENT);
    assert_eq!(healthy["requests"][2]["ids"].as_array().map(Vec::len), Some(6), "{healthy}");
    let next = std::sync::atomic::AtomicUsize::new(0);
    let seen = std::sync::Mutex::new(BTreeMap::new());
    let rank = tp - 1;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((place, action)) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let run = |seconds| case(run, dir.path(), Some((*place, action, rank)), seconds);
                    let (got, text, took) = run(SHORT);
                    if let Err(what) = check(*place, action, &got, &healthy, took) {
                        // A loaded machine may be too slow for limits that are short so that hangs cost little: what is so
                        // with long ones is so.
                        let (got, _, took) = run(PATIENT);
                        check(*place, action, &got, &healthy, took)
                            .unwrap_or_else(|again| panic!("{text}: {what}; with {PATIENT} s: {again}"));
                        eprintln!("{text}: {what}; as it should be with {PATIENT} s");
                    }
                    let what = format!("{:?}", place.expected(action));
                    seen.lock().unwrap().entry(what).or_insert_with(Vec::new).push(text);
                }
            });
        }
    });
    for (outcome, faults) in seen.into_inner().unwrap() {
        println!("{tp} ranks, {outcome}: {}", faults.join(" "));
    }
}

fn check(place: Place, action: &str, got: &Value, healthy: &Value, took: Duration) -> Result<(), String> {
    let demand = |holds: bool, what: &dyn std::fmt::Display| if holds { Ok(()) } else { Err(format!("{what}: {got}")) };
    // Of a wait that would never end.
    demand(took < Duration::from_secs(200), &format!("took {took:?}"))?;
    match place.expected(action) {
        Outcome::Answered => demand(got == healthy, &"not the answers of a healthy device"),
        Outcome::Refused if place.is_loading() => {
            demand(got["refused"].as_str().is_some_and(|error| names(error, action)), &"not refused by its name")
        }
        outcome => {
            let ends = got["requests"].as_array().map(Vec::as_slice).unwrap_or_default();
            demand(ends.len() == 3, &"not three ends")?;
            let failed = |end: &&Value| end.get("code").is_some();
            if outcome == Outcome::NotFinite {
                let right = |(end, healthy): (&Value, &Value)| end == healthy || end["code"] == "non_finite_logits";
                let all = ends.iter().zip(healthy["requests"].as_array().unwrap()).all(right);
                let some = (1..3).contains(&ends.iter().filter(failed).count());
                return demand(all && some, &"not one or two requests refused");
            }
            for end in ends {
                let named = names(end["error"].as_str().unwrap_or_default(), action);
                demand(end["code"] == "engine_error" && named, &"not refused by its name")?;
            }
            Ok(())
        }
    }
}

/// Whether an error says what was ordered. A rank that never comes is told by the others: their collective fails.
fn names(error: &str, action: &str) -> bool {
    let status = |code: &str| error.contains(&format!("({code})")) || error.contains(&format!("status {code}"));
    match action {
        // Whoever waits gives up, or the deadline of the step is over.
        "hang" => ["cannot be stopped", "cannot be cancelled"].iter().any(|end| error.contains(end)) || status("1200"),
        "timeout" => status("5") || status("1200"),
        "oob" => status("1006"),
        code => status(code),
    }
}

/// Seconds that a run or a collective may take.
const SHORT: &str = "1";
const PATIENT: &str = "30";
const ORDERS: &str = "NJOULE_FAKE_TEST_ORDERS";
const HANGS: &str = "NJOULE_FAKE_TEST_HANGS";
const SAYS: &str = "OUTCOME ";

/// Each status at one place, each place with those that a step may survive and with each fault of the stand-in.
#[test]
fn a_fault_on_one_rank_ends_as_the_table_says() {
    let run = |environment: &[(&str, &str)]| spawn(environment, || serve());
    if is_child() {
        run(&[]);
        return;
    }
    let diagonal = STATUSES.iter().enumerate().map(|(i, status)| (PLACES[i % PLACES.len()], *status));
    let special = PLACES.iter().flat_map(|place| ["7", "1006", "101", "delay:60ms"].map(|action| (*place, action)));
    let computing = FAULTS.map(|fault| (Place::Compute, fault));
    let hangs = [(Place::Load, "hang"), (Place::Write, "hang"), (Place::Read, "hang")];
    let cases: Vec<_> = diagonal.chain(special).chain(computing).chain(hangs).collect();
    compare(&run, 2, &cases);
    let few = PLACES.iter().flat_map(|place| ["4", "1006", "1202"].map(|action| (*place, action)));
    compare(&run, 4, &few.collect::<Vec<_>>());
}

/// `cargo test -p neuron-fake --test it every_fault -- --ignored --nocapture`
#[test]
#[ignore = "some minutes: the whole product"]
fn every_fault_at_every_place_on_one_rank_ends_as_the_table_says() {
    let run = |environment: &[(&str, &str)]| spawn(environment, || serve());
    if is_child() {
        run(&[]);
        return;
    }
    let all = STATUSES.iter().chain(&FAULTS);
    let cases: Vec<_> = PLACES.iter().flat_map(|place| all.clone().map(|action| (*place, *action))).collect();
    let cases: Vec<_> = cases.into_iter().filter(|(place, action)| place.takes(action)).collect();
    for tp in [2, 4] {
        compare(&run, tp, &cases);
    }
}
