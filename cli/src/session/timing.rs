//! `NJOULE_TIMING=1`: where the time to the first token goes, one line per mark on stderr.

use std::sync::OnceLock;
use std::time::Instant;

/// Says that `what` is done.
pub fn mark(what: &str) {
    static START: OnceLock<Option<Instant>> = OnceLock::new();
    let wanted = || std::env::var_os("NJOULE_TIMING").is_some_and(|v| v == "1").then(Instant::now);
    if let Some(start) = START.get_or_init(wanted) {
        eprintln!("timing: {:8.2} ms  {what}", start.elapsed().as_secs_f64() * 1e3);
    }
}
