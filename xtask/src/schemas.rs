//! Structured output against schemas from a file: every answer that was completed must be valid by an outside validator, and
//! what the grammar costs per token is told.
//!
//! The file has a line `{"name", "schema"}` for each, such as samples of JSONSchemaBench; it stays outside the repository.
//! Answers are drawn with a seed that is the line's number, so that a run can be repeated.
//!
//! Invariant: every schema of the file is in exactly one row of the report.

mod overhead;

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

/// What is asked for besides the file.
#[derive(Debug)]
struct Options {
    model: Option<String>,
    /// Requests at once.
    together: usize,
    /// Tokens of an answer at most.
    max_tokens: usize,
    /// Schemas by which the cost per token is measured.
    sample: usize,
}

/// What became of a schema.
#[derive(Debug)]
enum Answer {
    /// It ended by itself.
    Completed(String),
    /// `max_tokens` came first.
    Cut,
    /// The schema was refused: the message, and how long that took.
    Refused(String, Duration),
    /// Anything else.
    Failed(String),
}

/// Runs every schema of a file through a live server: `FILE [MODEL] [--together N] [--max-tokens N] [--sample N]`.
pub fn run(words: &[&str]) -> anyhow::Result<()> {
    let (file, options) = read_words(words)?;
    let cases = read(&file)?;
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
    let together = options.together.to_string();
    let mut arguments: Vec<&str> = options.model.as_deref().into_iter().collect();
    // Without guesses every step is one token, with a grammar and without.
    arguments.extend(["--max-num-seqs", together.as_str(), "--max-model-len", "4096", "--speculate", "off"]);
    let live = Live::start(&binary, &arguments)?;
    let start = Instant::now();
    let answers = ask_all(&live.url, &cases, &options)?;
    println!(
        "{} schemas, {} at once, at most {} tokens each: {:.0} s",
        cases.len(),
        options.together,
        options.max_tokens,
        start.elapsed().as_secs_f32()
    );
    let verdicts = validate(&python, &cases, &answers)?;
    let wrong = report(&cases, &answers, &verdicts);
    overhead::measure(&live.url, &cases, &options)?.print();
    match wrong.is_empty() {
        true => Ok(()),
        false => bail!("{}", wrong.join("\n")),
    }
}

fn read_words(words: &[&str]) -> anyhow::Result<(PathBuf, Options)> {
    let mut options = Options { model: None, together: 16, max_tokens: 256, sample: 20 };
    let mut file = None;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let number = match *word {
            "--together" => &mut options.together,
            "--max-tokens" => &mut options.max_tokens,
            "--sample" => &mut options.sample,
            flag if flag.starts_with('-') => bail!("there is no {flag}: --together, --max-tokens and --sample are"),
            path if file.is_none() => {
                file = Some(PathBuf::from(path));
                continue;
            }
            model => {
                options.model = Some(model.to_owned());
                continue;
            }
        };
        let value = words.next().and_then(|value| value.parse::<usize>().ok()).filter(|value| *value > 0);
        *number = value.with_context(|| format!("{word} needs a number above 0"))?;
    }
    Ok((file.context("a file of schemas is needed")?, options))
}

fn read(file: &Path) -> anyhow::Result<Vec<Case>> {
    let lines = BufReader::new(std::fs::File::open(file).with_context(|| file.display().to_string())?).lines();
    let case = |(number, line): (usize, std::io::Result<String>)| {
        let place = || format!("{}, line {}", file.display(), number + 1);
        let mut value: Value = serde_json::from_str(&line?).with_context(place)?;
        let name = value["name"].as_str().context("it has no name").with_context(place)?.to_owned();
        Ok(Case { name, schema: value["schema"].take() })
    };
    lines.enumerate().map(case).collect()
}

/// The answers in the order of `cases`.
fn ask_all(url: &str, cases: &[Case], options: &Options) -> anyhow::Result<Vec<Answer>> {
    let (next, done, start) = (AtomicUsize::new(0), AtomicUsize::new(0), Instant::now());
    let answers: Vec<Mutex<Option<Answer>>> = cases.iter().map(|_| Mutex::default()).collect();
    std::thread::scope(|scope| {
        for _ in 0..options.together {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(at) else { return };
                    let answer =
                        ask(url, case, at, options).unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
                    *answers[at].lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(answer);
                    let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if done.is_multiple_of(20) {
                        eprintln!("{done} of {} after {:.0} s", cases.len(), start.elapsed().as_secs_f32());
                    }
                }
            });
        }
    });
    let answer = |answer: Mutex<Option<Answer>>| answer.into_inner().ok().flatten().context("a client ended early");
    answers.into_iter().map(answer).collect()
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

fn ask(url: &str, case: &Case, seed: usize, options: &Options) -> anyhow::Result<Answer> {
    let start = Instant::now();
    let mut response = post(url, &body(case, seed, options.max_tokens, true))?;
    let status = response.status().as_u16();
    let answer: Value = serde_json::from_str(&response.body_mut().read_to_string()?)?;
    let choice = &answer["choices"][0];
    Ok(match (status, choice["finish_reason"].as_str()) {
        (400, _) if answer["error"]["code"] == "grammar_error" => {
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            Answer::Refused(message.to_owned(), start.elapsed())
        }
        (200, Some("stop")) => Answer::Completed(choice["message"]["content"].as_str().unwrap_or_default().to_owned()),
        (200, Some("length")) => Answer::Cut,
        _ => Answer::Failed(format!("status {status}: {answer}")),
    })
}

