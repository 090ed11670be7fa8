//! Faults on order: each kind, through neuron-sys.

use std::time::{Duration, Instant};

use njoule_neuron_sys::{Error, Lane, Library, Runtime, Status, Tensor};

use crate::child::{child, start};
use crate::modules::{Bound, read};

const AMPLE: Duration = Duration::from_secs(60);

#[test]
fn a_call_returns_the_status_that_was_ordered_and_does_nothing() {
    child(&[("NJOULE_FAKE_FAULTS", "nrt_execute@2=1202;nrt_tensor_allocate@5=4;nrt_load@2=10")], || {
        let runtime = start();
        let core = runtime.core(0).unwrap();
        let mut b = Bound::new(&runtime, core);
        b.run.execute().unwrap();
        let error = b.run.execute().unwrap_err();
        assert_eq!((error.status(), error.ends_process()), (Some(Status(1202)), true));
        assert_eq!(read::<f32>(&b.cache)[3..6], [3.0, 4.0, 5.0], "once, not twice");
        assert_eq!(Tensor::on_core(&runtime, core, 8, "fifth").unwrap_err().status(), Some(Status(4)));
        let neff = crate::modules::neff(&crate::modules::step(), njoule_hlo::Target::Inf2);
        let load = || njoule_neuron_sys::Model::load(&runtime, core, &neff, "again");
        assert_eq!(load().unwrap_err().status(), Some(Status(10)));
        load().unwrap();
    });
}

#[test]
fn the_start_can_fail_once() {
    child(&[("NJOULE_FAKE_FAULTS", "nrt_init@1=1")], || {
        let library = Library::open().unwrap();
        assert_eq!(Runtime::start(library).unwrap_err().status(), Some(Status(1)));
        Runtime::start(library).unwrap();
    });
}

#[test]
fn a_call_is_late() {
    child(&[("NJOULE_FAKE_FAULTS", "nrt_tensor_write@2=delay:60ms")], || {
        let runtime = start();
        let tensor = Tensor::on_core(&runtime, runtime.core(0).unwrap(), 8, "t").unwrap();
        tensor.write(0, &[1]).unwrap();
        let start = Instant::now();
        tensor.write(0, &[2]).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(60));
        assert_eq!(read::<u8>(&tensor)[0], 2);
    });
}

#[test]
fn a_run_that_hangs_is_left_to_its_lane() {
    child(&[("NJOULE_FAKE_FAULTS", "evaluate@2=hang")], || {
        let runtime = start();
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        let mut lane = Lane::new("core 0").unwrap();
        lane.execute(&mut b.run, AMPLE).unwrap();
        let error = lane.execute(&mut b.run, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Error::Hung { .. }) && error.ends_process(), "{error}");
        // Nothing is closed under the thread that hangs: the process ends with it.
        std::mem::forget((b, lane, runtime));
    });
}

#[test]
fn a_hang_with_a_limit_ends_as_a_timeout() {
    child(&[("NJOULE_FAKE_FAULTS", "nrt_execute@1=hang"), ("NJOULE_FAKE_HANG_LIMIT", "30ms")], || {
        let runtime = start();
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        assert_eq!(b.run.execute().unwrap_err().status(), Some(Status(5)));
        b.run.execute().unwrap();
    });
}

#[test]
fn a_run_times_out_after_the_time_that_the_environment_gives() {
    child(&[("NJOULE_FAKE_FAULTS", "evaluate@1=timeout"), ("NEURON_RT_EXEC_TIMEOUT", "1")], || {
        let runtime = start();
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        let start = Instant::now();
        assert_eq!(b.run.execute().unwrap_err().status(), Some(Status(5)));
        assert!(start.elapsed() >= Duration::from_secs(1));
    });
}

#[test]
fn a_run_gives_nan_or_finds_an_index_out_of_bounds() {
    child(&[("NJOULE_FAKE_FAULTS", "evaluate@1=nan;evaluate@2=oob")], || {
        let runtime = start();
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        b.run.execute().unwrap();
        assert!(read::<f32>(&b.rows).iter().all(|v| v.is_nan()));
        assert_eq!(read::<f32>(&b.cache)[3], 3.0, "what is updated in place is not touched");
        assert_eq!(b.run.execute().unwrap_err().status(), Some(Status(1006)));
    });
}

#[test]
fn a_core_that_died_stays_dead() {
    child(&[("NJOULE_FAKE_FAULTS", "nrt_execute@2=101")], || {
        let runtime = start();
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        b.run.execute().unwrap();
        for _ in 0..2 {
            assert_eq!(b.run.execute().unwrap_err().status(), Some(Status(101)));
        }
        assert_eq!(b.run.start().unwrap_err().status(), Some(Status(101)));
    });
}

#[test]
fn a_queue_is_full_when_it_was_ordered() {
    child(&[("NJOULE_FAKE_FAULTS", "nrta_execute_schedule@1=7;evaluate@1=1204")], || {
        let runtime = start();
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        assert_eq!(b.run.start().unwrap_err().status(), Some(Status::QUEUE_FULL));
        b.run.start().unwrap();
        assert_eq!(b.run.wait(AMPLE).unwrap_err().status(), Some(Status(1204)), "known only at completion");
        b.run.start().unwrap();
        b.run.wait(AMPLE).unwrap();
    });
}
