//! Faults on order: `NJOULE_FAKE_FAULTS`, entries `FUNCTION@N=ACTION` separated by `;`.
//!
//! `FUNCTION` is a function of the library, or `evaluate`: the computation inside a run, whether it was executed or
//! scheduled. `N` counts its calls in the process from 1; `N+` is that one and all after it. `ACTION` is one of
//! * a number: the call does nothing and returns it (a run that was scheduled completes with it);
//! * `delay:200ms`: the call is served that much later;
//! * `hang`: the call never comes back, or after `NJOULE_FAKE_HANG_LIMIT` with status 5;
//! * `timeout`: status 5 after `NEURON_RT_EXEC_TIMEOUT`;
//! * `oob` (`evaluate` alone): status 1006, nothing computed;
//! * `nan` (`evaluate` alone): every output that is no in-place tensor is NaN.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
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
}

/// The orders, and how often each function was called.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    orders: Vec<Order>,
    calls: Mutex<HashMap<String, u64>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Order {
    function: String,
    first: u64,
    /// Also all calls after the first.
    on: bool,
    action: Action,
}

/// The process's plan, read at the first call.
pub(crate) fn plan() -> Result<&'static Plan, BadVariable> {
    static PLAN: OnceLock<Result<Plan, BadVariable>> = OnceLock::new();
    let read = || Ok(env::get("NJOULE_FAKE_FAULTS", Plan::parse)?.unwrap_or_default());
    PLAN.get_or_init(read).as_ref().map_err(Clone::clone)
}

impl Plan {
    pub(crate) fn parse(text: &str) -> Result<Plan, String> {
        let orders = text.split(';').map(str::trim).filter(|o| !o.is_empty()).map(order).collect::<Result<_, _>>()?;
        Ok(Plan { orders, calls: Mutex::default() })
    }

    /// Counts a call and says what is to happen to it.
    pub(crate) fn next(&self, function: &str) -> Option<Action> {
        if !self.orders.iter().any(|o| o.function == function) {
            return None;
        }
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let n = calls.entry(function.to_owned()).or_default();
        *n += 1;
        let hit = |o: &&Order| o.function == function && (o.first == *n || (o.on && o.first < *n));
        self.orders.iter().find(hit).map(|o| o.action)
    }
}

fn order(text: &str) -> Result<Order, String> {
    let wrong = |problem: &str| format!("`{text}`: {problem}");
    let (call, action) = text.split_once('=').ok_or_else(|| wrong("not FUNCTION@N=ACTION"))?;
    let (function, n) = call.split_once('@').ok_or_else(|| wrong("not FUNCTION@N=ACTION"))?;
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
            None => Action::Status(other.parse().map_err(|_| wrong("no such action"))?),
        },
    };
    Ok(Order { function: function.to_owned(), first, on, action })
}

/// Stands for the computation inside a run.
pub(crate) const EVALUATE: &str = "evaluate";

/// Functions that return a status.
const FUNCTIONS: [&str; 33] = [
    "nrt_init",
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
        let got: Vec<_> = (0..6).map(|_| plan.next("nrt_execute")).collect();
        let late = Some(Action::Delay(Duration::from_millis(200)));
        assert_eq!(got, [None, None, Some(Action::Status(1202)), None, late, late]);
        assert_eq!([plan.next("evaluate"), plan.next("evaluate")], [None, Some(Action::Status(1006))]);
        assert_eq!(plan.next("nrt_load"), Some(Action::Hang));
        assert_eq!(plan.next("nrt_unload"), None);
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for bad in
            ["nrt_execute", "nrt_execute@0=1", "nrt_exec@1=1", "nrt_execute@1=oob", "nrt_load@1=delay:9", "x@y=z"]
        {
            assert!(Plan::parse(bad).is_err(), "{bad}");
        }
        assert!(Plan::parse(" ; ").unwrap().orders.is_empty());
    }
}
