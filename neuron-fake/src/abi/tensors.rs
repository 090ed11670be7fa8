//! Tensors: allocate, slice, read, write, copy.

use std::ffi::{c_char, c_void};

use super::layout::{AllocInfo, Batch};
use super::{bytes, bytes_mut, call, call_on, give, silent, text};
use crate::runtime::{self, Runtime};
use crate::status::{self, Answer, refuse};
use crate::tensor::Tensor;

/// Allocates, on a core or (up to 4 MiB) on the host. The memory is poisoned.
///
/// # Safety
///
/// `name` is null or a string, `tensor` valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_allocate(
    placement: u32,
    vnc: i32,
    size: usize,
    name: *const c_char,
    tensor: *mut *mut c_void,
) -> u32 {
    call_on(
        "nrt_tensor_allocate",
        |_| u32::try_from(vnc).ok(),
        |runtime| {
            // SAFETY: the caller's.
            let name = unsafe { text(name) };
            if size == 0 {
                return refuse(status::INVALID, format!("tensor `{name}` of no bytes"));
            }
            let old = runtime.config.version < [2, 30, 0];
            let core = match placement {
                DEVICE if old && size > u32::MAX as usize => {
                    return refuse(status::INVALID, format!("tensor `{name}` of {size} bytes overflows before 2.30"));
                }
                DEVICE => Some(runtime.core(vnc.into())?),
                HOST if size <= LARGEST_HOST => None,
                HOST => return refuse(status::INVALID, format!("{size} bytes on the host: at most {LARGEST_HOST}")),
                other => return refuse(status::INVALID, format!("placement {other}")),
            };
            let handle = runtime.add_tensor(Tensor::allocate(core, size, name)?);
            // SAFETY: the caller's.
            unsafe { give(tensor, handle as *mut c_void) }
        },
    )
}

/// Frees the tensor and nulls the handle.
///
/// # Safety
///
/// `tensor` is null or valid for a read and a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_free(tensor: *mut *mut c_void) {
    silent("nrt_tensor_free", |runtime| {
        if tensor.is_null() {
            return refuse(status::INVALID, "a null pointer");
        }
        // SAFETY: not null, so the caller's.
        let handle = unsafe { std::mem::replace(&mut *tensor, std::ptr::null_mut()) };
        runtime.free_tensor(handle as usize)
    });
}

/// A view of a part of a tensor.
///
/// # Safety
///
/// `name` is null or a string, `slice` valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_allocate_slice(
    source: *const c_void,
    offset: usize,
    size: usize,
    name: *const c_char,
    slice: *mut *mut c_void,
) -> u32 {
    call("nrt_tensor_allocate_slice", |runtime| {
        let source = runtime.tensor(source as usize)?;
        if size == 0 {
            return refuse(status::INVALID, "a slice of no bytes");
        }
        // SAFETY: the caller's.
        let view = source.slice(offset, size, unsafe { text(name) })?;
        // SAFETY: the caller's.
        unsafe { give(slice, runtime.add_tensor(view) as *mut c_void) }
    })
}

/// Host to device.
///
/// # Safety
///
/// `buffer` is valid for reads of `size` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_write(
    tensor: *mut c_void,
    buffer: *const c_void,
    offset: usize,
    size: usize,
) -> u32 {
    call_on("nrt_tensor_write", core_of(tensor), |runtime| {
        let tensor = runtime.tensor(tensor as usize)?;
        // SAFETY: the caller's.
        tensor.write(offset, unsafe { bytes(buffer.cast(), size) }?)
    })
}

/// Device to host.
///
/// # Safety
///
/// `buffer` is valid for writes of `size` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_read(
    tensor: *const c_void,
    buffer: *mut c_void,
    offset: usize,
    size: usize,
) -> u32 {
    call_on("nrt_tensor_read", core_of(tensor), |runtime| {
        let tensor = runtime.tensor(tensor as usize)?;
        // SAFETY: the caller's.
        tensor.read(offset, unsafe { bytes_mut(buffer.cast(), size) }?)
    })
}

/// Several writes at once.
///
/// # Safety
///
/// `batches` has `count` entries, each `num_ops` operations, each with a buffer of its size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_write_batch(batches: *const c_void, count: u64, _untracked: bool) -> u32 {
    call("nrt_tensor_write_batch", |runtime| {
        let write = |tensor: &Tensor, offset, buffer: *mut c_void, size| {
            // SAFETY: the caller's.
            tensor.write(offset, unsafe { bytes(buffer.cast(), size) }?)
        };
        // SAFETY: the caller's.
        unsafe { batch(runtime, batches.cast(), count, write) }
    })
}

