//! The report `njoule.energy/1`: one JSON object per run, whose form is `schema/njoule.energy-1.schema.json`.
//!
//! The suffix of a key is its unit; unknown is null; nothing is left out, so that a script may index any key. Fields are added
//! and never change their meaning.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::bound::LimitConstants;
use crate::conditions::ConditionsWindow;
use crate::joules::Joules;
use crate::window::{ENOUGH_MINUTES, Flag, MeterWindow, NeuronWindow, Window};

/// The published form.
pub const JSON_SCHEMA: &str = include_str!("../schema/njoule.energy-1.schema.json");

/// What the work was, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Work {
    /// What it is called.
    pub name: Option<String>,
    /// What its random choices came from.
    pub seed: Option<u64>,
    /// Requests answered.
    pub requests: Option<u64>,
    /// Sequences at once.
    pub concurrency: Option<u64>,
    /// Prompt tokens that were computed.
    pub input_tokens: Option<u64>,
    /// Prompt tokens that were in the cache.
    pub cached_input_tokens: Option<u64>,
    /// Tokens generated.
    pub output_tokens: Option<u64>,
    /// Rows of padding.
    pub padded_tokens: Option<u64>,
    /// Drafts refused.
    pub rejected_draft_tokens: Option<u64>,
    /// Requests aborted.
    pub aborted_requests: Option<u64>,
}

/// Joules by what they went for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Buckets {
    /// Computing prompts.
    pub prefill_j: Option<f64>,
    /// Generating.
    pub decode_j: Option<f64>,
    /// What nobody got: aborted, computed again, refused drafts, padding.
    pub wasted_j: Option<f64>,
    /// No sequence ran.
    pub idle_j: Option<f64>,
    /// Loading and compiling.
    pub load_j: Option<f64>,
    /// Not to be divided.
    pub unattributed_j: Option<f64>,
}

/// What the client itself used, apart from the machine whose energy is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Client {
    /// CPU-seconds of the command that was measured, its children included.
    pub command_cpu_s: Option<f64>,
    /// CPU-seconds of the measuring process.
    pub own_cpu_s: Option<f64>,
    /// Exit code of the command.
    pub exit_code: Option<i32>,
}

/// A report in the making.
#[derive(Clone, Debug)]
pub struct Report {
    /// Names the run.
    pub run_id: String,
    /// Whose energy: `local`, `pid:N`, `cgroup:PATH` or an address.
    pub subject: String,
    /// The window; `None` where there is no meter to ask.
    pub window: Option<Window>,
    /// Why there is no window.
    pub reason: Option<String>,
    /// Length by the client's clock where there is no window.
    pub duration_s: f64,
    /// Beginning by the client's clock where there is no window.
    pub start_unix_s: f64,
    /// `steady`, `full` or `idle`.
    pub kind: &'static str,
    /// What was done.
    pub work: Work,
    /// The model, if one ran.
    pub model: Option<Value>,
    /// Joules by what they went for.
    pub buckets: Buckets,
    /// Watts of the same machine with nothing to do, if they were measured.
    pub idle_baseline_w: Option<f64>,
    /// What the client used.
    pub client: Client,
    /// Least joules per output token, if it was worked out.
    pub limit_joules_per_token: Option<f64>,
    /// Commit of the program that makes the report.
    pub git: Option<String>,
}

impl Report {
    /// Of a window.
    pub fn of(run_id: impl Into<String>, subject: impl Into<String>, window: Window) -> Report {
        let (duration_s, start_unix_s) = (window.duration_s, window.start_unix_s);
        Report { window: Some(window), ..Report::unknown(run_id, subject, None, start_unix_s, duration_s) }
    }

    /// Of a time in which nothing could be read.
    pub fn unknown(
        run_id: impl Into<String>,
        subject: impl Into<String>,
        reason: Option<String>,
        start_unix_s: f64,
        duration_s: f64,
    ) -> Report {
        Report {
            run_id: run_id.into(),
            subject: subject.into(),
            window: None,
            reason,
            duration_s,
            start_unix_s,
            kind: "full",
            work: Work::default(),
            model: None,
            buckets: Buckets::default(),
            idle_baseline_w: None,
            client: Client::default(),
            limit_joules_per_token: None,
            git: None,
        }
    }

    /// The energy, if it is known.
    pub fn joules(&self) -> Option<Joules> {
        self.window.as_ref()?.total.joules
    }

    /// Why it is not.
    pub fn reasons(&self) -> Vec<String> {
        let own = self.reason.iter().cloned();
        own.chain(self.window.iter().flat_map(|w| w.total.reasons.iter().cloned())).collect()
    }

