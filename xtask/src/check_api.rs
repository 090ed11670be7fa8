//! The HTTP interface as strangers use it: schemathesis against the server's own OpenAPI document, openai's Python client,
//! and the curl examples of README and docs, all against one live server on a tiny checkpoint.
//!
//! Bounded: fixed seeds, a fixed number of examples, and a deadline for every child.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::live::Live;
use crate::python;

/// Runs the check.
pub fn run() -> anyhow::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let python = match std::env::var_os("NJOULE_API_PYTHON") {
        Some(python) => python.into(),
        None => python::environment(&workspace.join("target"), "api-venv", &PACKAGES)?,
    };
    let start = Instant::now();
    let fixture = workspace.join("testdata/qwen3").display().to_string();
    let arguments = [&fixture, "--threads", "1", "--served-model-name", MODEL].map(str::to_owned);
    // This program holds the server too.
    let server = Live::start(&std::env::current_exe()?, &arguments)?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/check_api");
    let mut failures = vec![];
    let mut step = |what: &str, command: &mut Command| {
        let begun = Instant::now();
        match within(command, PATIENCE) {
            Ok(()) => println!("{what}: passed in {:.0} s", begun.elapsed().as_secs_f32()),
            Err(error) => failures.push(format!("{what}: {error:#}")),
        }
    };
    step("openai's client", Command::new(&python).arg(here.join("openai_client.py")).arg(&server.url));
    for (place, example) in examples(workspace)? {
        step(&format!("curl of {place}"), Command::new("sh").arg("-c").arg(curl(&server.url, &example)));
    }
    let mut st = Command::new(python.with_file_name("schemathesis"));
    st.current_dir(workspace.join("target")).arg("run").arg(format!("{}/openapi.json", server.url)).args(SCHEMATHESIS);
    step("schemathesis", &mut st);
    step("health afterwards", Command::new("sh").arg("-c").arg(curl(&server.url, HEALTH)));
    drop(server);
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    println!("all in {:.0} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// An example of the documentation, asked of this server; it fails unless the status is 200 and something comes.
fn curl(url: &str, example: &str) -> String {
    let example = example.replace("http://127.0.0.1:8000", url).replace("curl ", "curl -sS --fail-with-body ");
    format!("set -e; answer=$({example}); test -n \"$answer\"")
}

/// The examples with curl in README and the page on serving, with where they stand.
fn examples(workspace: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let mut all = vec![];
    for page in ["README.md", "docs/serving.md"] {
        let text = std::fs::read_to_string(workspace.join(page)).with_context(|| page.to_owned())?;
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let Some(first) = line.strip_prefix("    ").filter(|line| line.starts_with("curl ")) else { continue };
            let mut example = first.to_owned();
            while example.ends_with('\\') {
                example.pop();
                example.push_str(lines.next().map_or("", |(_, line)| line.trim()));
            }
            all.push((format!("{page}:{}", number + 1), example));
        }
    }
    if all.is_empty() {
        bail!("no example with curl was found");
    }
    Ok(all)
}

/// Runs a command to its end, which must come in time and be a success; shows what it said otherwise.
fn within(command: &mut Command, patience: Duration) -> anyhow::Result<()> {
    let program = command.get_program().display().to_string();
    let mut child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot run {program}"))?;
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() { Ok(()) } else { Err(anyhow::anyhow!("{program} ended with {status}")) };
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{program} took more than {} s", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

const MODEL: &str = "tiny";
const HEALTH: &str = "curl -w %{http_code} http://127.0.0.1:8000/health";
const PATIENCE: Duration = Duration::from_secs(180);
const PACKAGES: [&str; 2] = ["schemathesis==4.32.5", "openai==3.54.0"];
/// What schemathesis looks for. Not whether every valid body is answered: a prompt may be too long, a grammar empty, and a
/// schema does not know.
const SCHEMATHESIS: [&str; 12] = [
    "--phases",
    "coverage,fuzzing",
    "--max-examples",
    "12",
    "--seed",
    "1",
    "--checks",
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,negative_data_rejection,unsupported_method",
    "--request-timeout",
    "20",
    "--suppress-health-check",
    "all",
];
