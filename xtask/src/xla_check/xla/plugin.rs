//! `xtask xla-run PLUGIN`: one module's process, with XLA in a PJRT plugin. Requests and answers as in `run.py`.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use njoule_hlo::decode;
use njoule_hlo::pjrt::{PjrtExecutable, Plugin};

use super::arrays;

/// Answers until the requests end.
pub fn serve(plugin: &str) -> anyhow::Result<()> {
    watch();
    let plugin = Plugin::open(Path::new(plugin))?;
    let mut known = None;
    for line in std::io::stdin().lock().lines() {
        BEGUN.store(now(), Ordering::Relaxed);
        let said = match answer(&serde_json::from_str(&line?)?, &plugin, &mut known) {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("{error:#}").replace('\n', " "),
        };
        BEGUN.store(0, Ordering::Relaxed);
        let mut out = std::io::stdout().lock();
        writeln!(out, "{said}")?;
        out.flush()?;
    }
    Ok(())
}

fn answer(request: &serde_json::Value, plugin: &Plugin, known: &mut Option<PjrtExecutable>) -> anyhow::Result<()> {
    if request.get("abort").is_some() {
        std::process::abort();
    }
    let file = |name: &str| request[name].as_str().map(Path::new).with_context(|| format!("no `{name}`: {request}"));
    let replicas = arrays::read(file("inputs")?)?;
    let executable = match known {
        Some(executable) => executable,
        None => known.insert(plugin.compile(&decode(&std::fs::read(file("module")?)?)?, replicas.len())?),
    };
    arrays::write(file("outputs")?, &executable.run_replicas(replicas)?)
}

/// Ends the process when a request takes too long.
fn watch() {
    now();
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let begun = BEGUN.load(Ordering::Relaxed);
            if begun > 0 && now() > begun + LIMIT {
                eprintln!("a request did not end within {LIMIT} s");
                std::process::exit(1);
            }
        }
    });
}

/// Seconds since the first call, from 1 on.
fn now() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs() + 1
}

/// When the request began, 0 between requests.
static BEGUN: AtomicU64 = AtomicU64::new(0);
/// Seconds of a request, compiling included.
const LIMIT: u64 = 600;