    /// The object.
    pub fn json(&self) -> Value {
        let window = self.window.as_ref();
        let flags: Vec<Flag> = window.map(|w| w.flags.iter().copied().collect()).unwrap_or_default();
        let joules = self.joules();
        let devices = window.into_iter().flat_map(|w| &w.neuron).map(|n| (n.minutes, n.util_seconds, n.covered_s));
        let util = extended_util_s(devices, self.duration_s);
        let flags = with_extrapolated(flags, self.work.output_tokens.is_some() && util.is_some_and(|u| u.extended));
        json!({
            "schema": SCHEMA,
            "run_id": self.run_id,
            "subject": self.subject,
            "time_start_unix_s": self.start_unix_s,
            "git": self.git,
            "host": window.map(host),
            "model": self.model,
            "workload": self.work,
            "window": {
                "kind": self.kind,
                "start_mono_ns": window.map(|w| w.start_ns),
                "duration_s": self.duration_s,
                "steps": null,
                "mean_running_seqs": null,
            },
            "meters": window.map(|w| w.meters.iter().map(meter).collect::<Vec<_>>()).unwrap_or_default(),
            "neuron_power": window.map(|w| w.neuron.iter().map(neuron).collect::<Vec<_>>()).unwrap_or_default(),
            "absent_meters": window.map(|w| w.absent.clone()).unwrap_or_default(),
            "cpu": {
                "busy_s": window.and_then(|w| w.cpu.busy_s),
                "steal_s": window.and_then(|w| w.cpu.steal_s),
                "vcpus": window.and_then(|w| w.cpu.vcpus),
                "part_s": window.and_then(|w| w.cpu.part_s),
                "meter_s": window.map(|w| w.overhead_s),
            },
            "conditions": conditions(window),
            "client": self.client,
            "energy": self.energy(joules),
            "metrics": self.metrics(joules, self.duration_s, util.map(|u| u.seconds)),
            "stats": {
                "repeats": 1,
                "output_tokens_per_joule":
                    {"mean": null, "ci95": null, "cv": null, "interval": null, "blocks": null, "reason": null},
            },
            // A window is valid if nothing flagged could have changed its figures; the text of flags says what.
            "validity": {"ok": window.is_some() && flags.iter().all(|f| *f == Flag::Extrapolated), "flags": flags},
        })
    }

