//! Structs as the header of SDK 2.28 lays them out on x86-64. Offsets are compared with neuron-sys's bindings in the tests.

use std::ffi::{c_char, c_void};

#[repr(C)]
pub(crate) struct Version {
    pub numbers: [u64; 4],
    pub detail: [u8; 128],
    pub git_hash: [u8; 64],
}

#[repr(C)]
pub(crate) struct InstanceInfo {
    pub family: u32,
    pub size: u32,
    pub arch_name: [u8; 16],
    pub device_revision: [u8; 8],
}

#[repr(C)]
pub(crate) struct MemoryStats {
    pub used: usize,
    pub limit: usize,
}

#[repr(C)]
#[derive(Clone)]
pub(crate) struct TensorInfo {
    pub name: [u8; 256],
    pub usage: u32,
    pub size: usize,
    pub dtype: u32,
    pub shape: *mut u32,
    pub ndim: u32,
}

#[repr(C)]
pub(crate) struct BatchOp {
    pub offset: u64,
    pub size: u64,
    pub buffer: *mut c_void,
}

#[repr(C)]
pub(crate) struct Batch {
    pub tensor: *const c_void,
    pub ops: *const BatchOp,
    pub num_ops: u32,
}

#[repr(C)]
pub(crate) struct AllocInfo {
    pub physical_address: u64,
    pub size: usize,
    pub hbm_index: i32,
}

const _: () = {
    assert!(size_of::<Version>() == 224 && size_of::<InstanceInfo>() == 32 && size_of::<MemoryStats>() == 16);
    assert!(size_of::<TensorInfo>() == 296 && size_of::<BatchOp>() == 24 && size_of::<Batch>() == 24);
    assert!(size_of::<AllocInfo>() == 24);
    assert!(std::mem::offset_of!(TensorInfo, size) == 264 && std::mem::offset_of!(TensorInfo, shape) == 280);
    assert!(size_of::<c_char>() == 1);
};

/// Text in an array of `N` bytes, cut where it does not fit, with a zero behind it.
pub(crate) fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    let len = text.len().min(N.saturating_sub(1));
    out[..len].copy_from_slice(&text.as_bytes()[..len]);
    out
}
