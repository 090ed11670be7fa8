//! Tests that stand elsewhere and are run from here with larger counts, and those of the command line.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use super::Scale;

/// The property tests of parsers on mutated files.
pub fn parsers(scale: &Scale) -> anyhow::Result<String> {
    if !scale.full {
        return Ok("not run: `cargo test` has it with 256 files of each kind".to_owned());
    }
    let cases = 250_000;
    let arguments = ["test", "--locked", "--workspace", "--lib", "--test", "mutated", "mutated"];
    let many = [("PROPTEST_CASES", cases.to_string()), ("NJOULE_SOAK", "1".to_owned())];
    let tests = passed(&cargo(scale, &arguments, &many)?)?;
    ensure!(tests >= 6, "{tests} tests");
    Ok(format!(
        "{tests} properties, {cases} files each, of GGUF, safetensors, quantised parts, MXFP4 and tokenizers; {cases} whole models \
         within memory and time"
    ))
}

/// The stand-in's fault matrix through the binary.
pub fn faults(scale: &Scale) -> anyhow::Result<String> {
    if !scale.full {
        return Ok("not run: `cargo test` has it".to_owned());
    }
    // As `cargo test --workspace` builds it: a single crate would be built anew, with other features.
    cargo(scale, &["build", "--locked", "--workspace"], &[])?;
    let required = [("NJOULE_REQUIRE_ASSETS", "1".to_owned())];
    let tests = passed(&cargo(scale, &["test", "--locked", "--workspace", "--test", "neuron"], &required)?)?;
    ensure!(tests > 0, "no test");
    Ok(format!("{tests} tests against a stand-in, no device"))
}

/// How many tests cargo says to have passed.
fn passed(output: &str) -> anyhow::Result<usize> {
    let results = output.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    results.map(|result| result.split(' ').next().and_then(|n| n.parse::<usize>().ok()).context("no count")).sum()
}

fn cargo(scale: &Scale, arguments: &[&str], environment: &[(&str, String)]) -> anyhow::Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(&scale.workspace).stderr(Stdio::inherit());
    let output = command.envs(environment.iter().map(|(name, value)| (name, value))).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}");
    Ok(text)
}

/// Files that are broken in every way that a disk breaks them.
pub fn files(scale: &Scale) -> anyhow::Result<String> {
    let scratch = scale.workspace.join("target/soak");
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir_all(&scratch)?;
    let copy = |name: &str| -> anyhow::Result<std::path::PathBuf> {
        let to = scratch.join(name);
        std::fs::create_dir_all(&to)?;
        for entry in std::fs::read_dir(&scale.model)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        }
        Ok(to)
    };
    let weights = "model.safetensors";
    let cut = copy("cut")?;
    let bytes = std::fs::read(cut.join(weights)).context(weights)?;
    std::fs::write(cut.join(weights), &bytes[..bytes.len() / 2])?;
    let empty = copy("empty")?;
    std::fs::write(empty.join(weights), b"")?;
    let missing = copy("missing")?;
    std::fs::remove_file(missing.join(weights))?;
    let config = copy("config")?;
    std::fs::write(config.join("config.json"), b"{\"model_type\": \"qwen3\"")?;
    let head = copy("head")?;
    std::fs::write(head.join(weights), [&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat())?;
    let tokenizer = copy("tokenizer")?;
    std::fs::write(tokenizer.join("tokenizer.json"), b"[]")?;
    let cases = [
        (cut, weights),
        (empty, weights),
        (missing, weights),
        (config, "config.json"),
        (head, weights),
        (tokenizer, "tokenizer.json"),
    ];
    let mut slowest = Duration::ZERO;
    for (place, named) in &cases {
        for verb in [&["generate", "-m"][..], &["serve", "--port", "0", "-m"]] {
            let begun = Instant::now();
            let mut command = Command::new(&scale.binary);
            command.args(verb).arg(place).env("NJOULE_OFFLINE", "1").stdin(Stdio::null());
            if verb[0] == "generate" {
                command.args(["-n", "1", "Hi"]);
            }
            let output = command.output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            let error = said.lines().rev().find(|line| line.starts_with("error:")).unwrap_or_default();
            ensure!(output.status.code() == Some(1), "{verb:?} {}: {:?} {said}", place.display(), output.status.code());
            ensure!(error.contains(named), "{verb:?} {}: {said}", place.display());
            slowest = slowest.max(begun.elapsed());
        }
    }
    ensure!(slowest <= scale.within(1000), "{slowest:?}");
    let offline = Command::new(&scale.binary)
        .args(["generate", "-m", "nobody/nothing-there", "-n", "1", "Hi"])
        .env("NJOULE_OFFLINE", "1")
        .env("HF_HOME", scratch.join("hub"))
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&offline.stderr);
    ensure!(offline.status.code() == Some(1) && said.contains("offline"), "{said}");
    let disks = if scale.full { disks(scale, &scratch)? } else { "disks were not tried" };
    Ok(format!(
        "{} broken models by two verbs and one that is missing offline, each named, the slowest after {:.0} ms; {disks}; files of a \
         wrong hash are `cargo test`'s",
        cases.len(),
        slowest.as_secs_f64() * 1e3
    ))
}

