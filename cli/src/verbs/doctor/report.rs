//! The report: verdict and first thing to fix, what was found, all other findings; as text and as JSON.

use std::io::{self, Write};

use njoule_neuron_sys::sysfs::{Field, KernelLog};
use serde_json::{Value, json};

use super::facts::{Device, Facts};
use super::library::Found;
use super::verdict::{Finding, Severity, Verdict};

/// What is printed.
pub struct Report<'a> {
    /// What was seen.
    pub facts: &'a Facts,
    /// What it is good for.
    pub verdict: Verdict,
    /// What is to be known, the worst first.
    pub findings: &'a [Finding],
}

impl Report<'_> {
    /// What to mend before all else.
    pub fn first(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.severity != Severity::Note)
    }

    /// As text.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.verdict.words())?;
        match self.first() {
            Some(first) => writeln!(out, "first to fix: {}\n          do: {}", first.what, first.fix)?,
            None => writeln!(out, "nothing to fix")?,
        }
        writeln!(out, "{UNPROVEN}\n")?;
        for (key, value) in self.lines() {
            writeln!(out, "{key:<14}{value}")?;
        }
        if !self.findings.is_empty() {
            writeln!(out)?;
        }
        for finding in self.findings {
            writeln!(
                out,
                "{:<10}{}: {}\n          {}",
                finding.severity.name(),
                finding.about,
                finding.what,
                finding.fix
            )?;
        }
        Ok(())
    }

    fn lines(&self) -> Vec<(String, String)> {
        let f = self.facts;
        let mut lines = vec![];
        let mut line = |key: &str, value: String| lines.push((key.to_owned(), value));
        line("instance", format!("{} ({})", told(&f.instance_type), told(&f.vendor)));
        let installed: Vec<_> = f.driver.installed.iter().map(|i| i.version.to_string()).collect();
        let installed = if installed.is_empty() { "none".to_owned() } else { installed.join(", ") };
        let loaded = if f.driver.loaded { format!("loaded, {}", told(&f.driver.version)) } else { "not loaded".into() };
        line("driver", format!("{loaded}; installed: {installed}"));
        match &f.library.found {
            Some(found) => library_lines(found, &mut line),
            None => {
                line("library", "none".into());
                for (path, origin, reason) in &f.library.tried {
                    line("", format!("tried {} ({origin}): {reason}", path.display()));
                }
            }
        }
        let place =
            |path: &Option<std::path::PathBuf>| path.as_ref().map_or("none".to_owned(), |p| p.display().to_string());
        let compiler = match (&f.compiler.path, &f.compiler.version) {
            (None, _) => "none".to_owned(),
            (Some(path), Ok(version)) => format!("{version} ({})", path.display()),
            (Some(path), Err(why)) => format!("{}: {why}", path.display()),
        };
        line("compiler", compiler);
        line("collectives", place(&f.collectives.path));
        let tools: Vec<_> = f.tools.iter().filter(|t| t.path.is_some()).map(|t| t.name).collect();
        line("tools", if tools.is_empty() { "none".into() } else { tools.join(", ") });
        for function in &f.pci {
            let driver = function.driver.as_deref().unwrap_or("no driver");
            line("bus", format!("{} {} (1d0f:{:04x}), {driver}", function.address, function.chip, function.device));
        }
        for node in &f.nodes {
            let access =
                node.access.map_or(String::new(), |(mode, uid, gid)| format!(", mode {mode:o}, owner {uid}:{gid}"));
            let kind = if node.is_device { "device" } else { "no device" };
            line("node", format!("{}: {kind}{access}", node.path.display()));
        }
        if f.devices.is_empty() {
            line("devices", "none".into());
        }
        for device in &f.devices {
            device_lines(device, &mut line);
        }
        if f.owners.hidden > 0 && !f.devices.is_empty() {
            line("owners", format!("{} processes of other users could not be looked at", f.owners.hidden));
        }
        match &f.kernel_log {
            KernelLog::Read { path, errors } => {
                line("kernel log", format!("{}: {} hardware errors", path.display(), errors.len()));
            }
            KernelLog::Unreadable(_) => line("kernel log", "not readable by this user".into()),
        }
        let host = &f.host;
        let cpu = host.cpu.as_deref().unwrap_or("unknown");
        line("host", format!("{cpu}, {} processors, {}", host.processors, host.features.join(" ")));
        line("cpu backend", host.isa.clone());
        if let Some((total, available)) = host.memory {
            line("memory", format!("{} of {} available", gigabytes(available), gigabytes(total)));
        }
        line("glibc", host.glibc.map_or("unknown".into(), |(major, minor)| format!("{major}.{minor}")));
        for variable in &f.variables {
            let problem = variable.problem.as_ref().map_or(String::new(), |(_, words)| format!("  <- {words}"));
            line("variable", format!("{}={}{problem}", variable.name, variable.value));
        }
        lines
    }

    /// As one JSON object.
    pub fn json(&self) -> Value {
        let f = self.facts;
        let finding = |finding: &Finding| json!({"severity": finding.severity.name(), "about": finding.about, "what": finding.what, "fix": finding.fix});
        json!({
            "verdict": self.verdict.name(),
            "words": self.verdict.words(),
            "first_fix": self.first().map(finding),
            "note": UNPROVEN,
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
            "root": f.root.prefix(),
            "instance": {"type": field(&f.instance_type), "vendor": field(&f.vendor),
                "chip": f.instance_chip().map(|chip| chip.name())},
            "driver": {
                "loaded": f.driver.loaded,
                "version": text(&f.driver.version),
                "installed": f.driver.installed.iter().map(|i| i.version.to_string()).collect::<Vec<_>>(),
            },
            "library": match &f.library.found {
                Some(found) => library_json(found),
                None => json!({"found": false, "error": f.library.error,
                    "tried": f.library.tried.iter()
                        .map(|(path, origin, reason)| json!({"path": path, "origin": origin, "reason": reason}))
                        .collect::<Vec<_>>()}),
            },
            "compiler": {
                "path": f.compiler.path,
                "version": f.compiler.version.as_ref().ok(),
                "problem": f.compiler.version.as_ref().err(),
                "stand_in": f.compiler.stand_in,
            },
            "collectives": f.collectives.path,
            "tools": f.tools.iter().map(|t| (t.name.to_owned(), json!(t.path))).collect::<serde_json::Map<_, _>>(),
            "pci": f.pci.iter().map(|p| json!({"address": p.address, "device": format!("{:04x}", p.device),
                "chip": p.chip.name(), "driver": p.driver})).collect::<Vec<_>>(),
            "nodes": f.nodes.iter().map(|n| json!({"index": n.index, "path": n.path, "is_device": n.is_device,
                "mode": n.access.map(|(mode, ..)| format!("{mode:o}"))})).collect::<Vec<_>>(),
            "devices": f.devices.iter().map(device_json).collect::<Vec<_>>(),
            "owners": f.owners.seen.iter()
                .map(|o| json!({"pid": o.pid, "name": o.name, "devices": o.devices})).collect::<Vec<_>>(),
            "owners_hidden": f.owners.hidden,
            "kernel_log": match &f.kernel_log {
                KernelLog::Read { path, errors } => json!({"path": path, "errors": errors.iter().map(|e| json!({
                    "error": e.error, "device": e.device, "core": e.core, "action": e.action})).collect::<Vec<_>>()}),
                KernelLog::Unreadable(tried) => json!({"path": null, "tried": tried.iter()
                    .map(|(path, why)| json!({"path": path, "reason": why})).collect::<Vec<_>>()}),
            },
            "host": {
                "cpu": f.host.cpu,
                "features": f.host.features,
                "processors": f.host.processors,
                "isa": f.host.isa,
                "memory_bytes": f.host.memory.map(|(total, _)| total),
                "available_bytes": f.host.memory.map(|(_, available)| available),
                "glibc": f.host.glibc.map(|(major, minor)| format!("{major}.{minor}")),
            },
            "variables": f.variables.iter().map(|v| json!({"name": v.name, "value": v.value,
                "problem": v.problem.as_ref().map(|(_, words)| words)})).collect::<Vec<_>>(),
        })
    }
}

