//! Tensors: bytes on a core's device memory, or on the host for the runtime's use.
//!
//! Every range is checked against the size before the library sees it. Device memory is not zeroed: write or
//! [`Tensor::fill`] it before the first run that reads it.
//!
//! # Threads
//!
//! A `Tensor` may move to another thread (`Send`) and is not shared between threads (not `Sync`): AWS says nothing of
//! concurrent calls on one tensor. Reading or writing a tensor that a run in flight uses is not prevented, since sets
//! share tensors by design; it is a race on device memory, which can give wrong numbers but touches no host memory.
//! Whoever schedules runs owns the order.

use std::cell::Cell;
use std::ffi::CString;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::bindings as b;
use crate::call::RawTensor;
use crate::error::Error;
use crate::runtime::{Core, Runtime, failed, nonsense};
use crate::version::LARGE_TENSORS;

/// A tensor. Its memory is freed when it and every set that it is bound in are gone.
pub struct Tensor {
    storage: Arc<Storage>,
    /// Not `Sync`.
    unshared: PhantomData<Cell<()>>,
}

/// Keeps a tensor alive; sets hold one too. Nothing but the destructor uses the handle through it.
pub(crate) struct Storage {
    raw: RawTensor,
    size: usize,
    core: Option<Core>,
    name: CString,
    runtime: Runtime,
}

// SAFETY: the handle is an address in the library, bound to no thread (AWS's own stack moves tensors between threads). A
// Storage shared by several owners is only dropped by them, the last one frees it, once; the calls on a tensor go through
// the one `Tensor`, which is not Sync, or through sets, which are not either.
unsafe impl Send for Storage {}
// SAFETY: as above: there is no call through a shared reference but by the one `Tensor`, on one thread at a time.
unsafe impl Sync for Storage {}

/// Where the library put a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Address in the device's memory.
    pub physical_address: u64,
    /// Bytes set aside, at least the tensor's.
    pub size: usize,
    /// Which of the device's memories.
    pub hbm: i32,
}

impl Tensor {
    /// A tensor of `size` bytes in the device memory of `core`. The name is for messages and logs.
    pub fn on_core(runtime: &Runtime, core: Core, size: usize, name: &str) -> Result<Tensor, Error> {
        const LARGEST_OLD: usize = u32::MAX as usize;
        if size > LARGEST_OLD && !runtime.library().version().at_least(LARGE_TENSORS) {
            let reason = "that libnrt before 2.30 allocates: update aws-neuronx-runtime-lib, or split it";
            return Err(Error::TooLarge { tensor: name.to_owned(), size, limit: LARGEST_OLD, reason });
        }
        Tensor::allocate(runtime, b::NRT_TENSOR_PLACEMENT_DEVICE, Some(core), size, name)
    }

    /// A tensor of at most 4 MiB in host memory. AWS calls this placement deprecated: only for what needs no device.
    pub fn on_host(runtime: &Runtime, size: usize, name: &str) -> Result<Tensor, Error> {
        if size > LARGEST_HOST {
            let reason = "that the runtime places on the host: use device memory";
            return Err(Error::TooLarge { tensor: name.to_owned(), size, limit: LARGEST_HOST, reason });
        }
        Tensor::allocate(runtime, b::NRT_TENSOR_PLACEMENT_HOST, None, size, name)
    }

    /// Bytes `offset .. offset + len` as a tensor of their own on the same memory. The memory stays as long as one of
    /// them does.
    pub fn slice(&self, offset: usize, len: usize, name: &str) -> Result<Tensor, Error> {
        const CALL: &str = "nrt_tensor_allocate_slice";
        let (from, name) = (&*self.storage, c_name(name)?);
        self.check(offset, len)?;
        if len == 0 {
            return Err(Error::Empty { tensor: display(&name) });
        }
        let subject = || format!("`{}`, {len} bytes at {offset} of {self}", display(&name));
        // SAFETY: the source is live and holds the range.
        let raw = unsafe { from.runtime.library().tensor_slice(from.raw, offset, len, &name) }
            .map_err(|status| failed(CALL, subject(), status))?
            .ok_or_else(|| nonsense(CALL, subject(), "gave no tensor"))?;
        Tensor::adopt(Storage { raw, size: len, core: from.core, name, runtime: from.runtime.clone() }, CALL)
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.storage.size
    }

    /// The core whose memory it is in; none for one on the host.
    pub fn core(&self) -> Option<Core> {
        self.storage.core
    }

