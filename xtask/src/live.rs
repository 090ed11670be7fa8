//! A live `njoule serve`, in a process of its own, for checks by clients.
//!
//! Invariant: the process ends with the value.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

/// A server that answers.
#[derive(Debug)]
pub struct Live {
    /// Its process.
    pub child: Child,
    /// `http://HOST:PORT`.
    pub url: String,
}

impl Live {
    /// Starts `binary serve ARGUMENTS --port 0` and waits until it listens; what it says else goes to our stderr.
    pub fn start(binary: &Path, arguments: &[impl AsRef<OsStr>]) -> anyhow::Result<Live> {
        let mut command = Command::new(binary);
        command.arg("serve").args(arguments).args(["--port", "0"]);
        if std::env::var_os("NJOULE_LOG_LEVEL").is_none() {
            command.env("NJOULE_LOG_LEVEL", "warn");
        }
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = child.with_context(|| format!("cannot run {}", binary.display()))?;
        let mut live = Live { child, url: String::new() };
        let mut lines = BufReader::new(live.child.stderr.take().context("a pipe was asked for")?).lines();
        loop {
            let Some(line) = lines.next() else { bail!("the server ended before it listened") };
            let line = line?;
            if let Some(url) = line.strip_prefix("listening on ") {
                live.url = url.to_owned();
                break;
            }
            eprintln!("{line}");
        }
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
        Ok(live)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
