//! Each in a process of its own: a signal's action is the whole process's.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use njoule_runtime::backend::neuron::compiler;
use rustix::process::{Signal, getpid, kill_process};

use super::*;

const CHILD: &str = "NJOULE_TEST_CHILD";

/// Runs `body` in a child, by `sh -c` with `before` in front of it; `None` in that child, when it has run. `body` stands in
/// the test function itself: its type tells the test's name.
fn child<F: FnOnce()>(before: &str, body: F) -> Option<Output> {
    let name = std::any::type_name::<F>();
    let name = name.split_once("::").unwrap().1.split("::{{closure}}").next().unwrap().to_owned();
    if std::env::var_os(CHILD).is_some() {
        body();
        return None;
    }
    let script = format!("{before}\nexec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
    command.args([&name, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    Some(command.output().unwrap())
}

fn raise(signal: Signal) {
    kill_process(getpid(), signal).unwrap();
}

/// Waits for what another thread or process does.
fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[track_caller]
fn ended_by(output: Option<Output>, signal: Signal) {
    if let Some(output) = output {
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(signal.as_raw()), "{}: {text}", output.status);
    }
}

#[test]
fn a_signal_that_was_taken_for_a_while_ends_the_process_again_afterwards() {
    ended_by(
        child("", || {
            for _ in 0..2 {
                let outer = Stop::install().unwrap();
                drop(Stop::install().unwrap());
                // The outer one still has it.
                raise(Signal::TERM);
                until("the flag", || outer.flag().load(Ordering::Relaxed));
            }
            raise(Signal::TERM);
            std::thread::sleep(Duration::from_secs(60));
        }),
        Signal::TERM,
    );
}

#[test]
fn a_signal_that_others_have_taken_stays_theirs() {
    let output = child("", || {
        let others = Arc::new(AtomicBool::new(false));
        flag::register(signal_hook::consts::SIGTERM, others.clone()).unwrap();
        drop(Stop::install().unwrap());
        raise(Signal::TERM);
        until("the others' flag", || others.load(Ordering::Relaxed));
        // Taken after a stop was over, too.
        let interrupt = Interrupt::install().unwrap();
        raise(Signal::INT);
        until("the press", || interrupt.pressed());
    });
    if let Some(output) = output {
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn a_signal_that_is_ignored_asks_for_nothing() {
    let output = child("trap '' HUP", || {
        let stop = Stop::install().unwrap();
        raise(Signal::HUP);
        raise(Signal::TERM);
        // In the order of their numbers where both are pending; this one is not ignored.
        until("the flag", || stop.flag().load(Ordering::Relaxed));
        drop(stop);
        raise(Signal::HUP);
        let stop = Stop::install().unwrap();
        raise(Signal::HUP);
        assert!(!stop.flag().load(Ordering::Relaxed));
    });
    if let Some(output) = output {
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn ctrl_c_counts_where_a_shell_has_put_the_process_in_the_background() {
    let output = child("trap '' INT", || {
        let stop = Stop::install().unwrap();
        raise(Signal::INT);
        until("the flag", || stop.flag().load(Ordering::Relaxed));
        drop(stop);
        // Ignored again.
        raise(Signal::INT);
    });
    if let Some(output) = output {
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn a_second_press_ends_the_process_and_every_compiler() {
    let dir = tempfile::tempdir().unwrap();
    let before = format!("cd {}", dir.path().display());
    let output = child(&before, || {
        let _stop = Stop::install().unwrap();
        // Its worker too, which is in its group.
        let script = "sleep 1000 & echo $! > worker.part; echo $$ > pid; mv worker.part worker; wait";
        std::thread::spawn(move || compiler::said(Path::new("/bin/sh"), &["-c", script], Duration::from_secs(1000)));
        until("the compiler", || Path::new("worker").exists());
        raise(Signal::INT);
        std::thread::sleep(Duration::from_millis(20));
        raise(Signal::INT);
        std::thread::sleep(Duration::from_secs(60));
    });
    let Some(output) = output else { return };
    assert_eq!(output.status.code(), Some(INTERRUPTED), "{output:?}");
    for file in ["pid", "worker"] {
        let pid = std::fs::read_to_string(dir.path().join(file)).unwrap();
        // Gone, or a zombie that nobody has waited for.
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        until(file, || !stat().is_ok_and(|stat| !stat.contains(") Z ")));
    }
}