fn post(url: &str, body: &Value) -> anyhow::Result<ureq::http::Response<ureq::Body>> {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let request = agent.post(format!("{url}/v1/chat/completions")).header("content-type", "application/json");
    Ok(request.send(body.to_string())?)
}

/// What the validator says of completed outputs, in the order of `cases`.
fn validate(python: &Path, cases: &[Case], answers: &[Answer]) -> anyhow::Result<Vec<Option<String>>> {
    let mut command = Command::new(python);
    command.args(["-c", include_str!("schemas/validate.py")]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut input = child.stdin.take().context("a pipe was asked for")?;
    let mut lines = String::new();
    for (case, answer) in cases.iter().zip(answers) {
        if let Answer::Completed(content) = answer {
            lines += &format!("{}\n", json!({"schema": case.schema, "content": content}));
        }
    }
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(lines.as_bytes()));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("the validator ended with {}", output.status);
    }
    let text = String::from_utf8(output.stdout)?;
    let mut said = text.lines();
    let verdict = |answer: &Answer| -> anyhow::Result<Option<String>> {
        let Answer::Completed(_) = answer else { return Ok(None) };
        Ok(Some(said.next().context("the validator said too little")?.to_owned()))
    };
    answers.iter().map(verdict).collect()
}

/// Prints the rows of the report and returns what must not be.
fn report(cases: &[Case], answers: &[Answer], verdicts: &[Option<String>]) -> Vec<String> {
    let count = |is: fn(&Answer) -> bool| answers.iter().filter(|answer| is(answer)).count();
    let said = |word: &str| verdicts.iter().flatten().filter(|verdict| verdict.split(' ').next() == Some(word)).count();
    let mut refused: Vec<Duration> = answers
        .iter()
        .filter_map(|answer| match answer {
            Answer::Refused(_, took) => Some(*took),
            _ => None,
        })
        .collect();
    refused.sort_unstable();
    let failed = count(|answer| matches!(answer, Answer::Failed(_)));
    println!("compiled         {:>4}", cases.len() - refused.len() - failed);
    println!("  completed      {:>4}", count(|answer| matches!(answer, Answer::Completed(_))));
    println!("    valid        {:>4}", said("valid"));
    println!("    invalid      {:>4}", said("invalid"));
    println!("    not decided  {:>4}", said("unknown"));
    println!("  cut            {:>4}", count(|answer| matches!(answer, Answer::Cut)));
    let times = refused.last().map_or(String::new(), |most| {
        let median = refused[refused.len() / 2];
        format!("  (median {:.0} ms, most {:.0} ms)", median.as_secs_f64() * 1e3, most.as_secs_f64() * 1e3)
    });
    println!("refused          {:>4}{times}", refused.len());
    println!("failed           {failed:>4}");
    let mut wrong = vec![];
    for ((case, answer), verdict) in cases.iter().zip(answers).zip(verdicts) {
        let name = &case.name;
        match (answer, verdict.as_deref()) {
            (Answer::Refused(message, took), _) => {
                println!("refused in {:.0} ms: {name}: {message}", took.as_secs_f64() * 1e3);
                if *took > REFUSAL {
                    wrong.push(format!("{name}: refused after {took:?}, the bound is {REFUSAL:?}"));
                }
            }
            (Answer::Failed(why), _) => wrong.push(format!("{name}: {why}")),
            (_, Some(verdict)) if verdict.starts_with("unknown") => println!("not decided: {name}: {verdict}"),
            (_, Some(verdict)) if verdict != "valid" => wrong.push(format!("{name}: {verdict}")),
            _ => {}
        }
    }
    if said("valid") == 0 {
        wrong.push("no output was found valid: nothing was shown".to_owned());
    }
    wrong
}

/// Characters of a schema that the prompt shows.
const SHOWN: usize = 1000;
/// The most that a refusal may take.
const REFUSAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_is_in_one_row_and_what_must_not_be_is_told() {
        let case = |name: &str| Case { name: name.to_owned(), schema: json!({}) };
        let cases = ["fine", "long", "late", "bad", "odd", "lost"].map(case);
        let answers = [
            Answer::Completed("1".to_owned()),
            Answer::Cut,
            Answer::Refused("too much".to_owned(), Duration::from_secs(2)),
            Answer::Completed("2".to_owned()),
            Answer::Completed("3".to_owned()),
            Answer::Failed("status 500".to_owned()),
        ];
        let verdicts = [Some("valid"), None, None, Some("invalid 2 is no string"), Some("unknown re.error"), None];
        let wrong = report(&cases, &answers, &verdicts.map(|verdict| verdict.map(str::to_owned)));
        let names: Vec<&str> = wrong.iter().filter_map(|line| line.split(':').next()).collect();
        assert_eq!(names, ["late", "bad", "lost"], "{wrong:?}");
        assert_eq!(report(&cases[1..2], &answers[1..2], &[None]).len(), 1, "nothing shown is nothing passed");
    }

    #[test]
    fn words_are_a_file_a_model_and_numbers() {
        let (file, options) = read_words(&["f", "--together", "3", "m", "--sample", "2"]).unwrap();
        assert_eq!((file, options.model.as_deref()), (PathBuf::from("f"), Some("m")));
        assert_eq!((options.together, options.sample, options.max_tokens), (3, 2, 256));
        for bad in [&["f", "--together"][..], &["f", "--sample", "0"], &["f", "--tokens", "3"], &[]] {
            assert!(read_words(bad).is_err(), "{bad:?}");
        }
    }
}
