//! Tests that stand elsewhere and are run from here with larger counts, and those of the command line.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::Scale;

/// The property tests of parsers on mutated files.
pub fn parsers(scale: &Scale) -> anyhow::Result<String> {
    if !scale.full {
        return Ok("not run: `cargo test` has it with 256 files of each kind".to_owned());
    }
    let cases = 250_000;
    let arguments = ["test", "--locked", "--workspace", "--lib", "mutated"];
    let tests = passed(&cargo(scale, &arguments, &[("PROPTEST_CASES", cases.to_string())])?)?;
    ensure!(tests >= 5, "{tests} tests");
    Ok(format!("{tests} properties, {cases} files each, of GGUF, safetensors, quantised parts, MXFP4 and tokenizers"))
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
    Ok(format!(
        "{} broken models by two verbs and one that is missing offline, each named, the slowest after {:.0} ms; a full disk was not tried",
        cases.len(),
        slowest.as_secs_f64() * 1e3
    ))
}

/// By transformers, a large installation of Python.
pub fn accuracy(scale: &Scale) -> anyhow::Result<String> {
    match scale.full {
        true => crate::clients::check("accuracy"),
        false => Ok("not run: it installs torch, and docs/accuracy.md holds logits to the reference".to_owned()),
    }
}
