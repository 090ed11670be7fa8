//! The library's version, and what depends on it. Each number names the release that changed something for us
//! (AWS Neuron SDK, release-notes/components/runtime).

use std::ffi::c_char;
use std::fmt;

use crate::bindings::nrt_version_t;

/// A version of libnrt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// 2 for every library so far.
    pub major: u64,
    /// Grows by one with each SDK.
    pub minor: u64,
    /// Number of the build within it.
    pub patch: u64,
    /// Further number of the build.
    pub maintenance: u64,
    /// The library's own words; a stand-in says here that it is one.
    pub detail: String,
    /// Of the library's sources.
    pub git_hash: String,
}

impl Version {
    /// Whether it is at least `minimum`, as (major, minor, patch).
    pub fn at_least(&self, minimum: (u64, u64, u64)) -> bool {
        (self.major, self.minor, self.patch) >= minimum
    }

    /// Whether njoule can use it at all: the major version whose calls we know, not older than the facts we have.
    pub(crate) fn is_usable(&self) -> bool {
        self.major == OLDEST.0 && self.at_least(OLDEST)
    }
}

impl From<&nrt_version_t> for Version {
    fn from(raw: &nrt_version_t) -> Version {
        Version {
            major: raw.rt_major,
            minor: raw.rt_minor,
            patch: raw.rt_patch,
            maintenance: raw.rt_maintenance,
            detail: text(&raw.rt_detail),
            git_hash: text(&raw.git_hash),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.major, self.minor, self.patch, self.maintenance)
    }
}

/// A C array of characters up to its first zero, or whole.
pub(crate) fn text(array: &[c_char]) -> String {
    // c_char is signed on x86-64 and unsigned on Arm.
    let bytes: Vec<u8> = array.iter().map(|c| c.to_ne_bytes()[0]).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// SDK 2.24, the first that loads models of different world sizes in one process, and the first whose notes we have.
pub(crate) const OLDEST: (u64, u64, u64) = (2, 26, 0);
/// SDK 2.28: allocations of 4 GiB and more no longer overflow.
pub(crate) const LARGE_TENSORS: (u64, u64, u64) = (2, 30, 0);
/// SDK 2.29: scheduled runs take a status word. Before, the same symbols took another pointer: memory corruption.
pub(crate) const SCHEDULE: (u64, u64, u64) = (2, 31, 0);
/// SDK 2.30: completion through an eventfd.
pub(crate) const EVENTFD: (u64, u64, u64) = (2, 32, 31);
