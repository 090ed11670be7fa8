//! Bounds on what the C library's allocator keeps of a server's large requests.
//!
//! glibc serves threads from heaps of their own and, once large blocks were freed, takes the next ones from there: requests of
//! a megabyte or expensive grammars leave heaps behind that are mostly holes (a server of 30 MiB had 237 after 99,000 hostile
//! bodies). With bounds given it does not move them. They are read from the environment before `main`, so the process
//! starts itself over: same id, same arguments, same streams.
//!
//! Invariant: whoever sets one of them is asked nothing, and where it does not work the server runs as it is.

use std::ffi::OsStr;

/// Blocks of as many bytes are the system's own and go back to it; so does free memory of as many at a heap's end.
const BOUNDS: [(&str, &str); 2] = [("MALLOC_MMAP_THRESHOLD_", "1048576"), ("MALLOC_TRIM_THRESHOLD_", "1048576")];

/// Starts the process over with bounds if it is to be a server and has none.
pub fn bound() {
    let is_server = || {
        let verb = std::env::args_os().skip(1).find(|word| !word.as_encoded_bytes().starts_with(b"-"));
        verb.as_deref() == Some(OsStr::new("serve"))
    };
    if !cfg!(all(target_os = "linux", target_env = "gnu"))
        || BOUNDS.iter().any(|(name, _)| std::env::var_os(name).is_some())
        || !is_server()
    {
        return;
    }
    #[cfg(unix)]
    if let Ok(program) = std::env::current_exe() {
        use std::os::unix::process::CommandExt as _;
        use std::process::Command;

        let mut words = std::env::args_os();
        let mut command = Command::new(program);
        command.arg0(words.next().unwrap_or_default()).args(words).envs(BOUNDS);
        // It comes back where it failed alone; then the server runs without.
        let _ = command.exec();
    }
}