    /// Puts what this side knows (run, subject, commit, work, client, baseline) into a report that an agent made, and works the
    /// figures out anew from the agent's joules.
    /// `Err` says what of the published form it lacks; it is left as it is then.
    pub fn complete(&self, theirs: &mut Value) -> Result<(), String> {
        if theirs["schema"] != SCHEMA {
            return Err(format!("schema is {}, not {SCHEMA:?}", theirs["schema"]));
        }
        // Agents before it said nothing of it.
        if let Some(object) = theirs.as_object_mut() {
            object.entry("conditions").or_insert_with(|| conditions(None));
        }
        // Statistics are ours.
        let mut shape = self.json();
        let stats = shape["stats"].take();
        if let Some(path) = lacking(&shape, theirs, String::new()) {
            return Err(format!("{path} is missing"));
        }
        let number = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_f64);
        let joules = number(theirs, "/energy/total_j").and_then(Joules::new);
        let duration_s = number(theirs, "/window/duration_s").unwrap_or(0.0);
        let util = extended_util_s(devices(theirs), duration_s);
        if self.work.output_tokens.is_some() && util.is_some_and(|u| u.extended) {
            let flags = theirs.pointer_mut("/validity/flags").and_then(Value::as_array_mut);
            let flag = json!(Flag::Extrapolated);
            flags.into_iter().filter(|flags| !flags.contains(&flag)).for_each(|flags| flags.push(flag.clone()));
        }
        let energy = (self.idle_baseline_w, self.net_j(joules, duration_s));
        let mut put = |key: &str, value: Value| {
            if let Some(object) = theirs.as_object_mut() {
                object.insert(key.to_owned(), value);
            }
        };
        put("run_id", json!(self.run_id));
        put("subject", json!(self.subject));
        put("git", json!(self.git));
        put("stats", stats);
        put("workload", json!(self.work));
        put("client", json!(self.client));
        put("metrics", self.metrics(joules, duration_s, util.map(|u| u.seconds)));
        if let Some(object) = theirs.get_mut("window").and_then(Value::as_object_mut) {
            object.insert("kind".into(), json!(self.kind));
        }
        if let Some(object) = theirs.get_mut("energy").and_then(Value::as_object_mut) {
            object.insert("idle_baseline_w".into(), json!(energy.0));
            object.insert("net_j".into(), json!(energy.1));
        }
        Ok(())
    }

    fn net_j(&self, joules: Option<Joules>, duration_s: f64) -> Option<f64> {
        let (joules, watts) = joules.zip(self.idle_baseline_w)?;
        Some((joules.best() - watts * duration_s).max(0.0))
    }

    fn energy(&self, joules: Option<Joules>) -> Value {
        let total = self.window.as_ref().map(|w| &w.total);
        let net = self.net_j(joules, self.duration_s);
        json!({
            "boundary": total.map(|t| t.boundary.as_str()).filter(|b| !b.is_empty()),
            "method": total.and_then(|t| t.method),
            "total_j": joules.map(Joules::best),
            "low_j": joules.and_then(Joules::low),
            "high_j": joules.and_then(Joules::high),
            "reasons": self.reasons(),
            "idle_baseline_w": self.idle_baseline_w,
            "net_j": net,
            "by_bucket": self.buckets,
            "pue": 1.0,
        })
    }

    fn metrics(&self, joules: Option<Joules>, duration_s: f64, util_s: Option<f64>) -> Value {
        let known = joules.map(Joules::best).filter(|j| *j > 0.0);
        let output = self.work.output_tokens.filter(|n| *n > 0).map(|n| n as f64);
        let all = output.zip(self.work.input_tokens).map(|(out, input)| out + input as f64);
        let per =
            |amount: Option<f64>, of: Option<f64>| amount.zip(of).filter(|(_, of)| *of > 0.0).map(|(a, of)| a / of);
        let requests = self.work.requests.filter(|n| *n > 0).map(|n| n as f64);
        let joules_per_output = per(known, output);
        json!({
            "output_tokens_per_joule": per(output, known),
            "total_tokens_per_joule": per(all, known),
            "joules_per_output_token": joules_per_output,
            "joules_per_request": per(known, requests),
            "prefill_joules_per_input_token": per(self.buckets.prefill_j, self.work.input_tokens.map(|n| n as f64)),
            "decode_joules_per_output_token": per(self.buckets.decode_j, output),
            "output_tokens_per_util_second": per(output, util_s),
            "output_tokens_per_s": per(output, Some(duration_s)),
            "mean_power_w": per(known, Some(duration_s)),
            "ttft_s": quantiles(),
            "itl_s": quantiles(),
            "pj_per_weight_bit": null,
            "limit_tokens_per_joule": self.limit_joules_per_token.map(|j| 1.0 / j),
            "limit_ratio": per(joules_per_output, self.limit_joules_per_token),
            "limit_constants": LimitConstants::default(),
        })
    }

    /// One line for a person.
    pub fn text(&self) -> String {
        text(&self.json())
    }
}

/// A report as one line for a person: joules always with their method, an estimate always as an interval.
pub fn text(report: &Value) -> String {
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64);
    let word = |path: &str| report.pointer(path).and_then(Value::as_str).unwrap_or("unknown");
    let list = |path: &str, between: &str| {
        let items = report.pointer(path).and_then(Value::as_array);
        let items: Vec<&str> = items.into_iter().flatten().filter_map(Value::as_str).collect();
        items.join(between)
    };
    let duration = number("/window/duration_s").unwrap_or(0.0);
    let Some(best) = number("/energy/total_j") else {
        return format!("energy: unknown over {duration:.3} s: {}", list("/energy/reasons", "; "));
    };
    let method = word("/energy/method");
    let bounds = number("/energy/low_j").zip(number("/energy/high_j"));
    let flags = list("/validity/flags", ", ");
    let flags = if flags.is_empty() { flags } else { format!(" [{flags}]") };
    let amount = amount(best, bounds, method);
    format!("energy: {amount} over {duration:.3} s, {}, {method}{flags}", word("/energy/boundary"))
}

/// An amount for a person.
fn amount(best: f64, bounds: Option<(f64, f64)>, method: &str) -> String {
    match bounds {
        Some((low, high)) if method == "estimated" || method == "derived" => format!("{low:.3} to {high:.3} J"),
        Some((low, high)) => format!("{best:.3} J ({low:.3} to {high:.3})"),
        None => format!("{best:.3} J (uncertainty unknown)"),
    }
}

/// Utilisation-seconds of a whole window.
#[derive(Clone, Copy)]
struct Util {
    seconds: f64,
    /// Whether some of its time has no line, and was taken to be as the rest.
    extended: bool,
}

/// Utilisation-seconds of a report's whole window, as its `output_tokens_per_util_second` has them. `None` without a device, or
/// where fewer minutes were counted than a figure needs.
pub fn util_seconds(report: &Value) -> Option<f64> {
    let duration_s = report["window"]["duration_s"].as_f64()?;
    extended_util_s(devices(report), duration_s).map(|util| util.seconds)
}

