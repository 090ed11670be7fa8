//! `njoule inspect ARTIFACT`: what an artifact for Neuron devices holds, by its manifest.

use std::io::Write;

use njoule_runtime::backend::neuron::ModuleKind;
use njoule_runtime::backend::neuron::artifact::{Artifact, FileRecord};
use serde::Serialize;
use serde_json::{Value, json};

use crate::verbs::plan::together;

/// All of it for programs; `verified` says whether every byte was compared.
pub fn object(artifact: &Artifact, verified: bool) -> Value {
    let m = &artifact.manifest;
    let modules = m.modules.iter().map(|module| {
        json!({
            "name": module.name, "spec": module.spec, "hlo": module.hlo, "neff": module.neff, "flags": module.flags,
            "seconds": module.seconds, "peak_bytes": module.peak_bytes,
        })
    });
    json!({
        "artifact": artifact.dir, "id": m.id, "format": m.format, "njoule": m.njoule, "compiler": m.compiler,
        "model": m.model, "layout": m.layout, "modules": modules.collect::<Vec<_>>(), "weights": m.weights,
        "files": m.files, "parameters": m.parameters.len(), "plan": m.plan, "bytes": bytes(artifact.files()),
        "verified": verified,
    })
}

/// The same for people.
pub fn print(artifact: &Artifact, verified: bool, out: &mut dyn Write) -> std::io::Result<()> {
    let (m, layout) = (&artifact.manifest, &artifact.manifest.layout);
    let mut line = |key: &str, value: String| writeln!(out, "{key:<14}{value}");
    line("artifact", artifact.dir.display().to_string())?;
    line("id", m.id.clone())?;
    line("model", format!("{} ({}, fingerprint {})", m.model.name, m.model.architecture, m.model.fingerprint))?;
    let lnc = layout.lnc.map_or(String::new(), |lnc| format!(", logical cores of {lnc}"));
    line("instance", format!("{} ({}{lnc}), compiler {}", layout.instance, layout.target.name(), m.compiler))?;
    line("replicas", format!("{} of {} core(s), sequences to {} tokens", layout.replicas, layout.tp, layout.context))?;
    line("stored", format!("weights {}, caches {}", word(&layout.weights), word(&layout.kv)))?;
    for class in &layout.classes {
        let alone = layout.modules.iter().filter(|module| module.parts.len() == 1);
        let names = alone.filter_map(|module| {
            let len = module.part(*class)?.len;
            Some(match module.kind {
                ModuleKind::Decode { batch } => format!("decode {batch}x{len}"),
                ModuleKind::Prefill { tokens } => format!("prefill {tokens}@{len}"),
                ModuleKind::Score { tokens } => format!("score {tokens}@{len}"),
            })
        });
        line("class", format!("{} rows of {} positions", class.rows, class.positions))?;
        line("", names.collect::<Vec<_>>().join(", "))?;
    }
    for module in layout.modules.iter().filter(|module| module.parts.len() > 1) {
        line("decode", together(module, &layout.classes))?;
    }
    let gb = |bytes: u64| format!("{:.3} GB", bytes as f64 / 1e9);
    let neffs = bytes(m.modules.iter().map(|module| &module.neff));
    line("modules", format!("{}, {} of NEFFs", m.modules.len(), gb(neffs)))?;
    line(
        "weights",
        match m.weights.len() {
            0 => "none: it serves every checkpoint of these shapes".to_owned(),
            n => format!("{n} rank(s), {}", gb(bytes(&m.weights))),
        },
    )?;
    let names: Vec<&str> = m.files.iter().map(|file| file.path.as_str()).collect();
    line("files", if names.is_empty() { "none".to_owned() } else { names.join(", ") })?;
    line(
        "verified",
        if verified { "every byte is as the manifest says" } else { "sizes and headers (--verify reads all)" }
            .to_owned(),
    )
}

fn bytes<'a>(files: impl IntoIterator<Item = &'a FileRecord>) -> u64 {
    files.into_iter().map(|file| file.bytes).fold(0, u64::saturating_add)
}

/// A stored type as it is typed.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
