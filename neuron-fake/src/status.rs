//! Status codes (`NRT_STATUS`) that the stand-in gives, and the refusal that carries one with its reason.

use std::ffi::CStr;
use std::fmt;

/// Why a call does not do what it was asked: the code that it returns, and words for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub status: u32,
    pub text: String,
}

pub(crate) type Answer<T = ()> = Result<T, Refusal>;

/// A refusal with these words.
pub(crate) fn refuse<T>(status: u32, text: impl fmt::Display) -> Answer<T> {
    Err(Refusal { status, text: text.to_string() })
}

macro_rules! statuses {
    ($($name:ident = $code:literal,)*) => {
        $(
            #[allow(dead_code)] // some only have a name: faults on order return them by number
            pub(crate) const $name: u32 = $code;
        )*

        /// The name of a code, as the library gives it.
        pub(crate) fn name(status: u32) -> &'static CStr {
            match status {
                $($code => {
                    // A literal without a zero inside, and one behind it.
                    const TEXT: &CStr = match CStr::from_bytes_with_nul(concat!("NRT_", stringify!($name), "\0").as_bytes()) {
                        Ok(text) => text,
                        Err(_) => c"",
                    };
                    TEXT
                })*
                _ => c"NRT_UNKNOWN",
            }
        }
    };
}

statuses! {
    SUCCESS = 0,
    FAILURE = 1,
    INVALID = 2,
    INVALID_HANDLE = 3,
    RESOURCE = 4,
    TIMEOUT = 5,
    HW_ERROR = 6,
    QUEUE_FULL = 7,
    LOAD_NOT_ENOUGH_NC = 9,
    UNSUPPORTED_NEFF_VERSION = 10,
    FAIL_HOST_MEM_ALLOC = 11,
    UNINITIALIZED = 13,
    CLOSED = 14,
    QUEUE_EMPTY = 15,
    EXEC_UNIT_UNRECOVERABLE = 101,
    EXEC_BAD_INPUT = 1002,
    EXEC_COMPLETED_WITH_NUM_ERR = 1003,
    EXEC_COMPLETED_WITH_ERR = 1004,
    EXEC_NC_BUSY = 1005,
    EXEC_OOB = 1006,
    COLL_PENDING = 1100,
    EXEC_HW_ERR_COLLECTIVES = 1200,
    EXEC_HW_ERR_HBM_UE = 1201,
    EXEC_HW_ERR_NC_UE = 1202,
    EXEC_HW_ERR_DMA_ABORT = 1203,
    EXEC_SW_NQ_OVERFLOW = 1204,
    EXEC_HW_ERR_REPAIRABLE_HBM_UE = 1205,
    NETWORK_PROXY_FAILURE = 1206,
}
