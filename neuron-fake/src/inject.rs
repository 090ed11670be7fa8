//! Faults on order: `NJOULE_FAKE_FAULTS`, entries `FUNCTION@N=ACTION` or `FUNCTION/CORE@N=ACTION`, separated by `;`.
//!
//! `FUNCTION` is a function of the library, or `evaluate`: the computation inside a run, whether it was executed or
//! scheduled. `N` counts its calls in the process from 1, with `CORE` those on that core of the process alone (loads, runs,
//! and what is done with one tensor); `N+` is that one and all after it. `ACTION` is one of
//! * a number: the call does nothing and returns it (a run that was scheduled completes with it);
//! * `delay:200ms`: the call is served that much later;
//! * `hang`: the call never comes back, or after `NJOULE_FAKE_HANG_LIMIT` with status 5;
//! * `timeout`: status 5 after `NEURON_RT_EXEC_TIMEOUT`;
//! * `oob` (`evaluate` alone): status 1006, nothing computed; `oob:VALUE`: only if an input of s32 has that value, as if it
//!   were an index that is too large;
//! * `nan` (`evaluate` alone): every output of floats that is no in-place tensor is NaN.
//!
//! The exported `neuron_fake_order(text)` puts other orders in place of these while the process runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use crate::env::{self, BadVariable};
use crate::status;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Status(u32),
    Delay(Duration),
    Hang,
    Timeout,
    Nan,
    Index(i32),
}

/// The orders, and how often each function was called.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    orders: Vec<Order>,
    calls: Mutex<HashMap<(String, Option<u32>), u64>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Order {
    function: String,
    core: Option<u32>,
    first: u64,
    /// Also all calls after the first.
    on: bool,
    action: Action,
}

/// The process's plan, read at the first call, or what [`order`] put in its place.
pub(crate) fn plan() -> Result<Arc<Plan>, BadVariable> {
    let known = PLAN.read().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(plan) = known {
        return plan;
    }
    let read = || Ok(Arc::new(env::get("NJOULE_FAKE_FAULTS", Plan::parse)?.unwrap_or_default()));
    PLAN.write().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(read).clone()
}

/// Puts another plan in its place; calls are counted anew.
pub(crate) fn order(text: &str) -> Result<(), String> {
    let plan = Arc::new(Plan::parse(text)?);
    *PLAN.write().unwrap_or_else(PoisonError::into_inner) = Some(Ok(plan));
    Ok(())
}

static PLAN: RwLock<Option<Result<Arc<Plan>, BadVariable>>> = RwLock::new(None);

impl Plan {
    pub(crate) fn parse(text: &str) -> Result<Plan, String> {
        let orders = text.split(';').map(str::trim).filter(|o| !o.is_empty()).map(entry).collect::<Result<_, _>>()?;
        Ok(Plan { orders, calls: Mutex::default() })
    }

    /// Counts a call and says what is to happen to it; `core` is where it takes place, if it does on one.
    pub(crate) fn next(&self, function: &str, core: impl FnOnce() -> Option<u32>) -> Option<Action> {
        let mut of_function = self.orders.iter().filter(|o| o.function == function).peekable();
        of_function.peek()?;
        let core = if of_function.clone().any(|o| o.core.is_some()) { core() } else { None };
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = |core: Option<u32>| {
            let n = calls.entry((function.to_owned(), core)).or_default();
            *n += 1;
            *n
        };
        let all = count(None);
        let there = core.map(|core| count(Some(core)));
        let hit = |o: &&Order| {
            let n = if o.core.is_none() { Some(all) } else { there.filter(|_| o.core == core) };
            n.is_some_and(|n| o.first == n || (o.on && o.first < n))
        };
        of_function.find(hit).map(|o| o.action)
    }
}

fn entry(text: &str) -> Result<Order, String> {
    let wrong = |problem: &str| format!("`{text}`: {problem}");
    let (call, action) = text.split_once('=').ok_or_else(|| wrong("not FUNCTION@N=ACTION"))?;
    let (function, n) = call.split_once('@').ok_or_else(|| wrong("not FUNCTION@N=ACTION"))?;
    let (function, core) = match function.split_once('/') {
        None => (function, None),
        Some((function, core)) if ON_A_CORE.contains(&function) => {
            (function, Some(core.parse().map_err(|_| wrong("not the number of a core"))?))
        }
        Some(_) => return Err(wrong("it takes place on no core of its own")),
    };
    if function != EVALUATE && !FUNCTIONS.contains(&function) {
        return Err(wrong("no such function"));
    }
    let (n, on) = n.strip_suffix('+').map_or((n, false), |n| (n, true));
    let first = n.parse().ok().filter(|&n| n > 0).ok_or_else(|| wrong("calls are counted from 1"))?;
    let inside = function == EVALUATE;
    let action = match action {
        "hang" => Action::Hang,
        "timeout" => Action::Timeout,
        "oob" if inside => Action::Status(status::EXEC_OOB),
        "nan" if inside => Action::Nan,
        other => match other.strip_prefix("delay:") {
            Some(time) => Action::Delay(env::duration(time).map_err(|e| wrong(&e))?),
            None => match other.strip_prefix("oob:") {
                Some(value) if inside => Action::Index(value.parse().map_err(|_| wrong("not a value of s32"))?),
                _ => Action::Status(other.parse().map_err(|_| wrong("no such action"))?),
            },
        },
    };
    Ok(Order { function: function.to_owned(), core, first, on, action })
}

