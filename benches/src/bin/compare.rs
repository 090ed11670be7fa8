//! njoule beside llama.cpp on the same machine, model file and threads: ratios of medians of alternating runs.
//!
//! ```text
//! compare --njoule BIN --llama DIR --gguf FILE [--ours MODEL] [--quant Q] [--threads T] [--batch 1,4,8,16,32]
//!         [--rounds N] [--busy SHARE]
//! ```
//!
//! DIR holds `llama-batched-bench` and `llama-bench`; `docs/performance.md` says how to build them. Both sides decode
//! 64 tokens after prompts of 32, and prefill one prompt of 512. A round in which other processes took more than SHARE
//! of the cores (default 0.1) is run again, twice at most, then counted and marked.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use njoule_benches::flags::Flags;
use serde_json::Value;

struct Options {
    njoule: String,
    llama: String,
    gguf: String,
    ours: String,
    quant: String,
    threads: String,
    batch: String,
    rounds: usize,
    busy: f64,
}

/// Tokens per second of each case: `decode B`, `prefill 512`.
type Rates = BTreeMap<String, f64>;

fn main() -> Result<()> {
    let o = options()?;
    let mut ours: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut theirs = ours.clone();
    let mut noisy = 0;
    for _ in 0..o.rounds {
        for (run, results) in [(run_njoule as fn(&Options) -> Result<Rates>, &mut ours), (run_llama, &mut theirs)] {
            let (rates, was_noisy) = quietly(o.busy, || run(&o))?;
            noisy += usize::from(was_noisy);
            for (case, rate) in rates {
                results.entry(case).or_default().push(rate);
            }
        }
    }
    println!("{} against {}, {} threads, {} rounds, {noisy} noisy runs", o.ours, o.gguf, o.threads, o.rounds);
    println!("{:12} {:>10} {:>10} {:>7}", "case", "njoule", "llama.cpp", "ratio");
    for (case, rates) in &mut ours {
        let Some(peer) = theirs.get_mut(case) else { continue };
        let (a, b) = (median(rates), median(peer));
        println!("{case:12} {a:10.1} {b:10.1} {:7.2}", a / b);
    }
    Ok(())
}

fn options() -> Result<Options> {
    let mut flags = Flags::read()?;
    let mut take = |name: &str, default: Option<&str>| flags.take(name, default);
    let gguf = take("gguf", None)?;
    let options = Options {
        njoule: take("njoule", None)?,
        llama: take("llama", None)?,
        ours: take("ours", Some(&gguf))?,
        quant: take("quant", Some("auto"))?,
        threads: take("threads", Some("2"))?,
        batch: take("batch", Some("1,4,8,16,32"))?,
        rounds: take("rounds", Some("5"))?.parse().context("--rounds")?,
        busy: take("busy", Some("0.1"))?.parse().context("--busy")?,
        gguf,
    };
    flags.finish()?;
    Ok(options)
}

fn run_njoule(o: &Options) -> Result<Rates> {
    let common =
        ["bench", "-m", &o.ours, "--quant", &o.quant, "--threads", &o.threads, "--json", "--no-roofline", "-r", "1"];
    let decode =
        json(Command::new(&o.njoule).args(common).args(["--batch", &o.batch, "--prompt", "32", "--gen", "64"]))?;
    let prefill = json(Command::new(&o.njoule).args(common).args(["--batch", "1", "--prompt", "512", "--gen", "0"]))?;
    let mut rates = Rates::new();
    for row in decode["rows"].as_array().context("njoule bench: no rows")? {
        let rate = row["decode_tokens_per_s"].as_f64().context("decode_tokens_per_s")?;
        rates.insert(format!("decode {:>3}", row["batch"]), rate);
    }
    let rate = prefill["rows"][0]["prefill_tokens_per_s"].as_f64().context("prefill_tokens_per_s")?;
    rates.insert("prefill 512".into(), rate);
    Ok(rates)
}

fn run_llama(o: &Options) -> Result<Rates> {
    let mut batched = Command::new(format!("{}/llama-batched-bench", o.llama));
    batched.args(["-m", &o.gguf, "-npp", "32", "-ntg", "64", "-npl", &o.batch, "-t", &o.threads, "-tb", &o.threads]);
    batched.args(["-c", "4096", "-b", "2048", "-ub", "512", "--output-format", "jsonl"]);
    let mut rates = Rates::new();
    for line in output(&mut batched)?.lines().filter(|l| l.starts_with('{')) {
        let row: Value = serde_json::from_str(line).context("llama-batched-bench")?;
        rates.insert(format!("decode {:>3}", row["pl"]), row["speed_tg"].as_f64().context("speed_tg")?);
    }
    let mut prefill = Command::new(format!("{}/llama-bench", o.llama));
    prefill.args(["-m", &o.gguf, "-p", "512", "-n", "0", "-t", &o.threads, "-r", "1", "-o", "json"]);
    let rate = json(&mut prefill)?[0]["avg_ts"].as_f64().context("llama-bench: avg_ts")?;
    rates.insert("prefill 512".into(), rate);
    Ok(rates)
}

fn json(command: &mut Command) -> Result<Value> {
    serde_json::from_str(&output(command)?).with_context(|| format!("{command:?} printed no JSON"))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs until other processes kept off the cores, three times at most; says whether the last was disturbed.
fn quietly(busy: f64, run: impl Fn() -> Result<Rates>) -> Result<(Rates, bool)> {
    for attempt in 0.. {
        let (before, start) = (others()?, Instant::now());
        let rates = run()?;
        let cores = std::thread::available_parallelism()?.get() as f64;
        let share = (others()? - before) / start.elapsed().as_secs_f64() / cores;
        if share <= busy || attempt == 2 {
            return Ok((rates, share > busy));
        }
    }
    unreachable!("the loop returns by its third pass")
}

/// CPU seconds of all processes but this one's ended children.
fn others() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let fields: Vec<f64> =
        stat.lines().next().context("/proc/stat")?.split_whitespace().skip(1).flat_map(str::parse).collect();
    // user, nice, system, then (past idle and iowait) irq, softirq, steal.
    let busy: f64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|i| fields.get(*i)).sum();
    let own = std::fs::read_to_string("/proc/self/stat")?;
    let own: Vec<&str> = own.rsplit(')').next().context("/proc/self/stat")?.split_whitespace().collect();
    let children = own[13].parse::<f64>()? + own[14].parse::<f64>()?;
    Ok((busy - children) / 100.0)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
