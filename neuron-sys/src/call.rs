//! One function per call of the library: statuses become `Result`s, out pointers become return values. Unsafe where
//! order, handles or lifetimes matter. What each does: AWS's developer guide
//! (<https://awsdocs-neuron.readthedocs-hosted.com/en/latest/neuron-runtime/nrt-developer-guide.html>) and api reference.
//!
//! A handle that the library gives is `None` if it reported success and left the pointer null.
//!
//! The generated methods of [`b::Nrt`] panic on an absent symbol; every one that is called here without asking was
//! checked when the library was opened.

use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;
use std::ptr::{NonNull, null_mut};

use crate::bindings as b;
use crate::library::Library;
use crate::status::Status;

pub(crate) type RawModel = NonNull<b::nrt_model_t>;
pub(crate) type RawTensor = NonNull<b::nrt_tensor_t>;
pub(crate) type RawSet = NonNull<b::nrt_tensor_set_t>;
pub(crate) type RawInfo = NonNull<b::nrt_tensor_info_array_t>;

/// Process and devices.
impl Library {
    /// # Safety
    ///
    /// The runtime is not running in this process, and never ran.
    pub(crate) unsafe fn init(self) -> Result<(), Status> {
        // SAFETY: the caller's promise; the strings are static.
        Status(unsafe { self.0.raw.nrt_init(b::NRT_FRAMEWORK_TYPE_NO_FW, c"".as_ptr(), c"".as_ptr()) }).ok()
    }

    /// # Safety
    ///
    /// The runtime runs, and no handle of it is used any more.
    pub(crate) unsafe fn close(self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.raw.nrt_close() }
    }

    pub(crate) fn total_count(self) -> Result<u32, Status> {
        let raw = &self.0.raw;
        let call = raw.nrt_get_total_vnc_count.as_ref().or(raw.nrt_get_total_nc_count.as_ref());
        count(call.ok().copied())
    }

    pub(crate) fn visible_count(self) -> Result<u32, Status> {
        let raw = &self.0.raw;
        let call = raw.nrt_get_visible_vnc_count.as_ref().or(raw.nrt_get_visible_nc_count.as_ref());
        count(call.ok().copied())
    }

    pub(crate) fn instance_info(self) -> Result<b::nrt_instance_info_t, Status> {
        let mut info = MaybeUninit::<b::nrt_instance_info_t>::zeroed();
        let size = size_of::<b::nrt_instance_info_t>();
        // SAFETY: the pointer is to a struct of the size that is passed.
        Status(unsafe { self.0.raw.nrt_get_instance_info(info.as_mut_ptr(), size) }).ok()?;
        // SAFETY: integers and bytes, valid as zeros and as whatever was written over them.
        Ok(unsafe { info.assume_init() })
    }

    /// The statistics and how many of their bytes the library wrote; `None` without the symbol.
    ///
    /// # Safety
    ///
    /// The runtime runs.
    pub(crate) unsafe fn memory_stats(self, vnc: u32) -> Option<Result<(b::nrt_vnc_memory_stats_t, usize), Status>> {
        let call = self.0.raw.nrt_get_vnc_memory_stats.as_ref().ok()?;
        let mut stats = b::nrt_vnc_memory_stats_t { bytes_used: 0, bytes_limit: 0 };
        let (size, mut written) = (size_of_val(&stats), 0);
        // SAFETY: the caller's promise; both pointers are to locals, and the library writes at most `size` bytes.
        let status = Status(unsafe { call(vnc, &raw mut stats, size, &raw mut written) });
        Some(status.ok().map(|()| (stats, written)))
    }

    /// # Safety
    ///
    /// The runtime runs.
    pub(crate) unsafe fn build_global_comm(self, vnc: i32, rank: u32, world: u32) -> Option<Result<(), Status>> {
        let call = self.0.raw.nrt_build_global_comm.as_ref().ok()?;
        // SAFETY: the caller's promise.
        Some(Status(unsafe { call(vnc, rank, world) }).ok())
    }
}

/// Models. Handles are of this library and live.
impl Library {
    /// # Safety
    ///
    /// The runtime runs.
    pub(crate) unsafe fn load(self, neff: &[u8], vnc: i32) -> Result<Option<RawModel>, Status> {
        let mut model = null_mut();
        let bytes = neff.as_ptr().cast::<c_void>();
        // SAFETY: the bytes are read during the call only; the out pointer is to a local.
        Status(unsafe { self.0.raw.nrt_load(bytes, neff.len(), vnc, VNC_COUNT, &raw mut model) }).ok()?;
        Ok(NonNull::new(model))
    }

