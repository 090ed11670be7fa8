//! `njoule models`: what both caches hold, with sizes, and which one is the default.

use serde_json::json;

use super::Context;
use crate::fetch::{self, CachedModel};

/// Arguments of `models`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Prints the list.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let models = fetch::cached_models(&context.fetch.env)?;
        if self.json {
            return print_json(context, &models);
        }
        if models.is_empty() {
            writeln!(context.out, "no models yet; `njoule pull` gets the default one")?;
        }
        let width = models.iter().map(|m| m.reference.len()).max().unwrap_or(0);
        for model in &models {
            let mark = if model.default { "  (default)" } else { "" };
            let path = model.path.display();
            writeln!(context.out, "{:width$}  {:>9}  {path}{mark}", model.reference, human_bytes(model.bytes))?;
        }
        Ok(())
    }
}

fn print_json(context: &mut Context<'_>, models: &[CachedModel]) -> anyhow::Result<()> {
    let rows: Vec<_> = models
        .iter()
        .map(|m| json!({"model": m.reference, "kind": m.kind.name(), "path": m.path, "bytes": m.bytes, "default": m.default}))
        .collect();
    writeln!(context.out, "{}", json!({"default": fetch::DEFAULT_MODEL, "models": rows}))?;
    Ok(())
}

/// A size for people, in powers of ten.
fn human_bytes(bytes: u64) -> String {
    let units = [("GB", 1_000_000_000_u64), ("MB", 1_000_000), ("kB", 1000)];
    match units.iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_in_powers_of_ten() {
        assert_eq!(human_bytes(999), "999 B");
        assert_eq!(human_bytes(98_362_432), "98.3 MB");
        assert_eq!(human_bytes(2_000_000_000), "2.0 GB");
    }
}
