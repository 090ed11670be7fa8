//! A file of lines, one at a time, of which none is longer than a limit.
//!
//! Invariant: memory is bounded by the limit whatever the file holds.

use std::io::{self, BufRead};

/// Reads lines.
pub struct Lines<R> {
    reader: R,
    limit: usize,
    line: Vec<u8>,
    /// Bytes before the next line.
    offset: u64,
    number: u64,
}

/// A line without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// From 1.
    pub number: u64,
    /// Where it starts in the file.
    pub start: u64,
    /// Its bytes; `None` where there are more than the limit.
    pub bytes: Option<&'a [u8]>,
    /// Whether a newline ended it, not the file.
    pub ended: bool,
}

impl<R: BufRead> Lines<R> {
    /// Of `reader`, at most `limit` bytes each.
    pub fn new(reader: R, limit: usize) -> Self {
        Lines { reader, limit, line: Vec::new(), offset: 0, number: 0 }
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next line; `None` after the last.
    pub fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let start = self.offset;
        let (mut long, mut ended) = (false, false);
        while !ended {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                break;
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let (text, used) = (&chunk[..end.unwrap_or(chunk.len())], end.map_or(chunk.len(), |end| end + 1));
            long |= self.line.len() + text.len() > self.limit;
            if !long {
                self.line.extend_from_slice(text);
            }
            ended = end.is_some();
            self.offset += used as u64;
            self.reader.consume(used);
        }
        if self.offset == start {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(Line { number: self.number, start, bytes: (!long).then_some(&*self.line), ended }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_are_those_of_the_file_whatever_the_buffer(
            text in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..60), size in 1usize..9, limit in 0usize..9,
        ) {
            let mut lines = Lines::new(io::BufReader::with_capacity(size, &*text), limit);
            let (mut got, mut offset) = (Vec::new(), 0);
            while let Some(line) = lines.next().unwrap() {
                prop_assert_eq!(line.start, offset);
                got.push((line.bytes.map(<[u8]>::to_vec), line.ended));
                offset = lines.offset();
            }
            let want: Vec<_> = text.split_inclusive(|byte| *byte == b'\n').map(|line| {
                let bytes = line.strip_suffix(b"\n").unwrap_or(line);
                ((bytes.len() <= limit).then(|| bytes.to_vec()), line.ends_with(b"\n"))
            }).collect();
            prop_assert_eq!(got, want);
            prop_assert_eq!(offset, text.len() as u64);
        }
    }
}
