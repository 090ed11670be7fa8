//! Ctrl-C: what was generated is kept, the figures are printed, and the exit code says so.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use support::*;

fn interrupt(pid: u32) {
    let sent = Command::new("kill").args(["-INT", &pid.to_string()]).status().expect("kill");
    assert!(sent.success());
}

#[test]
fn interrupted_generation_keeps_its_text_and_exits_with_130() {
    let Some(model) = asset(SMOLLM2, "interrupted_generation_keeps_its_text_and_exits_with_130") else { return };
    let bare = scratch();
    let mut child = njoule(&["generate", "-m", &model, "Write a long story.", "-n", "4000", "--ignore-eos"])
        .env("NJOULE_SYSFS_ROOT", bare.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).expect("a first byte of text");
    interrupt(child.id());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.lines().count() == 1 && stderr.contains("energy: unknown"), "{stderr}");
    assert!(output.stdout.ends_with(b"\n"));
}

#[test]
fn interrupted_answer_does_not_end_the_chat() {
    let Some(model) = asset(SMOLLM2, "interrupted_answer_does_not_end_the_chat") else { return };
    let mut child = njoule(&["chat", "-m", &model, "-n", "4000", "--temperature", "0", "--ignore-eos"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut note = || {
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        line
    };
    writeln!(stdin, "Write a long story.").unwrap();
    stdout.read_exact(&mut [0]).expect("an answer begins");
    interrupt(child.id());
    assert_eq!(note(), "stopped\n");
    // It still listens.
    writeln!(stdin, "/clear").unwrap();
    assert!(note().contains("forgotten"));
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
