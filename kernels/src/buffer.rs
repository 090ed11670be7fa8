//! Zeroed memory for weights, caches and activations: 64-byte aligned, lazily backed, on huge pages where it is large.

use std::fmt;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Where huge pages start to pay: below this the rounding would waste more than the TLB saves.
const HUGE: usize = 2 << 20;

/// An owned, zero-initialised, fixed-size run of bytes.
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    mapped: usize,
}

// SAFETY: the buffer owns its mapping; shared access through `&self` is read-only, and `as_mut_ptr` leaves exclusion to
// its unsafe users.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// The system refused memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot allocate {bytes} bytes")]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub bytes: usize,
}

impl Buffer {
    /// `len` zero bytes, on huge pages where that pays.
    pub fn zeroed(len: usize) -> Result<Self, OutOfMemory> {
        let buffer = Self::lazy(len)?;
        if len >= HUGE {
            // SAFETY: the range is the mapping just made; the advice only changes page sizes, and may be refused.
            let _ = unsafe { madvise(buffer.start.as_ptr().cast(), buffer.mapped, Advice::LinuxHugepage) };
        }
        Ok(buffer)
    }

    /// `len` zero bytes that take memory page by page as they are written.
    pub fn lazy(len: usize) -> Result<Self, OutOfMemory> {
        let out_of_memory = OutOfMemory { bytes: len };
        let mapped = len.max(1).checked_next_multiple_of(4096).ok_or(out_of_memory)?;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let start = start.ok().and_then(|p| NonNull::new(p.cast::<u8>())).ok_or(out_of_memory)?;
        Ok(Buffer { start, len, mapped })
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is `len` initialised bytes, and `&self` forbids safe writers.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Its bytes, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Its start. Writers through this pointer must keep to parts nobody else reads or writes meanwhile.
    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `zeroed` with this length and nothing borrows it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}
