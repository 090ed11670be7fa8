//! Models and their execution: at once, scheduled, and with a limit.

use std::sync::Arc;
use std::time::Duration;

use njoule_neuron_sys::{DType, Error, Lane, Model, Run, Status, Tensor, TensorSet};

use crate::standin::{Bound, Standin, bytes};

/// Long enough for any machine; a test that needs it to pass fails.
const AMPLE: Duration = Duration::from_secs(60);
/// Short: what hangs never comes back.
const SHORT: Duration = Duration::from_millis(20);

#[test]
fn a_model_tells_its_tensors_in_order() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let model = Model::load(&runtime, runtime.core(1).unwrap(), b"NEFF", "decode").unwrap();
    let names =
        |specs: &[njoule_neuron_sys::TensorSpec]| specs.iter().map(|s| (s.name.clone(), s.size)).collect::<Vec<_>>();
    assert_eq!(names(model.inputs()), [("input0".to_owned(), 8), ("input1".to_owned(), 16)]);
    assert_eq!(names(model.outputs()), [("output0".to_owned(), 8), ("output1".to_owned(), 16)]);
    assert_eq!((model.inputs()[1].dtype.name(), &model.inputs()[1].shape), (Some("u8"), &vec![1, 16]));
    assert_eq!(DType(0x40).to_string(), "dtype 0x40");
    model.unload().unwrap();
    drop(runtime);
    standin.assert_clean();
}

#[test]
fn a_model_that_the_library_refuses_is_named() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let core = runtime.core(1).unwrap();
    let text = Model::load(&runtime, core, b"junk!", "prefill-512").unwrap_err().to_string();
    assert!(text.starts_with("nrt_load of `prefill-512`, 5 bytes on core 1 failed: NRT_INVALID (2)"), "{text}");
    let text = Model::load_collective(&runtime, core, b"NEFF", (4, 4), "tp").unwrap_err().to_string();
    assert!(text.contains("as rank 4 of 4"), "{text}");
    Model::load_collective(&runtime, core, b"NEFF", (3, 4), "tp").unwrap();
    drop(runtime);
    standin.assert_clean();
}

#[test]
fn a_run_computes_and_updates_its_cache_in_place() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
    for step in 1..=3u8 {
        b.input.write(0, &[step; 8]).unwrap();
        b.run.execute().unwrap();
        assert_eq!((bytes(&b.output), bytes(&b.cache)), (vec![step + 1; 8], vec![step; 16]));
    }
    drop((b, runtime));
    standin.assert_clean();
}

#[test]
fn sets_that_do_not_fit_the_model_are_refused_by_name() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let core = runtime.core(0).unwrap();
    let model = Arc::new(Model::load(&runtime, core, b"NEFF", "m").unwrap());
    let set = |entries: &[(&str, usize)]| {
        let mut set = TensorSet::new(&runtime).unwrap();
        for (name, size) in entries {
            set.bind(name, &Tensor::on_core(&runtime, core, *size, name).unwrap()).unwrap();
        }
        set
    };
    type Named = &'static [(&'static str, usize)];
    let good: Named = &[("output0", 8), ("output1", 16)];
    let cases: [(Named, Named, &str); 4] = [
        (&[("input0", 8)], good, "model `m`: input `input1` (16 bytes) is not bound"),
        (&[("input0", 8), ("input1", 15)], good, "model `m`: input `input1` has 16 bytes, the tensor bound 15"),
        (
            &[("input0", 8), ("input1", 16), ("input2", 1)],
            good,
            "model `m`: input `input2` is bound, but the model has none of that name",
        ),
        (&[("input0", 8), ("input1", 16)], &[], "model `m`: output `output0` (8 bytes) is not bound"),
    ];
    for (inputs, outputs, expected) in cases {
        let error = Run::new(Arc::clone(&model), set(inputs), set(outputs)).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    drop((model, runtime));
    standin.assert_clean();
}

