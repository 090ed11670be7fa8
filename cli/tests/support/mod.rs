//! Runs the real binary and reads the goldens.
#![allow(dead_code)] // each test binary uses its part

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// What a run printed.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A command that talks to no network, reads no stdin and takes nothing from the environment that a person may have set.
pub fn njoule(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_njoule"));
    command.args(args).stdin(Stdio::null()).env("NJOULE_OFFLINE", "1").env("NO_COLOR", "1");
    for name in ["NJOULE_MODEL", "NJOULE_TIMING"] {
        command.env_remove(name);
    }
    command
}

/// Runs to the end.
pub fn run(args: &[&str]) -> Ran {
    ran(njoule(args).output().expect("the binary starts"))
}

/// Runs with `input` on stdin.
pub fn run_with(args: &[&str], input: &str) -> Ran {
    use std::io::Write;
    let mut child = njoule(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A program that refuses its arguments reads nothing.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    ran(child.wait_with_output().expect("it ends"))
}

pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).expect("UTF-8 on stdout"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8 on stderr"),
    }
}

impl Ran {
    /// Demands success and reads stdout as one JSON object.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in stdout:\n{}", self.stdout))
    }

    /// Demands an exit code, nothing on stdout, and words on stderr.
    pub fn fails_with(&self, code: i32, words: &[&str]) {
        let all = words.iter().all(|word| self.stderr.contains(word));
        assert!(
            self.code == code && self.stdout.is_empty() && all,
            "wanted code {code} and {words:?}, got code {}\nstdout:\n{}\nstderr:\n{}",
            self.code,
            self.stdout,
            self.stderr
        );
    }
}

/// Waits for what another process does; the limit is for one that never does.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !holds() {
        assert!(started.elapsed() < std::time::Duration::from_secs(120), "waited in vain for {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Whether the process of that number runs: one that is gone does not, nor a zombie that nobody has waited for.
#[cfg(target_os = "linux")]
pub fn lives(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
}

/// A file or directory of testdata.
pub fn testdata(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name);
    path.to_str().expect("UTF-8 path").to_owned()
}

/// A fixture's model: the GGUF file if it has one, else its directory.
pub fn model(fixture: &str) -> String {
    let gguf = testdata(&format!("{fixture}/model.gguf"));
    if Path::new(&gguf).is_file() { gguf } else { testdata(fixture) }
}

/// A fixture's golden.json.
pub fn golden(fixture: &str) -> Value {
    let path = testdata(&format!("{fixture}/golden.json"));
    serde_json::from_slice(&std::fs::read(path).expect("golden.json")).expect("JSON")
}

/// An array of numbers as ids.
pub fn ids(value: &Value) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok()).expect("an id");
    value.as_array().expect("an array of ids").iter().map(id).collect()
}

/// A directory for this test's files.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Writes the lists of ids as `--token-ids` takes them and returns the path.
pub fn write_ids(dir: &Path, lists: &[Vec<u32>]) -> String {
    write(dir, "ids.json", &serde_json::to_string(lists).expect("JSON"))
}

/// Writes a file and returns its path.
pub fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("a file");
    path.to_str().expect("UTF-8 path").to_owned()
}

/// A downloaded test file, from NJOULE_ASSETS or target/assets. Where it is absent the test says so by name and is
/// skipped, or fails if NJOULE_REQUIRE_ASSETS=1.
pub fn asset(file: &str, test: &str) -> Option<String> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/assets");
    let dir = std::env::var_os("NJOULE_ASSETS").map_or(target, PathBuf::from);
    let path = dir.join(file);
    if path.is_file() {
        return Some(path.to_str().expect("UTF-8 path").to_owned());
    }
    let required = std::env::var_os("NJOULE_REQUIRE_ASSETS").is_some_and(|v| v == "1");
    assert!(!required, "{test} needs {}; `cargo xtask assets` brings it", path.display());
    eprintln!("skipped {test}: {} is not there (`cargo xtask assets` brings it)", path.display());
    None
}

/// The default model's file.
pub const SMOLLM2: &str = "smollm2-135m-instruct.Q4_1.gguf";

/// A file of neuron-fake, built with this binary by `cargo test --workspace` or `cargo build -p neuron-fake`. Cargo leaves a
/// library that is built for tests in `deps`.
#[cfg(target_os = "linux")]
pub fn neuron_fake(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_njoule")).with_file_name(name);
    let in_deps = path.with_file_name("deps").join(name);
    if let Some(found) = [in_deps, path.clone()].into_iter().find(|path| path.is_file()) {
        return Some(found);
    }
    assert!(std::env::var_os("NJOULE_REQUIRE_ASSETS").is_none(), "{} is not built", path.display());
    eprintln!("skipped: {} is not built", path.display());
    None
}

/// The stand-in library of neuron-sys's own tests.
#[cfg(target_os = "linux")]
pub fn stand_in(dir: &Path, switch: &str) -> PathBuf {
    let sys = Path::new(env!("CARGO_MANIFEST_DIR")).join("../neuron-sys");
    let path = dir.join("libnrt.so.1");
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-shared", "-fPIC", "-pthread", switch, "-I"]).arg(sys.join("include"));
    let output = cc.arg(sys.join("tests/it/standin.c")).arg("-o").arg(&path).output().expect("cc");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}
