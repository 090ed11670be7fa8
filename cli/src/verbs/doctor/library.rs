//! libnrt: what was tried, what was found, what it can do; and, if asked, what it says once it runs.

use std::path::PathBuf;

use crate::fetch::Env;

/// The search for the library.
pub struct Library {
    /// The one that does.
    pub found: Option<Found>,
    /// Why there is none.
    pub error: Option<String>,
    /// Paths that did not open: path, where it came from, reason.
    pub tried: Vec<(PathBuf, String, String)>,
    /// Whether `NJOULE_NRT` names it.
    pub named: bool,
}

/// A library that opened and has what njoule needs.
pub struct Found {
    /// The path under which it was opened.
    pub path: PathBuf,
    /// The file that the loader took for it.
    pub file: Option<PathBuf>,
    /// Where the path came from.
    pub origin: &'static str,
    /// Major, minor, patch.
    pub version: (u64, u64, u64),
    /// Its version in full.
    pub version_text: String,
    /// Its own words.
    pub detail: String,
    /// It says that it is no libnrt of AWS.
    pub stand_in: bool,
    /// Runs can be scheduled: a wait with a deadline needs no thread.
    pub schedules: bool,
    /// A scheduled run can be waited for asleep.
    pub sleeps: bool,
    /// It tells how much device memory is in use.
    pub memory_stats: bool,
    /// Logical cores of the instance and of this process, which it tells without being started.
    pub cores: Result<(u32, u32), String>,
    /// What it said once it ran, with `--init`.
    pub started: Option<Result<Started, String>>,
}

/// A runtime that was started, looked at and closed.
pub struct Started {
    /// Family, architecture and revision.
    pub instance: String,
    /// Memory of each core in bytes, in use and in all, or why it is not known.
    pub cores: Vec<Result<(usize, usize), String>>,
}

/// Whether a version's words are those of a stand-in.
pub fn is_stand_in(words: &str) -> bool {
    let words = words.to_ascii_uppercase();
    words.contains("FAKE") || words.contains("STAND-IN")
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod linux {
    use njoule_neuron_sys as sys;
    use sys::sysfs::field;

    use super::*;

    impl Library {
        /// Looks for the library as the backend does.
        pub fn look(env: &Env, init: bool) -> Library {
            let named = env.path("NJOULE_NRT").is_some();
            match sys::Library::open() {
                Ok(library) => {
                    Library { found: Some(Found::of(library, named, init)), error: None, tried: vec![], named }
                }
                Err(error) => {
                    let tried = match &error {
                        sys::LoadError::NotFound { tried } => tried.clone(),
                        _ => vec![],
                    };
                    let tried = tried.into_iter().map(|t| (t.path, t.origin.to_string(), t.reason)).collect();
                    Library { found: None, error: Some(error.to_string()), tried, named }
                }
            }
        }
    }

    impl Found {
        fn of(library: sys::Library, named: bool, init: bool) -> Found {
            let version = library.version();
            let cores = library.total_cores().and_then(|total| Ok((total, library.visible_cores()?)));
            let origin = match (named, library.path().is_absolute()) {
                (true, _) => "NJOULE_NRT",
                (false, true) => "aws-neuronx-runtime-lib",
                (false, false) => "the loader's search path",
            };
            Found {
                path: library.path().to_path_buf(),
                file: mapped(),
                origin,
                version: (version.major, version.minor, version.patch),
                version_text: version.to_string(),
                detail: version.detail.clone(),
                stand_in: is_stand_in(&version.detail),
                schedules: library.can_schedule(),
                sleeps: library.can_sleep(),
                memory_stats: library.has_memory_stats(),
                cores: cores.map_err(|error| error.to_string()),
                started: init.then(|| start(library).map_err(|error| error.to_string())),
            }
        }
    }

    /// Takes the cores, asks, and gives them back.
    fn start(library: sys::Library) -> Result<Started, sys::Error> {
        let runtime = sys::Runtime::start(library)?;
        let instance = match library.instance() {
            Ok(i) => format!("{} (architecture {:?}, revision {:?})", i.family, i.arch, i.revision),
            Err(error) => error.to_string(),
        };
        let memory = |core| runtime.memory(core).map(|m| (m.used, m.limit)).map_err(|error| error.to_string());
        Ok(Started { instance, cores: runtime.cores().map(memory).collect() })
    }

    /// The file behind the loader's name: what this process has mapped under it.
    fn mapped() -> Option<PathBuf> {
        let maps = field::text(std::path::Path::new("/proc/self/maps")).ok()?;
        let paths = maps.lines().filter_map(|line| Some(&line[line.find('/')?..]));
        paths
            .map(PathBuf::from)
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnrt.so")))
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
impl Library {
    /// There is none here.
    pub fn look(env: &Env, _init: bool) -> Library {
        let error = Some("the Neuron runtime exists on 64-bit Linux only".to_owned());
        Library { found: None, error, tried: vec![], named: env.path("NJOULE_NRT").is_some() }
    }
}
