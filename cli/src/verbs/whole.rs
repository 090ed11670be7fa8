//! A file that lines are appended to.
//!
//! Invariant: after a write that failed, as on a full disk, it ends with the last line that is whole.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// Such a file.
pub struct LineFile {
    file: File,
    /// Where the next line begins.
    end: u64,
    /// Lines that are to be written.
    waiting: Vec<u8>,
}

impl LineFile {
    /// Appends to `file` from where it stands.
    pub fn new(file: File) -> LineFile {
        LineFile { file, end: 0, waiting: Vec::new() }
    }

    /// Cuts the file off at `end`, or leaves it as long as it is, and goes on there.
    pub fn begin(&mut self, end: Option<u64>) -> io::Result<()> {
        if let Some(end) = end {
            self.file.set_len(end)?;
        }
        self.end = self.file.seek(SeekFrom::End(0))?;
        Ok(())
    }

    /// Writes lines, each with its end.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while written < lines.len() {
            let result = match self.file.write(&lines[written..]) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                other => other,
            };
            match result {
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.cut(&lines[..written], error)),
            }
        }
        self.end += lines.len() as u64;
        Ok(())
    }

    /// Keeps lines until there are some of them, or until [`LineFile::flush`].
    pub fn keep(&mut self, line: &str) -> io::Result<()> {
        self.waiting.extend_from_slice(line.as_bytes());
        self.waiting.push(b'\n');
        if self.waiting.len() < BUFFER { Ok(()) } else { self.flush() }
    }

    /// Writes what was kept.
    pub fn flush(&mut self) -> io::Result<()> {
        let lines = std::mem::take(&mut self.waiting);
        self.append(&lines)
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Takes away what `error` has left of a line, of all that came to be written, and says so where it stays.
    fn cut(&mut self, written: &[u8], error: io::Error) -> io::Error {
        // A pipe or a terminal has nothing to be taken away.
        if written.is_empty() || !self.file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return error;
        }
        self.end += written.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at as u64 + 1);
        let cut = self.file.set_len(self.end).and_then(|()| self.file.seek(SeekFrom::Start(self.end)));
        match cut {
            Ok(_) => error,
            Err(left) => io::Error::new(error.kind(), format!("{error}; its last line is torn and stays: {left}")),
        }
    }
}

impl Drop for LineFile {
    fn drop(&mut self) {
        // Whoever wants to know flushes before.
        let _ = self.flush();
    }
}

const BUFFER: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_write_leaves_of_a_line_is_cut_off() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        for (written, left) in [("", "a\n"), ("b", "a\n"), ("b\nc\nd", "a\nb\nc\n"), ("b\n", "a\nb\n")] {
            let mut file = LineFile::new(tempfile::tempfile().unwrap());
            file.append(b"a\n").unwrap();
            (&file.file).write_all(written.as_bytes()).unwrap();
            assert_eq!(file.cut(written.as_bytes(), full()).to_string(), full().to_string());
            file.append(b"e\n").unwrap();
            let mut text = String::new();
            file.file.seek(SeekFrom::Start(0)).unwrap();
            io::Read::read_to_string(&mut &file.file, &mut text).unwrap();
            assert_eq!(text, format!("{left}e\n"));
        }
    }

    #[test]
    fn a_line_that_cannot_be_cut_off_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // A file that is open for reading alone has no length to be set.
        let mut file = LineFile::new(File::open(file.path()).unwrap());
        let told = file.cut(b"b", io::ErrorKind::StorageFull.into());
        assert_eq!(told.kind(), io::ErrorKind::StorageFull);
        assert!(told.to_string().contains("its last line is torn and stays: "), "{told}");
    }
}
