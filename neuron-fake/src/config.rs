//! The switches of the library: AWS's own variables, read when the real library reads them, and `NJOULE_FAKE_*`.
//!
//! | variable | meaning, default |
//! |---|---|
//! | `NJOULE_FAKE_INSTANCE` | instance type, `inf2.xlarge`; `none` has no devices, so `nrt_init` returns 2 |
//! | `NJOULE_FAKE_VERSION` | of the library, `2.34.10`; below 2.31 the `nrta_*` calls are misuse |
//! | `NJOULE_FAKE_HBM_BYTES` | device memory of a logical core; an eighth of the real: 2 GiB (inf2, trn1), 3 GiB (trn2) |
//! | `NJOULE_FAKE_CORES_TAKEN` | cores of the instance that another process owns: `nrt_init` returns 1 if it wants one |
//! | `NJOULE_FAKE_FAULTS` | faults on order (grammar in `inject.rs`) |
//! | `NJOULE_FAKE_HANG_LIMIT` | how long a hang lasts; for ever |
//! | `NJOULE_FAKE_LATENCY` | how long a run takes at least; its end is waited for busily, so to the microsecond |
//! | `NJOULE_FAKE_EVALUATE` | `0`: runs compute nothing; outputs are zero, in-place tensors stay |
//! | `NJOULE_FAKE_QUEUE_DEPTH` | scheduled runs in flight on a core, 16 |
//! | `NJOULE_FAKE_FP8_AS_I8` | `1`: tensor infos give fp8 as i8, as some libraries do |
//! | `NJOULE_PJRT` | a PJRT plugin that computes instead of the evaluator (feature `pjrt`, docs/neuron-fake.md) |
//! | `NJOULE_FAKE_JOIN` | `0`: making the communicator does not wait for the other ranks |
//!
//! The eighth holds for the microcode too: 12 MiB of each physical core are gone before anything is loaded.

use std::ops::Range;
use std::time::Duration;

use crate::env::{BadVariable, duration, get, switch};
use crate::instance::Instance;
use crate::status::{self, Refusal};

/// Everything that is read at `nrt_init`.
#[derive(Debug)]
pub(crate) struct Config {
    pub version: [u64; 3],
    pub instance: Instance,
    pub lnc: u32,
    /// Logical cores of the instance that this process owns.
    pub cores: Range<u32>,
    /// Bytes of a logical core, and how many of them are gone at once.
    pub hbm: usize,
    pub microcode: usize,
    pub latency: Duration,
    pub evaluate: bool,
    pub queue_depth: usize,
    pub fp8_as_i8: bool,
    pub join: bool,
    pub fail_on_nan: bool,
    pub root_comm: bool,
}

/// What may be asked before `nrt_init`.
pub(crate) struct Outline {
    pub instance: Option<Instance>,
    pub lnc: u32,
    pub total: u32,
    pub cores: Range<u32>,
}

impl Config {
    pub(crate) fn from_env() -> Result<Config, Refusal> {
        let Outline { instance, lnc, total, cores } = Outline::from_env()?;
        let Some(instance) = instance else {
            let text = "no Neuron device: Unable to determine Neuron Driver version".to_owned();
            return Err(Refusal { status: status::INVALID, text });
        };
        let taken = get("NJOULE_FAKE_CORES_TAKEN", |v| core_list(v, total))?.unwrap_or(0..0);
        if cores.start < taken.end && taken.start < cores.end {
            let text = format!("NeuronCore(s) not available - Requested:{} Available:0", cores.len());
            return Err(Refusal { status: status::FAILURE, text });
        }
        let real = instance.chip.hbm() / u64::from(instance.chip.cores()) * u64::from(lnc);
        // 96 MiB of each physical core.
        let scaled = |part: u64| usize::try_from(part).unwrap_or(usize::MAX);
        let hbm = get("NJOULE_FAKE_HBM_BYTES", str::parse::<usize>)?.unwrap_or(scaled(real / SCALE));
        let share = u128::from(real) / (u128::from(lnc) * (96 << 20));
        Ok(Config {
            version: version()?,
            instance,
            lnc,
            cores,
            hbm,
            microcode: usize::try_from(hbm as u128 / share.max(1)).unwrap_or(0),
            latency: get("NJOULE_FAKE_LATENCY", duration)?.unwrap_or_default(),
            evaluate: switch("NJOULE_FAKE_EVALUATE", true)?,
            queue_depth: get("NJOULE_FAKE_QUEUE_DEPTH", str::parse::<usize>)?.unwrap_or(16),
            fp8_as_i8: switch("NJOULE_FAKE_FP8_AS_I8", false)?,
            join: switch("NJOULE_FAKE_JOIN", true)?,
            fail_on_nan: switch("NEURON_FAIL_ON_NAN", false)?,
            root_comm: std::env::var_os("NEURON_RT_ROOT_COMM_ID").is_some_and(|v| !v.is_empty()),
        })
    }
}

