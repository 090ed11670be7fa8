//! Version, states, cores, instances, environment.

use njoule_neuron_sys::{Error, Library, Runtime, Status};

use crate::child::{child, count, faults, spawn, start};

fn status(error: Error) -> u32 {
    error.status().map_or(0, |s| s.0)
}

#[test]
fn it_says_that_it_is_no_device() {
    let output = spawn(&[], || {
        let library = Library::open().unwrap();
        assert!(library.version().to_string().contains("2.34.10"), "{}", library.version());
        assert!(format!("{:?}", library.version()).contains("FAKE"));
        assert!(library.can_schedule() && library.can_sleep() && library.has_memory_stats());
        let runtime = start();
        assert_eq!(runtime.cores().len(), 2);
        drop(runtime);
        assert_eq!((faults(), count("neuron_fake_live")), (0, 0));
    });
    if let Some(output) = output {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr.matches("neuron-fake: a stand-in for libnrt.so.1, not a device").count(), 1, "{stderr}");
    }
}

#[test]
fn counts_and_instance_are_known_before_the_start() {
    child(&[("NJOULE_FAKE_INSTANCE", "inf2.48xlarge"), ("NEURON_RT_VISIBLE_CORES", "4-7")], || {
        let library = Library::open().unwrap();
        assert_eq!((library.total_cores(), library.visible_cores()), (Ok(24), Ok(4)));
        let instance = library.instance().unwrap();
        assert_eq!((instance.family.name(), instance.arch.as_str()), (Some("inf2"), "NCv2"));
        assert_eq!(start().cores().len(), 4);
    });
}

#[test]
fn trainium2_has_logical_cores_of_two() {
    child(&[("NJOULE_FAKE_INSTANCE", "trn2.48xlarge"), ("NEURON_RT_NUM_CORES", "8")], || {
        let library = Library::open().unwrap();
        assert_eq!((library.total_cores(), library.visible_cores()), (Ok(64), Ok(8)));
        let runtime = start();
        let memory = runtime.memory(runtime.core(7).unwrap()).unwrap();
        // An eighth of 24 GiB, and of 96 MiB for each of two physical cores.
        assert_eq!((memory.limit, memory.used), (3 << 30, 24 << 20));
    });
}

#[test]
fn smaller_logical_cores_are_more_cores() {
    child(&[("NJOULE_FAKE_INSTANCE", "trn2.3xlarge"), ("NEURON_LOGICAL_NC_CONFIG", "1")], || {
        assert_eq!(Library::open().unwrap().total_cores(), Ok(8));
    });
}

#[test]
fn without_a_device_it_does_not_start() {
    child(&[("NJOULE_FAKE_INSTANCE", "none")], || {
        let library = Library::open().unwrap();
        assert_eq!(library.total_cores(), Ok(0));
        assert_eq!(status(Runtime::start(library).unwrap_err()), 2);
    });
}

#[test]
fn cores_of_another_process_are_refused() {
    let output = spawn(&[("NJOULE_FAKE_CORES_TAKEN", "1")], || {
        let error = Runtime::start(Library::open().unwrap()).unwrap_err();
        assert_eq!(error.status(), Some(Status(1)));
    });
    if let Some(output) = output {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.contains("NeuronCore(s) not available - Requested:2 Available:0"));
    }
}

#[test]
fn cores_beside_those_of_another_process_are_given() {
    child(&[("NJOULE_FAKE_CORES_TAKEN", "1"), ("NEURON_RT_VISIBLE_CORES", "0")], || {
        assert_eq!(start().cores().len(), 1);
    });
}

#[test]
fn a_core_list_with_a_gap_is_refused() {
    child(&[("NJOULE_FAKE_INSTANCE", "inf2.48xlarge"), ("NEURON_RT_VISIBLE_CORES", "0,2")], || {
        assert_eq!(status(Runtime::start(Library::open().unwrap()).unwrap_err()), 2);
    });
}

#[test]
fn a_switch_that_means_nothing_is_refused() {
    child(&[("NJOULE_FAKE_FAULTS", "nrt_execute@first=1")], || {
        assert_eq!(status(Runtime::start(Library::open().unwrap()).unwrap_err()), 2);
    });
}
