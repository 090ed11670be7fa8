//! What is installed beside the library: compiler, collectives, tools.

use std::path::{Path, PathBuf};

use njoule_neuron_sys::sysfs::Root;

use super::library::is_stand_in;
use crate::fetch::Env;

/// neuronx-cc.
pub struct Compiler {
    /// Where it is.
    pub path: Option<PathBuf>,
    /// Whether `NJOULE_NEURONX_CC` names it.
    pub named: bool,
    /// Its version, or why it tells none.
    pub version: Result<String, String>,
    /// It says that it is no compiler of AWS.
    pub stand_in: bool,
}

/// The library of collectives: any module of several cores needs it.
pub struct Collectives {
    /// Its file.
    pub path: Option<PathBuf>,
}

/// A tool of AWS's.
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// Where it is.
    pub path: Option<PathBuf>,
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
impl Compiler {
    /// Looks for it as a build does: `NJOULE_NEURONX_CC`, else the search path.
    pub fn look(env: &Env) -> Compiler {
        use njoule_runtime::backend::neuron::compiler::{CompileError, Compiler as Found};

        let variable = |name: &str| env.var(name).map(std::ffi::OsString::from);
        let (path, version) = match Found::find_by(variable("NJOULE_NEURONX_CC"), variable("PATH")) {
            Ok(found) => (Some(found.path().to_owned()), Ok(found.banner().to_owned())),
            Err(CompileError::Unusable { path, what }) => (Some(path), Err(what)),
            Err(_) => (None, Err("neuronx-cc is not on PATH".to_owned())),
        };
        let stand_in = version.as_ref().is_ok_and(|text| is_stand_in(text));
        Compiler { path, named: env.path("NJOULE_NEURONX_CC").is_some(), version, stand_in }
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
impl Compiler {
    /// There is none here.
    pub fn look(env: &Env) -> Compiler {
        let version = Err("neuronx-cc exists on 64-bit Linux only".to_owned());
        Compiler { path: None, named: env.path("NJOULE_NEURONX_CC").is_some(), version, stand_in: false }
    }
}

impl Collectives {
    /// Looks where AWS's package puts it.
    pub fn look(root: &Root) -> Collectives {
        let names = ["libnccom.so.2", "libnccom.so"];
        let files = names.iter().map(|name| root.join(PACKAGE).join("lib").join(name));
        Collectives { path: files.into_iter().find(|path| path.is_file()) }
    }
}

impl Tool {
    /// Looks for each where AWS's package puts it, and on the search path.
    pub fn look_for_all(root: &Root, env: &Env) -> Vec<Tool> {
        let packaged = |name| Some(root.join(PACKAGE).join("bin").join(name)).filter(|path| path.is_file());
        TOOLS.iter().map(|name| Tool { name, path: packaged(name).or_else(|| on_path(env, name)) }).collect()
    }
}

/// The first program of this name on the search path.
fn on_path(env: &Env, name: &str) -> Option<PathBuf> {
    let path = env.var("PATH")?;
    std::env::split_paths(path).map(|dir| dir.join(name)).find(|path| is_program(path))
}

#[cfg(unix)]
fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_program(path: &Path) -> bool {
    path.is_file()
}

/// The first line that a program prints and that is not empty; an error after [`PATIENCE`].
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub fn first_line(program: &Path, args: &[&str]) -> Result<String, String> {
    let (status, said) = njoule_runtime::backend::neuron::compiler::said(program, args, PATIENCE)?;
    // Python programs of old write their version to stderr.
    let [out, err] = said.map(|text| text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned));
    match status.success() {
        true => out.or(err).ok_or_else(|| "printed nothing".to_owned()),
        false => Err(format!("ended with {status}: {}", err.unwrap_or_default())),
    }
}

/// No program is asked here: what is asked of them exists on 64-bit Linux only.
#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
pub fn first_line(_program: &Path, _args: &[&str]) -> Result<String, String> {
    Err("it exists on 64-bit Linux only".to_owned())
}

/// How to get the compiler.
pub const INSTALL_COMPILER: &str =
    "python3 -m pip install --extra-index-url https://pip.repos.neuron.amazonaws.com 'neuronx-cc==2.*'";
const PACKAGE: &str = "/opt/aws/neuron";
const TOOLS: [&str; 3] = ["neuron-ls", "neuron-top", "neuron-monitor"];
/// A Python program's start on a cold disk.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

#[cfg(all(test, target_os = "linux", target_pointer_width = "64"))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn program(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("neuronx-cc");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_compiler_is_found_on_the_path_and_a_named_one_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        program(dir.path(), "echo; echo NeuronX Compiler version 2.21.1");
        let env = Env::from_pairs([("PATH", dir.path().as_os_str())]);
        let found = Compiler::look(&env);
        assert_eq!(found.version.as_deref(), Ok("NeuronX Compiler version 2.21.1"));
        assert!(!found.named && !found.stand_in);
        let env = Env::from_pairs([("PATH", dir.path().as_os_str()), ("NJOULE_NEURONX_CC", "/no/such/cc".as_ref())]);
        let missing = Compiler::look(&env);
        assert!(missing.named && missing.version.is_err_and(|why| why.contains("cannot be started")));
        assert!(Compiler::look(&Env::default()).path.is_none());
    }

    #[test]
    fn a_compiler_that_fails_says_how_and_a_stand_in_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let failing = program(dir.path(), "echo no module named neuronxcc >&2; exit 3");
        let why = first_line(&failing, &["--version"]).unwrap_err();
        assert!(why.contains('3') && why.contains("no module named neuronxcc"), "{why}");
        // A daemon that it leaves behind keeps its pipes open.
        let leaving = program(dir.path(), "sleep 1000 & echo; echo 2.1");
        assert_eq!(first_line(&leaving, &[]).as_deref(), Ok("2.1"));
        let fake = program(dir.path(), "echo 'NeuronX Compiler version 2.0 (FAKE)'");
        assert!(Compiler::look(&Env::from_pairs([("NJOULE_NEURONX_CC", fake.as_os_str())])).stand_in);
    }
}