#[test]
fn a_failed_run_says_what_failed_and_can_run_again() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let mut b = Bound::new(&runtime, runtime.core(1).unwrap());
    b.input.write(0, &[0xEE]).unwrap();
    let error = b.run.execute().unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("nrt_execute of model `decode-b1` on core 1 failed: NRT_EXEC_OOB (1006)"), "{text}");
    assert!(!error.ends_process());
    b.run.start().unwrap();
    let scheduled = b.run.wait(AMPLE).unwrap_err();
    assert_eq!(scheduled.status(), error.status(), "{scheduled}");
    b.input.write(0, &[1]).unwrap();
    b.run.execute().unwrap();
    drop((b, runtime));
    standin.assert_clean();
}

#[test]
fn a_scheduled_run_is_waited_for_with_and_without_an_eventfd() {
    for (switches, event) in [(&["MINOR=31"][..], false), (&["NO_EVENTFD"], false), (&[], true)] {
        let standin = Standin::new(switches);
        let runtime = standin.start();
        assert_eq!(runtime.library().can_sleep(), event);
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        assert_eq!(b.run.is_finished(), Ok(true), "nothing in flight");
        for step in 1..=5u8 {
            b.run.start().unwrap();
            assert_eq!(b.run.start(), Err(Error::InFlight { model: "decode-b1".into() }));
            assert_eq!(b.run.execute(), Err(Error::InFlight { model: "decode-b1".into() }));
            b.run.wait(AMPLE).unwrap();
            assert_eq!(bytes(&b.cache), [step; 16]);
        }
        if event {
            assert!(standin.count("standin_armed") > 0, "it slept on the eventfd");
        }
        drop((b, runtime));
        standin.assert_clean();
    }
}

#[test]
fn a_run_may_be_asked_for_after_a_wait_that_was_too_short() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
    for step in 1..=5u8 {
        b.run.start().unwrap();
        // Too short but on a very slow machine; then the signal is left untaken for the next run to find.
        if let Err(error) = b.run.wait(Duration::from_nanos(1)) {
            assert!(matches!(error, Error::Hung { .. }), "{error}");
        }
        while !b.run.is_finished().unwrap() {
            std::thread::yield_now();
        }
        assert_eq!(bytes(&b.cache), [step; 16]);
    }
    b.run.start().unwrap();
    b.run.wait(AMPLE).unwrap();
    assert_eq!(bytes(&b.cache), [6; 16]);
    drop((b, runtime));
    standin.assert_clean();
}

#[test]
fn a_full_queue_is_told_apart() {
    let standin = Standin::new(&["QUEUE_DEPTH=1"]);
    let runtime = standin.start();
    let core = runtime.core(0).unwrap();
    let (mut one, mut two) = (Bound::new(&runtime, core), Bound::new(&runtime, core));
    one.run.start().unwrap();
    assert_eq!(two.run.start().unwrap_err().status(), Some(Status::QUEUE_FULL));
    one.run.wait(AMPLE).unwrap();
    two.run.start().unwrap();
    two.run.wait(AMPLE).unwrap();
    drop((one, two, runtime));
    standin.assert_clean();
}

#[test]
fn a_run_dropped_in_flight_leaves_the_library_what_it_uses() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
    b.input.write(0, &[0xFF]).unwrap(); // hangs
    b.run.start().unwrap();
    let error = b.run.wait(SHORT).unwrap_err();
    assert!(error.ends_process(), "{error}");
    assert_eq!(b.run.is_finished(), Ok(false));
    drop((b, runtime));
    assert_eq!(standin.count("standin_faults"), 0);
    assert_eq!(standin.count("standin_closes"), 0, "the runtime stays open under it");
    assert_eq!(standin.count("standin_live"), 6, "model, two sets, three tensors");
}

#[test]
fn an_older_library_has_no_scheduled_runs_and_says_so() {
    let standin = Standin::new(&["MINOR=30"]); // it has the symbols, and aborts if they are called
    let runtime = standin.start();
    let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
    let text = b.run.start().unwrap_err().to_string();
    assert!(text.contains("needs libnrt 2.31") && text.contains("this library is 2.30.10.0"), "{text}");
    drop((b, runtime));
    standin.assert_clean();
}

