//! What must hold before two runs are compared: valid reports of one workload, joules of one kind, and one quality.

use std::collections::BTreeSet;

use serde_json::Value;

/// Whether both ran on one kind of machine. One that could not be asked may be any.
pub fn one_machine(a: &[Value], b: &[Value]) -> bool {
    let first = &a[0];
    let alike = |path: &str| a.iter().chain(b).all(|r| r.pointer(path) == first.pointer(path));
    first["host"].is_object()
        && ["/host/cpu", "/host/vcpus", "/host/instance_type", "/host/accelerators"].iter().all(|path| alike(path))
}

/// Why joules of both are not of one kind, if they are not: boundary, method, and the declared constants in them.
pub fn two_kinds_of_joules(a: &[Value], b: &[Value]) -> Option<String> {
    let all = || a.iter().chain(b);
    let kinds: BTreeSet<String> =
        all().map(|r| format!("{} of {}", r["energy"]["method"], r["energy"]["boundary"])).collect();
    if kinds.len() > 1 {
        let kinds: Vec<String> = kinds.into_iter().collect();
        return Some(format!("the energies are of two kinds: {}", kinds.join(" and ")));
    }
    let profiles: BTreeSet<String> = all()
        .map(|r| {
            let meters = r["meters"].as_array().into_iter().flatten().filter(|m| m["counts_in_total"] == true);
            let devices = r["neuron_power"].as_array().into_iter().flatten();
            let named = meters.chain(devices).filter_map(|m| m["profile"].as_str());
            named.collect::<BTreeSet<&str>>().into_iter().collect::<Vec<_>>().join(" + ")
        })
        .collect();
    (profiles.len() > 1).then(|| {
        let profiles: Vec<String> = profiles.into_iter().map(|p| format!("\"{p}\"")).collect();
        format!("the energies are by other constants: {}", profiles.join(" and "))
    })
}

/// Whether one of these has joules that no sensor counts.
pub fn no_sensor_method(reports: &[Value]) -> bool {
    let sensor = |r: &Value| matches!(r["energy"]["method"].as_str(), Some("measured" | "hardware_model"));
    !reports.iter().all(sensor)
}

/// Why absolute joules of these reports cannot be held against another machine's, if they cannot.
pub fn no_sensor(reports: &[Value]) -> Option<String> {
    if no_sensor_method(reports) {
        return Some("the energies are no sensor's: they decide nothing between two machines".to_owned());
    }
    let unsure = |m: &&Value| m["counts_in_total"] == true && m["rel_uncertainty"].is_null();
    let unsure = reports.iter().flat_map(|r| r["meters"].as_array().into_iter().flatten()).find(unsure)?;
    let id = unsure["id"].as_str().unwrap_or("a meter");
    Some(format!("{id} is off by nobody knows how much: it decides nothing between two machines"))
}

/// Whether anything may be claimed of these two; what speaks against it is said.
pub fn fair(a: &[Value], b: &[Value], same_types: bool, say: &mut impl FnMut(String)) -> bool {
    let mut against: Vec<String> = vec![];
    for (name, reports) in [("A", a), ("B", b)] {
        let flags: BTreeSet<&str> = reports
            .iter()
            .flat_map(|r| r["validity"]["flags"].as_array().into_iter().flatten().filter_map(Value::as_str))
            .collect();
        let flags = flags.into_iter().collect::<Vec<_>>().join(", ");
        if reports.iter().any(|r| r["validity"]["ok"] == false) {
            let why = if flags.is_empty() { "nothing could be read" } else { &flags };
            against.push(format!("{name} is not valid: {why}"));
        } else if !flags.is_empty() {
            say(format!("{name} is flagged: {flags}"));
        }
        against.extend(too_few_minutes(reports).map(|minutes| {
            format!("{name} is a Neuron run of {minutes} whole minutes, and three are needed: the driver has one figure a minute")
        }));
    }
    against.extend(other_work(a, b));
    let fair = against.is_empty();
    against.into_iter().for_each(&mut *say);
    alike(&a[0], &b[0], same_types, say) && fair
}

/// The least whole minutes of a device, where they are too few.
fn too_few_minutes(reports: &[Value]) -> Option<u64> {
    let devices = reports.iter().flat_map(|r| r["neuron_power"].as_array().into_iter().flatten());
    devices.map(|device| device["minutes"].as_u64().unwrap_or(0)).min().filter(|minutes| *minutes < MINUTES)
}

/// What of the work is not the same, if anything is. Cases have one name, so that these are one's seed and tokens.
fn other_work(a: &[Value], b: &[Value]) -> Option<String> {
    a.iter().zip(b).find_map(|(a, b)| {
        let (a, b) = (&a["workload"], &b["workload"]);
        if !a["seed"].is_null() && !b["seed"].is_null() && a["seed"] != b["seed"] {
            return Some(format!("the workloads differ: seed {} and {}", a["seed"], b["seed"]));
        }
        let requests = |w: &Value| w["requests"].as_f64().filter(|n| *n > 0.0);
        let each = requests(a).zip(requests(b));
        let (over_a, over_b) = each.unwrap_or((1.0, 1.0));
        let input = |w: &Value| Some(w["input_tokens"].as_f64()? + w["cached_input_tokens"].as_f64().unwrap_or(0.0));
        let output = |w: &Value| each.and(w["output_tokens"].as_f64());
        let differ = |what: &str, a: Option<f64>, b: Option<f64>| {
            let (a, b) = (a? / over_a, b? / over_b);
            let far = (a - b).abs() > OWN_TOKENS && (a - b).abs() > NEAR * a.max(b);
            let of = if each.is_some() { " per request" } else { "" };
            far.then(|| format!("the workloads differ: {a:.1} and {b:.1} {what} tokens{of}"))
        };
        differ("input", input(a), input(b)).or_else(|| differ("output", output(a), output(b)))
    })
}

/// Whether one may be called better than the other: they compute the same, or it is said what the difference costs.
fn alike(a: &Value, b: &Value, same_types: bool, say: &mut impl FnMut(String)) -> bool {
    let types = |r: &Value| {
        let known = |path: &str| r.pointer(path).filter(|value| !value.is_null()).cloned();
        known("/model/stored_bytes").zip(known("/model/kv_type"))
    };
    let hash = |r: &Value| r["quality"]["output_sha256"].as_str().map(str::to_owned);
    let outputs = hash(a).zip(hash(b)).map(|(a, b)| a == b);
    if outputs == Some(false) {
        say("outputs differ".to_owned());
    }
    let what = match types(a).zip(types(b)) {
        Some((a, b)) if a == b => return true,
        Some(_) => "stored types differ",
        // Scripts that know no model compare what they like.
        None if outputs == Some(true) || same_types || (a["model"].is_null() && b["model"].is_null()) => return true,
        None => "stored types are not known (--same-types says that both ran the same file)",
    };
    let quality = |r: &Value| r["quality"]["perplexity"].as_f64();
    match quality(a).zip(quality(b)) {
        Some((a, b)) => {
            say(format!("{what}: perplexity A {a:.4}, B {b:.4} ({:+.2} %)", 100.0 * (b / a - 1.0)));
            true
        }
        None => {
            say(format!(
                "{what}, and there is no perplexity on both sides (--perplexity FILE): neither is called better"
            ));
            false
        }
    }
}

/// Whole minutes that a Neuron run needs.
const MINUTES: u64 = 3;

/// Tokens that a server adds to a prompt of its own: one that begins the text, one for a space before it.
const OWN_TOKENS: f64 = 2.0;

/// Means over requests that failed here and there.
const NEAR: f64 = 0.02;