/// Several reads at once.
///
/// # Safety
///
/// As for [`nrt_tensor_write_batch`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_read_batch(batches: *const c_void, count: u64, _untracked: bool) -> u32 {
    call("nrt_tensor_read_batch", |runtime| {
        let read = |tensor: &Tensor, offset, buffer: *mut c_void, size| {
            // SAFETY: the caller's.
            tensor.read(offset, unsafe { bytes_mut(buffer.cast(), size) }?)
        };
        // SAFETY: the caller's.
        unsafe { batch(runtime, batches.cast(), count, read) }
    })
}

/// Device to device, in one memory.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_tensor_copy(
    source: *const c_void,
    source_offset: usize,
    target: *mut c_void,
    target_offset: usize,
    size: usize,
) -> u32 {
    call("nrt_tensor_copy", |runtime| {
        let (source, target) = (runtime.tensor(source as usize)?, runtime.tensor(target as usize)?);
        let core = |t: &Tensor| t.storage.core.as_ref().map(|core| core.index);
        if core(&source) != core(&target) {
            return refuse(status::INVALID, format!("{source} and {target} are not in one memory"));
        }
        let end = source_offset.checked_add(size).filter(|&end| end <= source.size);
        if end.is_none() {
            let text = format!("bytes {source_offset} to {source_offset}+{size} reach beyond {source}");
            return refuse(status::INVALID, text);
        }
        let mut buffer = vec![0; size];
        source.read(source_offset, &mut buffer)?;
        target.write(target_offset, &buffer)
    })
}

/// Fills with a byte.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_tensor_memset(tensor: *mut c_void, offset: u64, value: i32, size: usize) -> u32 {
    call_on("nrt_tensor_memset", core_of(tensor), |runtime| {
        // As memset: the low byte.
        runtime.tensor(tensor as usize)?.fill(place(offset)?, size, value as u8)
    })
}

/// Bytes of a tensor; 0 for what is none.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_tensor_get_size(tensor: *const c_void) -> usize {
    let size = || runtime::running()?.tensor(tensor as usize).map(|t| t.size);
    size().unwrap_or(0)
}

/// Where the host sees a tensor's first byte; null for what is none.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_tensor_get_va(tensor: *const c_void) -> *mut c_void {
    if tensor.is_null() {
        return std::ptr::null_mut();
    }
    let address = || runtime::running()?.tensor(tensor as usize).map(|t| t.address().cast());
    address().unwrap_or(std::ptr::null_mut())
}

/// Where a tensor lies.
///
/// # Safety
///
/// `info` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_tensor_get_device_allocation_info(tensor: *const c_void, info: *mut c_void) -> u32 {
    call("nrt_tensor_get_device_allocation_info", |runtime| {
        let tensor = runtime.tensor(tensor as usize)?;
        let Some(core) = &tensor.storage.core else {
            return refuse(status::INVALID, format!("{tensor} is on the host"));
        };
        // Each core of Inferentia2 and Trainium1 has its bank; two of Trainium2's share one at most.
        let banks = runtime.config.instance.chip.cores() / runtime.config.lnc;
        let answer = AllocInfo {
            physical_address: tensor.storage.address + tensor.offset as u64,
            size: tensor.storage.size.next_multiple_of(64),
            hbm_index: (core.index % banks.max(1)) as i32,
        };
        // SAFETY: the caller's.
        unsafe { give(info.cast(), answer) }
    })
}

/// # Safety
///
/// `batches` has `count` entries, each `num_ops` operations.
unsafe fn batch(
    runtime: &Runtime,
    batches: *const Batch,
    count: u64,
    f: impl Fn(&Tensor, usize, *mut c_void, usize) -> Answer,
) -> Answer {
    if batches.is_null() && count > 0 {
        return refuse(status::INVALID, "batches are null");
    }
    for i in 0..place(count)? {
        // SAFETY: one of the caller's `count`.
        let batch = unsafe { &*batches.add(i) };
        let tensor = runtime.tensor(batch.tensor as usize)?;
        for k in 0..batch.num_ops as usize {
            // SAFETY: one of the batch's `num_ops`.
            let op = unsafe { &*batch.ops.add(k) };
            f(&tensor, place(op.offset)?, op.buffer, place(op.size)?)?;
        }
    }
    Ok(())
}

/// In whose memory a tensor is.
fn core_of(tensor: *const c_void) -> impl FnOnce(&Runtime) -> Option<u32> {
    move |runtime| Some(runtime.tensor(tensor as usize).ok()?.storage.core.as_ref()?.index)
}

fn place(offset: u64) -> Answer<usize> {
    usize::try_from(offset).or_else(|_| refuse(status::INVALID, format!("offset {offset}")))
}

const DEVICE: u32 = 0;
const HOST: u32 = 1;
const LARGEST_HOST: usize = 4 << 20;
