//! One file from the network to disk: resumed, verified, and safe when two processes want it at once.
//!
//! Invariant: [`download`] returns only when the partial file is complete and what was promised; the caller then renames
//! it, so that a file under its final name is never partial.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::http::{Authorization, Http};
use super::url::Url;
use super::{FetchError, Reporter};

/// What to download and what it must be.
#[derive(Debug)]
pub struct Download<'a> {
    /// From where.
    pub url: &'a Url,
    /// For whom.
    pub auth: Option<&'a Authorization>,
    /// The file that grows.
    pub partial: &'a Path,
    /// What the whole file's hash must be.
    pub sha256: Option<&'a str>,
    /// What the whole file's length must be.
    pub size: Option<u64>,
    /// Whether bytes of an earlier run may be built on: only if the partial file's name is tied to the content.
    pub resume: bool,
    /// What people call it.
    pub label: &'a str,
    /// Pause before each further try.
    pub retry_pause: Duration,
}

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// Length.
    pub size: u64,
}

/// Downloads until the partial file is whole and verified.
pub fn download(http: &Http, reporter: &dyn Reporter, wanted: &Download<'_>) -> Result<Arrived, FetchError> {
    let path = wanted.partial;
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(!wanted.resume).open(path);
    let mut file = opened.map_err(FetchError::io("create", path))?;
    let had_bytes = file.metadata().map_err(FetchError::io("read", path))?.len() > 0;
    match fill(http, reporter, wanted, &mut file) {
        // What an earlier run left may be what is wrong: once more from the start.
        Err(FetchError::WrongHash { .. } | FetchError::WrongSize { .. }) if had_bytes => {
            file.set_len(0).map_err(FetchError::io("truncate", path))?;
            fill(http, reporter, wanted, &mut file)
        }
        other => other,
    }
    .inspect_err(|error| {
        if matches!(error, FetchError::WrongHash { .. } | FetchError::WrongSize { .. }) {
            let _ = fs::remove_file(path); // the error that is reported matters more
        }
    })
}

fn fill(http: &Http, reporter: &dyn Reporter, wanted: &Download<'_>, file: &mut File) -> Result<Arrived, FetchError> {
    let path = wanted.partial;
    let mut hasher = Sha256::new();
    let mut have = hash_start(file, &mut hasher).map_err(FetchError::io("read", path))?;
    let (mut tries, mut moved) = (0, false);
    while wanted.size.is_none_or(|size| have < size) {
        let before = have;
        let result = transfer(http, reporter, wanted, file, &mut hasher, &mut have);
        reporter.finish();
        match result {
            Ok(()) => break,
            Err(error @ (FetchError::Broken { .. } | FetchError::Network { .. })) => {
                // A line that moves is worth going on with; one that never moved is not.
                tries = if have > before { 1 } else { tries + 1 };
                moved |= have > before;
                if !moved || tries > MAX_TRIES {
                    return Err(error);
                }
                std::thread::sleep(wanted.retry_pause);
            }
            Err(error) => return Err(error),
        }
    }
    file.sync_all().map_err(FetchError::io("write", path))?;
    let arrived = Arrived { sha256: hex(&hasher.finalize()), size: have };
    if let Some(expected) = wanted.size.filter(|size| *size != have) {
        return Err(FetchError::WrongSize { what: wanted.label.to_owned(), expected, found: have });
    }
    if let Some(expected) = wanted.sha256.filter(|hash| !hash.eq_ignore_ascii_case(&arrived.sha256)) {
        let (what, expected) = (wanted.url.to_string(), expected.to_owned());
        return Err(FetchError::WrongHash { what, expected, found: arrived.sha256 });
    }
    Ok(arrived)
}

/// One request: appends to the file what the server sends.
fn transfer(
    http: &Http,
    reporter: &dyn Reporter,
    wanted: &Download<'_>,
    file: &mut File,
    hasher: &mut Sha256,
    have: &mut u64,
) -> Result<(), FetchError> {
    let path = wanted.partial;
    let range = format!("bytes={have}-");
    let headers: &[(&str, &str)] = if *have > 0 { &[("Range", &range)] } else { &[] };
    let mut answer = http.get(wanted.url, headers, wanted.auth)?;
    let continues = answer.status == 206 && range_start(answer.header("content-range")) == Some(*have);
    if *have > 0 && !continues {
        // The server knows no ranges, or its file is another one by now: from the start.
        if answer.status == 206 || answer.status == 416 {
            answer = http.get(wanted.url, &[], wanted.auth)?;
        }
        file.set_len(0).map_err(FetchError::io("truncate", path))?;
        file.rewind().map_err(FetchError::io("write", path))?;
        *hasher = Sha256::new();
        *have = 0;
    }
    let answer = answer.ok()?;
    let url = answer.url.to_string();
    let announced = answer.content_length().and_then(|length| length.checked_add(*have));
    let total = wanted.size.or(announced);
    reporter.start(wanted.label, *have, total);
    let mut reader = answer.reader();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(FetchError::Broken { url, bytes: *have, source }),
        };
        let bytes = &buffer[..count];
        file.write_all(bytes).map_err(FetchError::io("write", path))?;
        hasher.update(bytes);
        *have += count as u64;
        reporter.advance(count as u64);
        if let Some(expected) = wanted.size.filter(|size| *have > *size) {
            return Err(FetchError::WrongSize { what: wanted.label.to_owned(), expected, found: *have });
        }
    }
    if announced.is_some_and(|announced| *have < announced) {
        let source = io::ErrorKind::UnexpectedEof.into();
        return Err(FetchError::Broken { url, bytes: *have, source });
    }
    Ok(())
}

/// The sha256 of a file, in lower-case hexadecimal.
pub fn sha256_of(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    hash_start(&mut File::open(path)?, &mut hasher)?;
    Ok(hex(&hasher.finalize()))
}

/// Hashes a file from its start and leaves it at its end.
fn hash_start(file: &mut File, hasher: &mut Sha256) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            count => {
                hasher.update(&buffer[..count]);
                total += count as u64;
            }
        }
    }
}

fn range_start(content_range: Option<&str>) -> Option<u64> {
    content_range?.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.parse().ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A lock between processes, held until dropped; the file stays.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock. On a file system without locks it is as if nobody else were there.
    pub fn acquire(path: &Path, reporter: &dyn Reporter) -> Result<Lock, FetchError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(FetchError::io("create", parent))?;
        }
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = opened.map_err(FetchError::io("create", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                reporter.note("another process is getting the same model; waiting for it");
                file.lock().map_err(FetchError::io("lock", path))?;
            }
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(source)) => return Err(FetchError::io("lock", path)(source)),
        }
        Ok(Lock { _file: file })
    }
}

const MAX_TRIES: usize = 5;
