//! The C functions: `libnrt.so.1` as its users see it.
//!
//! Each turns pointers into values, asks the [`crate::runtime`], and turns the answer into a status. Pointers are checked
//! for null and otherwise believed, as the real library believes them; handles are never followed.
//!
//! Names, types and layouts are facts of AWS's documentation (`neuron-sys/include/njoule_nrt.h` is the project's header of
//! them; `tests/it/abi.rs` compares the two).

mod layout;
mod models;
mod process;
mod runs;
mod tensors;

pub(crate) use models::Info;

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::misuse;
use crate::runtime::{Runtime, ordered, running, told};
use crate::status::{self, Answer, refuse};

/// A call that needs the running library.
fn call(function: &str, body: impl FnOnce(&Arc<Runtime>) -> Answer) -> u32 {
    carry_out(function, || None, || body(&running()?))
}

/// The same, on one core.
fn call_on(
    function: &str,
    core: impl FnOnce(&Runtime) -> Option<u32>,
    body: impl FnOnce(&Arc<Runtime>) -> Answer,
) -> u32 {
    carry_out(function, || core(&*running().ok()?), || body(&running()?))
}

/// A call that is allowed at any time.
fn always(function: &str, body: impl FnOnce() -> Answer) -> u32 {
    carry_out(function, || None, body)
}

/// What was ordered for the call comes first.
fn carry_out(function: &str, core: impl FnOnce() -> Option<u32>, body: impl FnOnce() -> Answer) -> u32 {
    let answer = catch_unwind(AssertUnwindSafe(|| match ordered(function, core)? {
        Some(status::SUCCESS) => Ok(()),
        Some(code) => {
            let runs = matches!(function, "nrt_execute" | "nrta_execute_schedule");
            if code == status::EXEC_UNIT_UNRECOVERABLE && runs {
                running()?.die();
            }
            refuse(code, "as NJOULE_FAKE_FAULTS says")
        }
        None => body(),
    }));
    let answer = answer.unwrap_or_else(|_| {
        misuse::record(format!("{function} panicked: a bug of the stand-in"));
        refuse(status::FAILURE, "a panic")
    });
    told(function, answer)
}

/// A function without a status: what goes wrong is only written.
fn silent(function: &str, body: impl FnOnce(&Arc<Runtime>) -> Answer) {
    let answer = catch_unwind(AssertUnwindSafe(|| body(&running()?)));
    told(function, answer.unwrap_or_else(|_| refuse(status::FAILURE, "a panic")));
}

/// Writes through an out pointer.
///
/// # Safety
///
/// Null, or valid for a write of its type.
unsafe fn give<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return refuse(status::INVALID, "an out pointer is null");
    }
    // SAFETY: not null, so valid by the caller's word.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// The bytes of a host buffer.
///
/// # Safety
///
/// Null, or valid for reads of `size` bytes during the call.
unsafe fn bytes<'a>(from: *const u8, size: usize) -> Answer<&'a [u8]> {
    match (from.is_null(), size) {
        (_, 0) => Ok(&[]),
        (true, _) => refuse(status::INVALID, "a buffer is null"),
        // SAFETY: not null, so valid by the caller's word.
        _ => Ok(unsafe { std::slice::from_raw_parts(from, size) }),
    }
}

/// The same, to write to.
///
/// # Safety
///
/// Null, or valid for writes of `size` bytes during the call, which nobody else reads or writes meanwhile.
unsafe fn bytes_mut<'a>(to: *mut u8, size: usize) -> Answer<&'a mut [u8]> {
    match (to.is_null(), size) {
        (_, 0) => Ok(&mut []),
        (true, _) => refuse(status::INVALID, "a buffer is null"),
        // SAFETY: not null, so valid by the caller's word; whatever bytes are there are bytes.
        _ => Ok(unsafe { std::slice::from_raw_parts_mut(to, size) }),
    }
}

/// A name; null is none.
///
/// # Safety
///
/// Null, or a string with its zero.
unsafe fn text(from: *const c_char) -> String {
    if from.is_null() {
        return String::new();
    }
    // SAFETY: not null, so a string by the caller's word.
    unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned()
}

/// Misuses of the library in this process so far.
#[unsafe(no_mangle)]
pub extern "C" fn neuron_fake_faults() -> u64 {
    misuse::count()
}

/// Orders faults in place of those before, as `NJOULE_FAKE_FAULTS` does; 2 if the text is no orders.
///
/// # Safety
///
/// `orders` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn neuron_fake_order(orders: *const c_char) -> u32 {
    // SAFETY: the caller's.
    let text = unsafe { text(orders) };
    match crate::inject::order(&text) {
        Ok(()) => status::SUCCESS,
        Err(problem) => {
            eprintln!("neuron-fake: ERROR neuron_fake_order: {problem}");
            status::INVALID
        }
    }
}

/// Nanoseconds of all runs so far, on all cores: each from its call to its end, waiting for its turn included.
#[unsafe(no_mangle)]
pub extern "C" fn neuron_fake_run_time() -> u64 {
    crate::execute::run_time()
}

/// Handles in use: models, tensors, sets, tensor infos.
#[unsafe(no_mangle)]
pub extern "C" fn neuron_fake_live() -> u64 {
    crate::runtime::live()
}
