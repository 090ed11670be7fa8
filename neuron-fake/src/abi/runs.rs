//! Tensor sets and runs.

use std::ffi::{c_char, c_void};

use super::{call, call_on, give, silent, text};
use crate::execute::Job;
use crate::misuse;
use crate::runtime::Runtime;
use crate::status::{self, Answer, refuse};

/// A set without tensors.
///
/// # Safety
///
/// `set` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_allocate_tensor_set(set: *mut *mut c_void) -> u32 {
    // SAFETY: the caller's.
    call("nrt_allocate_tensor_set", |runtime| unsafe { give(set, runtime.add_set() as *mut c_void) })
}

/// Frees the set, not its tensors, and nulls the handle.
///
/// # Safety
///
/// `set` is null or valid for a read and a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_destroy_tensor_set(set: *mut *mut c_void) {
    silent("nrt_destroy_tensor_set", |runtime| {
        if set.is_null() {
            return refuse(status::INVALID, "a null pointer");
        }
        // SAFETY: not null, so the caller's.
        let handle = unsafe { std::mem::replace(&mut *set, std::ptr::null_mut()) };
        runtime.destroy_set(handle as usize)
    });
}

/// Adds a tensor, or replaces the one of that name.
///
/// # Safety
///
/// `name` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_add_tensor_to_tensor_set(
    set: *mut c_void,
    name: *const c_char,
    tensor: *mut c_void,
) -> u32 {
    call("nrt_add_tensor_to_tensor_set", |runtime| {
        let set = runtime.set(set as usize)?;
        runtime.tensor(tensor as usize)?;
        // SAFETY: the caller's.
        let name = unsafe { text(name) };
        if name.is_empty() || name.len() >= 256 {
            return refuse(status::INVALID, format!("a tensor's name has 1 to 255 bytes, not {}", name.len()));
        }
        set.names().insert(name, tensor as usize);
        Ok(())
    })
}

/// The tensor of that name; without one, status 1, and `tensor` is left as it is.
///
/// # Safety
///
/// `name` is a string, `tensor` valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_tensor_from_tensor_set(
    set: *mut c_void,
    name: *const c_char,
    tensor: *mut *mut c_void,
) -> u32 {
    call("nrt_get_tensor_from_tensor_set", |runtime| {
        // SAFETY: the caller's.
        let name = unsafe { text(name) };
        let found = runtime.set(set as usize)?.names().get(&name).copied();
        let Some(handle) = found else {
            return refuse(status::FAILURE, format!("no `{name}` in the set"));
        };
        runtime.tensor(handle)?;
        // SAFETY: the caller's.
        unsafe { give(tensor, handle as *mut c_void) }
    })
}

/// Runs a model to its end.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_execute(model: *mut c_void, inputs: *const c_void, outputs: *mut c_void) -> u32 {
    call_on("nrt_execute", core_of(model), |runtime| {
        bind(runtime, model as usize, inputs as usize, outputs as usize)?.run(runtime)
    })
}

/// Schedules a run.
///
/// # Safety
///
/// `word` is valid for writes until the run has completed, `seq` for a write now.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrta_execute_schedule(
    model: *mut c_void,
    inputs: *const c_void,
    outputs: *mut c_void,
    queue: i32,
    word: *mut u32,
    seq: *mut u64,
) -> u32 {
    call_on("nrta_execute_schedule", core_of(model), |runtime| {
        since(runtime, [2, 31, 0], "nrta_execute_schedule")?;
        if queue != 0 || word.is_null() || !word.is_aligned() || seq.is_null() {
            return refuse(status::INVALID, format!("queue {queue}, status at {word:p}, seq at {seq:p}"));
        }
        let core = runtime.model(model as usize)?.core.index as usize;
        let job = || bind(runtime, model as usize, inputs as usize, outputs as usize);
        // SAFETY: the caller's.
        let number = unsafe { runtime.queues[core].schedule(runtime, job, word) }?;
        // SAFETY: the caller's.
        unsafe { give(seq, number) }
    })
}

/// Whether a scheduled run has completed.
///
/// # Safety
///
/// `completed` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrta_is_completed(seq: u64, completed: *mut bool) -> u32 {
    call("nrta_is_completed", |runtime| {
        since(runtime, [2, 31, 0], "nrta_is_completed")?;
        match runtime.queues.iter().find_map(|q| q.is_completed(seq)) {
            // SAFETY: the caller's.
            Some(done) => unsafe { give(completed, done) },
            None => refuse(status::INVALID, format!("no run has the number {seq:#x}")),
        }
    })
}

/// Has an eventfd told when a scheduled run completes.
#[unsafe(no_mangle)]
pub extern "C" fn nrta_event_register_seq_id_completion(seq: u64, eventfd: i32) -> u32 {
    call("nrta_event_register_seq_id_completion", |runtime| {
        since(runtime, [2, 32, 31], "nrta_event_register_seq_id_completion")?;
        if runtime.queues.iter().any(|q| q.register(seq, eventfd)) {
            Ok(())
        } else {
            refuse(status::INVALID, format!("no run has the number {seq:#x}"))
        }
    })
}

/// Where a model is loaded.
fn core_of(model: *const c_void) -> impl FnOnce(&Runtime) -> Option<u32> {
    move |runtime| Some(runtime.model(model as usize).ok()?.core.index)
}

fn bind(runtime: &Runtime, model: usize, inputs: usize, outputs: usize) -> Answer<Job> {
    let model = runtime.model(model)?;
    Job::bind(runtime, &model, &*runtime.set(inputs)?, &*runtime.set(outputs)?)
}

/// Older libraries have the names with other arguments: on a real one the call would corrupt memory.
fn since(runtime: &Runtime, version: [u64; 3], function: &str) -> Answer {
    if runtime.config.version >= version {
        return Ok(());
    }
    misuse::record(format!(
        "{function} of libnrt {:?}: it means something else before {version:?}",
        runtime.config.version
    ));
    refuse(status::INVALID, "the library is too old for it")
}
