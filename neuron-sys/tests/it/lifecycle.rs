//! Start and close once; handles close in any order.

use std::thread;

use njoule_neuron_sys::{Error, Family, Model, Runtime, Tensor};

use crate::standin::{Bound, Standin};

#[test]
fn a_second_start_is_refused_and_the_last_handle_closes() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    // Opened again, it is the same library.
    assert_eq!(Runtime::start(standin.open().unwrap()).unwrap_err(), Error::AlreadyRunning);
    let clone = runtime.clone();
    drop(runtime);
    assert_eq!(standin.count("standin_closes"), 0, "a handle is left");
    drop(clone);
    assert_eq!((standin.count("standin_inits"), standin.count("standin_closes")), (1, 1));
    standin.assert_clean();
}

#[test]
fn after_closing_it_does_not_start_again() {
    let standin = Standin::new(&[]);
    drop(standin.start());
    let error = Runtime::start(standin.open().unwrap()).unwrap_err();
    assert_eq!(error, Error::Closed);
    assert!(error.to_string().contains("start a new process"), "{error}");
    assert_eq!(standin.count("standin_inits"), 1, "the library was not asked");
}

#[test]
fn of_many_threads_that_start_it_one_does() {
    let standin = Standin::new(&[]);
    let library = standin.open().unwrap();
    let results = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(move || Runtime::start(library))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>() // all at once alive
    });
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    drop(results);
    standin.assert_clean();
}

#[test]
fn a_start_that_fails_says_why_and_may_be_tried_again() {
    let standin = Standin::new(&["INIT_STATUS=2"]);
    for _ in 0..2 {
        let error = Runtime::start(standin.open().unwrap()).unwrap_err();
        assert_eq!(error.status().map(|s| s.0), Some(2));
        let text = error.to_string();
        assert!(text.starts_with("nrt_init of this process's cores failed: NRT_INVALID (2)"), "{text}");
        assert!(text.contains("neuron-ls"), "advice: {text}");
    }
    assert_eq!((standin.count("standin_inits"), standin.count("standin_closes")), (2, 0));
}

#[test]
fn handles_may_be_dropped_in_any_order() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let core = runtime.core(0).unwrap();
    let Bound { run, input, output, cache } = Bound::new(&runtime, core);
    let slice = cache.slice(4, 4, "page").unwrap();
    drop(runtime);
    drop(cache);
    drop(input);
    drop(run);
    drop(output);
    assert_eq!(standin.count("standin_closes"), 0, "the slice is left");
    slice.write(0, &[1, 2, 3, 4]).unwrap();
    drop(slice);
    standin.assert_clean();
}

#[test]
fn what_a_destructor_could_not_return_is_kept() {
    let standin = Standin::new(&["UNLOAD_STATUS=6"]);
    let runtime = standin.start();
    let core = runtime.core(0).unwrap();
    let error = Model::load(&runtime, core, b"NEFF", "a").unwrap().unload().unwrap_err();
    assert!(error.to_string().contains("nrt_unload of `a` on core 0 failed: NRT_HW_ERROR (6)"), "{error}");
    assert!(error.ends_process());
    assert_eq!(runtime.take_drop_failure(), None, "returned once, not kept as well");
    drop(Model::load(&runtime, core, b"NEFF", "b").unwrap());
    drop(Model::load(&runtime, core, b"NEFF", "c").unwrap());
    assert!(runtime.take_drop_failure().unwrap().to_string().contains("`b`"), "the first");
    assert_eq!(runtime.take_drop_failure(), None);
    drop(runtime);
    standin.assert_clean();
}

#[test]
fn cores_and_the_instance_are_what_the_library_says() {
    let standin = Standin::new(&[]);
    let library = standin.open().unwrap();
    assert_eq!((library.total_cores(), library.visible_cores()), (Ok(12), Ok(2)), "before the start");
    let instance = library.instance().unwrap();
    assert_eq!((instance.family.name(), instance.arch.as_str()), (Some("inf2"), "NCv2"));
    assert_eq!(Family(99).to_string(), "family 99");
    let runtime = Runtime::start(library).unwrap();
    assert_eq!(runtime.cores().map(|core| core.index()).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(runtime.core(2), Err(Error::NoSuchCore { core: 2, visible: 2 }));
    assert!(runtime.core(u32::MAX).is_err());
    let stats = runtime.memory(runtime.core(1).unwrap()).unwrap();
    assert_eq!((stats.used, stats.limit), (1001, 16 << 30));
    drop(runtime);
    standin.assert_clean();
}

#[test]
fn answers_that_cannot_be_are_refused() {
    let standin = Standin::new(&["SHORT_STATS", "BAD_INFO", "SMALL_TENSORS"]);
    let runtime = standin.start();
    let core = runtime.core(0).unwrap();
    let text = runtime.memory(core).unwrap_err().to_string();
    assert!(text.contains("wrote 8 bytes of 16"), "{text}");
    let text = Model::load(&runtime, core, b"NEFF", "m").unwrap_err().to_string();
    assert!(text.contains("`output1` is neither input nor output but 7"), "{text}");
    let text = Tensor::on_core(&runtime, core, 64, "t").unwrap_err().to_string();
    assert!(text.contains("`t` (64 bytes on core 0)") && text.contains("gave 32 bytes"), "{text}");
    drop(runtime);
    standin.assert_clean(); // what was refused was given back
}
