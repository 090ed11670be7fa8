//! `njoule models`: what both caches hold, with sizes, and which one is the default; or what can be run at all.

use njoule_runtime::supported::{self, BACKENDS, Supported};
use serde_json::{Map, Value, json};

use super::Context;
use crate::fetch::{self, CachedModel};

/// Arguments of `models`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// List the families of models that can be run instead: their GGUF architectures, stored types, and which backends refuse
    /// them and why
    #[arg(long)]
    supported: bool,
}

impl Args {
    /// Prints the list.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        if self.supported {
            return if self.json { print_supported_json(context) } else { print_supported(context) };
        }
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

fn print_supported(context: &mut Context<'_>) -> anyhow::Result<()> {
    let families = supported::families();
    let gguf = |s: &Supported| if s.gguf.is_empty() { "-".to_owned() } else { s.gguf.join(", ") };
    let width = families.iter().map(|s| s.family.name().len()).max().unwrap_or(0);
    let wide = families.iter().map(|s| gguf(s).len()).max().unwrap_or(0);
    writeln!(context.out, "{:width$}  {:wide$}  {}", "family", "in GGUF", BACKENDS.join("  "))?;
    for s in &families {
        write!(context.out, "{:width$}  {:wide$}", s.family.name(), gguf(s))?;
        for (name, refusal) in BACKENDS.iter().zip(&s.refusals) {
            write!(context.out, "  {:len$}", if refusal.is_none() { "yes" } else { "no" }, len = name.len())?;
        }
        writeln!(context.out)?;
    }
    let reasons = families.iter().flat_map(|s| {
        let refused = BACKENDS.iter().zip(&s.refusals).filter_map(|(name, why)| Some((*name, why.as_ref()?)));
        let one_core = s.one_core.iter().map(|why| ("neuron on several cores", why));
        refused.chain(one_core).map(|(name, why)| format!("{} on {name}: {why}", s.family.name()))
    });
    for (i, reason) in reasons.enumerate() {
        writeln!(context.out, "{}{reason}", if i == 0 { "\n" } else { "" })?;
    }
    writeln!(context.out)?;
    for (file, types) in supported::stored_types() {
        writeln!(context.out, "{file}: {types}")?;
    }
    Ok(())
}

fn print_supported_json(context: &mut Context<'_>) -> anyhow::Result<()> {
    let family = |s: &Supported| {
        let refusals: Map<String, Value> =
            BACKENDS.iter().zip(&s.refusals).map(|(name, why)| (name.to_string(), json!(why))).collect();
        json!({"family": s.family.name(), "gguf": s.gguf, "refusals": refusals, "one_core_on_neuron": s.one_core})
    };
    let types: Map<String, Value> =
        supported::stored_types().into_iter().map(|(file, types)| (file.to_owned(), json!(types))).collect();
    let families: Vec<_> = supported::families().iter().map(family).collect();
    writeln!(context.out, "{}", json!({"families": families, "stored_types": types}))?;
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
