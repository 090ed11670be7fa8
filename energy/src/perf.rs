//! Energy events of the kernel's perf: one system call to open a counter, a read to ask it.
//!
//! The only unsafe code of this crate beside `nvml.rs`.

use std::io;

/// A counter of a performance monitoring unit.
pub trait PerfCounter: Send {
    /// Its value; the kernel extends it to 64 bits.
    fn read(&mut self) -> io::Result<u64>;
}

/// What opens counters.
pub trait PerfOpen {
    /// A system-wide counter of event `config` of unit `kind` on `cpu`.
    fn open(&self, kind: u32, config: u64, cpu: u32) -> io::Result<Box<dyn PerfCounter>>;
}

/// Another tree than the machine's, which has no kernel behind it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Elsewhere;

impl PerfOpen for Elsewhere {
    fn open(&self, _: u32, _: u64, _: u32) -> io::Result<Box<dyn PerfCounter>> {
        Err(io::Error::other("not opened for another tree than the machine's"))
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel;

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io::{self, Read};
    use std::os::fd::FromRawFd;

    use super::{Kernel, PerfCounter, PerfOpen};

    impl PerfOpen for Kernel {
        fn open(&self, kind: u32, config: u64, cpu: u32) -> io::Result<Box<dyn PerfCounter>> {
            // struct perf_event_attr in its first published size (PERF_ATTR_SIZE_VER0); all else is zero.
            let mut attr = [0u64; 8];
            // `type` and `size` are the two halves of the first word, in memory order.
            let (size, kind) = (64u64, u64::from(kind));
            attr[0] = if cfg!(target_endian = "little") { size << 32 | kind } else { kind << 32 | size };
            attr[1] = config;
            let cpu = libc::c_int::try_from(cpu).map_err(|_| io::ErrorKind::InvalidInput)?;
            const CLOEXEC: libc::c_ulong = 8; // PERF_FLAG_FD_CLOEXEC
            // SAFETY: the call reads 64 bytes, as `size` in them says, of a live array; pid -1, a cpu and no group are
            // plain numbers. It returns a new descriptor or -1.
            let fd = unsafe {
                libc::syscall(
                    libc::SYS_perf_event_open,
                    attr.as_ptr(),
                    -1 as libc::pid_t,
                    cpu,
                    -1 as libc::c_int,
                    CLOEXEC,
                )
            };
            match i32::try_from(fd) {
                // SAFETY: a descriptor that the kernel has just made and nobody else has.
                Ok(fd) if fd >= 0 => Ok(Box::new(Counter(unsafe { File::from_raw_fd(fd) }))),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    struct Counter(File);

    impl PerfCounter for Counter {
        fn read(&mut self) -> io::Result<u64> {
            let mut bytes = [0; 8];
            self.0.read_exact(&mut bytes)?;
            Ok(u64::from_ne_bytes(bytes))
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl PerfOpen for Kernel {
    fn open(&self, _: u32, _: u64, _: u32) -> io::Result<Box<dyn PerfCounter>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// A software event that every kernel has: CPU 0's clock, in nanoseconds. Where perf is barred, the error says so.
    #[test]
    fn a_counter_of_the_kernel_counts_or_is_barred() {
        const SOFTWARE: u32 = 1;
        match Kernel.open(SOFTWARE, 0, 0) {
            Ok(mut counter) => {
                let first = counter.read().unwrap();
                while counter.read().unwrap() == first {}
            }
            Err(error) => {
                let barred = [libc::EACCES, libc::EPERM, libc::ENOSYS];
                assert!(error.raw_os_error().is_some_and(|code| barred.contains(&code)), "{error}");
                eprintln!("skipped: perf is barred here: {error}");
            }
        }
        assert!(Kernel.open(u32::MAX, 0, 0).is_err());
    }
}
