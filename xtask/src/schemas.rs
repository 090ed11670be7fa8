//! Structured output against schemas from a file: every answer that was completed must be valid by an outside validator, and
//! what the grammar costs per token is told.
//!
//! The file has a line `{"name", "schema"}` for each, such as samples of JSONSchemaBench; it stays outside the repository.
//! Answers are drawn with a seed that is the line's number, so that a run can be repeated.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::live::Live;
use crate::python;

/// A line of the file.
#[derive(Debug)]
struct Case {
    name: String,
    schema: Value,
}

/// What became of one.
#[derive(Debug)]
enum Answer {
    /// It ended by itself.
    Completed(String),
    /// `max_tokens` came first.
    Cut,
    /// The schema was refused: the message, and how long that took.
    Refused(String, Duration),
}

/// Runs every schema of `file` through a live server of the default model, or of `model`.
pub fn run(file: &Path, model: Option<&str>) -> anyhow::Result<()> {
    let cases = read(file)?;
    if cases.is_empty() {
        bail!("{} has no schemas", file.display());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let target = workspace.join("target");
    let python = python::environment(&target, "schemas-venv", &["jsonschema==4.26.0"])?;
    let binary = match std::env::var_os("NJOULE_BIN") {
        Some(binary) => PathBuf::from(binary),
        None => {
            let mut build = Command::new("cargo");
            python::expect(build.args(["build", "--release", "--package", "njoule"]).current_dir(workspace))?;
            target.join("release/njoule")
        }
    };
    let mut arguments: Vec<String> = model.map(str::to_owned).into_iter().collect();
    arguments.extend(["--max-num-seqs", &TOGETHER.to_string()].map(str::to_owned));
    let live = Live::start(&binary, &arguments)?;
    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        let work = || -> anyhow::Result<()> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(case) = cases.get(at) else { return Ok(()) };
                let answer = ask(&live.url, case, at)?;
                answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(at, answer);
            }
        };
        let workers: Vec<_> = (0..TOGETHER).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })?;
    let answers = answers.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let completed = |answer: &&Answer| matches!(answer, Answer::Completed(_));
    let cut = answers.values().filter(|answer| matches!(answer, Answer::Cut)).count();
    println!(
        "{} schemas in {:.0} s: {} completed, {cut} cut at {MAX_TOKENS} tokens, {} refused",
        cases.len(),
        start.elapsed().as_secs_f32(),
        answers.values().filter(completed).count(),
        answers.values().filter(|answer| matches!(answer, Answer::Refused(..))).count(),
    );
    let mut slow = vec![];
    for (at, answer) in &answers {
        if let Answer::Refused(message, took) = answer {
            println!("refused in {:.0} ms: {}: {message}", took.as_secs_f64() * 1e3, cases[*at].name);
            slow.extend((*took > REFUSAL).then_some(&cases[*at].name));
        }
    }
    if !answers.values().any(|answer| matches!(answer, Answer::Completed(_))) {
        bail!("no output was completed: nothing was validated");
    }
    let invalid = validate(&python, &cases, &answers)?;
    if !invalid.is_empty() {
        bail!("outputs that their schema does not allow:\n{}", invalid.join("\n"));
    }
    if !slow.is_empty() {
        bail!("refused after more than {REFUSAL:?}: {slow:?}");
    }
    println!("every completed output is valid");
    overhead(&live.url, &cases)
}

fn read(file: &Path) -> anyhow::Result<Vec<Case>> {
    let lines = BufReader::new(std::fs::File::open(file).with_context(|| file.display().to_string())?).lines();
    let case = |line: std::io::Result<String>| {
        let mut value: Value = serde_json::from_str(&line?)?;
        let name = value["name"].as_str().context("a line needs a name")?.to_owned();
        Ok(Case { name, schema: value["schema"].take() })
    };
    lines.map(case).collect()
}

fn body(case: &Case, seed: usize, max_tokens: usize, constrained: bool) -> Value {
    let schema: String = case.schema.to_string().chars().take(SHOWN).collect();
    let mut body = json!({
        "messages": [{"role": "user", "content": format!("Write a short JSON document for this schema: {schema}")}],
        "max_tokens": max_tokens,
        "seed": seed,
        "temperature": 0.7,
    });
    if constrained {
        body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": case.schema}});
    } else {
        body["ignore_eos"] = json!(true);
    }
    body
}

