//! What the library answers, in words. A number, never a Rust enum: newer libraries have codes that we do not know.
//!
//! Meanings, causes and remedies are from AWS's header and its runtime troubleshooting guide. Several hardware faults
//! come as `TIMEOUT` in older libraries and with a code of their own in newer ones.

use std::fmt;

use crate::bindings as b;

/// An `NRT_STATUS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Status(pub u32);

/// What to do about a status, as one word that a program can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Nothing.
    None,
    /// Wait for a completion and call again.
    Retry,
    /// Correct the call or its input: repeating it gives the same.
    Caller,
    /// Ask for less: a smaller batch, fewer buckets, or more cores.
    Shrink,
    /// Recompile the model, or update the runtime.
    Update,
    /// Free the cores that another process holds.
    FreeCores,
    /// End this process and start a new one.
    Restart,
    /// Reload the kernel driver (`rmmod neuron; modprobe neuron`) or reboot.
    Driver,
    /// Replace the instance: stop and start, or terminate it.
    Replace,
    /// The code is not known here.
    Unknown,
}

impl Status {
    /// Success.
    pub const SUCCESS: Status = Status(b::NRT_SUCCESS);
    /// Too many scheduled runs.
    pub const QUEUE_FULL: Status = Status(b::NRT_QUEUE_FULL);
    /// A run that did not finish in time.
    pub const TIMEOUT: Status = Status(b::NRT_TIMEOUT);
    /// A gather or scatter index out of bounds.
    pub const OUT_OF_BOUNDS: Status = Status(b::NRT_EXEC_OOB);

    /// Success or not.
    pub fn is_success(self) -> bool {
        self == Status::SUCCESS
    }

    /// The result of a call that returned this.
    pub fn ok(self) -> Result<(), Status> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }

    /// The library's name for it; none for a code that we do not know.
    pub fn name(self) -> Option<&'static str> {
        self.entry().map(|e| e.name)
    }

    /// What it says.
    pub fn meaning(self) -> &'static str {
        self.entry().map_or("a status that this version of njoule does not know", |e| e.meaning)
    }

    /// What brings it about.
    pub fn cause(self) -> &'static str {
        self.entry().map_or("a library newer than njoule's table, or a fault", |e| e.cause)
    }

    /// What to do.
    pub fn advice(self) -> &'static str {
        self.entry().map_or("see the runtime's log and AWS's troubleshooting guide", |e| e.advice)
    }

    /// What to do, for a program.
    pub fn action(self) -> Action {
        self.entry().map_or(Action::Unknown, |e| e.action)
    }

    /// Whether the device's state is unknown after it, so that this process must not use the device again.
    pub fn ends_process(self) -> bool {
        matches!(
            self.0,
            b::NRT_TIMEOUT | b::NRT_HW_ERROR | b::NRT_EXEC_UNIT_UNRECOVERABLE | b::NRT_EXEC_COMPLETED_WITH_ERR
        ) || (b::NRT_EXEC_HW_ERR_COLLECTIVES..=b::NRT_NETWORK_PROXY_FAILURE).contains(&self.0)
    }

    /// Every status with an entry.
    pub fn known() -> impl Iterator<Item = Status> {
        TABLE.iter().map(|e| Status(e.code))
    }

    fn entry(self) -> Option<&'static Entry> {
        TABLE.iter().find(|e| e.code == self.0)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry() {
            Some(e) => write!(f, "{} ({}): {}, from {}; {}", e.name, e.code, e.meaning, e.cause, e.advice),
            None => write!(f, "status {}: {}; {}", self.0, self.meaning(), self.advice()),
        }
    }
}

struct Entry {
    code: u32,
    name: &'static str,
    meaning: &'static str,
    cause: &'static str,
    advice: &'static str,
    action: Action,
}

macro_rules! table {
    ($($name:ident $action:ident $meaning:literal, $cause:literal, $advice:literal;)*) => {
        &[$(Entry {
            code: b::$name,
            name: stringify!($name),
            meaning: $meaning,
            cause: $cause,
            advice: $advice,
            action: Action::$action,
        }),*]
    };
}

