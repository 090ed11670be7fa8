// Made by `cargo xtask bindings` from neuron-sys/include/njoule_nrt.h; not edited by hand.
// inputs sha256: c6117e0ceea6217fec17f52e63f0d7859149ec598e29e7ea76f5c03ece470cf3
// content sha256: 32dfcdd9cf060f476a8909a97575f32557e8b5d104e446c8072a3fc8de67d511

#[repr(C)]
#[derive(Default)]
pub struct __IncompleteArrayField<T>(::core::marker::PhantomData<T>, [T; 0]);
impl<T> __IncompleteArrayField<T> {
    #[inline]
    pub const fn new() -> Self {
        __IncompleteArrayField(::core::marker::PhantomData, [])
    }
    #[inline]
    pub fn as_ptr(&self) -> *const T {
        self as *const _ as *const T
    }
    #[inline]
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self as *mut _ as *mut T
    }
    #[inline]
    pub unsafe fn as_slice(&self, len: usize) -> &[T] {
        unsafe { ::core::slice::from_raw_parts(self.as_ptr(), len) }
    }
    #[inline]
    pub unsafe fn as_mut_slice(&mut self, len: usize) -> &mut [T] {
        unsafe { ::core::slice::from_raw_parts_mut(self.as_mut_ptr(), len) }
    }
}
impl<T> ::core::fmt::Debug for __IncompleteArrayField<T> {
    fn fmt(&self, fmt: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
        fmt.write_str("__IncompleteArrayField")
    }
}
pub const NRT_SUCCESS: u32 = 0;
pub const NRT_FAILURE: u32 = 1;
pub const NRT_INVALID: u32 = 2;
pub const NRT_INVALID_HANDLE: u32 = 3;
pub const NRT_RESOURCE: u32 = 4;
pub const NRT_TIMEOUT: u32 = 5;
pub const NRT_HW_ERROR: u32 = 6;
pub const NRT_QUEUE_FULL: u32 = 7;
pub const NRT_LOAD_NOT_ENOUGH_NC: u32 = 9;
pub const NRT_UNSUPPORTED_NEFF_VERSION: u32 = 10;
pub const NRT_FAIL_HOST_MEM_ALLOC: u32 = 11;
pub const NRT_UNINITIALIZED: u32 = 13;
pub const NRT_CLOSED: u32 = 14;
pub const NRT_QUEUE_EMPTY: u32 = 15;
pub const NRT_EXEC_UNIT_UNRECOVERABLE: u32 = 101;
pub const NRT_EXEC_BAD_INPUT: u32 = 1002;
pub const NRT_EXEC_COMPLETED_WITH_NUM_ERR: u32 = 1003;
pub const NRT_EXEC_COMPLETED_WITH_ERR: u32 = 1004;
pub const NRT_EXEC_NC_BUSY: u32 = 1005;
pub const NRT_EXEC_OOB: u32 = 1006;
pub const NRT_COLL_PENDING: u32 = 1100;
pub const NRT_EXEC_HW_ERR_COLLECTIVES: u32 = 1200;
pub const NRT_EXEC_HW_ERR_HBM_UE: u32 = 1201;
pub const NRT_EXEC_HW_ERR_NC_UE: u32 = 1202;
pub const NRT_EXEC_HW_ERR_DMA_ABORT: u32 = 1203;
pub const NRT_EXEC_SW_NQ_OVERFLOW: u32 = 1204;
pub const NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE: u32 = 1205;
pub const NRT_NETWORK_PROXY_FAILURE: u32 = 1206;
pub const NRT_FRAMEWORK_TYPE_NO_FW: u32 = 1;
pub const NRT_TENSOR_PLACEMENT_DEVICE: u32 = 0;
pub const NRT_TENSOR_PLACEMENT_HOST: u32 = 1;
pub const NRT_TENSOR_USAGE_INPUT: u32 = 0;
pub const NRT_TENSOR_USAGE_OUTPUT: u32 = 1;
pub const NRT_DTYPE_UNKNOWN: u32 = 0;
pub const NRT_DTYPE_UINT64: u32 = 1;
pub const NRT_DTYPE_INT8: u32 = 2;
pub const NRT_DTYPE_UINT8: u32 = 3;
pub const NRT_DTYPE_INT16: u32 = 4;
pub const NRT_DTYPE_UINT16: u32 = 5;
pub const NRT_DTYPE_BFLOAT16: u32 = 6;
pub const NRT_DTYPE_FLOAT16: u32 = 7;
pub const NRT_DTYPE_INT32: u32 = 8;
pub const NRT_DTYPE_UINT32: u32 = 9;
pub const NRT_DTYPE_FLOAT32: u32 = 10;
pub const NRT_DTYPE_FP32R: u32 = 11;
pub const NRT_DTYPE_INT64: u32 = 12;
pub const NRT_DTYPE_FP8_E3: u32 = 13;
pub const NRT_DTYPE_FP8_E4: u32 = 14;
pub const NRT_DTYPE_FP8_E5: u32 = 15;
pub const NRT_INSTANCE_UNKNOWN: u32 = 0;
pub const NRT_INSTANCE_INF1: u32 = 1;
pub const NRT_INSTANCE_TRN1: u32 = 2;
pub const NRT_INSTANCE_TRN1N: u32 = 3;
pub const NRT_INSTANCE_INF2: u32 = 4;
pub const NRT_INSTANCE_TRN2: u32 = 5;
pub const NRT_INSTANCE_TRN2N: u32 = 6;
pub const NRT_INSTANCE_INF2E: u32 = 7;
pub const NRT_INSTANCE_TRN2P: u32 = 8;
pub const NRT_INSTANCE_TRN2U: u32 = 9;
pub const NRT_INSTANCE_TRN2E: u32 = 10;
pub const NRT_INSTANCE_TRN2EU: u32 = 11;
pub const NRT_INSTANCE_TRN2AC: u32 = 12;
pub const NRT_INSTANCE_TRN2UAC: u32 = 13;
pub const NRT_INSTANCE_TRN3: u32 = 14;
pub const NRT_INSTANCE_TRN3PDS98: u32 = 15;
pub const NRT_TENSOR_NAME_MAX: u32 = 256;
pub type NRT_STATUS = u32;
pub type nrt_framework_type_t = u32;
pub type nrt_tensor_placement_t = u32;
pub type nrt_tensor_usage_t = u32;
pub type nrt_dtype_t = u32;
#[repr(C)]
#[derive(Debug)]
pub struct nrt_model {
    _unused: [u8; 0],
}
pub type nrt_model_t = nrt_model;
#[repr(C)]
#[derive(Debug)]
pub struct nrt_tensor {
    _unused: [u8; 0],
}
pub type nrt_tensor_t = nrt_tensor;
#[repr(C)]
#[derive(Debug)]
pub struct nrt_tensor_set {
    _unused: [u8; 0],
}
pub type nrt_tensor_set_t = nrt_tensor_set;
pub type nrta_seq_t = u64;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_version {
    pub rt_major: u64,
    pub rt_minor: u64,
    pub rt_patch: u64,
    pub rt_maintenance: u64,
    pub rt_detail: [::core::ffi::c_char; 128usize],
    pub git_hash: [::core::ffi::c_char; 64usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nrt_version"][::core::mem::size_of::<nrt_version>() - 224usize];
    ["Alignment of nrt_version"][::core::mem::align_of::<nrt_version>() - 8usize];
    [
        "Offset of field: nrt_version::rt_major",
    ][::core::mem::offset_of!(nrt_version, rt_major) - 0usize];
    [
        "Offset of field: nrt_version::rt_minor",
    ][::core::mem::offset_of!(nrt_version, rt_minor) - 8usize];
    [
        "Offset of field: nrt_version::rt_patch",
    ][::core::mem::offset_of!(nrt_version, rt_patch) - 16usize];
    [
        "Offset of field: nrt_version::rt_maintenance",
    ][::core::mem::offset_of!(nrt_version, rt_maintenance) - 24usize];
    [
        "Offset of field: nrt_version::rt_detail",
    ][::core::mem::offset_of!(nrt_version, rt_detail) - 32usize];
    [
        "Offset of field: nrt_version::git_hash",
    ][::core::mem::offset_of!(nrt_version, git_hash) - 160usize];
};
pub type nrt_version_t = nrt_version;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_instance_info {
    pub family: u32,
    pub size: u32,
    pub arch_name: [::core::ffi::c_char; 16usize],
    pub device_revision: [::core::ffi::c_char; 8usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nrt_instance_info"][::core::mem::size_of::<nrt_instance_info>() - 32usize];
    [
        "Alignment of nrt_instance_info",
    ][::core::mem::align_of::<nrt_instance_info>() - 4usize];
    [
        "Offset of field: nrt_instance_info::family",
    ][::core::mem::offset_of!(nrt_instance_info, family) - 0usize];
    [
        "Offset of field: nrt_instance_info::size",
    ][::core::mem::offset_of!(nrt_instance_info, size) - 4usize];
    [
        "Offset of field: nrt_instance_info::arch_name",
    ][::core::mem::offset_of!(nrt_instance_info, arch_name) - 8usize];
    [
        "Offset of field: nrt_instance_info::device_revision",
    ][::core::mem::offset_of!(nrt_instance_info, device_revision) - 24usize];
};
pub type nrt_instance_info_t = nrt_instance_info;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_vnc_memory_stats {
    pub bytes_used: usize,
    pub bytes_limit: usize,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of nrt_vnc_memory_stats",
    ][::core::mem::size_of::<nrt_vnc_memory_stats>() - 16usize];
    [
        "Alignment of nrt_vnc_memory_stats",
    ][::core::mem::align_of::<nrt_vnc_memory_stats>() - 8usize];
    [
        "Offset of field: nrt_vnc_memory_stats::bytes_used",
    ][::core::mem::offset_of!(nrt_vnc_memory_stats, bytes_used) - 0usize];
    [
        "Offset of field: nrt_vnc_memory_stats::bytes_limit",
    ][::core::mem::offset_of!(nrt_vnc_memory_stats, bytes_limit) - 8usize];
};
pub type nrt_vnc_memory_stats_t = nrt_vnc_memory_stats;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_model_info {
    pub vnc: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nrt_model_info"][::core::mem::size_of::<nrt_model_info>() - 4usize];
    ["Alignment of nrt_model_info"][::core::mem::align_of::<nrt_model_info>() - 4usize];
    [
        "Offset of field: nrt_model_info::vnc",
    ][::core::mem::offset_of!(nrt_model_info, vnc) - 0usize];
};
pub type nrt_model_info_t = nrt_model_info;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_tensor_info {
    pub name: [::core::ffi::c_char; 256usize],
    pub usage: nrt_tensor_usage_t,
    pub size: usize,
    pub dtype: nrt_dtype_t,
    pub shape: *mut u32,
    pub ndim: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nrt_tensor_info"][::core::mem::size_of::<nrt_tensor_info>() - 296usize];
    [
        "Alignment of nrt_tensor_info",
    ][::core::mem::align_of::<nrt_tensor_info>() - 8usize];
    [
        "Offset of field: nrt_tensor_info::name",
    ][::core::mem::offset_of!(nrt_tensor_info, name) - 0usize];
    [
        "Offset of field: nrt_tensor_info::usage",
    ][::core::mem::offset_of!(nrt_tensor_info, usage) - 256usize];
    [
        "Offset of field: nrt_tensor_info::size",
    ][::core::mem::offset_of!(nrt_tensor_info, size) - 264usize];
    [
        "Offset of field: nrt_tensor_info::dtype",
    ][::core::mem::offset_of!(nrt_tensor_info, dtype) - 272usize];
    [
        "Offset of field: nrt_tensor_info::shape",
    ][::core::mem::offset_of!(nrt_tensor_info, shape) - 280usize];
    [
        "Offset of field: nrt_tensor_info::ndim",
    ][::core::mem::offset_of!(nrt_tensor_info, ndim) - 288usize];
};
pub type nrt_tensor_info_t = nrt_tensor_info;
#[repr(C)]
#[derive(Debug)]
pub struct nrt_tensor_info_array {
    pub tensor_count: u64,
    pub tensor_array: __IncompleteArrayField<nrt_tensor_info_t>,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of nrt_tensor_info_array",
    ][::core::mem::size_of::<nrt_tensor_info_array>() - 8usize];
    [
        "Alignment of nrt_tensor_info_array",
    ][::core::mem::align_of::<nrt_tensor_info_array>() - 8usize];
    [
        "Offset of field: nrt_tensor_info_array::tensor_count",
    ][::core::mem::offset_of!(nrt_tensor_info_array, tensor_count) - 0usize];
    [
        "Offset of field: nrt_tensor_info_array::tensor_array",
    ][::core::mem::offset_of!(nrt_tensor_info_array, tensor_array) - 8usize];
};
pub type nrt_tensor_info_array_t = nrt_tensor_info_array;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_tensor_batch_op {
    pub offset: u64,
    pub size: u64,
    pub buffer: *mut ::core::ffi::c_void,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of nrt_tensor_batch_op",
    ][::core::mem::size_of::<nrt_tensor_batch_op>() - 24usize];
    [
        "Alignment of nrt_tensor_batch_op",
    ][::core::mem::align_of::<nrt_tensor_batch_op>() - 8usize];
    [
        "Offset of field: nrt_tensor_batch_op::offset",
    ][::core::mem::offset_of!(nrt_tensor_batch_op, offset) - 0usize];
    [
        "Offset of field: nrt_tensor_batch_op::size",
    ][::core::mem::offset_of!(nrt_tensor_batch_op, size) - 8usize];
    [
        "Offset of field: nrt_tensor_batch_op::buffer",
    ][::core::mem::offset_of!(nrt_tensor_batch_op, buffer) - 16usize];
};
pub type nrt_tensor_batch_op_t = nrt_tensor_batch_op;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_tensor_batch {
    pub tensor: *const nrt_tensor_t,
    pub ops: *const nrt_tensor_batch_op_t,
    pub num_ops: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nrt_tensor_batch"][::core::mem::size_of::<nrt_tensor_batch>() - 24usize];
    [
        "Alignment of nrt_tensor_batch",
    ][::core::mem::align_of::<nrt_tensor_batch>() - 8usize];
    [
        "Offset of field: nrt_tensor_batch::tensor",
    ][::core::mem::offset_of!(nrt_tensor_batch, tensor) - 0usize];
    [
        "Offset of field: nrt_tensor_batch::ops",
    ][::core::mem::offset_of!(nrt_tensor_batch, ops) - 8usize];
    [
        "Offset of field: nrt_tensor_batch::num_ops",
    ][::core::mem::offset_of!(nrt_tensor_batch, num_ops) - 16usize];
};
pub type nrt_tensor_batch_t = nrt_tensor_batch;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_tensor_device_allocation_info {
    pub physical_address: u64,
    pub size: usize,
    pub hbm_index: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of nrt_tensor_device_allocation_info",
    ][::core::mem::size_of::<nrt_tensor_device_allocation_info>() - 24usize];
    [
        "Alignment of nrt_tensor_device_allocation_info",
    ][::core::mem::align_of::<nrt_tensor_device_allocation_info>() - 8usize];
    [
        "Offset of field: nrt_tensor_device_allocation_info::physical_address",
    ][::core::mem::offset_of!(nrt_tensor_device_allocation_info, physical_address)
        - 0usize];
    [
        "Offset of field: nrt_tensor_device_allocation_info::size",
    ][::core::mem::offset_of!(nrt_tensor_device_allocation_info, size) - 8usize];
    [
        "Offset of field: nrt_tensor_device_allocation_info::hbm_index",
    ][::core::mem::offset_of!(nrt_tensor_device_allocation_info, hbm_index) - 16usize];
};
pub type nrt_tensor_device_allocation_info_t = nrt_tensor_device_allocation_info;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_cc_comm {
    pub replica_group: *mut u32,
    pub rank: u32,
    pub rank_n: u32,
    pub ctx_device_id: u32,
    pub ctx_device_count: u32,
    pub vnc: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nrt_cc_comm"][::core::mem::size_of::<nrt_cc_comm>() - 32usize];
    ["Alignment of nrt_cc_comm"][::core::mem::align_of::<nrt_cc_comm>() - 8usize];
    [
        "Offset of field: nrt_cc_comm::replica_group",
    ][::core::mem::offset_of!(nrt_cc_comm, replica_group) - 0usize];
    [
        "Offset of field: nrt_cc_comm::rank",
    ][::core::mem::offset_of!(nrt_cc_comm, rank) - 8usize];
    [
        "Offset of field: nrt_cc_comm::rank_n",
    ][::core::mem::offset_of!(nrt_cc_comm, rank_n) - 12usize];
    [
        "Offset of field: nrt_cc_comm::ctx_device_id",
    ][::core::mem::offset_of!(nrt_cc_comm, ctx_device_id) - 16usize];
    [
        "Offset of field: nrt_cc_comm::ctx_device_count",
    ][::core::mem::offset_of!(nrt_cc_comm, ctx_device_count) - 20usize];
    [
        "Offset of field: nrt_cc_comm::vnc",
    ][::core::mem::offset_of!(nrt_cc_comm, vnc) - 24usize];
};
pub type nrt_cc_comm_t = nrt_cc_comm;
pub struct Nrt {
    __library: ::libloading::Library,
    pub nrt_get_version: Result<
        unsafe extern "C" fn(version: *mut nrt_version_t, size: usize) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_status_as_str: Result<
        unsafe extern "C" fn(status: NRT_STATUS) -> *const ::core::ffi::c_char,
        ::libloading::Error,
    >,
    pub nrt_init: Result<
        unsafe extern "C" fn(
            framework: nrt_framework_type_t,
            fw_version: *const ::core::ffi::c_char,
            fal_version: *const ::core::ffi::c_char,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_close: Result<unsafe extern "C" fn(), ::libloading::Error>,
    pub nrt_get_total_vnc_count: Result<
        unsafe extern "C" fn(count: *mut u32) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_visible_vnc_count: Result<
        unsafe extern "C" fn(count: *mut u32) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_total_nc_count: Result<
        unsafe extern "C" fn(count: *mut u32) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_visible_nc_count: Result<
        unsafe extern "C" fn(count: *mut u32) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_instance_info: Result<
        unsafe extern "C" fn(info: *mut nrt_instance_info_t, size: usize) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_vnc_memory_stats: Result<
        unsafe extern "C" fn(
            vnc: u32,
            stats: *mut nrt_vnc_memory_stats_t,
            size_in: usize,
            size_out: *mut usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_load: Result<
        unsafe extern "C" fn(
            neff: *const ::core::ffi::c_void,
            size: usize,
            vnc: i32,
            vnc_count: i32,
            model: *mut *mut nrt_model_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_load_collectives: Result<
        unsafe extern "C" fn(
            neff: *const ::core::ffi::c_void,
            size: usize,
            vnc: i32,
            vnc_count: i32,
            rank: u32,
            world: u32,
            model: *mut *mut nrt_model_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_unload: Result<
        unsafe extern "C" fn(model: *mut nrt_model_t) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_model_tensor_info: Result<
        unsafe extern "C" fn(
            model: *mut nrt_model_t,
            info: *mut *mut nrt_tensor_info_array_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_free_model_tensor_info: Result<
        unsafe extern "C" fn(info: *mut nrt_tensor_info_array_t) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_model_info: Result<
        unsafe extern "C" fn(
            model: *const nrt_model_t,
            info: *mut nrt_model_info_t,
            size_in: usize,
            size_out: *mut usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_model_vnc_count: Result<
        unsafe extern "C" fn(model: *const nrt_model_t, count: *mut u32) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_model_instance_count: Result<
        unsafe extern "C" fn(model: *mut nrt_model_t, count: *mut u32) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_build_global_comm: Result<
        unsafe extern "C" fn(vnc: i32, rank: u32, world: u32) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_barrier: Result<
        unsafe extern "C" fn(vnc: i32, rank: u32, world: u32) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_allocate: Result<
        unsafe extern "C" fn(
            placement: nrt_tensor_placement_t,
            vnc: i32,
            size: usize,
            name: *const ::core::ffi::c_char,
            tensor: *mut *mut nrt_tensor_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_free: Result<
        unsafe extern "C" fn(tensor: *mut *mut nrt_tensor_t),
        ::libloading::Error,
    >,
    pub nrt_tensor_allocate_slice: Result<
        unsafe extern "C" fn(
            source: *const nrt_tensor_t,
            offset: usize,
            size: usize,
            name: *const ::core::ffi::c_char,
            slice: *mut *mut nrt_tensor_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_write: Result<
        unsafe extern "C" fn(
            tensor: *mut nrt_tensor_t,
            buffer: *const ::core::ffi::c_void,
            offset: usize,
            size: usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_read: Result<
        unsafe extern "C" fn(
            tensor: *const nrt_tensor_t,
            buffer: *mut ::core::ffi::c_void,
            offset: usize,
            size: usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_write_batch: Result<
        unsafe extern "C" fn(
            batches: *const nrt_tensor_batch_t,
            count: u64,
            untracked: bool,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_read_batch: Result<
        unsafe extern "C" fn(
            batches: *const nrt_tensor_batch_t,
            count: u64,
            untracked: bool,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_copy: Result<
        unsafe extern "C" fn(
            source: *const nrt_tensor_t,
            source_offset: usize,
            target: *mut nrt_tensor_t,
            target_offset: usize,
            size: usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_memset: Result<
        unsafe extern "C" fn(
            tensor: *mut nrt_tensor_t,
            offset: u64,
            value: i32,
            size: usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_get_size: Result<
        unsafe extern "C" fn(tensor: *const nrt_tensor_t) -> usize,
        ::libloading::Error,
    >,
    pub nrt_tensor_get_va: Result<
        unsafe extern "C" fn(tensor: *const nrt_tensor_t) -> *mut ::core::ffi::c_void,
        ::libloading::Error,
    >,
    pub nrt_tensor_get_device_allocation_info: Result<
        unsafe extern "C" fn(
            tensor: *const nrt_tensor_t,
            info: *mut nrt_tensor_device_allocation_info_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_check_output_completion: Result<
        unsafe extern "C" fn(
            tensor: *const nrt_tensor_t,
            timeout_us: i64,
            count: u64,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_reset_output_completion: Result<
        unsafe extern "C" fn(tensor: *mut nrt_tensor_t) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_allocate_tensor_set: Result<
        unsafe extern "C" fn(set: *mut *mut nrt_tensor_set_t) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_destroy_tensor_set: Result<
        unsafe extern "C" fn(set: *mut *mut nrt_tensor_set_t),
        ::libloading::Error,
    >,
    pub nrt_add_tensor_to_tensor_set: Result<
        unsafe extern "C" fn(
            set: *mut nrt_tensor_set_t,
            name: *const ::core::ffi::c_char,
            tensor: *mut nrt_tensor_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_tensor_from_tensor_set: Result<
        unsafe extern "C" fn(
            set: *mut nrt_tensor_set_t,
            name: *const ::core::ffi::c_char,
            tensor: *mut *mut nrt_tensor_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_execute: Result<
        unsafe extern "C" fn(
            model: *mut nrt_model_t,
            inputs: *const nrt_tensor_set_t,
            outputs: *mut nrt_tensor_set_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrta_execute_schedule: Result<
        unsafe extern "C" fn(
            model: *mut nrt_model_t,
            inputs: *const nrt_tensor_set_t,
            outputs: *mut nrt_tensor_set_t,
            queue: i32,
            status: *mut NRT_STATUS,
            seq: *mut nrta_seq_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrta_is_completed: Result<
        unsafe extern "C" fn(seq: nrta_seq_t, completed: *mut bool) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrta_event_register_seq_id_completion: Result<
        unsafe extern "C" fn(seq: nrta_seq_t, eventfd: i32) -> NRT_STATUS,
        ::libloading::Error,
    >,
}
impl Nrt {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let path = path.as_ref();
        let library = unsafe { ::libloading::Library::new(path) }?;
        unsafe { Self::from_library(library) }
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let nrt_get_version = unsafe { __library.get(b"nrt_get_version\0") }
            .map(|sym| *sym);
        let nrt_get_status_as_str = unsafe { __library.get(b"nrt_get_status_as_str\0") }
            .map(|sym| *sym);
        let nrt_init = unsafe { __library.get(b"nrt_init\0") }.map(|sym| *sym);
        let nrt_close = unsafe { __library.get(b"nrt_close\0") }.map(|sym| *sym);
        let nrt_get_total_vnc_count = unsafe {
            __library.get(b"nrt_get_total_vnc_count\0")
        }
            .map(|sym| *sym);
        let nrt_get_visible_vnc_count = unsafe {
            __library.get(b"nrt_get_visible_vnc_count\0")
        }
            .map(|sym| *sym);
        let nrt_get_total_nc_count = unsafe {
            __library.get(b"nrt_get_total_nc_count\0")
        }
            .map(|sym| *sym);
        let nrt_get_visible_nc_count = unsafe {
            __library.get(b"nrt_get_visible_nc_count\0")
        }
            .map(|sym| *sym);
        let nrt_get_instance_info = unsafe { __library.get(b"nrt_get_instance_info\0") }
            .map(|sym| *sym);
        let nrt_get_vnc_memory_stats = unsafe {
            __library.get(b"nrt_get_vnc_memory_stats\0")
        }
            .map(|sym| *sym);
        let nrt_load = unsafe { __library.get(b"nrt_load\0") }.map(|sym| *sym);
        let nrt_load_collectives = unsafe { __library.get(b"nrt_load_collectives\0") }
            .map(|sym| *sym);
        let nrt_unload = unsafe { __library.get(b"nrt_unload\0") }.map(|sym| *sym);
        let nrt_get_model_tensor_info = unsafe {
            __library.get(b"nrt_get_model_tensor_info\0")
        }
            .map(|sym| *sym);
        let nrt_free_model_tensor_info = unsafe {
            __library.get(b"nrt_free_model_tensor_info\0")
        }
            .map(|sym| *sym);
        let nrt_get_model_info = unsafe { __library.get(b"nrt_get_model_info\0") }
            .map(|sym| *sym);
        let nrt_get_model_vnc_count = unsafe {
            __library.get(b"nrt_get_model_vnc_count\0")
        }
            .map(|sym| *sym);
        let nrt_get_model_instance_count = unsafe {
            __library.get(b"nrt_get_model_instance_count\0")
        }
            .map(|sym| *sym);
        let nrt_build_global_comm = unsafe { __library.get(b"nrt_build_global_comm\0") }
            .map(|sym| *sym);
        let nrt_barrier = unsafe { __library.get(b"nrt_barrier\0") }.map(|sym| *sym);
        let nrt_tensor_allocate = unsafe { __library.get(b"nrt_tensor_allocate\0") }
            .map(|sym| *sym);
        let nrt_tensor_free = unsafe { __library.get(b"nrt_tensor_free\0") }
            .map(|sym| *sym);
        let nrt_tensor_allocate_slice = unsafe {
            __library.get(b"nrt_tensor_allocate_slice\0")
        }
            .map(|sym| *sym);
        let nrt_tensor_write = unsafe { __library.get(b"nrt_tensor_write\0") }
            .map(|sym| *sym);
        let nrt_tensor_read = unsafe { __library.get(b"nrt_tensor_read\0") }
            .map(|sym| *sym);
        let nrt_tensor_write_batch = unsafe {
            __library.get(b"nrt_tensor_write_batch\0")
        }
            .map(|sym| *sym);
        let nrt_tensor_read_batch = unsafe { __library.get(b"nrt_tensor_read_batch\0") }
            .map(|sym| *sym);
        let nrt_tensor_copy = unsafe { __library.get(b"nrt_tensor_copy\0") }
            .map(|sym| *sym);
        let nrt_tensor_memset = unsafe { __library.get(b"nrt_tensor_memset\0") }
            .map(|sym| *sym);
        let nrt_tensor_get_size = unsafe { __library.get(b"nrt_tensor_get_size\0") }
            .map(|sym| *sym);
        let nrt_tensor_get_va = unsafe { __library.get(b"nrt_tensor_get_va\0") }
            .map(|sym| *sym);
        let nrt_tensor_get_device_allocation_info = unsafe {
            __library.get(b"nrt_tensor_get_device_allocation_info\0")
        }
            .map(|sym| *sym);
        let nrt_tensor_check_output_completion = unsafe {
            __library.get(b"nrt_tensor_check_output_completion\0")
        }
            .map(|sym| *sym);
        let nrt_tensor_reset_output_completion = unsafe {
            __library.get(b"nrt_tensor_reset_output_completion\0")
        }
            .map(|sym| *sym);
        let nrt_allocate_tensor_set = unsafe {
            __library.get(b"nrt_allocate_tensor_set\0")
        }
            .map(|sym| *sym);
        let nrt_destroy_tensor_set = unsafe {
            __library.get(b"nrt_destroy_tensor_set\0")
        }
            .map(|sym| *sym);
        let nrt_add_tensor_to_tensor_set = unsafe {
            __library.get(b"nrt_add_tensor_to_tensor_set\0")
        }
            .map(|sym| *sym);
        let nrt_get_tensor_from_tensor_set = unsafe {
            __library.get(b"nrt_get_tensor_from_tensor_set\0")
        }
            .map(|sym| *sym);
        let nrt_execute = unsafe { __library.get(b"nrt_execute\0") }.map(|sym| *sym);
        let nrta_execute_schedule = unsafe { __library.get(b"nrta_execute_schedule\0") }
            .map(|sym| *sym);
        let nrta_is_completed = unsafe { __library.get(b"nrta_is_completed\0") }
            .map(|sym| *sym);
        let nrta_event_register_seq_id_completion = unsafe {
            __library.get(b"nrta_event_register_seq_id_completion\0")
        }
            .map(|sym| *sym);
        Ok(Nrt {
            __library,
            nrt_get_version,
            nrt_get_status_as_str,
            nrt_init,
            nrt_close,
            nrt_get_total_vnc_count,
            nrt_get_visible_vnc_count,
            nrt_get_total_nc_count,
            nrt_get_visible_nc_count,
            nrt_get_instance_info,
            nrt_get_vnc_memory_stats,
            nrt_load,
            nrt_load_collectives,
            nrt_unload,
            nrt_get_model_tensor_info,
            nrt_free_model_tensor_info,
            nrt_get_model_info,
            nrt_get_model_vnc_count,
            nrt_get_model_instance_count,
            nrt_build_global_comm,
            nrt_barrier,
            nrt_tensor_allocate,
            nrt_tensor_free,
            nrt_tensor_allocate_slice,
            nrt_tensor_write,
            nrt_tensor_read,
            nrt_tensor_write_batch,
            nrt_tensor_read_batch,
            nrt_tensor_copy,
            nrt_tensor_memset,
            nrt_tensor_get_size,
            nrt_tensor_get_va,
            nrt_tensor_get_device_allocation_info,
            nrt_tensor_check_output_completion,
            nrt_tensor_reset_output_completion,
            nrt_allocate_tensor_set,
            nrt_destroy_tensor_set,
            nrt_add_tensor_to_tensor_set,
            nrt_get_tensor_from_tensor_set,
            nrt_execute,
            nrta_execute_schedule,
            nrta_is_completed,
            nrta_event_register_seq_id_completion,
        })
    }
    pub unsafe fn nrt_get_version(
        &self,
        version: *mut nrt_version_t,
        size: usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_version
                .as_ref()
                .expect("Expected function, got error."))(version, size)
        }
    }
    pub unsafe fn nrt_get_status_as_str(
        &self,
        status: NRT_STATUS,
    ) -> *const ::core::ffi::c_char {
        unsafe {
            (self
                .nrt_get_status_as_str
                .as_ref()
                .expect("Expected function, got error."))(status)
        }
    }
    pub unsafe fn nrt_init(
        &self,
        framework: nrt_framework_type_t,
        fw_version: *const ::core::ffi::c_char,
        fal_version: *const ::core::ffi::c_char,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_init
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(framework, fw_version, fal_version)
        }
    }
    pub unsafe fn nrt_close(&self) {
        unsafe { (self.nrt_close.as_ref().expect("Expected function, got error."))() }
    }
    pub unsafe fn nrt_get_total_vnc_count(&self, count: *mut u32) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_total_vnc_count
                .as_ref()
                .expect("Expected function, got error."))(count)
        }
    }
    pub unsafe fn nrt_get_visible_vnc_count(&self, count: *mut u32) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_visible_vnc_count
                .as_ref()
                .expect("Expected function, got error."))(count)
        }
    }
    pub unsafe fn nrt_get_total_nc_count(&self, count: *mut u32) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_total_nc_count
                .as_ref()
                .expect("Expected function, got error."))(count)
        }
    }
    pub unsafe fn nrt_get_visible_nc_count(&self, count: *mut u32) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_visible_nc_count
                .as_ref()
                .expect("Expected function, got error."))(count)
        }
    }
    pub unsafe fn nrt_get_instance_info(
        &self,
        info: *mut nrt_instance_info_t,
        size: usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_instance_info
                .as_ref()
                .expect("Expected function, got error."))(info, size)
        }
    }
    pub unsafe fn nrt_get_vnc_memory_stats(
        &self,
        vnc: u32,
        stats: *mut nrt_vnc_memory_stats_t,
        size_in: usize,
        size_out: *mut usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_vnc_memory_stats
                .as_ref()
                .expect("Expected function, got error."))(vnc, stats, size_in, size_out)
        }
    }
    pub unsafe fn nrt_load(
        &self,
        neff: *const ::core::ffi::c_void,
        size: usize,
        vnc: i32,
        vnc_count: i32,
        model: *mut *mut nrt_model_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_load
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(neff, size, vnc, vnc_count, model)
        }
    }
    pub unsafe fn nrt_load_collectives(
        &self,
        neff: *const ::core::ffi::c_void,
        size: usize,
        vnc: i32,
        vnc_count: i32,
        rank: u32,
        world: u32,
        model: *mut *mut nrt_model_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_load_collectives
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(neff, size, vnc, vnc_count, rank, world, model)
        }
    }
    pub unsafe fn nrt_unload(&self, model: *mut nrt_model_t) -> NRT_STATUS {
        unsafe {
            (self.nrt_unload.as_ref().expect("Expected function, got error."))(model)
        }
    }
    pub unsafe fn nrt_get_model_tensor_info(
        &self,
        model: *mut nrt_model_t,
        info: *mut *mut nrt_tensor_info_array_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_model_tensor_info
                .as_ref()
                .expect("Expected function, got error."))(model, info)
        }
    }
    pub unsafe fn nrt_free_model_tensor_info(
        &self,
        info: *mut nrt_tensor_info_array_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_free_model_tensor_info
                .as_ref()
                .expect("Expected function, got error."))(info)
        }
    }
    pub unsafe fn nrt_get_model_info(
        &self,
        model: *const nrt_model_t,
        info: *mut nrt_model_info_t,
        size_in: usize,
        size_out: *mut usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_model_info
                .as_ref()
                .expect("Expected function, got error."))(model, info, size_in, size_out)
        }
    }
    pub unsafe fn nrt_get_model_vnc_count(
        &self,
        model: *const nrt_model_t,
        count: *mut u32,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_model_vnc_count
                .as_ref()
                .expect("Expected function, got error."))(model, count)
        }
    }
    pub unsafe fn nrt_get_model_instance_count(
        &self,
        model: *mut nrt_model_t,
        count: *mut u32,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_model_instance_count
                .as_ref()
                .expect("Expected function, got error."))(model, count)
        }
    }
    pub unsafe fn nrt_build_global_comm(
        &self,
        vnc: i32,
        rank: u32,
        world: u32,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_build_global_comm
                .as_ref()
                .expect("Expected function, got error."))(vnc, rank, world)
        }
    }
    pub unsafe fn nrt_barrier(&self, vnc: i32, rank: u32, world: u32) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_barrier
                .as_ref()
                .expect("Expected function, got error."))(vnc, rank, world)
        }
    }
    pub unsafe fn nrt_tensor_allocate(
        &self,
        placement: nrt_tensor_placement_t,
        vnc: i32,
        size: usize,
        name: *const ::core::ffi::c_char,
        tensor: *mut *mut nrt_tensor_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_allocate
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(placement, vnc, size, name, tensor)
        }
    }
    pub unsafe fn nrt_tensor_free(&self, tensor: *mut *mut nrt_tensor_t) {
        unsafe {
            (self
                .nrt_tensor_free
                .as_ref()
                .expect("Expected function, got error."))(tensor)
        }
    }
    pub unsafe fn nrt_tensor_allocate_slice(
        &self,
        source: *const nrt_tensor_t,
        offset: usize,
        size: usize,
        name: *const ::core::ffi::c_char,
        slice: *mut *mut nrt_tensor_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_allocate_slice
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(source, offset, size, name, slice)
        }
    }
    pub unsafe fn nrt_tensor_write(
        &self,
        tensor: *mut nrt_tensor_t,
        buffer: *const ::core::ffi::c_void,
        offset: usize,
        size: usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_write
                .as_ref()
                .expect("Expected function, got error."))(tensor, buffer, offset, size)
        }
    }
    pub unsafe fn nrt_tensor_read(
        &self,
        tensor: *const nrt_tensor_t,
        buffer: *mut ::core::ffi::c_void,
        offset: usize,
        size: usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_read
                .as_ref()
                .expect("Expected function, got error."))(tensor, buffer, offset, size)
        }
    }
    pub unsafe fn nrt_tensor_write_batch(
        &self,
        batches: *const nrt_tensor_batch_t,
        count: u64,
        untracked: bool,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_write_batch
                .as_ref()
                .expect("Expected function, got error."))(batches, count, untracked)
        }
    }
    pub unsafe fn nrt_tensor_read_batch(
        &self,
        batches: *const nrt_tensor_batch_t,
        count: u64,
        untracked: bool,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_read_batch
                .as_ref()
                .expect("Expected function, got error."))(batches, count, untracked)
        }
    }
    pub unsafe fn nrt_tensor_copy(
        &self,
        source: *const nrt_tensor_t,
        source_offset: usize,
        target: *mut nrt_tensor_t,
        target_offset: usize,
        size: usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_copy
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(source, source_offset, target, target_offset, size)
        }
    }
    pub unsafe fn nrt_tensor_memset(
        &self,
        tensor: *mut nrt_tensor_t,
        offset: u64,
        value: i32,
        size: usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_memset
                .as_ref()
                .expect("Expected function, got error."))(tensor, offset, value, size)
        }
    }
    pub unsafe fn nrt_tensor_get_size(&self, tensor: *const nrt_tensor_t) -> usize {
        unsafe {
            (self
                .nrt_tensor_get_size
                .as_ref()
                .expect("Expected function, got error."))(tensor)
        }
    }
    pub unsafe fn nrt_tensor_get_va(
        &self,
        tensor: *const nrt_tensor_t,
    ) -> *mut ::core::ffi::c_void {
        unsafe {
            (self
                .nrt_tensor_get_va
                .as_ref()
                .expect("Expected function, got error."))(tensor)
        }
    }
    pub unsafe fn nrt_tensor_get_device_allocation_info(
        &self,
        tensor: *const nrt_tensor_t,
        info: *mut nrt_tensor_device_allocation_info_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_get_device_allocation_info
                .as_ref()
                .expect("Expected function, got error."))(tensor, info)
        }
    }
    pub unsafe fn nrt_tensor_check_output_completion(
        &self,
        tensor: *const nrt_tensor_t,
        timeout_us: i64,
        count: u64,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_check_output_completion
                .as_ref()
                .expect("Expected function, got error."))(tensor, timeout_us, count)
        }
    }
    pub unsafe fn nrt_tensor_reset_output_completion(
        &self,
        tensor: *mut nrt_tensor_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_reset_output_completion
                .as_ref()
                .expect("Expected function, got error."))(tensor)
        }
    }
    pub unsafe fn nrt_allocate_tensor_set(
        &self,
        set: *mut *mut nrt_tensor_set_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_allocate_tensor_set
                .as_ref()
                .expect("Expected function, got error."))(set)
        }
    }
    pub unsafe fn nrt_destroy_tensor_set(&self, set: *mut *mut nrt_tensor_set_t) {
        unsafe {
            (self
                .nrt_destroy_tensor_set
                .as_ref()
                .expect("Expected function, got error."))(set)
        }
    }
    pub unsafe fn nrt_add_tensor_to_tensor_set(
        &self,
        set: *mut nrt_tensor_set_t,
        name: *const ::core::ffi::c_char,
        tensor: *mut nrt_tensor_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_add_tensor_to_tensor_set
                .as_ref()
                .expect("Expected function, got error."))(set, name, tensor)
        }
    }
    pub unsafe fn nrt_get_tensor_from_tensor_set(
        &self,
        set: *mut nrt_tensor_set_t,
        name: *const ::core::ffi::c_char,
        tensor: *mut *mut nrt_tensor_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_tensor_from_tensor_set
                .as_ref()
                .expect("Expected function, got error."))(set, name, tensor)
        }
    }
    pub unsafe fn nrt_execute(
        &self,
        model: *mut nrt_model_t,
        inputs: *const nrt_tensor_set_t,
        outputs: *mut nrt_tensor_set_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_execute
                .as_ref()
                .expect("Expected function, got error."))(model, inputs, outputs)
        }
    }
    pub unsafe fn nrta_execute_schedule(
        &self,
        model: *mut nrt_model_t,
        inputs: *const nrt_tensor_set_t,
        outputs: *mut nrt_tensor_set_t,
        queue: i32,
        status: *mut NRT_STATUS,
        seq: *mut nrta_seq_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrta_execute_schedule
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(model, inputs, outputs, queue, status, seq)
        }
    }
    pub unsafe fn nrta_is_completed(
        &self,
        seq: nrta_seq_t,
        completed: *mut bool,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrta_is_completed
                .as_ref()
                .expect("Expected function, got error."))(seq, completed)
        }
    }
    pub unsafe fn nrta_event_register_seq_id_completion(
        &self,
        seq: nrta_seq_t,
        eventfd: i32,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrta_event_register_seq_id_completion
                .as_ref()
                .expect("Expected function, got error."))(seq, eventfd)
        }
    }
}
