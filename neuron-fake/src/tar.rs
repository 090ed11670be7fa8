//! The little of the tar format that a NEFF needs: ustar files, no links, no long names.
//!
//! Reading is total: any bytes give files that lie within them, or an error that says where.

/// A file: name and content.
pub type File<'a> = (&'a str, &'a [u8]);

/// Writes an archive. Names of more than 100 bytes and files of 8 GiB and more do not fit the format: None.
pub fn write(files: &[File<'_>]) -> Option<Vec<u8>> {
    let mut out = vec![];
    for (name, content) in files {
        let mut header = [0u8; BLOCK];
        header.get_mut(..NAME)?.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        let size = format!("{:011o}\0", content.len());
        header.get_mut(SIZE..SIZE + size.len()).filter(|_| size.len() == 12)?.copy_from_slice(size.as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0"); // no time: the same files give the same bytes
        header[156] = b'0';
        header[MAGIC..MAGIC + 8].copy_from_slice(b"ustar\x0000");
        let sum = format!("{:06o}\0 ", checksum(&header));
        header[SUM..SUM + 8].copy_from_slice(sum.as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    Some(out)
}

/// The regular files of an archive.
pub fn read(bytes: &[u8]) -> Result<Vec<File<'_>>, TarError> {
    let mut files = vec![];
    let mut at = 0;
    loop {
        let header: &[u8; BLOCK] =
            bytes.get(at..at + BLOCK).and_then(|b| b.try_into().ok()).ok_or(TarError::Truncated { at })?;
        if header.iter().all(|&b| b == 0) {
            return Ok(files);
        }
        if &header[MAGIC..MAGIC + 5] != b"ustar" {
            return Err(TarError::Magic { at });
        }
        if octal(&header[SUM..SUM + 8]) != Some(checksum(header)) {
            return Err(TarError::Checksum { at });
        }
        let size = octal(&header[SIZE..SIZE + 12]).and_then(|s| usize::try_from(s).ok());
        let start = at + BLOCK;
        let content = size.and_then(|size| bytes.get(start..start.checked_add(size)?));
        let content = content.ok_or(TarError::Truncated { at })?;
        let name = header[..NAME].split(|&b| b == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).map_err(|_| TarError::Name { at })?;
        if matches!(header[156], b'0' | 0) {
            files.push((name, content));
        }
        // The content is inside, so this is at most a block past the end.
        at = (start + content.len()).next_multiple_of(BLOCK);
    }
}

/// Why bytes are no archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// It ends too early.
    #[error("the archive ends inside the entry at byte {at}")]
    Truncated {
        /// Where the entry begins.
        at: usize,
    },
    /// No ustar header.
    #[error("no ustar header at byte {at}")]
    Magic {
        /// Where it should be.
        at: usize,
    },
    /// A damaged header.
    #[error("the header at byte {at} does not have its checksum")]
    Checksum {
        /// Where it is.
        at: usize,
    },
    /// A name that is not UTF-8.
    #[error("the entry at byte {at} has no readable name")]
    Name {
        /// Where the entry begins.
        at: usize,
    },
}

/// The sum of a header's bytes, its own field taken as spaces.
fn checksum(header: &[u8; BLOCK]) -> u64 {
    let field = SUM..SUM + 8;
    header.iter().enumerate().map(|(i, &b)| u64::from(if field.contains(&i) { b' ' } else { b })).sum()
}

fn octal(field: &[u8]) -> Option<u64> {
    let end = field.iter().position(|b| matches!(b, 0 | b' ')).unwrap_or(field.len());
    let digits = std::str::from_utf8(&field[..end]).ok()?;
    u64::from_str_radix(digits, 8).ok()
}

const BLOCK: usize = 512;
const NAME: usize = 100;
const SIZE: usize = 124;
const SUM: usize = 148;
const MAGIC: usize = 257;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn files_survive_and_the_same_files_give_the_same_bytes() {
        let files: [File<'_>; 3] = [("sidecar.json", b"{}"), ("sg00/def.json", &[7; 513]), ("empty", b"")];
        let bytes = write(&files).unwrap();
        assert_eq!(read(&bytes).unwrap(), files);
        assert_eq!(write(&files).unwrap(), bytes);
        assert_eq!(write(&[(&"n".repeat(101), b"")]), None);
    }

    #[test]
    fn damage_is_found() {
        let bytes = write(&[("a", b"content")]).unwrap();
        assert_eq!(read(&bytes[..600]), Err(TarError::Truncated { at: 0 }).or(Err(TarError::Truncated { at: 1024 })));
        let mut wrong = bytes;
        wrong[0] = b'b';
        assert_eq!(read(&wrong), Err(TarError::Checksum { at: 0 }));
    }

    proptest! {
        #[test]
        fn any_bytes_give_files_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = read(&bytes);
        }

        #[test]
        fn any_damage_gives_files_or_an_error(at in 0usize..2048, with: u8, cut in 0usize..2048) {
            let mut bytes = write(&[("a", b"content"), ("b/c", &[1; 100])]).unwrap();
            if let Some(byte) = bytes.get_mut(at) { *byte = with; }
            bytes.truncate(cut);
            let _ = read(&bytes);
        }
    }
}
