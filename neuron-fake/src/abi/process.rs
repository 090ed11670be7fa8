//! The process and its devices: version, counts, init, close, the communicator.

use std::ffi::c_char;

use super::layout::{InstanceInfo, MemoryStats, Version, padded};
use super::{always, call, give, text};
use crate::config::{self, Outline};
use crate::misuse;
use crate::runtime::{self, told};
use crate::status::{self, Answer, refuse};

/// Tells the version, of which the detail says FAKE.
///
/// # Safety
///
/// `version` is valid for a write of `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_version(version: *mut u8, size: usize) -> u32 {
    let body = || {
        let [major, minor, patch] = config::version()?;
        if size < size_of::<Version>() {
            return refuse(status::INVALID, format!("a version of {size} bytes"));
        }
        let numbers = [major, minor, patch, 0];
        let answer = Version { numbers, detail: padded("FAKE: njoule's stand-in"), git_hash: padded("fake") };
        // SAFETY: the caller's struct has at least this size.
        unsafe { give(version.cast::<Version>(), answer) }
    };
    // Faults on order are for what comes after: a list of them that means nothing is refused at nrt_init.
    told("nrt_get_version", body())
}

/// The name of a status.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_get_status_as_str(code: u32) -> *const c_char {
    status::name(code).as_ptr()
}

/// Takes the cores.
///
/// # Safety
///
/// The two versions are strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_init(framework: u32, fw_version: *const c_char, fal_version: *const c_char) -> u32 {
    let body = || {
        // SAFETY: strings, by the caller's word.
        let versions = unsafe { [text(fw_version), text(fal_version)] };
        if framework != 1 || versions.iter().any(|v| !v.is_empty()) {
            misuse::record(format!("nrt_init({framework}, {versions:?}): njoule passes (1, \"\", \"\")"));
        }
        runtime::start()
    };
    always("nrt_init", body)
}

/// Gives them back.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_close() {
    always("nrt_close", || {
        runtime::close();
        Ok(())
    });
}

/// Logical cores of the instance.
///
/// # Safety
///
/// `count` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_total_vnc_count(count: *mut u32) -> u32 {
    // SAFETY: the caller's.
    always("nrt_get_total_vnc_count", || unsafe { give(count, Outline::from_env()?.total) })
}

/// Logical cores of this process.
///
/// # Safety
///
/// `count` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_visible_vnc_count(count: *mut u32) -> u32 {
    // SAFETY: the caller's.
    always("nrt_get_visible_vnc_count", || unsafe { give(count, visible()?) })
}

/// The old name of the first.
///
/// # Safety
///
/// `count` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_total_nc_count(count: *mut u32) -> u32 {
    // SAFETY: the caller's.
    always("nrt_get_total_nc_count", || unsafe { give(count, Outline::from_env()?.total) })
}

/// The old name of the second.
///
/// # Safety
///
/// `count` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_visible_nc_count(count: *mut u32) -> u32 {
    // SAFETY: the caller's.
    always("nrt_get_visible_nc_count", || unsafe { give(count, visible()?) })
}

/// Tells the instance.
///
/// # Safety
///
/// `info` is valid for a write of `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_instance_info(info: *mut u8, size: usize) -> u32 {
    let body = || {
        let Some(instance) = Outline::from_env()?.instance else {
            return refuse(status::INVALID, "no Neuron device");
        };
        if size < size_of::<InstanceInfo>() {
            return refuse(status::INVALID, format!("an instance info of {size} bytes"));
        }
        let answer = InstanceInfo {
            family: instance.family,
            size: instance.size,
            arch_name: padded(instance.chip.core_arch()),
            device_revision: padded("FAKE"),
        };
        // SAFETY: the caller's struct has at least this size.
        unsafe { give(info.cast::<InstanceInfo>(), answer) }
    };
    always("nrt_get_instance_info", body)
}

/// Device memory of a core.
///
/// # Safety
///
/// `stats` is valid for a write of `size_in` bytes, `size_out` for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_vnc_memory_stats(
    vnc: u32,
    stats: *mut u8,
    size_in: usize,
    size_out: *mut usize,
) -> u32 {
    call("nrt_get_vnc_memory_stats", |runtime| {
        let (used, limit) = runtime.core(vnc.into())?.memory();
        if size_in < size_of::<MemoryStats>() {
            return refuse(status::INVALID, format!("memory stats of {size_in} bytes"));
        }
        // SAFETY: the caller's struct has at least this size.
        unsafe { give(stats.cast::<MemoryStats>(), MemoryStats { used, limit }) }?;
        // SAFETY: the caller's.
        unsafe { give(size_out, size_of::<MemoryStats>()) }
    })
}

/// Makes the communicator; waits for all ranks.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_build_global_comm(vnc: i32, rank: u32, world: u32) -> u32 {
    call("nrt_build_global_comm", |runtime| {
        runtime.core(vnc.into())?;
        if rank >= world {
            return refuse(status::INVALID, format!("rank {rank} of {world}"));
        }
        if runtime.config.join { runtime.communicator.join(rank, world, config::hang_limit()?) } else { Ok(()) }
    })
}

/// Waits for all ranks.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_barrier(vnc: i32, rank: u32, world: u32) -> u32 {
    call("nrt_barrier", |runtime| {
        runtime.core(vnc.into())?;
        runtime.barrier(rank, world)
    })
}

fn visible() -> Answer<u32> {
    Ok(Outline::from_env()?.cores.len() as u32)
}
