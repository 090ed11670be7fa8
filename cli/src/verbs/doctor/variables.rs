//! Environment variables that the Neuron runtime and njoule read: whether their values do.

use std::path::Path;

use njoule_neuron_sys::sysfs::Chip;

use crate::fetch::Env;

/// A variable that is set.
#[derive(Debug, PartialEq, Eq)]
pub struct Judged {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it, and whether nothing can work with it.
    pub problem: Option<(Gravity, String)>,
}

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gravity {
    /// The runtime or njoule will not start.
    Fatal,
    /// It works, but not as well or not as it seems.
    Unwise,
}

/// What a value is judged by.
struct On<'a> {
    cores: u64,
    chips: &'a [Chip],
}

type Rule = fn(&str, &On<'_>) -> Result<(), (Gravity, String)>;

/// All that are set. `cores` are the machine's logical cores, 0 if there are none.
pub fn judge(env: &Env, cores: u64, chips: &[Chip]) -> Vec<Judged> {
    let on = On { cores, chips };
    RULES
        .iter()
        .filter_map(|(name, rule)| {
            let value = env.var(name)?;
            Some(Judged { name, value: value.to_owned(), problem: rule(value, &on).err() })
        })
        .collect()
}

fn fatal<T>(words: impl Into<String>) -> Result<T, (Gravity, String)> {
    Err((Gravity::Fatal, words.into()))
}

fn unwise<T>(words: impl Into<String>) -> Result<T, (Gravity, String)> {
    Err((Gravity::Unwise, words.into()))
}

/// An index, a range `3-6`, or a rising list without gaps.
fn visible_cores(value: &str, on: &On<'_>) -> Result<(), (Gravity, String)> {
    let form = "give an index, a range as 3-6, or a rising list without gaps";
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let mut next = None;
    for part in value.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (number(first), number(last)) else { return fatal(form) };
        if first > last || next.is_some_and(|next| first != next) {
            return fatal(form);
        }
        next = last.checked_add(1);
    }
    match next.map(u64::from) {
        Some(end) if on.cores > 0 && end > on.cores => {
            fatal(format!("this machine has {} logical cores, numbered from 0", on.cores))
        }
        _ => Ok(()),
    }
}

fn num_cores(value: &str, on: &On<'_>) -> Result<(), (Gravity, String)> {
    match value.parse::<u64>() {
        Err(_) => fatal("give a number of cores; 0 means all"),
        Ok(n) if on.cores > 0 && n > on.cores => fatal(format!("this machine has {} logical cores", on.cores)),
        Ok(_) => Ok(()),
    }
}

fn logical_size(value: &str, on: &On<'_>) -> Result<(), (Gravity, String)> {
    match value {
        "1" => Ok(()),
        "2" if on.chips.iter().any(|chip| chip.default_lnc() == 1) => {
            fatal("Inferentia2 and Trainium1 have logical cores of one physical core only: unset it")
        }
        "2" => Ok(()),
        _ => fatal("give 1 or 2, the same as the modules were compiled with (--lnc)"),
    }
}

fn exec_timeout(value: &str, _: &On<'_>) -> Result<(), (Gravity, String)> {
    match value.parse::<u64>() {
        Err(_) | Ok(0) => fatal("give seconds; 30 is ample for a step"),
        Ok(seconds) if seconds > 600 => unwise("a hang will be noticed only after that many seconds; 30 is ample"),
        Ok(_) => Ok(()),
    }
}

fn seconds(value: &str, _: &On<'_>) -> Result<(), (Gravity, String)> {
    if value.parse::<u64>().is_ok_and(|seconds| seconds > 0) { Ok(()) } else { fatal("give whole seconds, at least 1") }
}

fn log_level(value: &str, _: &On<'_>) -> Result<(), (Gravity, String)> {
    match value.to_ascii_uppercase().as_str() {
        "ERROR" | "WARN" | "WARNING" | "INFO" | "QUIET" => Ok(()),
        "DEBUG" | "TRACE" => unwise("slows every step"),
        _ => unwise("unknown; give ERROR, WARN, INFO, DEBUG, TRACE or QUIET"),
    }
}

