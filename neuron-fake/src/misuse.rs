//! What a correct program never does: use after free, freeing what a run uses, closing with handles open. Each is written
//! to stderr at once, counted, and said again at exit, so that a test cannot miss it.

use std::fmt;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Records one.
pub(crate) fn record(what: impl fmt::Display) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    eprintln!("neuron-fake: MISUSE: {what}");
}

/// How many there were in this process.
pub(crate) fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Has the count written when the process ends.
pub(crate) fn report_at_exit() {
    extern "C" fn report() {
        let count = count();
        if count > 0 {
            eprintln!("neuron-fake: {count} misuses of libnrt in this process");
        }
    }
    unsafe extern "C" {
        fn atexit(function: extern "C" fn()) -> std::ffi::c_int;
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the C library's function; `report` takes nothing and touches a static alone.
        if unsafe { atexit(report) } != 0 {
            eprintln!("neuron-fake: atexit refused; misuses are only written as they happen");
        }
    });
}
