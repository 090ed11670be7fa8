//! Ranks that meet, and ranks that do not come.

use std::sync::Arc;
use std::time::Duration;

use njoule_hlo::Target;
use njoule_neuron_sys::{Lane, Model, Run, Runtime, Status, Tensor};

use crate::child::{child, start};
use crate::modules::{bind, bytes, neff, read, sum};

const AMPLE: Duration = Duration::from_secs(60);
const ROOT: (&str, &str) = ("NEURON_RT_ROOT_COMM_ID", "127.0.0.1:46000");

struct Rank {
    run: Run,
    x: Tensor,
    sum: Tensor,
    total: Tensor,
    lane: Lane,
}

/// Loaded by one thread each: the first load of all waits for the others.
fn ranks(runtime: &Runtime, n: u32) -> Vec<Rank> {
    let neff = Arc::new(neff(&sum(n), Target::Inf2));
    let threads: Vec<_> = (0..n)
        .map(|rank| {
            let (runtime, neff) = (runtime.clone(), Arc::clone(&neff));
            std::thread::spawn(move || {
                let core = runtime.core(rank).unwrap();
                let model = Arc::new(Model::load_collective(&runtime, core, &neff, (rank, n), "sum").unwrap());
                let on = |size, name| Tensor::on_core(&runtime, core, size, name).unwrap();
                let (x, sum, total) = (on(8, "x"), on(8, "sum"), on(8, "total"));
                x.write(0, &bytes(&[rank as f32, 10.0])).unwrap();
                total.fill(0, 8, 0).unwrap();
                let run = bind(&runtime, &model, &[&x, &total], &[&sum, &total]).unwrap();
                Rank { run, x, sum, total, lane: Lane::new(&format!("rank {rank}")).unwrap() }
            })
        })
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

#[test]
fn ranks_on_their_lanes_sum_what_they_have() {
    child(&[ROOT], || {
        let runtime = start();
        let mut ranks = ranks(&runtime, 2);
        for step in 1..=3 {
            std::thread::scope(|s| {
                for r in &mut ranks {
                    s.spawn(|| r.lane.execute(&mut r.run, AMPLE).unwrap());
                }
            });
            for r in &ranks {
                assert_eq!(read::<f32>(&r.sum), [1.0, 20.0]);
                assert_eq!(read::<f32>(&r.total), [step as f32, 20.0 * step as f32]);
            }
        }
    });
}

#[test]
fn scheduled_ranks_meet_too() {
    child(&[ROOT, ("NJOULE_FAKE_INSTANCE", "inf2.24xlarge")], || {
        let runtime = start();
        let mut ranks = ranks(&runtime, 4);
        for _ in 0..2 {
            ranks.iter_mut().for_each(|r| r.run.start().unwrap());
            ranks.iter_mut().for_each(|r| r.run.wait(AMPLE).unwrap());
        }
        for r in &ranks {
            assert_eq!(read::<f32>(&r.total), [12.0, 80.0]);
        }
    });
}

#[test]
fn a_rank_that_does_not_come_fails_the_others_and_costs_no_data() {
    child(&[ROOT, ("NEURON_RT_EXEC_TIMEOUT", "1")], || {
        let runtime = start();
        let mut ranks = ranks(&runtime, 2);
        ranks[0].total.write(0, &bytes(&[7.0f32, 7.0])).unwrap();
        let error = ranks[0].run.execute().unwrap_err();
        assert_eq!((error.status(), error.ends_process()), (Some(Status(1200)), true));
        assert_eq!(read::<f32>(&ranks[0].total), [7.0, 7.0]);
        ranks[0].x.fill(0, 8, 0).unwrap();
    });
}

#[test]
fn ranks_must_be_those_of_the_neff() {
    child(&[ROOT, ("NJOULE_FAKE_JOIN", "0")], || {
        let runtime = start();
        let core = runtime.core(0).unwrap();
        let neff = neff(&sum(2), Target::Inf2);
        let load = |ranks| Model::load_collective(&runtime, core, &neff, ranks, "sum").map_err(|e| e.status());
        assert_eq!(load((0, 4)).unwrap_err(), Some(Status(2)));
        assert_eq!(load((2, 2)).unwrap_err(), Some(Status(2)));
        load((0, 2)).unwrap();
    });
}

#[test]
fn collectives_need_the_address_of_rank_0() {
    child(&[("NJOULE_FAKE_JOIN", "0")], || {
        let runtime = start();
        let neff = neff(&sum(2), Target::Inf2);
        let error = Model::load_collective(&runtime, runtime.core(0).unwrap(), &neff, (0, 2), "sum").unwrap_err();
        assert_eq!(error.status(), Some(Status(2)));
    });
}

#[test]
fn the_first_collective_load_waits_for_the_others() {
    child(&[ROOT, ("NJOULE_FAKE_HANG_LIMIT", "50ms")], || {
        let runtime = start();
        let neff = neff(&sum(2), Target::Inf2);
        let error = Model::load_collective(&runtime, runtime.core(0).unwrap(), &neff, (0, 2), "sum").unwrap_err();
        assert_eq!(error.status(), Some(Status(5)), "alone, it waits as long as a hang lasts");
    });
}