/// A disk that is full, and one that cannot be written: the error names the file, and no part of it stays.
fn disks(scale: &Scale, scratch: &Path) -> anyhow::Result<&'static str> {
    let ids = scratch.join("ids.json");
    std::fs::write(&ids, serde_json::to_string(&[(0..500).map(|i| i % 250).collect::<Vec<u32>>()])?)?;
    for (name, options, says) in [("full", "size=64k", "No space left"), ("sealed", "ro", "Read-only file system")] {
        let place = scratch.join(name);
        std::fs::create_dir_all(&place)?;
        let Ok(disk) = Disk::mount(&place, options) else {
            return Ok("disks were not tried, for want of the right to mount");
        };
        for (verb, file) in [("score", "logits.safetensors"), ("batch", "out.jsonl")] {
            let path = disk.0.join(file);
            let begun = Instant::now();
            let output = written(scale, verb, &ids, &path)?;
            let (took, said) = (begun.elapsed(), String::from_utf8_lossy(&output.stderr).into_owned());
            ensure!(output.status.code() == Some(1), "{verb} on a {name} disk: {:?} {said}", output.status.code());
            ensure!(said.contains(file) && said.contains(says), "{verb} on a {name} disk: {said}");
            ensure!(took <= scale.within(1000), "{verb} on a {name} disk took {took:?}");
            let left: Vec<_> = std::fs::read_dir(&disk.0)?.collect::<Result<_, _>>()?;
            // A batch that was begun goes on where it was: its file is whole lines.
            let whole =
                |path: &Path| std::fs::read(path).is_ok_and(|bytes| bytes.last().is_none_or(|last| *last == b'\n'));
            let sound = left.iter().all(|entry| verb == "batch" && entry.path() == path && whole(&path));
            ensure!(sound, "{verb} on a {name} disk left {left:?}");
            for entry in left {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    Ok("a full and a read-only disk, each file named and none left in part")
}

/// Runs what writes `path`, of more than a full disk takes.
fn written(scale: &Scale, verb: &str, ids: &Path, path: &Path) -> anyhow::Result<Output> {
    let mut command = Command::new(&scale.binary);
    command.arg(verb).arg("-m").arg(&scale.model).env("NJOULE_OFFLINE", "1").stdin(Stdio::null());
    if verb == "score" {
        command.arg("--token-ids").arg(ids).arg("--logits").arg(path);
    } else {
        let lines = ids.with_extension("jsonl");
        let body = json!({"prompt": "Hi", "max_tokens": 400, "logprobs": 5, "ignore_eos": true});
        let line =
            |i: usize| json!({"custom_id": i.to_string(), "method": "POST", "url": "/v1/completions", "body": body});
        std::fs::write(&lines, (0..8).map(|i| format!("{}\n", line(i))).collect::<String>())?;
        command.arg("-i").arg(lines).arg("-o").arg(path);
    }
    Ok(command.output()?)
}

/// A disk in memory, gone with its test.
struct Disk(PathBuf);

impl Disk {
    fn mount(place: &Path, options: &str) -> anyhow::Result<Disk> {
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(place).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(Disk(place.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// By transformers, a large installation of Python.
pub fn accuracy(scale: &Scale) -> anyhow::Result<String> {
    match scale.full {
        true => crate::clients::check("accuracy"),
        false => Ok("not run: it installs torch, and docs/accuracy.md holds logits to the reference".to_owned()),
    }
}