/// Minutes, utilisation-seconds and covered seconds of a report's devices.
fn devices(report: &Value) -> impl Iterator<Item = (u32, f64, f64)> {
    report["neuron_power"].as_array().into_iter().flatten().map(|n| {
        let minutes = n["minutes"].as_u64().and_then(|minutes| u32::try_from(minutes).ok());
        let of = |key: &str| n[key].as_f64().unwrap_or(0.0);
        (minutes.unwrap_or(0), of("util_seconds"), of("covered_s"))
    })
}

/// Tokens come from all of a window, so the utilisation must as well: each device's counted minutes stand for the time beside
/// them. `None` without a device, or where fewer minutes were counted than a figure needs.
fn extended_util_s(devices: impl Iterator<Item = (u32, f64, f64)>, duration_s: f64) -> Option<Util> {
    let mut sum: Option<Util> = None;
    for (minutes, util_seconds, covered_s) in devices {
        if minutes < ENOUGH_MINUTES || !(covered_s > 0.0) {
            return None;
        }
        let before = sum.unwrap_or(Util { seconds: 0.0, extended: false });
        let stretch = (duration_s / covered_s).max(1.0);
        sum = Some(Util {
            seconds: before.seconds + util_seconds * stretch,
            extended: before.extended || covered_s < duration_s,
        });
    }
    sum
}

fn with_extrapolated(mut flags: Vec<Flag>, extended: bool) -> Vec<Flag> {
    if extended && !flags.contains(&Flag::Extrapolated) {
        flags.push(Flag::Extrapolated);
    }
    flags
}

/// The path of the first key that `shape` has and `value` lacks.
fn lacking(shape: &Value, value: &Value, path: String) -> Option<String> {
    shape.as_object()?.iter().find_map(|(key, inner)| {
        let path = format!("{path}/{key}");
        match value.get(key) {
            Some(value) => lacking(inner, value, path),
            None => Some(path),
        }
    })
}

fn quantiles() -> Value {
    json!({"p50": null, "p95": null, "p99": null})
}

fn conditions(window: Option<&Window>) -> Value {
    let ends = |of: fn(&ConditionsWindow) -> [Option<f64>; 2]| {
        let [start, end] = window.map(|w| of(&w.conditions)).unwrap_or_default();
        json!({"start": start, "end": end})
    };
    json!({
        "throttle_events": window.and_then(|w| w.conditions.throttle_events),
        "clock_changed": window.and_then(|w| w.conditions.clock_changed),
        "cpu_mhz": ends(|c| c.cpu_mhz),
        "temperature_c": ends(|c| c.temperature_c),
    })
}

fn host(window: &Window) -> Value {
    let accelerators: Vec<Value> = window
        .neuron
        .iter()
        .map(|n| {
            let kind = n.name.as_ref().map_or_else(|| "neuron".to_owned(), |name| name.to_ascii_lowercase());
            json!({"kind": kind, "index": n.device, "dies": n.dies, "driver": n.driver})
        })
        .collect();
    let mut host = match serde_json::to_value(&window.host) {
        Ok(Value::Object(host)) => host,
        _ => Map::new(),
    };
    host.insert("accelerators".into(), accelerators.into());
    host.into()
}

fn meter(meter: &MeterWindow) -> Value {
    let info = &meter.info;
    json!({
        "id": info.id,
        "domain": info.domain,
        "scope": info.scope,
        "method": info.method,
        "source": info.source,
        "profile": info.profile,
        "unit_j": info.unit_j,
        "update_period_s": info.update_period_s,
        "samples": meter.samples,
        "wraps": meter.wraps,
        "gaps": meter.gaps,
        "energy_j": meter.joules.map(Joules::best),
        "low_j": meter.joules.and_then(Joules::low),
        "high_j": meter.joules.and_then(Joules::high),
        "edge_error_j": meter.edge_error_j,
        "rel_uncertainty": info.rel_uncertainty,
        "parent": info.parent,
        "counts_in_total": info.counts_in_total,
        "reason": meter.reason.as_ref().or(info.excluded.as_ref()),
    })
}

fn neuron(device: &NeuronWindow) -> Value {
    json!({
        "device": device.device,
        "util_seconds": device.util_seconds,
        "covered_s": device.covered_s,
        "minutes": device.minutes,
        "util_mean": device.util.map(|u| u.0),
        "util_min": device.util.map(|u| u.1),
        "util_max": device.util.map(|u| u.2),
        "max_over_dies": device.max_over_dies,
        "status": device.status,
        "profile": device.profile,
        "energy_j": device.joules.map(Joules::best),
        "low_j": device.joules.and_then(Joules::low),
        "high_j": device.joules.and_then(Joules::high),
        "reason": device.reason,
    })
}

/// The form's name.
pub const SCHEMA: &str = "njoule.energy/1";
