//! Finding and opening the library.
//!
//! `NJOULE_NRT` if it is set, and then nothing else; otherwise the loader's `libnrt.so.1`, then the package's path. The
//! first that opens is the one: if it does not do, that is an error that names it, never a silent second choice.
//!
//! An opened library stays mapped until the process ends: it starts threads of its own, and unmapping their code under
//! them would crash.

use std::ffi::OsString;
use std::fmt;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};

use crate::bindings as b;
use crate::status::Status;
use crate::version::{self, Version};

/// An opened libnrt whose version and symbols do. A cheap handle: copies are the same library.
#[derive(Clone, Copy)]
pub struct Library(pub(crate) &'static Loaded);

/// What an opened library has.
pub(crate) struct Loaded {
    /// Every required symbol in it is present.
    pub raw: &'static b::Nrt,
    /// Present if the symbols are, and mean what we think.
    pub schedule: Option<ScheduleCalls>,
    /// Present if the symbol and `schedule` are.
    pub eventfd: Option<unsafe extern "C" fn(b::nrta_seq_t, i32) -> b::NRT_STATUS>,
    path: PathBuf,
    version: Version,
}

/// The scheduled runs' two calls: usable only from libnrt 2.31 on, so they are taken out of the table only there.
#[derive(Clone, Copy)]
pub(crate) struct ScheduleCalls {
    pub schedule: unsafe extern "C" fn(
        *mut b::nrt_model_t,
        *const b::nrt_tensor_set_t,
        *mut b::nrt_tensor_set_t,
        i32,
        *mut b::NRT_STATUS,
        *mut b::nrta_seq_t,
    ) -> b::NRT_STATUS,
    pub is_completed: unsafe extern "C" fn(b::nrta_seq_t, *mut bool) -> b::NRT_STATUS,
}

/// Where a path to try came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `NJOULE_NRT`.
    Environment,
    /// The dynamic loader's search path.
    Loader,
    /// Where AWS's package puts it.
    Package,
}

/// A path that did not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The path.
    pub path: PathBuf,
    /// Where it came from.
    pub origin: Origin,
    /// The loader's words.
    pub reason: String,
}

/// Why there is no library.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// None could be opened.
    #[error("no Neuron runtime library could be opened; {}", Attempts(.tried))]
    NotFound {
        /// Everything that was tried, in order.
        tried: Vec<Tried>,
    },
    /// One opened that lacks functions.
    #[error("{} (libnrt {found}) lacks {}; it is not a libnrt that njoule can use: update aws-neuronx-runtime-lib, or set NJOULE_NRT to another", .path.display(), .names.join(", "))]
    MissingSymbols {
        /// Which file.
        path: PathBuf,
        /// Its version, if it says one.
        found: String,
        /// All that it lacks.
        names: Vec<&'static str>,
    },
    /// One opened whose version is not understood.
    #[error("{} is libnrt {found}; njoule needs {needed}: update aws-neuronx-runtime-lib, or set NJOULE_NRT to another", .path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: Version,
        /// What is needed.
        needed: &'static str,
    },
    /// One opened that does not tell its version.
    #[error("{} does not tell its version: nrt_get_version: {status}", .path.display())]
    NoVersion {
        /// Which file.
        path: PathBuf,
        /// Its answer.
        status: Status,
    },
}

impl Library {
    /// Opens the library: see the head of this module for where it is looked for.
    pub fn open() -> Result<Library, LoadError> {
        // SAFETY: the user's NJOULE_NRT, the system's loader path and AWS's package are trusted to be a libnrt, as any
        // shared library that a program uses is.
        unsafe { open_first(&search_order(std::env::var_os("NJOULE_NRT"))) }
    }

    /// Opens this file and no other.
    ///
    /// # Safety
    ///
    /// It is a libnrt, or something that has functions of the same meaning under the same names.
    pub unsafe fn open_at(path: &Path) -> Result<Library, LoadError> {
        // SAFETY: what the caller promises.
        unsafe { open_first(&search_order(Some(path.as_os_str().to_owned()))) }
    }

    /// The path under which it was opened.
    pub fn path(self) -> &'static Path {
        &self.0.path
    }

    /// Its version.
    pub fn version(self) -> &'static Version {
        &self.0.version
    }

    /// Whether runs can be scheduled, so that waiting for one has a deadline without a second thread.
    pub fn can_schedule(self) -> bool {
        self.0.schedule.is_some()
    }

    /// Whether a scheduled run can be waited for asleep instead of by asking again and again.
    pub fn can_sleep(self) -> bool {
        self.0.eventfd.is_some()
    }

    /// Whether it tells how much device memory is in use.
    pub fn has_memory_stats(self) -> bool {
        self.0.raw.nrt_get_vnc_memory_stats.is_ok()
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library").field("path", &self.0.path).field("version", &self.0.version).finish()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Environment => "NJOULE_NRT",
            Origin::Loader => "the loader's search path",
            Origin::Package => "aws-neuronx-runtime-lib",
        })
    }
}

/// All attempts and what to do, in one sentence.
struct Attempts<'a>(&'a [Tried]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for tried in self.0 {
            write!(f, "tried {} ({}): {}; ", tried.path.display(), tried.origin, tried.reason)?;
        }
        if self.0.iter().any(|tried| tried.origin == Origin::Environment) {
            f.write_str("NJOULE_NRT is set, so nothing else was tried: correct or unset it")
        } else {
            f.write_str("install aws-neuronx-runtime-lib, or set NJOULE_NRT to the library's path")
        }
    }
}

