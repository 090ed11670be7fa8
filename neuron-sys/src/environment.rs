//! Variables that libnrt reads at its start, set from within the process.
//!
//! Setting a variable while another thread reads one is undefined behaviour, so it is done only while there is no other.

use crate::error::Error;

/// Sets those of `variables` that are not set, before the process has a second thread; refused afterwards.
pub fn set_unless_set(variables: &[(&str, &str)]) -> Result<(), Error> {
    const CALL: &str = "setting variables for the Neuron runtime";
    let failed = |reason: String| Error::System { call: CALL, reason };
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| failed(error.to_string()))?;
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).map(str::trim);
    if threads != Some("1") {
        return Err(failed(format!("the process has {} threads already", threads.unwrap_or("an unknown number of"))));
    }
    for (name, value) in variables.iter().filter(|(name, _)| std::env::var_os(name).is_none()) {
        // SAFETY: this is the only thread, as the kernel just said; only it could start another.
        unsafe { std::env::set_var(name, value) }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_set_while_there_are_other_threads() {
        std::thread::scope(|scope| {
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || stopped.recv());
            assert!(matches!(set_unless_set(&[("NJOULE_NOT_SET", "1")]), Err(Error::System { .. })));
            drop(stop);
        });
        assert!(std::env::var_os("NJOULE_NOT_SET").is_none());
    }
}
