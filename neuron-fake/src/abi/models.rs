//! Models: load, unload, what they take and give.

use std::ffi::c_void;

use super::layout::{TensorInfo, padded};
use super::{bytes, call, call_on, give};
use crate::misuse;
use crate::neff::nrt_dtype;
use crate::runtime::{Runtime, lock};
use crate::status::{self, Answer, refuse};

/// A tensor info that was given out; its pointer is into the words.
#[derive(Debug)]
pub(crate) struct Info {
    /// The count, then entries of [`TensorInfo`].
    words: Box<[u64]>,
    /// Where the entries' shapes point.
    _shapes: Vec<Box<[u32]>>,
}

/// Loads a NEFF onto a core.
///
/// # Safety
///
/// `neff` is valid for reads of `size` bytes during the call, `model` for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_load(
    neff: *const c_void,
    size: usize,
    vnc: i32,
    vnc_count: i32,
    model: *mut *mut c_void,
) -> u32 {
    call_on(
        "nrt_load",
        |_| u32::try_from(vnc).ok(),
        |runtime| {
            check_count(vnc_count);
            // SAFETY: the caller's.
            let neff = unsafe { bytes(neff.cast(), size) }?;
            let handle = runtime.load(neff, vnc, None)?;
            // SAFETY: the caller's.
            unsafe { give(model, handle as *mut c_void) }
        },
    )
}

/// Loads a NEFF as one rank of several; the first such load waits for all ranks.
///
/// # Safety
///
/// As for [`nrt_load`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_load_collectives(
    neff: *const c_void,
    size: usize,
    vnc: i32,
    vnc_count: i32,
    rank: u32,
    world: u32,
    model: *mut *mut c_void,
) -> u32 {
    call_on(
        "nrt_load_collectives",
        |_| u32::try_from(vnc).ok(),
        |runtime| {
            check_count(vnc_count);
            // SAFETY: the caller's.
            let neff = unsafe { bytes(neff.cast(), size) }?;
            let handle = runtime.load(neff, vnc, Some((rank, world)))?;
            // SAFETY: the caller's.
            unsafe { give(model, handle as *mut c_void) }
        },
    )
}

/// Unloads.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_unload(model: *mut c_void) -> u32 {
    call("nrt_unload", |runtime| runtime.unload(model as usize))
}

/// Gives the model's inputs and outputs.
///
/// # Safety
///
/// `info` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_model_tensor_info(model: *mut c_void, info: *mut *mut c_void) -> u32 {
    call("nrt_get_model_tensor_info", |runtime| {
        let mut made = describe(runtime, model as usize)?;
        let address = made.words.as_mut_ptr();
        // Boxed: it stays where it is.
        lock(&runtime.infos).insert(address as usize, made);
        // SAFETY: the caller's.
        unsafe { give(info, address.cast()) }
    })
}

/// Frees it.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_free_model_tensor_info(info: *mut c_void) -> u32 {
    call("nrt_free_model_tensor_info", |runtime| match lock(&runtime.infos).remove(&(info as usize)) {
        Some(_) => Ok(()),
        None => {
            misuse::record("nrt_free_model_tensor_info of what the library did not give, or not any more");
            refuse(status::INVALID_HANDLE, "no tensor info of the library's")
        }
    })
}

/// The core that the model is on.
///
/// # Safety
///
/// `info` is valid for a write of `size_in` bytes, `size_out` for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_model_info(
    model: *const c_void,
    info: *mut u32,
    size_in: usize,
    size_out: *mut usize,
) -> u32 {
    call("nrt_get_model_info", |runtime| {
        let core = runtime.model(model as usize)?.core.index;
        if size_in < size_of::<u32>() {
            return refuse(status::INVALID, format!("a model info of {size_in} bytes"));
        }
        // SAFETY: the caller's.
        unsafe { give(info, core) }?;
        // SAFETY: the caller's.
        unsafe { give(size_out, size_of::<u32>()) }
    })
}

/// Cores of the model.
///
/// # Safety
///
/// `count` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_model_vnc_count(model: *const c_void, count: *mut u32) -> u32 {
    call("nrt_get_model_vnc_count", |runtime| {
        runtime.model(model as usize)?;
        // SAFETY: the caller's.
        unsafe { give(count, 1) }
    })
}

/// Copies of the model.
///
/// # Safety
///
/// `count` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_model_instance_count(model: *mut c_void, count: *mut u32) -> u32 {
    call("nrt_get_model_instance_count", |runtime| {
        runtime.model(model as usize)?;
        // SAFETY: the caller's.
        unsafe { give(count, 1) }
    })
}

fn check_count(vnc_count: i32) {
    if !matches!(vnc_count, -1 | 1) {
        misuse::record(format!("a load with vnc_count {vnc_count}: it is deprecated, -1"));
    }
}

fn describe(runtime: &Runtime, handle: usize) -> Answer<Info> {
    let model = runtime.model(handle)?;
    let program = &model.program;
    let inputs = program.sidecar.inputs.iter().zip(&program.inputs).map(|t| (0, t));
    let outputs = program.sidecar.outputs.iter().zip(&program.outputs).map(|t| (1, t));
    let mut shapes = vec![];
    let mut words = vec![(program.inputs.len() + program.outputs.len()) as u64];
    for (usage, (spec, shape)) in inputs.chain(outputs) {
        // Never empty, so that its pointer is to something.
        let mut dims: Vec<u32> = shape.dims().iter().map(|d| u32::try_from(d).unwrap_or(u32::MAX)).collect();
        let ndim = dims.len() as u32;
        if dims.is_empty() {
            dims.push(1);
        }
        let mut dims = dims.into_boxed_slice();
        let dtype = shape.dtype();
        let entry = TensorInfo {
            name: padded(&spec.name),
            usage,
            size: spec.size,
            dtype: if dtype.is_fp8() && runtime.config.fp8_as_i8 { 0x2 } else { nrt_dtype(dtype) },
            shape: dims.as_mut_ptr(),
            ndim,
        };
        shapes.push(dims);
        let at = words.len();
        words.resize(at + size_of::<TensorInfo>() / 8, 0);
        // SAFETY: 296 bytes, a multiple of 8, and as many were just added, aligned as u64 is.
        unsafe { words.as_mut_ptr().add(at).cast::<TensorInfo>().write(entry) };
    }
    Ok(Info { words: words.into_boxed_slice(), _shapes: shapes })
}
