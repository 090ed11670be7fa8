//! What `bench` prints: a table for people, one object for scripts; and reports as CSV.

use std::collections::BTreeMap;
use std::io::{self, Write};

use njoule_runtime::backend::MemoryUse;
use serde_json::{Value, json};

use super::case::Row;
use super::lines::field;
use super::roofline::Roofline;
use crate::session::backend::AnyBackend;
use crate::session::options::kv_name;

/// Everything that was measured.
pub struct Report<'a> {
    pub model: &'a str,
    pub backend: &'a AnyBackend,
    /// Why that one.
    pub reason: &'a str,
    pub quant: &'static str,
    pub threads: usize,
    pub repeat: usize,
    pub types: &'a BTreeMap<&'static str, usize>,
    pub memory: MemoryUse,
    /// Largest resident size while loading and running.
    pub peak_memory: Option<u64>,
    pub roofline: Option<Roofline>,
    pub perplexity: Option<f64>,
    pub rows: &'a [Row],
    /// One of every case, phase and repeat.
    pub reports: &'a [Value],
}

impl Report<'_> {
    /// The object; its keys are a contract.
    pub fn json(&self) -> Value {
        let roofline = self.roofline.as_ref();
        json!({
            "model": self.model,
            "backend": self.backend.name(),
            "backend_reason": self.reason,
            "device": self.backend.device(),
            "isa": self.backend.isa(),
            "quant": self.quant,
            "stored_bytes": self.types,
            "kv_type": kv_name(self.backend.kv_type()),
            "threads": self.threads,
            "repeat": self.repeat,
            "memory": {
                "peak_rss_bytes": self.peak_memory,
                "weight_bytes": self.memory.weights,
                "kv_capacity_bytes": self.memory.kv,
                "scratch_bytes": self.memory.scratch,
            },
            "machine": {
                "read_bytes_per_s": roofline.map(|r| r.bandwidth),
                "tile_peak_ops_per_s": roofline.map(|r| r.peak),
                "tile_peak_type": roofline.map(|r| r.peak_type),
            },
            "perplexity": self.perplexity,
            "rows": self.rows.iter().map(|row| self.row(row)).collect::<Vec<_>>(),
        })
    }

    fn row(&self, row: &Row) -> Value {
        let phase = row.decode.as_ref().unwrap_or(&row.prefill);
        let roofline = self.roofline.as_ref();
        json!({
            "batch": row.case.batch,
            "prompt_tokens": row.case.prompt,
            "gen_tokens": row.case.generated,
            "prefill_tokens_per_s": row.prefill.rate(),
            "decode_tokens_per_s": row.decode.map(|d| d.rate()),
            "cpu_s_per_token": phase.cpu_seconds / phase.tokens as f64,
            "prefill_cpu_s_per_token": row.prefill.cpu_seconds / row.prefill.tokens as f64,
            "ttft_s": row.prefill.seconds,
            "mbu": roofline.map(|r| r.bandwidth_use(phase)),
            "roofline": roofline.map(|r| r.share(phase)),
            "prefill_roofline": roofline.map(|r| r.share(&row.prefill)),
            "peak_memory_bytes": self.peak_memory,
            "energy": self.energy(row),
        })
    }

    /// Joules of the phase that counts, over all its repeats; null with the reasons if one repeat's are unknown.
    fn energy(&self, row: &Row) -> Value {
        let phase = if row.decode.is_some() { "decode" } else { "prefill" };
        let wanted = (phase, row.case.batch, row.case.prompt, row.case.generated);
        let of = |report: &&Value| {
            let workload = &report["workload"];
            let number = |name: &str| workload[name].as_u64().and_then(|n| usize::try_from(n).ok());
            let name = workload["name"].as_str().unwrap_or_default();
            number("concurrency").zip(number("prompt")).zip(number("generated"))
                == Some(((wanted.1, wanted.2), wanted.3))
                && name == wanted.0
        };
        let runs: Vec<&Value> = self.reports.iter().filter(of).collect();
        let joules: Option<f64> = runs.iter().map(|r| r["energy"]["total_j"].as_f64()).sum();
        let tokens: Option<f64> = runs.iter().map(|r| super::reports::tokens(r)).sum();
        let first = runs.first().filter(|_| joules.is_some());
        json!({
            "total_j": joules,
            "joules_per_token": joules.zip(tokens).filter(|(_, n)| *n > 0.0).map(|(j, n)| j / n),
            "method": first.map(|r| &r["energy"]["method"]),
            "boundary": first.map(|r| &r["energy"]["boundary"]),
            "reasons": runs.first().map(|r| &r["energy"]["reasons"]),
        })
    }

    /// The table.
    pub fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let types: Vec<String> =
            self.types.iter().map(|(name, bytes)| format!("{name} {:.1} MB", *bytes as f64 / 1e6)).collect();
        let on = || format!("{} on {}", self.backend.name(), self.backend.device());
        writeln!(
            out,
            "{}: {}, {} threads, weights {}, cache {}",
            self.model,
            self.backend.isa().map_or_else(on, str::to_owned),
            self.threads,
            types.join(" + "),
            kv_name(self.backend.kv_type())
        )?;
        writeln!(
            out,
            "{:>5} {:>6} {:>5} {:>13} {:>13} {:>13} {:>9} {:>6} {:>9}",
            "batch", "prompt", "gen", "prefill tok/s", "decode tok/s", "CPU ms/token", "TTFT s", "mbu", "roofline"
        )?;
        for row in self.rows {
            let phase = row.decode.as_ref().unwrap_or(&row.prefill);
            let decode = row.decode.map_or("-".to_owned(), |d| format!("{:.1}", d.rate()));
            let percent = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{:.0} %", 100.0 * x));
            let roofline = self.roofline.as_ref();
            writeln!(
                out,
                "{:>5} {:>6} {:>5} {:>13.1} {:>13} {:>13.3} {:>9.4} {:>6} {:>9}",
                row.case.batch,
                row.case.prompt,
                row.case.generated,
                row.prefill.rate(),
                decode,
                1e3 * phase.cpu_seconds / phase.tokens as f64,
                row.prefill.seconds,
                percent(roofline.map(|r| r.bandwidth_use(phase))),
                percent(roofline.map(|r| r.share(phase))),
            )?;
        }
        if let Some(roofline) = &self.roofline {
            let (read, peak) = (roofline.bandwidth / 1e9, roofline.peak / 1e9);
            writeln!(
                out,
                "this machine: {read:.1} GB/s streaming read, {peak:.0} Gop/s in {} tiles",
                roofline.peak_type
            )?;
        }
        if let Some(perplexity) = self.perplexity {
            writeln!(out, "perplexity: {perplexity:.4}")?;
        }
        let peak = self.peak_memory.map_or("unknown".to_owned(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6));
        let energies: Vec<Value> = self.rows.iter().map(|row| self.energy(row)).collect();
        let known: Vec<String> = energies.iter().filter_map(energy_of_a_token).collect();
        match known.is_empty() {
            true => {
                let reasons = energies.first().and_then(|e| e["reasons"].as_array()).into_iter().flatten();
                let reasons: Vec<&str> = reasons.filter_map(Value::as_str).collect();
                let why = if reasons.is_empty() { "no meter read".to_owned() } else { reasons.join("; ") };
                writeln!(out, "peak memory: {peak}; energy: unknown ({why})")
            }
            false => writeln!(out, "peak memory: {peak}; energy per token, a case each: {}", known.join(", ")),
        }
    }
}

