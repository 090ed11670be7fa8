//! What can go wrong once the library is open. Each variant names the thing and what to do about it.

use std::time::Duration;

use crate::status::Status;
use crate::version::Version;

/// A refused or failed operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library returned something else than success.
    #[error("{call} of {subject} failed: {status}")]
    Call {
        /// The C function.
        call: &'static str,
        /// What it was called for, with names and numbers.
        subject: String,
        /// Its answer.
        status: Status,
    },
    /// The library reported success and gave something that cannot be.
    #[error("{call} of {subject} succeeded but {problem}; the library and this program do not fit each other")]
    Nonsense {
        /// The C function.
        call: &'static str,
        /// What it was called for.
        subject: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// This library is too old for it, or was built without it.
    #[error("{what} needs {needed}; this library is {found}: update aws-neuronx-runtime-lib")]
    Unsupported {
        /// What was wanted.
        what: &'static str,
        /// The version, or the symbol.
        needed: &'static str,
        /// The library's version.
        found: Version,
    },
    /// A second start while the runtime runs.
    #[error("the Neuron runtime runs already in this process; clone its handle instead of starting it again")]
    AlreadyRunning,
    /// A start after the runtime was closed.
    #[error("the Neuron runtime was closed in this process and starts once per process; start a new process")]
    Closed,
    /// A core that this process does not own.
    #[error("core {core} is not among the {visible} of this process; see NEURON_RT_VISIBLE_CORES and neuron-ls")]
    NoSuchCore {
        /// The number asked for.
        core: u32,
        /// How many there are.
        visible: u32,
    },
    /// A part that reaches beyond the tensor.
    #[error("bytes {offset} to {offset}+{len} reach beyond tensor `{tensor}` of {size} bytes")]
    OutOfBounds {
        /// The tensor's name.
        tensor: String,
        /// First byte.
        offset: usize,
        /// Number of bytes.
        len: usize,
        /// The tensor's size in bytes.
        size: usize,
    },
    /// A tensor of no bytes.
    #[error("tensor `{tensor}` would have no bytes; the runtime refuses those")]
    Empty {
        /// Its name.
        tensor: String,
    },
    /// More than the library can allocate in one piece.
    #[error("tensor `{tensor}` of {size} bytes exceeds {limit}, the most {reason}")]
    TooLarge {
        /// Its name.
        tensor: String,
        /// Its size in bytes.
        size: usize,
        /// The largest size in bytes.
        limit: usize,
        /// Whose limit that is, and what lifts it.
        reason: &'static str,
    },
    /// A name that C cannot take.
    #[error("the name {name:?} has a zero byte in it or is longer than 255 bytes")]
    BadName {
        /// The name.
        name: String,
    },
    /// Handles of two runtimes in one call.
    #[error("`{name}` belongs to another runtime than what it is used with")]
    OtherRuntime {
        /// The handle's name.
        name: String,
    },
    /// A set does not hold what the model takes or gives.
    #[error("model `{model}`: {side} `{tensor}` {problem}")]
    Mismatch {
        /// The model's label.
        model: String,
        /// "input" or "output".
        side: &'static str,
        /// The tensor's name in the model.
        tensor: String,
        /// What is wrong, with both sizes.
        problem: String,
    },
    /// A run was started and its end not yet waited for.
    #[error("a run of model `{model}` is in flight; wait for it first")]
    InFlight {
        /// The model's label.
        model: String,
    },
    /// A call that did not come back in time. It cannot be cancelled.
    #[error("{what} did not finish within {limit:?} and cannot be cancelled; end this process and start a new one")]
    Hung {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// The operating system refused something that waiting needs.
    #[error("{call} failed: {reason}")]
    System {
        /// The system call.
        call: &'static str,
        /// The system's words.
        reason: String,
    },
}

impl Error {
    /// The library's status, where there is one.
    pub fn status(&self) -> Option<Status> {
        match self {
            Error::Call { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether this process must do no more device work: end it and start a new one.
    pub fn ends_process(&self) -> bool {
        matches!(self, Error::Hung { .. }) || self.status().is_some_and(Status::ends_process)
    }
}
