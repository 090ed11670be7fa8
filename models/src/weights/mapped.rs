//! A checkpoint file mapped into memory, read-only.
//!
//! The only file of this crate with `unsafe`. A mapped file is trusted not to change while it is open: shortening it makes
//! the kernel send SIGBUS, as for every program that maps its input.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::WeightError;

/// A file's bytes.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
    version: u64,
}

impl MappedFile {
    /// Maps a regular file.
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let io = |source| WeightError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(io(std::io::Error::other("not a regular file")));
        }
        // SAFETY: the mapping is private to this value and never written through; that nobody else changes the file
        // while a model is loaded from it is the documented condition of running this program.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(MappedFile { path: path.to_owned(), map, version: version(&metadata) })
    }

    /// A number that is another one for another file, and after this one was written to: of its device, number, size and time of
    /// change, as they were when it was opened.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Says that `range` is about to be read from front to back.
    pub fn will_need(&self, range: Range<usize>) {
        // Advice only: reading works without it.
        let _ = self.map.advise_range(Advice::WillNeed, range.start, range.len());
    }

    /// Drops the pages under `range` from this process. The page that `range` ends in stays, since what follows is likely
    /// to be read next; the one it starts in goes with it. Pages still in use are simply read again.
    pub fn release(&self, range: Range<usize>) {
        let end = range.end.min(self.map.len()) / PAGE * PAGE;
        let start = range.start / PAGE * PAGE;
        if start < end {
            // SAFETY: the mapping is of a file and is never written to, so a dropped page comes back with the same bytes,
            // and a slice borrowed from it stays valid.
            let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
        }
    }
}

fn version(metadata: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let time = [metadata.mtime(), metadata.mtime_nsec()].map(i64::cast_unsigned);
    fold([metadata.dev(), metadata.ino(), metadata.size(), time[0], time[1]])
}

/// Numbers as one (FNV-1a).
pub fn fold(numbers: impl IntoIterator<Item = u64>) -> u64 {
    let bytes = numbers.into_iter().flat_map(u64::to_le_bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A multiple of every page size of Linux on x86-64 and of the common one on aarch64; with larger pages the kernel refuses
/// an unaligned start, and the advice is lost.
const PAGE: usize = 4096;
