//! Zeroed memory for weights, caches and activations: 64-byte aligned, lazily backed, on huge pages where it is large.
//!
//! A huge page starts at a multiple of its size: what lies before the first and after the last such border of a mapping
//! stays on small pages. So large mappings start on a border, and weights, which are many and of any size, share them
//! ([`Arena`]): a stream over small pages is slower by the walks for their addresses and by prefetches that end with them.

use std::fmt;
#[cfg(target_os = "linux")]
use std::fs::File;
#[cfg(target_os = "linux")]
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

#[cfg(target_os = "linux")]
use rustix::mm::mmap;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Size of a huge page: below this the rounding would waste more than the TLB saves.
const HUGE: usize = 2 << 20;

/// Address space that an arena takes at once; it takes memory only as it is written.
const REGION: usize = 64 << 20;

/// An owned, zero-initialised, fixed-size run of bytes.
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    /// Keeps the bytes mapped.
    region: Arc<Region>,
}

// SAFETY: a buffer's bytes are its own part of its region; shared access through `&self` is read-only, and `as_mut_ptr`
// leaves exclusion to its unsafe users.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// Buffers that share huge pages. Their memory is returned when the last of a region is gone.
#[derive(Default)]
pub struct Arena {
    region: Option<Arc<Region>>,
    used: usize,
    /// There is no other region to go on with.
    bounded: bool,
}

/// A mapping: anonymous, or of a memory file.
struct Region {
    start: NonNull<u8>,
    mapped: usize,
    /// Whether the bytes may be written.
    writable: bool,
}

// SAFETY: a region only holds its mapping; who may touch which bytes is its buffers' affair.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

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
        if len < HUGE { Self::lazy(len) } else { Arena::default().zeroed(len) }
    }

    /// `len` zero bytes that take memory page by page as they are written.
    pub fn lazy(len: usize) -> Result<Self, OutOfMemory> {
        let region = Region::new(len).ok_or(OutOfMemory { bytes: len })?;
        Ok(Buffer { start: region.start, len, region: Arc::new(region) })
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
        assert!(self.region.writable, "what others read is not written");
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Its start. Writers through this pointer must keep to parts nobody else reads or writes meanwhile.
    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        assert!(self.region.writable, "what others read is not written");
        self.start.as_ptr()
    }
}

impl Arena {
    /// Buffers in the first `len` bytes of a memory file of zeros that this process alone fills, for others to read.
    #[cfg(target_os = "linux")]
    pub(crate) fn of_file(file: &File, len: usize) -> io::Result<Arena> {
        Ok(Arena { region: Some(Arc::new(Region::of_file(file, len, true)?)), used: 0, bounded: true })
    }

    /// Buffers that hold what was filled in, in the same order; the file is sealed.
    #[cfg(target_os = "linux")]
    pub(crate) fn of_sealed(file: &File, len: usize) -> io::Result<Arena> {
        Ok(Arena { region: Some(Arc::new(Region::of_file(file, len, false)?)), used: 0, bounded: true })
    }

    /// Whether buffers hold what somebody has filled in.
    pub fn is_filled(&self) -> bool {
        self.region.as_ref().is_some_and(|region| !region.writable)
    }

    /// Bytes of a region that are given away.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// The next `len` bytes, zero unless they were filled in.
    pub fn zeroed(&mut self, len: usize) -> Result<Buffer, OutOfMemory> {
        let out_of_memory = OutOfMemory { bytes: len };
        let size = len.checked_next_multiple_of(64).ok_or(out_of_memory)?;
        if self.bounded && self.region.as_ref().is_none_or(|region| size > region.mapped - self.used) {
            return Err(out_of_memory);
        }
        let current = self.region.take().filter(|region| size <= region.mapped - self.used);
        let region = match current {
            Some(region) => region,
            None => {
                self.used = 0;
                // Many small buffers share a region; a large one has its own, and what follows starts another.
                let region = Region::huge(if size > REGION / 4 { size } else { REGION });
                Arc::new(region.ok_or(out_of_memory)?)
            }
        };
        // SAFETY: `used + size` lies within the mapping.
        let start = unsafe { region.start.add(self.used) };
        self.used += size;
        self.region = Some(Arc::clone(&region));
        Ok(Buffer { start, len, region })
    }
}