    /// Writes `bytes` at `offset`; returns when they are there.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the tensor is live and holds the range.
        unsafe { self.storage.runtime.library().tensor_write(self.storage.raw, offset, bytes) }
            .map_err(|status| failed("nrt_tensor_write", self.part(offset, bytes.len()), status))
    }

    /// Reads into `bytes` from `offset`.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the tensor is live and holds the range.
        unsafe { self.storage.runtime.library().tensor_read(self.storage.raw, offset, bytes) }
            .map_err(|status| failed("nrt_tensor_read", self.part(offset, bytes.len()), status))
    }

    /// Sets `len` bytes at `offset` to `value`.
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result<(), Error> {
        self.check(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the tensor is live and holds the range.
        unsafe { self.storage.runtime.library().tensor_fill(self.storage.raw, offset, len, value) }
            .map_err(|status| failed("nrt_tensor_memset", self.part(offset, len), status))
    }

    /// Copies `len` bytes at `source_offset` of `source` to `offset` here, on the device. Both are on one core (the
    /// library refuses others); what overlapping parts end up with is not defined.
    pub fn copy_from(&self, offset: usize, source: &Tensor, source_offset: usize, len: usize) -> Result<(), Error> {
        self.check(offset, len)?;
        source.check(source_offset, len)?;
        source.storage.check_runtime(&self.storage.runtime)?;
        if len == 0 {
            return Ok(());
        }
        let (from, to) = ((source.storage.raw, source_offset), (self.storage.raw, offset));
        // SAFETY: both are live, of one library, and hold the ranges.
        unsafe { self.storage.runtime.library().tensor_copy(from, to, len) }.map_err(|status| {
            let subject = format!("{} to {}", source.part(source_offset, len), self.part(offset, len));
            failed("nrt_tensor_copy", subject, status)
        })
    }

    /// Where it is.
    pub fn allocation(&self) -> Result<Allocation, Error> {
        let runtime = &self.storage.runtime;
        // SAFETY: the tensor is live.
        let answer = unsafe { runtime.library().tensor_allocation(self.storage.raw) };
        let info = answer
            .ok_or_else(|| runtime.unsupported("a tensor's place", "the symbol nrt_tensor_get_device_allocation_info"))?
            .map_err(|status| failed("nrt_tensor_get_device_allocation_info", self, status))?;
        Ok(Allocation { physical_address: info.physical_address, size: info.size, hbm: info.hbm_index })
    }

    pub(crate) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    fn allocate(
        runtime: &Runtime,
        placement: b::nrt_tensor_placement_t,
        core: Option<Core>,
        size: usize,
        name: &str,
    ) -> Result<Tensor, Error> {
        const CALL: &str = "nrt_tensor_allocate";
        let name = c_name(name)?;
        if size == 0 {
            return Err(Error::Empty { tensor: display(&name) });
        }
        let subject = || match core {
            Some(core) => format!("`{}`, {size} bytes on {core}", display(&name)),
            None => format!("`{}`, {size} bytes on the host", display(&name)),
        };
        // SAFETY: the runtime runs while its handle lives.
        let raw = unsafe { runtime.library().tensor_allocate(placement, core.map_or(NO_CORE, Core::vnc), size, &name) }
            .map_err(|status| failed(CALL, subject(), status))?
            .ok_or_else(|| nonsense(CALL, subject(), "gave no tensor"))?;
        Tensor::adopt(Storage { raw, size, core, name, runtime: runtime.clone() }, CALL)
    }

    /// Every range is checked against the size that was asked for, so the library's must not be smaller.
    fn adopt(storage: Storage, call: &'static str) -> Result<Tensor, Error> {
        let tensor = Tensor { storage: Arc::new(storage), unshared: PhantomData };
        // SAFETY: the tensor is live.
        let given = unsafe { tensor.storage.runtime.library().tensor_size(tensor.storage.raw) };
        if given < tensor.size() {
            return Err(nonsense(call, &tensor, format!("gave {given} bytes")));
        }
        Ok(tensor)
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), Error> {
        let size = self.size();
        if offset.checked_add(len).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(Error::OutOfBounds { tensor: display(&self.storage.name), offset, len, size })
    }

    fn part(&self, offset: usize, len: usize) -> String {
        format!("{len} bytes at {offset} of {self}")
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor `{}` ({} bytes", display(&self.storage.name), self.size())?;
        match self.core() {
            Some(core) => write!(f, " on {core})"),
            None => f.write_str(" on the host)"),
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Storage {
    pub(crate) fn raw(&self) -> RawTensor {
        self.raw
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn check_runtime(&self, runtime: &Runtime) -> Result<(), Error> {
        if self.runtime.is_same(runtime) { Ok(()) } else { Err(Error::OtherRuntime { name: display(&self.name) }) }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // SAFETY: the last owner is going: the tensor and every set that held it are gone, and runs hold their sets.
        unsafe { self.runtime.library().tensor_free(self.raw) }
    }
}

/// A name as C takes it: the library keeps at most 255 bytes of it.
pub(crate) fn c_name(name: &str) -> Result<CString, Error> {
    let bad = || Error::BadName { name: name.to_owned() };
    if name.len() >= b::NRT_TENSOR_NAME_MAX as usize {
        return Err(bad());
    }
    CString::new(name).map_err(|_| bad())
}

fn display(name: &CString) -> String {
    name.to_string_lossy().into_owned()
}

/// AWS: "at most 4 MB".
const LARGEST_HOST: usize = 4 << 20;
/// What the library takes for host tensors.
const NO_CORE: i32 = -1;
