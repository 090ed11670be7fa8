//! A process that answers requests, lines to lines.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child as Process, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use anyhow::{Context, bail};

#[derive(Debug)]
pub struct Child {
    process: Process,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Child {
    pub fn start(command: &mut Command) -> anyhow::Result<Child> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let (Some(requests), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            bail!("the child has no pipes")
        };
        Ok(Child { process, requests, answers: BufReader::new(answers) })
    }

    /// Its answer; `None` if it ended instead.
    pub fn ask(&mut self, request: &serde_json::Value) -> Option<String> {
        let mut line = String::new();
        writeln!(self.requests, "{request}").and_then(|()| self.answers.read_line(&mut line)).ok()?;
        (!line.is_empty()).then(|| line.trim().to_owned())
    }

    /// How it ended.
    pub fn end(mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.process.wait()?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It is only this check's; whether it was still there does not matter.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
