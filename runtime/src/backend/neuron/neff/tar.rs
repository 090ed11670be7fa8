//! A tar, read from front to back: names and sizes, contents on demand.

use std::io::{self, Read};

use super::{Neff, Problem};

/// Tells `neff` of every file and returns how many there were.
pub(super) fn walk(mut data: impl Read, neff: &mut Neff) -> Result<u64, Problem> {
    let (mut files, mut long_name) = (0, None);
    loop {
        let mut block = [0; BLOCK];
        match fill(&mut data, &mut block)? {
            0 => return Ok(files),
            BLOCK => {}
            n => return Err(Problem::Format(format!("its tar ends within a header, after {n} bytes of {BLOCK}"))),
        }
        if block.iter().all(|b| *b == 0) {
            // The end; what follows is padding, and what gzip checks the data by.
            io::copy(&mut data, &mut io::sink())?;
            return Ok(files);
        }
        let size =
            size_of(&block).ok_or_else(|| Problem::Format("its tar has a file of no readable size".to_owned()))?;
        let name = long_name.take().unwrap_or_else(|| name_of(&block));
        let mut content = (&mut data).take(size);
        match block[TYPE] {
            // GNU: the content is the next file's name.
            b'L' if size <= MOST_NAME => {
                let mut bytes = vec![];
                content.read_to_end(&mut bytes)?;
                bytes.retain(|b| *b != 0);
                long_name = Some(String::from_utf8_lossy(&bytes).into_owned());
            }
            b'0' | 0 => {
                files += 1;
                neff.file(&name, size, &mut content)?;
            }
            _ => {} // directories, attributes
        }
        let left = content.limit();
        if io::copy(&mut content, &mut io::sink())? < left {
            return Err(Problem::Format(format!("its tar ends within `{name}` of {size} bytes")));
        }
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        io::copy(&mut (&mut data).take(padding), &mut io::sink())?;
    }
}

/// Octal, or base 256 where the first bit is set.
fn size_of(block: &[u8; BLOCK]) -> Option<u64> {
    let field = &block[124..136];
    if field[0] & 0x80 != 0 {
        let high = field[..4].iter().any(|b| *b & 0x7f != 0);
        let n = field[4..].iter().fold(0, |n: u64, b| n << 8 | u64::from(*b));
        return (!high && n <= u64::MAX / 2).then_some(n);
    }
    let digits = field.iter().copied().skip_while(|b| *b == b' ').take_while(|b| !matches!(b, 0 | b' '));
    // Twelve octal digits fit.
    digits.into_iter().try_fold(0, |n: u64, b| matches!(b, b'0'..=b'7').then(|| n << 3 | u64::from(b - b'0')))
}

fn name_of(block: &[u8; BLOCK]) -> String {
    let part = |bytes: &[u8]| super::text(bytes);
    let (name, prefix) = (part(&block[..100]), part(&block[345..500]));
    if prefix.is_empty() || &block[257..262] != b"ustar" { name } else { format!("{prefix}/{name}") }
}

/// Reads until the block is full or the data ends.
fn fill(data: &mut impl Read, block: &mut [u8; BLOCK]) -> io::Result<usize> {
    let mut have = 0;
    while have < BLOCK {
        match data.read(&mut block[have..])? {
            0 => break,
            n => have += n,
        }
    }
    Ok(have)
}

const BLOCK: usize = 512;
const TYPE: usize = 156;
const MOST_NAME: u64 = 1 << 16;