    /// # Safety
    ///
    /// The runtime runs.
    pub(crate) unsafe fn load_collectives(
        self,
        neff: &[u8],
        vnc: i32,
        rank: u32,
        world: u32,
    ) -> Result<Option<RawModel>, Status> {
        let mut model = null_mut();
        let (bytes, size) = (neff.as_ptr().cast::<c_void>(), neff.len());
        let raw = &self.0.raw;
        // SAFETY: the bytes are read during the call only; the out pointer is to a local.
        Status(unsafe { raw.nrt_load_collectives(bytes, size, vnc, VNC_COUNT, rank, world, &raw mut model) }).ok()?;
        Ok(NonNull::new(model))
    }

    /// # Safety
    ///
    /// The model is live, no run of it is in flight, and it is not used afterwards.
    pub(crate) unsafe fn unload(self, model: RawModel) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        Status(unsafe { self.0.raw.nrt_unload(model.as_ptr()) }).ok()
    }

    /// # Safety
    ///
    /// The model is live. The answer is freed by [`Library::free_model_tensor_info`].
    pub(crate) unsafe fn model_tensor_info(self, model: RawModel) -> Result<Option<RawInfo>, Status> {
        let mut info = null_mut();
        // SAFETY: the caller's promise; the out pointer is to a local.
        Status(unsafe { self.0.raw.nrt_get_model_tensor_info(model.as_ptr(), &raw mut info) }).ok()?;
        Ok(NonNull::new(info))
    }

    /// # Safety
    ///
    /// The library gave it, and it is not used afterwards.
    pub(crate) unsafe fn free_model_tensor_info(self, info: RawInfo) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        Status(unsafe { self.0.raw.nrt_free_model_tensor_info(info.as_ptr()) }).ok()
    }

    /// # Safety
    ///
    /// All three are live, and nobody uses the sets meanwhile.
    pub(crate) unsafe fn execute(self, model: RawModel, inputs: RawSet, outputs: RawSet) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        Status(unsafe { self.0.raw.nrt_execute(model.as_ptr(), inputs.as_ptr(), outputs.as_ptr()) }).ok()
    }
}

/// Tensors. Handles are of this library and live; ranges lie within the tensors.
impl Library {
    /// # Safety
    ///
    /// The runtime runs.
    pub(crate) unsafe fn tensor_allocate(
        self,
        placement: b::nrt_tensor_placement_t,
        vnc: i32,
        size: usize,
        name: &CStr,
    ) -> Result<Option<RawTensor>, Status> {
        let mut tensor = null_mut();
        // SAFETY: the name is read during the call only; the out pointer is to a local.
        Status(unsafe { self.0.raw.nrt_tensor_allocate(placement, vnc, size, name.as_ptr(), &raw mut tensor) }).ok()?;
        Ok(NonNull::new(tensor))
    }

    /// # Safety
    ///
    /// The tensor is live, and no set or run uses it afterwards.
    pub(crate) unsafe fn tensor_free(self, tensor: RawTensor) {
        let mut tensor = tensor.as_ptr();
        // SAFETY: the caller's promise; the library nulls the local.
        unsafe { self.0.raw.nrt_tensor_free(&raw mut tensor) }
    }

    /// # Safety
    ///
    /// The tensor is live.
    pub(crate) unsafe fn tensor_slice(
        self,
        source: RawTensor,
        offset: usize,
        size: usize,
        name: &CStr,
    ) -> Result<Option<RawTensor>, Status> {
        let mut slice = null_mut();
        let raw = &self.0.raw;
        let source = source.as_ptr();
        // SAFETY: the caller's promise; the name is read during the call only; the out pointer is to a local.
        Status(unsafe { raw.nrt_tensor_allocate_slice(source, offset, size, name.as_ptr(), &raw mut slice) }).ok()?;
        Ok(NonNull::new(slice))
    }

    /// # Safety
    ///
    /// The tensor is live and holds `offset + bytes.len()` bytes.
    pub(crate) unsafe fn tensor_write(self, tensor: RawTensor, offset: usize, bytes: &[u8]) -> Result<(), Status> {
        let from = bytes.as_ptr().cast::<c_void>();
        // SAFETY: the caller's promise; the bytes are read during the call only.
        Status(unsafe { self.0.raw.nrt_tensor_write(tensor.as_ptr(), from, offset, bytes.len()) }).ok()
    }