fn ask(url: &str, case: &Case, seed: usize) -> anyhow::Result<Answer> {
    let start = Instant::now();
    let (status, answer) = post(url, &body(case, seed, MAX_TOKENS, true))?;
    if status == 400 {
        let message = answer["error"]["message"].as_str().unwrap_or_default().to_owned();
        return Ok(Answer::Refused(message, start.elapsed()));
    }
    if status != 200 {
        bail!("{}: status {status}: {answer}", case.name);
    }
    let choice = &answer["choices"][0];
    match choice["finish_reason"].as_str() {
        Some("stop") => Ok(Answer::Completed(choice["message"]["content"].as_str().unwrap_or_default().to_owned())),
        Some("length") => Ok(Answer::Cut),
        _ => bail!("{}: {answer}", case.name),
    }
}

fn post(url: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let request = agent.post(format!("{url}/v1/chat/completions")).header("content-type", "application/json");
    let mut response = request.send(body.to_string())?;
    let text = response.body_mut().read_to_string()?;
    Ok((response.status().as_u16(), serde_json::from_str(&text)?))
}

/// What the validator says against completed outputs.
fn validate(python: &PathBuf, cases: &[Case], answers: &BTreeMap<usize, Answer>) -> anyhow::Result<Vec<String>> {
    let mut command = Command::new(python);
    command.args(["-c", include_str!("schemas.py")]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut input = child.stdin.take().context("a pipe was asked for")?;
    let mut lines = String::new();
    for (at, answer) in answers {
        if let Answer::Completed(content) = answer {
            let case = &cases[*at];
            lines += &format!("{}\n", json!({"name": case.name, "schema": case.schema, "content": content}));
        }
    }
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(lines.as_bytes()));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("the validator ended with {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// Prints what the grammar costs: the same request with it and without, alone, with one token and with as many as the
/// constrained one had; each the fastest of a few.
fn overhead(url: &str, cases: &[Case]) -> anyhow::Result<()> {
    let (mut compile, mut token, mut free) = (vec![], vec![], vec![]);
    for (at, case) in cases.iter().enumerate().step_by(cases.len().div_ceil(SAMPLE).max(1)) {
        let (status, answer) = post(url, &body(case, at, MAX_TOKENS, true))?;
        let Some(tokens) = answer["usage"]["completion_tokens"].as_u64().filter(|tokens| status == 200 && *tokens > 16)
        else {
            continue;
        };
        let tokens = usize::try_from(tokens)?;
        let time = |tokens: usize, constrained: bool| -> anyhow::Result<f64> {
            let mut fastest = f64::INFINITY;
            for _ in 0..REPEATS {
                let start = Instant::now();
                post(url, &body(case, at, tokens, constrained))?;
                fastest = fastest.min(start.elapsed().as_secs_f64());
            }
            Ok(fastest)
        };
        let [first, first_free] = [time(1, true)?, time(1, false)?];
        let [all, all_free] = [time(tokens, true)?, time(tokens, false)?];
        let steps = (tokens - 1) as f64;
        compile.push((first - first_free) * 1e3);
        token.push(((all - first) - (all_free - first_free)) / steps * 1e6);
        free.push((all_free - first_free) / steps * 1e6);
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let most = token.iter().copied().fold(f64::NAN, f64::max);
    println!(
        "{} schemas alone: compiling {:.1} ms, {:.0} us more per token (most {most:.0}) on {:.0} us, medians",
        token.len(),
        median(&mut compile),
        median(&mut token),
        median(&mut free),
    );
    Ok(())
}

const TOGETHER: usize = 16;
const MAX_TOKENS: usize = 400;
/// Characters of a schema that the prompt shows.
const SHOWN: usize = 1500;
const SAMPLE: usize = 20;
const REPEATS: usize = 3;
/// The most that a refusal may take.
const REFUSAL: Duration = Duration::from_secs(1);