#[test]
fn a_lane_bounds_the_wait_with_new_and_old_libraries() {
    for switches in [&[][..], &["MINOR=30"], &["OLD"]] {
        let standin = Standin::new(switches);
        let runtime = standin.start();
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        let mut lane = Lane::new("core 0").unwrap();
        for step in 1..=3u8 {
            lane.execute(&mut b.run, AMPLE).unwrap();
            assert_eq!(bytes(&b.cache), [step; 16], "{switches:?}");
        }
        b.input.write(0, &[0xEE]).unwrap();
        assert_eq!(lane.execute(&mut b.run, AMPLE).unwrap_err().status(), Some(Status(1006)));
        b.input.write(0, &[0xFF]).unwrap();
        let error = lane.execute(&mut b.run, SHORT).unwrap_err();
        assert!(matches!(error, Error::Hung { .. }) && error.ends_process(), "{error}");
        assert!(error.to_string().contains("end this process"), "{error}");
        let mut other = Bound::new(&runtime, runtime.core(1).unwrap());
        let again = lane.execute(&mut other.run, AMPLE).unwrap_err();
        assert!(matches!(again, Error::Hung { .. }), "a lane that hangs takes nothing more: {again}");
        let started = b.run.execute().unwrap_err();
        assert!(matches!(started, Error::Hung { .. } | Error::InFlight { .. }), "nor is what hangs started: {started}");
        drop((b, other, lane, runtime));
        assert_eq!((standin.count("standin_faults"), standin.count("standin_closes")), (0, 0), "{switches:?}");
    }
}

#[test]
fn a_load_is_bounded_by_a_lane() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let mut lane = Lane::new("core 0").unwrap();
    let (clone, core) = (runtime.clone(), runtime.core(0).unwrap());
    let model = lane.call("loading `m`", AMPLE, move || Model::load(&clone, core, b"NEFF", "m")).unwrap().unwrap();
    let (_never, forever) = std::sync::mpsc::channel::<()>();
    let error = lane.call("loading `n`", SHORT, move || forever.recv().is_ok()).unwrap_err();
    assert!(error.to_string().starts_with("loading `n` on lane `core 0` did not finish within 20ms"), "{error}");
    assert!(lane.call("more", AMPLE, || ()).is_err());
    drop((model, runtime));
    standin.assert_clean();
}

#[test]
fn a_panic_on_a_lane_is_an_error_not_a_hang() {
    let mut lane = Lane::new("core 0").unwrap();
    let error = lane.call("x", AMPLE, || panic!("on purpose")).unwrap_err();
    assert!(error.to_string().contains("panic"), "{error}");
    assert!(lane.call("y", AMPLE, || ()).is_err());
}

#[test]
fn handles_go_to_other_threads_as_documented() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<Tensor>();
    send::<TensorSet>();
    send::<Run>();
    send::<Lane>();
    send::<Model>();
    sync::<Model>();
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    // Two threads, one model, sets of their own.
    let model = Arc::new(Model::load(&runtime, runtime.core(0).unwrap(), b"NEFF", "shared").unwrap());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (model, runtime) = (Arc::clone(&model), runtime.clone());
            scope.spawn(move || {
                let b = Bound::new(&runtime, model.core());
                let (mut inputs, mut outputs) = (TensorSet::new(&runtime).unwrap(), TensorSet::new(&runtime).unwrap());
                inputs.bind("input0", &b.input).unwrap();
                inputs.bind("input1", &b.cache).unwrap();
                outputs.bind("output0", &b.output).unwrap();
                outputs.bind("output1", &b.cache).unwrap();
                let mut run = Run::new(model, inputs, outputs).unwrap();
                (0..20).for_each(|_| run.execute().unwrap());
                assert_eq!(bytes(&b.cache), [20; 16]);
            });
        }
    });
    drop((model, runtime));
    standin.assert_clean();
}
