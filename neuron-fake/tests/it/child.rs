//! A process of its own for a test: the library has one state per process and reads the environment.

use std::path::PathBuf;
use std::process::{Command, Output};

use njoule_neuron_sys::{Library, Runtime};

/// Runs `body` in a child process with this environment and fails if it fails there, or if the library saw misuse.
/// `body` must be a closure that is written in the test function itself: its type tells the test's name.
#[track_caller]
pub fn child<F: FnOnce()>(environment: &[(&str, &str)], body: F) {
    let output = spawn(environment, body);
    if let Some(output) = output {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && stdout.contains("1 passed"), "{}\n{stdout}\n{stderr}", output.status);
        assert!(!stderr.contains("MISUSE"), "{stderr}");
    }
}

/// For what only the evaluator does, whatever `NJOULE_PJRT` is: 1006 for an index out of bounds, subnormals kept, its own bits.
pub const EVALUATOR: &[(&str, &str)] = &[("NJOULE_PJRT", "")];

/// The same, for what may end otherwise: the child's output; None in the child itself.
pub fn spawn<F: FnOnce()>(environment: &[(&str, &str)], body: F) -> Option<Output> {
    let name = std::any::type_name::<F>();
    let name = name.split_once("::").unwrap().1.split("::{{closure}}").next().unwrap().to_owned();
    if std::env::var("NJOULE_FAKE_TEST").as_deref() == Ok(&name) {
        body();
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([&name, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"])
        .env("NJOULE_FAKE_TEST", &name);
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("NEURON_") || key.starts_with("NJOULE_FAKE_")) {
        if key != "NJOULE_FAKE_TEST" {
            command.env_remove(key);
        }
    }
    if !environment.iter().any(|(key, _)| *key == "NJOULE_NRT") {
        command.env("NJOULE_NRT", library());
    }
    Some(command.envs(environment.iter().copied()).output().unwrap())
}

/// The built library: cargo puts it beside the test binary.
pub fn library() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let beside = here.parent().unwrap().join("libneuron_fake.so");
    assert!(beside.is_file(), "{} is not there", beside.display());
    beside
}

/// Opens and starts it.
pub fn start() -> Runtime {
    Runtime::start(Library::open().unwrap()).unwrap()
}

/// Orders faults in place of those before; calls are counted from now on.
pub fn order(text: &str) {
    let (path, text) = (std::env::var_os("NJOULE_NRT").unwrap(), std::ffi::CString::new(text).unwrap());
    // SAFETY: it is mapped already, so nothing runs.
    let library = unsafe { libloading::Library::new(path) }.unwrap();
    // SAFETY: the function's type in abi.rs.
    let function =
        unsafe { library.get::<unsafe extern "C" fn(*const std::ffi::c_char) -> u32>(b"neuron_fake_order") }.unwrap();
    // SAFETY: a string that lives as long as the call.
    assert_eq!(unsafe { function(text.as_ptr()) }, 0, "{text:?}");
}

/// Whether this is the process of a test that [`spawn`] started.
pub fn is_child() -> bool {
    std::env::var_os("NJOULE_FAKE_TEST").is_some()
}

/// What one of its extra functions says.
pub fn count(name: &str) -> u64 {
    let path = std::env::var_os("NJOULE_NRT").unwrap();
    // SAFETY: it is mapped already, so nothing runs.
    let library = unsafe { libloading::Library::new(path) }.unwrap();
    // SAFETY: the function's type in abi.rs.
    let function = unsafe { library.get::<unsafe extern "C" fn() -> u64>(name.as_bytes()) }.unwrap();
    // SAFETY: it only reads a counter.
    unsafe { function() }
}

/// Misuses so far.
pub fn faults() -> u64 {
    count("neuron_fake_faults")
}
