//! What `bench` prints: a table for people, one object for scripts.

use std::collections::BTreeMap;
use std::io::{self, Write};

use njoule_runtime::backend::MemoryUse;
use serde_json::{Value, json};

use super::case::Row;
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
    pub rows: &'a [Row],
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
            "energy": {"joules": null, "joules_per_token": null, "method": null},
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
        let peak = self.peak_memory.map_or("unknown".to_owned(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6));
        writeln!(out, "peak memory: {peak}; energy: unknown (no meter read)")
    }
}