fn library_lines(found: &Found, line: &mut impl FnMut(&str, String)) {
    let kind = if found.stand_in { "a STAND-IN, not AWS's library" } else { "libnrt" };
    let detail = if found.detail.is_empty() { String::new() } else { format!(" \"{}\"", found.detail) };
    let path = found.file.as_ref().unwrap_or(&found.path).display();
    line("library", format!("{kind} {}{detail}, {path} ({})", found.version_text, found.origin));
    let yes = |has: bool| if has { "yes" } else { "no" };
    line(
        "",
        format!(
            "schedules runs: {}, sleeps for them: {}, memory statistics: {}",
            yes(found.schedules),
            yes(found.sleeps),
            yes(found.memory_stats)
        ),
    );
    match &found.cores {
        Ok((total, visible)) => line("", format!("{visible} of {total} logical cores visible")),
        Err(error) => line("", error.clone()),
    }
    match &found.started {
        None => line("", "not started: --init does, and takes the cores meanwhile".into()),
        Some(Err(error)) => line("", format!("does not start: {error}")),
        Some(Ok(started)) => {
            line("", format!("starts: {}", started.instance));
            for (core, memory) in started.cores.iter().enumerate() {
                let memory = match memory {
                    Ok((used, limit)) => format!("{} of {} in use", gigabytes(*used as u64), gigabytes(*limit as u64)),
                    Err(why) => why.clone(),
                };
                line("", format!("core {core}: {memory}"));
            }
        }
    }
}