    /// # Safety
    ///
    /// The tensor is live and holds `offset + bytes.len()` bytes.
    pub(crate) unsafe fn tensor_read(self, tensor: RawTensor, offset: usize, bytes: &mut [u8]) -> Result<(), Status> {
        let to = bytes.as_mut_ptr().cast::<c_void>();
        // SAFETY: the caller's promise; the bytes are written during the call only, and no more of them than said.
        Status(unsafe { self.0.raw.nrt_tensor_read(tensor.as_ptr(), to, offset, bytes.len()) }).ok()
    }

    /// # Safety
    ///
    /// Both are live and hold these ranges.
    pub(crate) unsafe fn tensor_copy(
        self,
        (source, source_offset): (RawTensor, usize),
        (target, target_offset): (RawTensor, usize),
        len: usize,
    ) -> Result<(), Status> {
        let (source, target) = (source.as_ptr(), target.as_ptr());
        // SAFETY: the caller's promise.
        Status(unsafe { self.0.raw.nrt_tensor_copy(source, source_offset, target, target_offset, len) }).ok()
    }

    /// # Safety
    ///
    /// The tensor is live and holds the range.
    pub(crate) unsafe fn tensor_fill(
        self,
        tensor: RawTensor,
        offset: usize,
        len: usize,
        value: u8,
    ) -> Result<(), Status> {
        // usize is 64 bits wide here (lib.rs): nothing is cut off.
        let offset = offset as u64;
        // SAFETY: the caller's promise.
        Status(unsafe { self.0.raw.nrt_tensor_memset(tensor.as_ptr(), offset, i32::from(value), len) }).ok()
    }

    /// # Safety
    ///
    /// The tensor is live.
    pub(crate) unsafe fn tensor_size(self, tensor: RawTensor) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.0.raw.nrt_tensor_get_size(tensor.as_ptr()) }
    }

    /// `None` without the symbol.
    ///
    /// # Safety
    ///
    /// The tensor is live.
    pub(crate) unsafe fn tensor_allocation(
        self,
        tensor: RawTensor,
    ) -> Option<Result<b::nrt_tensor_device_allocation_info_t, Status>> {
        let call = self.0.raw.nrt_tensor_get_device_allocation_info.as_ref().ok()?;
        let mut info = b::nrt_tensor_device_allocation_info_t { physical_address: 0, size: 0, hbm_index: 0 };
        // SAFETY: the caller's promise; the out pointer is to a local.
        let status = Status(unsafe { call(tensor.as_ptr(), &raw mut info) });
        Some(status.ok().map(|()| info))
    }
}

/// Tensor sets.
impl Library {
    /// # Safety
    ///
    /// The runtime runs.
    pub(crate) unsafe fn set_allocate(self) -> Result<Option<RawSet>, Status> {
        let mut set = null_mut();
        // SAFETY: the caller's promise; the out pointer is to a local.
        Status(unsafe { self.0.raw.nrt_allocate_tensor_set(&raw mut set) }).ok()?;
        Ok(NonNull::new(set))
    }

    /// # Safety
    ///
    /// The set is live, no run uses it, and it is not used afterwards.
    pub(crate) unsafe fn set_destroy(self, set: RawSet) {
        let mut set = set.as_ptr();
        // SAFETY: the caller's promise; the library nulls the local.
        unsafe { self.0.raw.nrt_destroy_tensor_set(&raw mut set) }
    }

    /// # Safety
    ///
    /// Both are live, no run uses the set, and the tensor outlives its place in it.
    pub(crate) unsafe fn set_bind(self, set: RawSet, name: &CStr, tensor: RawTensor) -> Result<(), Status> {
        let raw = &self.0.raw;
        // SAFETY: the caller's promise; the name is copied.
        Status(unsafe { raw.nrt_add_tensor_to_tensor_set(set.as_ptr(), name.as_ptr(), tensor.as_ptr()) }).ok()
    }
}

fn count(call: Option<unsafe extern "C" fn(*mut u32) -> b::NRT_STATUS>) -> Result<u32, Status> {
    let mut count = 0;
    match call {
        // SAFETY: the out pointer is to a local; the call is allowed at any time.
        Some(call) => Status(unsafe { call(&raw mut count) }).ok().map(|()| count),
        // Cannot be: one of the two names was there when the library was opened.
        None => Err(Status(b::NRT_FAILURE)),
    }
}

/// Deprecated: the header asks for this.
const VNC_COUNT: i32 = -1;
