//! Hardware errors that the driver wrote to the kernel's log: lines with `NEURON_HW_ERR=… nd-id=… nc-id=… action=…`.
//!
//! The log is looked for in `/dev/kmsg`, then in the files that syslog daemons keep; the first that can be read is the one.
//! Reading never waits, and takes the last [`MAX_LOG`] bytes at most.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::Root;
use super::field::beginning;

/// One such line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HwError {
    /// What failed, such as `HBM_UE`.
    pub error: String,
    /// Device, if it says so.
    pub device: Option<u32>,
    /// Core within it, if it says so.
    pub core: Option<u32>,
    /// What AWS advises, such as `TERMINATE_INSTANCE`.
    pub action: Option<String>,
}

/// What the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelLog {
    /// It could be read.
    Read {
        /// From where.
        path: PathBuf,
        /// The last errors, oldest first.
        errors: Vec<HwError>,
    },
    /// No place could be read: each with its reason.
    Unreadable(Vec<(PathBuf, String)>),
}

impl HwError {
    /// The error in a line, if there is one.
    pub fn parse(line: &str) -> Option<HwError> {
        let at = line.find(MARK)?;
        let mut words = line[at + MARK.len()..].split([' ', ',', ';', '\t']).filter(|word| !word.is_empty());
        let mut found = HwError { error: beginning(words.next()?), device: None, core: None, action: None };
        for (key, value) in words.take(16).filter_map(|word| word.split_once('=')) {
            match key {
                "nd-id" => found.device = value.parse().ok(),
                "nc-id" => found.core = value.parse().ok(),
                "action" => found.action = Some(beginning(value)),
                _ => {}
            }
        }
        Some(found)
    }
}

impl Root {
    /// The kernel's log.
    pub fn kernel_log(&self) -> KernelLog {
        let mut tried = vec![];
        for place in PLACES {
            let path = self.join(place);
            match read(&path) {
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(&bytes);
                    let mut errors: Vec<_> = text.lines().rev().filter_map(HwError::parse).take(KEPT).collect();
                    errors.reverse();
                    return KernelLog::Read { path, errors };
                }
                Err(error) => tried.push((path, error.to_string())),
            }
        }
        KernelLog::Unreadable(tried)
    }
}

/// A plain file's end, or what the kernel's ring holds.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let plain = fs::metadata(path)?.is_file();
    let mut file = open(path)?;
    let mut bytes = vec![];
    if plain {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG as u64)))?;
        file.take(MAX_LOG as u64).read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    // One record per read, an error where records were overwritten meanwhile, and "would block" at the end.
    let mut record = vec![0; 8192];
    for _ in 0..MAX_RECORDS {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(n) if bytes.len() + n <= MAX_LOG => bytes.extend_from_slice(&record[..n]),
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::BrokenPipe) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

#[cfg(target_os = "linux")]
fn open(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)
}

#[cfg(not(target_os = "linux"))]
fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).open(path)
}

/// As x86-64 and Arm have it.
#[cfg(target_os = "linux")]
const O_NONBLOCK: i32 = 0o4000;
const MARK: &str = "NEURON_HW_ERR=";
const PLACES: [&str; 4] = ["/dev/kmsg", "/var/log/kern.log", "/var/log/messages", "/var/log/syslog"];
/// What is read of a log.
pub const MAX_LOG: usize = 8 << 20;
const MAX_RECORDS: usize = 1 << 17;
/// Errors that are kept, the last ones.
const KEPT: usize = 32;