/// `0.123 J (measured)`.
fn energy_of_a_token(energy: &Value) -> Option<String> {
    Some(format!("{:.4} J ({})", energy["joules_per_token"].as_f64()?, energy["method"].as_str()?))
}

/// Columns of the CSV form: name, and where it stands in a report.
const COLUMNS: [(&str, &str); 24] = [
    ("run_id", "/run_id"),
    ("time_start_unix_s", "/time_start_unix_s"),
    ("model", "/model/id"),
    ("workload", "/workload/name"),
    ("concurrency", "/workload/concurrency"),
    ("prompt", "/workload/prompt"),
    ("generated", "/workload/generated"),
    ("repeat", "/repeat"),
    ("duration_s", "/window/duration_s"),
    ("input_tokens", "/workload/input_tokens"),
    ("output_tokens", "/workload/output_tokens"),
    ("output_tokens_per_s", "/metrics/output_tokens_per_s"),
    ("cpu_s", "/cpu_s"),
    ("ttft_p50_s", "/metrics/ttft_s/p50"),
    ("ttft_p99_s", "/metrics/ttft_s/p99"),
    ("itl_p50_s", "/metrics/itl_s/p50"),
    ("itl_p99_s", "/metrics/itl_s/p99"),
    ("total_j", "/energy/total_j"),
    ("low_j", "/energy/low_j"),
    ("high_j", "/energy/high_j"),
    ("method", "/energy/method"),
    ("boundary", "/energy/boundary"),
    ("output_tokens_per_joule", "/metrics/output_tokens_per_joule"),
    ("output_sha256", "/quality/output_sha256"),
];

/// Reports as CSV, one a line; unknown is empty.
pub fn csv(reports: &[Value]) -> String {
    let mut lines = vec![COLUMNS.map(|(name, _)| name.to_owned()).join(",")];
    lines.extend(reports.iter().map(|report| COLUMNS.map(|(_, path)| field(report.pointer(path))).join(",")));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_leaves_the_unknown_empty_and_quotes_names() {
        let report = json!({"run_id": "a", "model": {"id": "x, \"y\""}, "energy": {"total_j": null}, "repeat": 2});
        let text = csv(&[report]);
        let (head, line) = text.trim_end().split_once('\n').unwrap();
        assert_eq!(head.split(',').count(), COLUMNS.len());
        assert!(line.starts_with("a,,\"x, \"\"y\"\"\",,,,,2,") && line.ends_with(",,,"), "{line}");
    }
}