/// Stands for the computation inside a run.
pub(crate) const EVALUATE: &str = "evaluate";

/// What takes place on one core.
const ON_A_CORE: [&str; 9] = [
    EVALUATE,
    "nrt_load",
    "nrt_load_collectives",
    "nrt_tensor_allocate",
    "nrt_tensor_write",
    "nrt_tensor_read",
    "nrt_tensor_memset",
    "nrt_execute",
    "nrta_execute_schedule",
];

/// Functions that return a status, and the one that ends all.
const FUNCTIONS: [&str; 34] = [
    "nrt_init",
    "nrt_close",
    "nrt_get_total_vnc_count",
    "nrt_get_visible_vnc_count",
    "nrt_get_total_nc_count",
    "nrt_get_visible_nc_count",
    "nrt_get_instance_info",
    "nrt_get_vnc_memory_stats",
    "nrt_load",
    "nrt_load_collectives",
    "nrt_unload",
    "nrt_get_model_tensor_info",
    "nrt_free_model_tensor_info",
    "nrt_get_model_info",
    "nrt_get_model_vnc_count",
    "nrt_get_model_instance_count",
    "nrt_build_global_comm",
    "nrt_barrier",
    "nrt_tensor_allocate",
    "nrt_tensor_allocate_slice",
    "nrt_tensor_write",
    "nrt_tensor_read",
    "nrt_tensor_write_batch",
    "nrt_tensor_read_batch",
    "nrt_tensor_copy",
    "nrt_tensor_memset",
    "nrt_tensor_get_device_allocation_info",
    "nrt_allocate_tensor_set",
    "nrt_add_tensor_to_tensor_set",
    "nrt_get_tensor_from_tensor_set",
    "nrt_execute",
    "nrta_execute_schedule",
    "nrta_is_completed",
    "nrta_event_register_seq_id_completion",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_hit_the_call_they_name() {
        let plan =
            Plan::parse("nrt_execute@3=1202; evaluate@2=oob;nrt_execute@5+=delay:200ms;nrt_load@1=hang").unwrap();
        let next = |function: &str| plan.next(function, || None);
        let got: Vec<_> = (0..6).map(|_| next("nrt_execute")).collect();
        let late = Some(Action::Delay(Duration::from_millis(200)));
        assert_eq!(got, [None, None, Some(Action::Status(1202)), None, late, late]);
        assert_eq!([next("evaluate"), next("evaluate")], [None, Some(Action::Status(1006))]);
        assert_eq!(next("nrt_load"), Some(Action::Hang));
        assert_eq!(next("nrt_unload"), None);
    }

    #[test]
    fn orders_for_a_core_count_its_calls_alone() {
        let plan = Plan::parse("nrt_execute/1@2=1202;nrt_execute@5=4;evaluate/0@1+=oob:-7").unwrap();
        let next = |core| plan.next("nrt_execute", || Some(core));
        let (hit, any) = (Some(Action::Status(1202)), Some(Action::Status(4)));
        assert_eq!([0, 0, 1, 1, 1].map(next), [None, None, None, hit, any]);
        let next = |core| plan.next("evaluate", || Some(core));
        assert_eq!([1, 0].map(next), [None, Some(Action::Index(-7))]);
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for bad in
            ["nrt_execute", "nrt_execute@0=1", "nrt_exec@1=1", "nrt_execute@1=oob", "nrt_load@1=delay:9", "x@y=z"]
                .into_iter()
                .chain(["nrt_init/0@1=1", "nrt_load/x@1=1", "nrt_load@1=oob:3", "evaluate@1=oob:x"])
        {
            assert!(Plan::parse(bad).is_err(), "{bad}");
        }
        assert!(Plan::parse(" ; ").unwrap().orders.is_empty());
    }
}
