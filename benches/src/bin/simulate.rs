//! Tokens per joule of the server's policy on a machine that nobody has: a simulation, under watts that are given.
//!
//! ```text
//! simulate --step-ms MS --row-ms MS --watts base=W..W,span=W..W [--slots N] [--budget ROWS] [--requests N]
//!          [--loads 0.2,0.5,0.8] [--tpot TIME] [--ttft TIME] [--lengths FILE] [--seed N]
//! ```
//!
//! A step takes `step-ms` and `row-ms` more for each of its rows. Watts have no default: `base` always flows, `span` while a step
//! runs. Without a file, requests have the lengths of a published conversation trace. The policy is the one that `njoule serve`
//! runs (`runtime/src/policy.rs`), its clock made up.

use anyhow::{Context, Result};
use njoule_benches::flags::Flags;
use njoule_benches::simulated::{Setup, time};
use njoule_runtime::backend::neuron::plan::Lengths;
use njoule_runtime::policy::Bounds;
use njoule_runtime::policy::simulate::{Machine, Outcome};

fn main() -> Result<()> {
    let mut flags = Flags::read()?;
    let mut number = |name: &str, default: Option<&str>| -> Result<f64> {
        let text = flags.take(name, default)?;
        let number = text.parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0);
        number.with_context(|| format!("--{name} {text}: no number"))
    };
    let (step_s, row_s) = (1e-3 * number("step-ms", None)?, 1e-3 * number("row-ms", None)?);
    let (slots, budget) = (number("slots", Some("64"))?, number("budget", Some("512"))?);
    let (requests, seed) = (number("requests", Some("3000"))?, number("seed", Some("1"))?);
    let mut bound = |name: &str, default: &str| -> Result<_> {
        let text = flags.take(name, Some(default))?;
        time(&text).with_context(|| format!("--{name} {text}: no time such as 200ms or 2s"))
    };
    let bounds = Bounds { tpot: bound("tpot", "200ms")?, ttft: bound("ttft", "2s")? };
    let watts = flags.take("watts", None)?.parse().context("--watts")?;
    let lengths = match flags.take("lengths", Some(""))?.as_str() {
        "" => Lengths::default(),
        file => Lengths::parse(&std::fs::read_to_string(file).with_context(|| file.to_owned())?, file)?,
    };
    let loads = flags.take("loads", Some("0.2,0.5,0.8"))?;
    let loads: Vec<f64> = loads.split(',').map(str::parse).collect::<Result<_, _>>().context("--loads")?;
    flags.finish()?;

    let machine = Machine {
        step_s,
        row_s,
        slots: (slots as usize).max(1),
        budget: (budget as usize).max(1),
        busy_w: 0.0,
        idle_w: 0.0,
    };
    let setup =
        Setup { lengths: lengths.requests, requests: requests as usize, machine, watts, bounds, seed: seed as u64 };
    println!("simulated, not measured: {}; --watts {}", lengths.source, setup.watts);
    println!(
        "{:>5} {:18} {:>21} {:>9} {:>9} {:>12} {:>12}",
        "load", "policy", "tokens/J low, high", "busy", "steps", "TTFT p99 ms", "TPOT p99 ms"
    );
    for share in loads {
        for row in setup.rows(share) {
            let o = &row.outcome;
            let (low, high) = row.tokens_per_joule;
            println!(
                "{share:>5.2} {:18} {low:>10.4} {high:>10.4} {:>8.1}% {:>9} {:>12.0} {:>12.1}",
                row.player,
                100.0 * o.busy_s / o.seconds,
                o.steps,
                1e3 * Outcome::percentile(&o.ttft, 0.99),
                1e3 * Outcome::percentile(&o.gaps, 0.99),
            );
        }
    }
    Ok(())
}