/// "meaning", "cause" (reads after "from"), "advice".
const TABLE: &[Entry] = table! {
    NRT_SUCCESS None "success", "a call that did what it should", "nothing to do";
    NRT_FAILURE Caller "unspecified failure",
        "many causes: a runtime that is not initialised, a name that is not in the set",
        "see the runtime's log (NEURON_RT_LOG_LEVEL=INFO)";
    NRT_INVALID Caller "invalid argument or model file",
        "a damaged NEFF or one of a newer compiler, a tensor's name or size, another logical-core setting, or no device",
        "check that neuron-ls lists devices, that compiler and runtime are of one SDK, and NEURON_LOGICAL_NC_CONFIG";
    NRT_INVALID_HANDLE Caller "stale handle", "use of something that was freed", "report this as a bug of njoule";
    NRT_RESOURCE Shrink "out of memory or of another resource",
        "more weights, cache or loaded models than the device or the host holds",
        "use a smaller batch, fewer buckets or more cores; the log has a table of device memory";
    NRT_TIMEOUT Restart "an execution did not finish within NEURON_RT_EXEC_TIMEOUT",
        "a hang, a hardware fault, or another rank that never came",
        "end this process and start a new one; replace the instance if it comes back";
    NRT_HW_ERROR Driver "hardware failure", "the device",
        "reload the driver (rmmod neuron; modprobe neuron) or reboot; replace the instance if it comes back";
    NRT_QUEUE_FULL Retry "too many scheduled runs", "scheduling faster than the core runs",
        "wait for a completion, then schedule again";
    NRT_LOAD_NOT_ENOUGH_NC FreeCores "not enough free cores for this model",
        "another process that holds them, or a larger tensor-parallel degree than this instance has",
        "free cores (neuron-ls names their owners) or lower the tensor-parallel degree";
    NRT_UNSUPPORTED_NEFF_VERSION Update "compiler and runtime do not match",
        "a model compiled by another SDK's neuronx-cc", "recompile the model, or update the runtime";
    NRT_FAIL_HOST_MEM_ALLOC Shrink "out of host memory", "a host with too little memory (old libraries only)",
        "free host memory or use a larger instance";
    NRT_UNINITIALIZED Caller "the runtime is not initialised", "a call before it was started",
        "report this as a bug of njoule";
    NRT_CLOSED Caller "the runtime is closed", "a call after it was closed", "report this as a bug of njoule";
    NRT_QUEUE_EMPTY Retry "no data", "reading from an empty queue", "wait and read again";
    NRT_EXEC_UNIT_UNRECOVERABLE Restart "the core is dead for this process", "an earlier fault on it",
        "end this process and start a new one; reload the driver if it comes back";
    NRT_EXEC_BAD_INPUT Caller "wrong inputs to an execution", "a missing tensor, or one of the wrong size",
        "compare the model's tensors with those bound";
    NRT_EXEC_COMPLETED_WITH_NUM_ERR Caller "the execution produced NaN",
        "the model or its input (reported only with NEURON_FAIL_ON_NAN=1)", "check the weights and the input";
    NRT_EXEC_COMPLETED_WITH_ERR Replace "the execution ended with an error",
        "the device, such as a parity error of on-chip memory", "end this process; replace the instance if it comes back";
    NRT_EXEC_NC_BUSY FreeCores "the core is in use", "another model or process on it",
        "find the owner with neuron-ls and stop it";
    NRT_EXEC_OOB Caller "a gather or scatter index is out of bounds",
        "a token id, position or cache slot beyond the model's tables",
        "check the input; NEURON_RT_DBG_DUMP_INPUTS_ON_ERR=1006 writes it to files";
    NRT_COLL_PENDING Retry "a collective is still running", "ranks that have not finished", "wait";
    NRT_EXEC_HW_ERR_COLLECTIVES Restart "a collective hangs", "often another rank's fault",
        "look at the other ranks first, then start all of them anew";
    NRT_EXEC_HW_ERR_HBM_UE Replace "device memory error that cannot be repaired", "the device's HBM",
        "replace the instance";
    NRT_EXEC_HW_ERR_NC_UE Replace "on-chip memory error", "the core's memory", "replace the instance";
    NRT_EXEC_HW_ERR_DMA_ABORT Replace "a DMA engine stopped", "the device",
        "end this process; replace the instance if it comes back";
    NRT_EXEC_SW_NQ_OVERFLOW Restart "a notification queue overflowed", "more notifications than the runtime drains",
        "set NEURON_RT_ENABLE_DGE_NOTIFICATIONS=0 and start a new process";
    NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE Driver "device memory error that can be repaired", "the device's HBM",
        "reload the driver (rmmod neuron; modprobe neuron) or reboot: that repairs it";
    NRT_NETWORK_PROXY_FAILURE Restart "network failure between instances", "EFA, or an instance that went away",
        "check the network between the instances, then start all ranks anew";
};