/// What to try, in order. An empty variable counts as unset.
fn search_order(environment: Option<OsString>) -> Vec<(PathBuf, Origin)> {
    match environment {
        Some(path) if !path.is_empty() => vec![(path.into(), Origin::Environment)],
        _ => vec![(SONAME.into(), Origin::Loader), (Path::new(PACKAGE_DIR).join(SONAME), Origin::Package)],
    }
}

/// # Safety
///
/// Whatever of these opens is a libnrt.
unsafe fn open_first(candidates: &[(PathBuf, Origin)]) -> Result<Library, LoadError> {
    let mut tried = Vec::new();
    for (path, origin) in candidates {
        // SAFETY: the caller promises that its initialisers may run. RTLD_NOW: what it needs and lacks shows here.
        let opened = unsafe { Handle::open(Some(path.as_os_str()), RTLD_NOW | RTLD_LOCAL) };
        // SAFETY: the caller promises that its symbols have the types of the header.
        match opened.and_then(|handle| unsafe { b::Nrt::from_library(handle) }) {
            // Leaked, so never unmapped: also when it is refused.
            Ok(raw) => return adopt(Box::leak(Box::new(raw)), path),
            Err(error) => tried.push(Tried { path: path.clone(), origin: *origin, reason: reason(&error) }),
        }
    }
    Err(LoadError::NotFound { tried })
}

/// Looks whether version and symbols do. The version comes first: it explains what is missing.
fn adopt(raw: &'static b::Nrt, path: &Path) -> Result<Library, LoadError> {
    let path = path.to_path_buf();
    let version = match &raw.nrt_get_version {
        Ok(get_version) => {
            let mut found = MaybeUninit::<b::nrt_version_t>::zeroed();
            // SAFETY: the pointer is to a struct of the size that is passed; the call is allowed before nrt_init.
            let status = Status(unsafe { get_version(found.as_mut_ptr(), size_of::<b::nrt_version_t>()) });
            if !status.is_success() {
                return Err(LoadError::NoVersion { path, status });
            }
            // SAFETY: integers and bytes, valid as zeros and as whatever was written over them.
            Some(Version::from(&unsafe { found.assume_init() }))
        }
        Err(_) => None,
    };
    if let Some(found) = version.clone().filter(|v| !v.is_usable()) {
        return Err(LoadError::Version { path, found, needed: "2.26 or a later 2" });
    }
    let names: Vec<_> = required(raw).into_iter().filter(|(_, present)| !present).map(|(name, _)| name).collect();
    let version = match version {
        Some(version) if names.is_empty() => version,
        version => {
            let found = version.map_or_else(|| "of unknown version".to_owned(), |v| v.to_string());
            return Err(LoadError::MissingSymbols { path, found, names });
        }
    };
    let schedule = match (&raw.nrta_execute_schedule, &raw.nrta_is_completed) {
        (Ok(schedule), Ok(is_completed)) if version.at_least(version::SCHEDULE) => {
            Some(ScheduleCalls { schedule: *schedule, is_completed: *is_completed })
        }
        _ => None,
    };
    let eventfd = match &raw.nrta_event_register_seq_id_completion {
        Ok(register) if schedule.is_some() && version.at_least(version::EVENTFD) => Some(*register),
        _ => None,
    };
    Ok(Library(Box::leak(Box::new(Loaded { raw, schedule, eventfd, path, version }))))
}

/// The loader's words alone, where there are any.
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Every function that njoule cannot do without, and whether it is there.
fn required(raw: &b::Nrt) -> Vec<(&'static str, bool)> {
    macro_rules! present {
        ($($name:ident)*) => { vec![$((stringify!($name), raw.$name.is_ok())),*] };
    }
    let mut all = present![
        nrt_get_version nrt_init nrt_close nrt_get_instance_info
        nrt_load nrt_load_collectives nrt_unload nrt_get_model_tensor_info nrt_free_model_tensor_info
        nrt_tensor_allocate nrt_tensor_free nrt_tensor_allocate_slice nrt_tensor_write nrt_tensor_read nrt_tensor_copy
        nrt_tensor_memset nrt_tensor_get_size
        nrt_allocate_tensor_set nrt_destroy_tensor_set nrt_add_tensor_to_tensor_set nrt_get_tensor_from_tensor_set
        nrt_execute
    ];
    // The counts have an old name that does as well.
    all.push(("nrt_get_total_vnc_count", raw.nrt_get_total_vnc_count.is_ok() || raw.nrt_get_total_nc_count.is_ok()));
    let visible = raw.nrt_get_visible_vnc_count.is_ok() || raw.nrt_get_visible_nc_count.is_ok();
    all.push(("nrt_get_visible_vnc_count", visible));
    all
}

const SONAME: &str = "libnrt.so.1";
const PACKAGE_DIR: &str = "/opt/aws/neuron/lib";

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(environment: Option<&str>) -> Vec<(String, Origin)> {
        search_order(environment.map(OsString::from))
            .into_iter()
            .map(|(path, origin)| (path.display().to_string(), origin))
            .collect()
    }

    #[test]
    fn a_set_variable_is_the_only_place_and_an_empty_one_counts_as_unset() {
        assert_eq!(paths(Some("/x/libnrt.so")), [("/x/libnrt.so".to_owned(), Origin::Environment)]);
        let usual = [
            ("libnrt.so.1".to_owned(), Origin::Loader),
            ("/opt/aws/neuron/lib/libnrt.so.1".to_owned(), Origin::Package),
        ];
        assert_eq!(paths(None), usual);
        assert_eq!(paths(Some("")), usual);
    }
}