fn off(value: &str, words: &str) -> Result<(), (Gravity, String)> {
    if matches!(value.to_ascii_lowercase().as_str(), "0" | "false" | "off") { Ok(()) } else { unwise(words) }
}

fn number(value: &str, _: &On<'_>) -> Result<(), (Gravity, String)> {
    if value.parse::<u64>().is_ok() { Ok(()) } else { fatal("give a number") }
}

fn root_comm(value: &str, _: &On<'_>) -> Result<(), (Gravity, String)> {
    let port = value.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    if matches!(port, Some(Ok(port)) if port > 0) { Ok(()) } else { fatal("give the address of rank 0 as ip:port") }
}

fn scratchpad(value: &str, _: &On<'_>) -> Result<(), (Gravity, String)> {
    match value.parse::<u64>() {
        Ok(megabytes) if megabytes > 0 && megabytes % 512 == 0 && megabytes < 4096 => Ok(()),
        _ => fatal("give a multiple of 512 below 4096 (megabytes), the same as the modules were compiled with"),
    }
}

fn target(value: &str, on: &On<'_>) -> Result<(), (Gravity, String)> {
    let targets = ["inf2", "trn1", "trn1n", "trn2", "trn3"];
    if !targets.contains(&value) {
        return fatal(format!("give one of {}", targets.join(", ")));
    }
    match on.chips.iter().find(|chip| chip.target().is_none_or(|own| !value.starts_with(own))) {
        Some(chip) => unwise(format!("this machine has {chip}")),
        None => Ok(()),
    }
}

fn directory(value: &str, _: &On<'_>) -> Result<(), (Gravity, String)> {
    if Path::new(value).is_dir() { Ok(()) } else { fatal("there is no such directory") }
}

fn any(_: &str, _: &On<'_>) -> Result<(), (Gravity, String)> {
    Ok(())
}

/// Each variable and what its value must be; library and compiler are judged by opening and running them. Source: AWS's configuration guide of the Neuron runtime.
const RULES: &[(&str, Rule)] = &[
    ("NJOULE_SYSFS_ROOT", directory),
    ("NJOULE_NRT", any),
    ("NJOULE_NEURONX_CC", any),
    ("NJOULE_NEURON_STEP_TIMEOUT", seconds),
    ("NJOULE_NEURON_LOAD_TIMEOUT", seconds),
    ("NEURON_RT_VISIBLE_CORES", visible_cores),
    ("NEURON_RT_NUM_CORES", num_cores),
    ("NEURON_LOGICAL_NC_CONFIG", logical_size),
    ("NEURON_RT_VIRTUAL_CORE_SIZE", logical_size),
    ("NEURON_RT_EXEC_TIMEOUT", exec_timeout),
    ("NEURON_RT_LOG_LEVEL", log_level),
    ("NEURON_RT_LOG_LOCATION", any),
    ("NEURON_RT_VALIDATE_HASH", |value, _| off(value, "costs about half of the time of a load")),
    ("NEURON_RT_IO_RING_CACHE_SIZE", |_, _| unwise("it belongs around each load, not to the whole process: unset it")),
    ("NEURON_RT_ALLOW_LEGACY_NEFF", |value, _| off(value, "modules of another architecture may misbehave")),
    ("NEURON_RT_STOCHASTIC_ROUNDING_EN", |value, _| off(value, "answers will differ from run to run: unset it")),
    ("NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS", |value, _| {
        off(value, "njoule never runs modules in this way, and libnrt 2.34 dropped it: unset it")
    }),
    ("NEURON_RT_ROOT_COMM_ID", root_comm),
    ("NEURON_RT_RESET_CORES", any),
    ("NEURON_RT_ENABLE_DGE_NOTIFICATIONS", any),
    ("NEURON_RT_NUMERICAL_ERRORS_VERBOSITY", any),
    ("NEURON_FAIL_ON_NAN", any),
    ("NEURON_RT_DBG_DUMP_INPUTS_ON_ERR", number),
    ("NEURON_RT_INSPECT_ENABLE", |value, _| off(value, "profiling slows every step")),
    ("NEURON_SCRATCHPAD_PAGE_SIZE", scratchpad),
    ("NEURON_PLATFORM_TARGET_OVERRIDE", target),
    ("NEURON_CC_FLAGS", any),
];

#[cfg(test)]
mod tests;
