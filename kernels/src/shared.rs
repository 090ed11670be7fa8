//! Weights that several processes read: packed once, into memory that cannot change afterwards.
//!
//! Invariant: bytes are mapped to be read only when their file is sealed against writes and shrinking, so what a slice shows
//! never changes and never goes away, whatever another process does.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

use crate::buffer::Arena;

/// A memory file. It is empty until the first process that wants its bytes has filled it.
#[derive(Debug)]
pub struct Shared(File);

/// Why there are no shared bytes.
#[derive(Debug, thiserror::Error)]
pub enum SharedError<E> {
    /// The system refuses.
    #[error("cannot share memory: {0}")]
    System(#[from] io::Error),
    /// It was filled with something else.
    #[error("it holds the weights of another model, or the model's files have changed since: start the server anew")]
    Other,
    /// They cannot be made.
    #[error(transparent)]
    Fill(E),
}

impl Shared {
    /// An empty one, and the path by which processes that this one starts from now on open it.
    pub fn create() -> io::Result<(Shared, PathBuf)> {
        // Without CLOEXEC: that they inherit it is the purpose.
        let file = File::from(memfd_create("njoule-weights", MemfdFlags::ALLOW_SEALING)?);
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok((Shared(file), path))
    }

    /// The one that another process has created.
    pub fn open(path: &Path) -> io::Result<Shared> {
        let file = File::options().read(true).write(true).open(path)?;
        // Anything but a memory file has no seals.
        fcntl_get_seals(&file)?;
        Ok(Shared(file))
    }

    /// Buffers of `len` bytes together that hold what `fill` writes, where `layout` says what that is. Of all processes that
    /// ask, one fills and the others wait; `fill` gets zeros and must keep no buffer.
    pub fn arena<E>(
        &self,
        layout: u64,
        len: usize,
        fill: impl FnOnce(&mut Arena) -> Result<(), E>,
    ) -> Result<Arena, SharedError<E>> {
        let mapped = len.max(1).checked_next_multiple_of(PAGE).ok_or_else(too_large)?;
        let whole = u64::try_from(mapped + HEADER).map_err(|_| too_large())?;
        // Given back with the file, also by a process that is killed.
        self.0.lock()?;
        let filled = self.fill(layout, mapped, whole, fill);
        self.0.unlock()?;
        filled?;
        let header = header(layout, len);
        let mut found = [0; HEADER];
        if self.0.metadata()?.len() != whole {
            return Err(SharedError::Other);
        }
        self.0.read_exact_at(&mut found, whole - HEADER as u64)?;
        if found != header {
            return Err(SharedError::Other);
        }
        Ok(Arena::of_sealed(&self.0, mapped)?)
    }

    /// Fills and seals the file, unless that was done.
    fn fill<E>(
        &self,
        layout: u64,
        mapped: usize,
        whole: u64,
        fill: impl FnOnce(&mut Arena) -> Result<(), E>,
    ) -> Result<(), SharedError<E>> {
        if fcntl_get_seals(&self.0).map_err(io::Error::from)?.contains(SEALED) {
            return Ok(());
        }
        // What a process that died has left is not zero.
        self.0.set_len(0)?;
        self.0.set_len(whole)?;
        let mut arena = Arena::of_file(&self.0, mapped)?;
        fill(&mut arena).map_err(SharedError::Fill)?;
        let used = arena.used();
        drop(arena);
        self.0.write_all_at(&header(layout, used), whole - HEADER as u64)?;
        // Refused while anybody can write: then a buffer was kept.
        Ok(fcntl_add_seals(&self.0, SEALED | SealFlags::GROW | SealFlags::SEAL).map_err(io::Error::from)?)
    }
}

/// What must hold before bytes are read.
pub(crate) const SEALED: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK);
const PAGE: usize = 4096;
/// Behind the bytes: what they are, and how many.
const HEADER: usize = 16;

fn header(layout: u64, len: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&layout.to_le_bytes());
    header[8..].copy_from_slice(&(len as u64).to_le_bytes());
    header
}

fn too_large() -> io::Error {
    io::ErrorKind::OutOfMemory.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(arena: &mut Arena) -> Result<(), &'static str> {
        arena.zeroed(100).map_err(|_| "memory")?.as_mut_slice().fill(7);
        arena.zeroed(64).map_err(|_| "memory")?.as_mut_slice().fill(8);
        Ok(())
    }

    #[test]
    fn one_fills_and_the_others_read_the_same_bytes() {
        let (first, path) = Shared::create().unwrap();
        let second = Shared::open(&path).unwrap();
        let mut mine = first.arena(5, 192, fill).unwrap();
        let mut theirs = second.arena(5, 192, |_| Err("it is filled")).unwrap();
        assert!(mine.is_filled() && theirs.is_filled());
        let (a, b) = (mine.zeroed(100).unwrap(), mine.zeroed(64).unwrap());
        let (c, d) = (theirs.zeroed(100).unwrap(), theirs.zeroed(64).unwrap());
        assert_eq!((a.as_slice(), b.as_slice()), (&[7; 100][..], &[8; 64][..]));
        assert_eq!((c.as_slice(), d.as_slice()), (a.as_slice(), b.as_slice()));
        assert!(theirs.zeroed(8192).is_err(), "no more than there is");
        drop((first, second));
        assert_eq!(a.as_slice()[0], 7);
    }

    #[test]
    fn nobody_can_write_what_others_read() {
        let (shared, path) = Shared::create().unwrap();
        shared.arena(5, 192, fill).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        assert!(file.write_all_at(b"x", 0).is_err() && file.set_len(1).is_err());
    }

    #[test]
    fn a_failed_fill_leaves_an_empty_file_to_the_next() {
        let (shared, _) = Shared::create().unwrap();
        let failed = shared.arena(5, 192, |arena| {
            arena.zeroed(64).unwrap().as_mut_slice().fill(1);
            Err("no")
        });
        assert!(matches!(failed, Err(SharedError::Fill("no"))));
        let mut arena = shared
            .arena(5, 192, |arena| {
                assert!(arena.zeroed(192).unwrap().as_slice().iter().all(|byte| *byte == 0));
                Ok::<_, ()>(())
            })
            .unwrap();
        assert_eq!(arena.zeroed(192).unwrap().as_slice(), [0; 192]);
    }

    #[test]
    fn another_model_or_a_kept_buffer_is_refused() {
        let (shared, _) = Shared::create().unwrap();
        let mut kept = None;
        let refused = shared.arena(5, 192, |arena| {
            kept = arena.zeroed(192).ok();
            Ok::<_, ()>(())
        });
        assert!(matches!(refused, Err(SharedError::System(_))));
        drop(kept);
        shared.arena(5, 192, fill).unwrap();
        for (layout, len) in [(6, 192), (5, 128), (5, 99_999)] {
            assert!(matches!(shared.arena(layout, len, fill), Err(SharedError::Other)), "{layout} {len}");
        }
        assert!(Shared::open(Path::new("/proc/self/exe")).is_err());
    }
}