impl Outline {
    pub(crate) fn from_env() -> Result<Outline, Refusal> {
        let find = |name: &str| match name {
            "none" => Ok(None),
            name => Instance::of(name).map(Some).ok_or("no instance type that is known here"),
        };
        let instance = get("NJOULE_FAKE_INSTANCE", find)?.unwrap_or(Instance::of("inf2.xlarge"));
        let Some(found) = instance else { return Ok(Outline { instance: None, lnc: 1, total: 0, cores: 0..0 }) };
        let most = found.chip.lnc();
        let lnc = |v: &str| match v.parse() {
            Ok(n) if n == 1 || n == most => Ok(n),
            _ => Err(format!("the cores of {} have 1 to {most}", found.name)),
        };
        // The newer name wins.
        let older = get("NEURON_RT_VIRTUAL_CORE_SIZE", lnc)?;
        let lnc = get("NEURON_LOGICAL_NC_CONFIG", lnc)?.or(older).unwrap_or(most);
        let total = found.chips * found.chip.cores() / lnc;
        let count = |v: &str| match v.parse::<u32>() {
            Ok(n) if n <= total => Ok(n),
            _ => Err(format!("the instance has {total} logical cores")),
        };
        let number = get("NEURON_RT_NUM_CORES", count)?.filter(|&n| n > 0).unwrap_or(total);
        let cores = get("NEURON_RT_VISIBLE_CORES", |v| core_list(v, total))?.unwrap_or(0..number);
        Ok(Outline { instance, lnc, total, cores })
    }
}

/// `NJOULE_FAKE_VERSION`.
pub(crate) fn version() -> Result<[u64; 3], BadVariable> {
    let parse = |v: &str| {
        let parts: Vec<u64> = v.split('.').map(str::parse).collect::<Result<_, _>>().map_err(|_| "not a.b.c")?;
        <[u64; 3]>::try_from(parts).map_err(|_| "not a.b.c")
    };
    Ok(get("NJOULE_FAKE_VERSION", parse)?.unwrap_or([2, 34, 10]))
}

/// `NJOULE_FAKE_HANG_LIMIT`: None is for ever.
pub(crate) fn hang_limit() -> Result<Option<Duration>, BadVariable> {
    get("NJOULE_FAKE_HANG_LIMIT", duration)
}

/// `NEURON_RT_EXEC_TIMEOUT`, read at load. AWS's pages give several defaults; this is one of them.
pub(crate) fn exec_timeout() -> Result<Duration, BadVariable> {
    let seconds = get("NEURON_RT_EXEC_TIMEOUT", |v| match v.parse::<u64>() {
        Ok(seconds) if seconds > 0 => Ok(seconds),
        _ => Err("not a number of seconds"),
    })?;
    Ok(Duration::from_secs(seconds.unwrap_or(30)))
}

/// `3`, `3-6`, `3,4,5`: rising, without gaps, inside the instance.
fn core_list(text: &str, total: u32) -> Result<Range<u32>, String> {
    let number = |v: &str| v.trim().parse::<u32>().map_err(|_| "not core numbers".to_owned());
    let range = if let Some((first, last)) = text.split_once('-') {
        number(first)?..number(last)?.saturating_add(1)
    } else {
        let all: Vec<u32> = text.split(',').map(number).collect::<Result<_, _>>()?;
        let first = all.first().copied().ok_or("no core")?;
        if !all.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1])) {
            return Err("a list of cores rises without gaps".to_owned());
        }
        first..first.saturating_add(all.len() as u32)
    };
    if range.is_empty() {
        return Err("no core".to_owned());
    }
    if range.end > total {
        return Err(format!("Could not find VNC id {}: the instance has {total}", range.end - 1));
    }
    Ok(range)
}

impl From<BadVariable> for Refusal {
    fn from(error: BadVariable) -> Refusal {
        Refusal { status: status::INVALID, text: error.to_string() }
    }
}

/// How much smaller the default memory is than the real.
const SCALE: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_lists_rise_without_gaps() {
        assert_eq!(core_list("3", 8), Ok(3..4));
        assert_eq!(core_list("3-6", 8), Ok(3..7));
        assert_eq!(core_list("0, 1,2", 8), Ok(0..3));
        for bad in ["", "a", "0,2", "1,0", "6-8", "5-4", "0,0", "4294967295"] {
            assert!(core_list(bad, 8).is_err(), "{bad}");
        }
    }
}