impl Region {
    /// At least `len` bytes; none where the system refuses.
    fn new(len: usize) -> Option<Self> {
        let mapped = len.max(1).checked_next_multiple_of(4096)?;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        Some(Region { start: NonNull::new(start.ok()?.cast::<u8>())?, mapped, writable: true })
    }

    /// The first `mapped` bytes of a memory file: to be filled by this process alone, or sealed and to be read.
    #[cfg(target_os = "linux")]
    fn of_file(file: &File, mapped: usize, writable: bool) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(file)?;
        let long = u64::try_from(mapped).is_ok_and(|mapped| file.metadata().is_ok_and(|data| mapped <= data.len()));
        if !long || mapped == 0 || !(writable || seals.contains(crate::shared::SEALED)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let access = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address of the kernel's choice. Its bytes are in the file; to be read it is sealed, so
        // that they neither change nor go away; to be written the caller holds the file's lock, which all processes that
        // know the file take before they write.
        let start = unsafe { mmap(std::ptr::null_mut(), mapped, access, MapFlags::SHARED, file, 0)? };
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the range is the mapping just made; the advice only changes page sizes, and may be refused.
        let _ = unsafe { madvise(start.as_ptr().cast(), mapped, Advice::LinuxHugepage) };
        Ok(Region { start, mapped, writable })
    }

    /// The same from a border of huge pages on, and on such pages as far as whole ones reach.
    fn huge(len: usize) -> Option<Self> {
        let mut region = Region::new(len.checked_add(HUGE)?)?;
        let before = region.start.as_ptr().align_offset(HUGE);
        if before > 0 {
            // SAFETY: the head of the mapping, whole small pages that nobody has seen.
            unsafe { munmap(region.start.as_ptr().cast(), before) }.ok()?;
            // SAFETY: less than HUGE bytes into a longer mapping.
            region.start = unsafe { region.start.add(before) };
            region.mapped -= before;
        }
        // SAFETY: the range is the mapping just made; the advice only changes page sizes, and may be refused.
        let _ = unsafe { madvise(region.start.as_ptr().cast(), region.mapped, Advice::LinuxHugepage) };
        Some(region)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region owns this mapping and no buffer is in it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_an_arena_are_zero_aligned_apart_and_outlive_it() {
        let mut arena = Arena::default();
        let sizes = [1, 64, 100_000, 0, REGION / 4, REGION / 4 + 1, 5, REGION / 2, 3 * REGION + 7, 4096];
        let mut buffers: Vec<Buffer> = sizes.iter().map(|len| arena.zeroed(*len).expect("memory")).collect();
        drop(arena);
        for (i, (buffer, len)) in buffers.iter_mut().zip(sizes).enumerate() {
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_slice().as_ptr().align_offset(64), 0, "{len} bytes");
            let ends = [0, len.saturating_sub(1)].map(|at| buffer.as_slice().get(at).copied().unwrap_or(0));
            assert_eq!(ends, [0, 0], "{len} bytes");
            if len > 0 {
                buffer.as_mut_slice()[0] = i as u8 + 1;
                buffer.as_mut_slice()[len - 1] = i as u8 + 1;
            }
        }
        for (i, buffer) in buffers.iter().enumerate().filter(|(_, b)| !b.is_empty()) {
            let bytes = buffer.as_slice();
            assert_eq!((bytes[0], bytes[bytes.len() - 1]), (i as u8 + 1, i as u8 + 1), "buffer {i}");
        }
    }

    #[test]
    fn large_buffers_start_on_a_huge_page() {
        let buffers = [HUGE, HUGE + 1, 3 * HUGE - 64].map(|len| Buffer::zeroed(len).expect("memory"));
        assert!(buffers.iter().all(|b| b.as_slice().as_ptr().align_offset(HUGE) == 0));
    }

    #[test]
    fn more_than_there_is_names_its_size() {
        let bytes = usize::MAX - 4096;
        assert_eq!(Buffer::zeroed(bytes).err(), Some(OutOfMemory { bytes }));
        assert_eq!(Buffer::lazy(bytes).err(), Some(OutOfMemory { bytes }));
    }
}
