//! The files of results: opened where an earlier run left them, appended to, and on the disk before much is lost.
//!
//! Invariant: a file that holds anything but results of ours is never written to or taken away, nor is any that another
//! process has locked; a record is in it whole or, after a crash, as a torn last line that the next run takes away. A disk that
//! is full leaves no such line.

use std::fs::{OpenOptions, TryLockError};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use njoule_server::local::Answered;
use serde::Deserialize;
use serde_json::{Value, json};

use super::job::{Names, Refused};
use super::lines::Lines;
use crate::verbs::whole::LineFile;

/// Why a file of results cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The system says no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// Open, read, write, ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process writes there.
    #[error("{} is being written by another process", .0.display())]
    Locked(PathBuf),
    /// A device, a pipe, a directory.
    #[error("{} is no regular file; name another one", .0.display())]
    NotAFile(PathBuf),
    /// A file of somebody else's.
    #[error("line {line} of {} is no result of a batch; name another file", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
    },
}

/// A file of results, locked as long as it is open.
pub struct Output {
    file: LineFile,
    path: PathBuf,
    /// What is to be done before the first record is written.
    first: First,
    /// Taken away at the end if there is nothing in it.
    fleeting: bool,
    unsynced: usize,
    synced: Instant,
}

#[derive(Clone, Copy, Debug)]
enum First {
    Nothing,
    /// Cut it off here.
    Cut(u64),
    /// End the last line.
    EndLine,
}

/// What is read of an earlier result.
#[derive(Deserialize)]
struct Earlier {
    custom_id: String,
    response: Response,
}

#[derive(Deserialize)]
struct Response {
    status_code: u16,
}

impl Output {
    /// Opens or makes `path`, whose answers are to be gone on with, and adds the names of what is answered in it to `done`. It
    /// stays as it is until [`Output::begin`].
    pub fn resume(path: &Path, done: &mut Names) -> Result<Output, OutputError> {
        let mut output = Output::open(path)?;
        let mut lines = Lines::new(BufReader::new(output.file.file()), MAX_RECORD);
        let mut first = First::Nothing;
        while let Some(line) = lines.next().map_err(|source| output.failed("read", source))? {
            let record = line.bytes.and_then(|bytes| serde_json::from_slice::<Earlier>(bytes).ok());
            match record {
                Some(record) if record.response.status_code == 200 => {
                    done.insert(&record.custom_id);
                    if !line.ended {
                        first = First::EndLine;
                    }
                }
                None if !line.ended && line.bytes.is_some_and(is_torn) => first = First::Cut(line.start),
                _ => return Err(OutputError::Foreign { path: path.to_owned(), line: line.number }),
            }
        }
        (output.first, output.fleeting) = (first, false);
        Ok(output)
    }

    /// Opens or makes `path`, which is to be written anew from [`Output::begin`] on. Where nothing is written it is taken away
    /// at the end.
    pub fn anew(path: &Path) -> Result<Output, OutputError> {
        let mut output = Output::open(path)?;
        let mut begin = Vec::new();
        let read = output.file.file().take(RECORD.len() as u64).read_to_end(&mut begin);
        read.map_err(|source| output.failed("read", source))?;
        if !RECORD.as_bytes().starts_with(&begin) {
            output.fleeting = false;
            return Err(OutputError::Foreign { path: path.to_owned(), line: 1 });
        }
        output.first = First::Cut(0);
        Ok(output)
    }

    /// Makes the file ready for records.
    pub fn begin(&mut self) -> Result<(), OutputError> {
        let first = std::mem::replace(&mut self.first, First::Nothing);
        let cut = match first {
            First::Cut(end) => Some(end),
            First::Nothing | First::EndLine => None,
        };
        self.file.begin(cut).map_err(|source| self.failed("write", source))?;
        if let First::EndLine = first { self.write(b"\n") } else { Ok(()) }
    }