fn library_json(found: &Found) -> Value {
    json!({
        "found": true,
        "path": found.path,
        "file": found.file,
        "origin": found.origin,
        "version": found.version_text,
        "detail": found.detail,
        "stand_in": found.stand_in,
        "schedules": found.schedules,
        "sleeps": found.sleeps,
        "memory_stats": found.memory_stats,
        "total_cores": found.cores.as_ref().ok().map(|(total, _)| total),
        "visible_cores": found.cores.as_ref().ok().map(|(_, visible)| visible),
        "started": found.started.as_ref().map(|started| match started {
            Ok(started) => json!({"instance": started.instance, "cores": started.cores.iter().map(|core| match core {
                Ok((used, limit)) => json!({"used": used, "limit": limit}),
                Err(why) => json!({"problem": why}),
            }).collect::<Vec<_>>()}),
            Err(error) => json!({"problem": error}),
        }),
    })
}

fn device_lines(device: &Device, line: &mut impl FnMut(&str, String)) {
    let name = format!("neuron{}", device.dir.index());
    let memory = device.chip.value().map_or(String::new(), |chip| format!(", {} GiB", chip.memory_gib()));
    let connected = match device.connected.value() {
        Some(others) if others.is_empty() => "no other".to_owned(),
        Some(others) => others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        None => told(&device.connected.clone().map(|_| String::new())),
    };
    let counted = device.core_count.problem().map_or(String::new(), |why| format!(" (core_count {why})"));
    line(
        &name,
        format!(
            "{}, {} physical cores{counted}, {} logical{memory}, connected with {connected}",
            told(&device.name),
            device.physical_cores(),
            device.logical_cores()
        ),
    );
    for core in &device.cores {
        let bytes = |field: &Field<u64>| field.value().map_or_else(|| told(field), |bytes| gigabytes(*bytes));
        line(
            "",
            format!(
                "core {} {}: {} in use, {} at most",
                core.index,
                told(&core.arch),
                bytes(&core.used),
                bytes(&core.peak)
            ),
        );
    }
    let power = match device.power.value() {
        Some(p) => format!("{:?}: {} to {} %, mean {} % above idle", p.status, p.min, p.max, p.mean),
        None => told(&device.power.clone().map(|_| String::new())),
    };
    line("", format!("power {power}; live: {}", told(&device.power_raw)));
    for (name, value) in &device.health {
        line("", format!("health {name}: {}", told(value)));
    }
    line("", format!("driver holds {} of host memory", gigabytes(device.host_memory)));
}

fn device_json(device: &Device) -> Value {
    json!({
        "index": device.dir.index(),
        "name": field(&device.name),
        "chip": device.chip.value().map(|chip| chip.name()),
        "target": device.chip.value().and_then(|chip| chip.target()),
        "core_count": field(&device.core_count),
        "logical_cores": device.logical_cores(),
        "memory_gib": device.chip.value().map(|chip| chip.memory_gib()),
        "connected": field(&device.connected),
        "ecc": device.ecc.iter().map(|(name, n)| (name.clone(), json!(n))).collect::<serde_json::Map<_, _>>(),
        "health": device.health.iter().map(|(name, text)| (name.clone(), field(text))).collect::<serde_json::Map<_, _>>(),
        "power": match &device.power {
            Field::Value(p) => json!({"status": format!("{:?}", p.status), "epoch_seconds": p.epoch_seconds,
                "min_percent": p.min, "max_percent": p.max, "mean_percent": p.mean}),
            other => field(&other.clone().map(|_| ())),
        },
        "power_raw": field(&device.power_raw),
        "host_memory_bytes": device.host_memory,
        "cores": device.cores.iter().map(|core| json!({
            "index": core.index,
            "arch": field(&core.arch),
            "used_bytes": field(&core.used),
            "peak_bytes": field(&core.peak),
            "failures": core.failures.iter().map(|(name, n)| (name.clone(), json!(n))).collect::<serde_json::Map<_, _>>(),
        })).collect::<Vec<_>>(),
    })
}

/// The value, or why there is none.
fn told<T: ToString>(field: &Field<T>) -> String {
    field.value().map(ToString::to_string).or_else(|| field.problem()).unwrap_or_default()
}

/// The value, null if there is no such file, else the problem.
fn field<T: serde::Serialize>(field: &Field<T>) -> Value {
    match field {
        Field::Value(value) => json!(value),
        Field::Absent => Value::Null,
        other => json!({"problem": other.problem()}),
    }
}

fn text<T: ToString + Clone>(value: &Field<T>) -> Value {
    field(&value.clone().map(|value| value.to_string()))
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

const UNPROVEN: &str = "note: nothing of njoule has run on Neuron hardware yet";