    fn open(path: &Path) -> Result<Output, OutputError> {
        let failed = |what, source| OutputError::Io { what, path: path.to_owned(), source };
        let not_a_file = || OutputError::NotAFile(path.to_owned());
        // Before it is opened, which a device or a pipe may notice.
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(not_a_file());
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|source| failed("open", source))?;
        if !file.metadata().map_err(|source| failed("open", source))?.is_file() {
            return Err(not_a_file());
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OutputError::Locked(path.to_owned())),
            // A file system without locks keeps nobody from writing.
            Err(TryLockError::Error(_)) => {}
        }
        let output = Output {
            file: LineFile::new(file),
            path: path.to_owned(),
            first: First::Nothing,
            fleeting: true,
            unsynced: 0,
            synced: Instant::now(),
        };
        // Another process may have taken it away between the two.
        if output.is_at_path() { Ok(output) } else { Err(OutputError::Locked(path.to_owned())) }
    }

    /// Whether the path still names this file.
    fn is_at_path(&self) -> bool {
        let there = std::fs::metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino()));
        let own = self.file.file().metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        matches!((there, own), (Ok(there), Ok(own)) if there == own)
    }

    /// Appends one record; now and then all of them are made to last.
    pub fn append(&mut self, record: &[u8]) -> Result<(), OutputError> {
        self.write(record)?;
        self.unsynced += 1;
        if self.unsynced >= SYNC_RECORDS || self.synced.elapsed() >= SYNC_TIME {
            self.sync()?;
        }
        Ok(())
    }

    /// Makes what was written last.
    pub fn sync(&mut self) -> Result<(), OutputError> {
        self.file.file().sync_data().map_err(|source| self.failed("write", source))?;
        (self.unsynced, self.synced) = (0, Instant::now());
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        self.file.append(bytes).map_err(|source| self.failed("write", source))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> OutputError {
        OutputError::Io { what, path: self.path.clone(), source }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let empty = self.file.file().metadata().is_ok_and(|metadata| metadata.len() == 0);
        if self.fleeting && empty && self.is_at_path() {
            // What is left of it is empty.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether bytes without a newline are the beginning of a record of ours, or what a crash leaves of one.
fn is_torn(bytes: &[u8]) -> bool {
    let begins = &bytes[..bytes.len().min(RECORD.len())];
    RECORD.as_bytes().starts_with(begins) || bytes.iter().all(|byte| *byte == 0)
}

/// A request's answer, as a line.
pub fn answered(custom_id: &str, answered: &Answered) -> Vec<u8> {
    let id = &answered.request_id;
    let custom_id = Value::from(custom_id);
    let status = answered.status;
    let head = format!(
        "{RECORD}{id}\",\"custom_id\":{custom_id},\"response\":{{\"status_code\":{status},\"request_id\":\"{id}\",\"body\":"
    );
    [head.as_bytes(), &answered.body, b"},\"error\":null}\n"].concat()
}

/// A line that was no request, as a line.
pub fn refused(line: u64, refused: &Refused) -> Vec<u8> {
    let error = json!({"code": refused.code, "message": format!("line {line}: {}", refused.message), "line": line});
    let custom_id = Value::from(refused.custom_id.as_deref());
    format!("{RECORD}line_{line}\",\"custom_id\":{custom_id},\"response\":null,\"error\":{error}}}\n").into_bytes()
}

/// What every record begins with.
const RECORD: &str = "{\"id\":\"batch_req_";
/// Larger records are not ours: 1024 prompts with log-probabilities take less.
const MAX_RECORD: usize = 1 << 30;
const SYNC_RECORDS: usize = 1024;
const SYNC_TIME: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Vec<u8> {
        answered(id, &Answered { status: 200, request_id: "1".into(), body: b"{\"a\":1}".to_vec() })
    }

    /// What is done, what is left of the file, or the error, after a resumption of these bytes.
    fn resumed(bytes: &[u8]) -> Result<(bool, Vec<u8>), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        std::fs::write(&path, bytes).unwrap();
        let mut done = Names::default();
        let opened = Output::resume(&path, &mut done).map_err(|error| error.to_string());
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "changed before the run begins");
        let opened = opened.map(|mut output| output.begin().unwrap());
        let left = std::fs::read(&path).unwrap();
        if opened.is_err() {
            assert_eq!(left, bytes, "a file that is not ours was changed");
        }
        opened.map(|()| (done.remove("b"), left))
    }

    #[test]
    fn a_record_that_was_torn_anywhere_is_taken_away_and_the_others_stay() {
        let (a, b) = (record("a"), record("b"));
        for cut in 0..=b.len() {
            let file = [&a[..], &b[..cut]].concat();
            let (b_is_done, left) = resumed(&file).unwrap();
            // Without its newline alone it is whole.
            let whole = cut + 1 >= b.len();
            assert_eq!(b_is_done, whole, "{cut}");
            assert_eq!(left, if whole { [&a[..], &b].concat() } else { a.clone() }, "{cut}");
        }
        assert_eq!(resumed(&[&a[..], &[0; 50]].concat()), Ok((false, a)));
    }

    #[test]
    fn a_file_that_is_written_anew_keeps_what_it_holds_until_the_run_begins_and_goes_when_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.errors.jsonl");
        drop(Output::anew(&path).unwrap());
        assert!(!path.exists());
        std::fs::write(&path, record("a")).unwrap();
        let mut output = Output::anew(&path).unwrap();
        assert!(matches!(Output::anew(&path), Err(OutputError::Locked(_))));
        assert_eq!(std::fs::read(&path).unwrap(), record("a"));
        output.begin().unwrap();
        output.append(&record("b")).unwrap();
        drop(output);
        assert_eq!(std::fs::read(&path).unwrap(), record("b"));
        Output::anew(&path).unwrap().begin().unwrap();
        assert!(!path.exists());
        for foreign in [&b"hello"[..], &[0; 40], b"{}\n"] {
            std::fs::write(&path, foreign).unwrap();
            assert!(matches!(Output::anew(&path), Err(OutputError::Foreign { .. })));
            assert_eq!(std::fs::read(&path).unwrap(), foreign);
        }
        assert!(matches!(Output::anew(dir.path()), Err(OutputError::NotAFile(_))));
    }

    #[test]
    fn a_file_of_somebody_elses_is_not_touched() {
        let mut broken = record("a");
        broken[0] = b'#';
        for file in [&b"hello"[..], b"hello\n", b"{}\n", b"{\"id\":\"batch_req_1\"}\n", &broken] {
            let error = resumed(&[file, b""].concat()).unwrap_err();
            assert!(error.starts_with("line 1 of ") && error.ends_with("another file"), "{error}");
        }
    }
}
