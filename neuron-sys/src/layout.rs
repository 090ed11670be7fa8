//! The layouts that the library expects, as numbers: they were measured by compiling AWS's header of SDK 2.28 on x86-64,
//! so a slip in our own header does not compile.

use std::mem::{align_of, offset_of, size_of};

use crate::bindings as b;

const _: () = assert!(size_of::<b::nrt_instance_info_t>() == 32 && align_of::<b::nrt_instance_info_t>() == 4);
const _: () = assert!(offset_of!(b::nrt_instance_info_t, family) == 0);
const _: () = assert!(offset_of!(b::nrt_instance_info_t, size) == 4);
const _: () = assert!(offset_of!(b::nrt_instance_info_t, arch_name) == 8);
const _: () = assert!(offset_of!(b::nrt_instance_info_t, device_revision) == 24);
const _: () = assert!(size_of::<b::nrt_version_t>() == 224 && align_of::<b::nrt_version_t>() == 8);
const _: () = assert!(offset_of!(b::nrt_version_t, rt_major) == 0);
const _: () = assert!(offset_of!(b::nrt_version_t, rt_minor) == 8);
const _: () = assert!(offset_of!(b::nrt_version_t, rt_patch) == 16);
const _: () = assert!(offset_of!(b::nrt_version_t, rt_maintenance) == 24);
const _: () = assert!(offset_of!(b::nrt_version_t, rt_detail) == 32);
const _: () = assert!(offset_of!(b::nrt_version_t, git_hash) == 160);
const _: () = assert!(size_of::<b::nrt_tensor_info_t>() == 296 && align_of::<b::nrt_tensor_info_t>() == 8);
const _: () = assert!(offset_of!(b::nrt_tensor_info_t, name) == 0);
const _: () = assert!(offset_of!(b::nrt_tensor_info_t, usage) == 256);
const _: () = assert!(offset_of!(b::nrt_tensor_info_t, size) == 264);
const _: () = assert!(offset_of!(b::nrt_tensor_info_t, dtype) == 272);
const _: () = assert!(offset_of!(b::nrt_tensor_info_t, shape) == 280);
const _: () = assert!(offset_of!(b::nrt_tensor_info_t, ndim) == 288);
const _: () = assert!(size_of::<b::nrt_tensor_info_array_t>() == 8 && align_of::<b::nrt_tensor_info_array_t>() == 8);
const _: () = assert!(offset_of!(b::nrt_tensor_info_array_t, tensor_count) == 0);
const _: () = assert!(offset_of!(b::nrt_tensor_info_array_t, tensor_array) == 8);
const _: () = assert!(size_of::<b::nrt_tensor_batch_op_t>() == 24 && align_of::<b::nrt_tensor_batch_op_t>() == 8);
const _: () = assert!(offset_of!(b::nrt_tensor_batch_op_t, offset) == 0);
const _: () = assert!(offset_of!(b::nrt_tensor_batch_op_t, size) == 8);
const _: () = assert!(offset_of!(b::nrt_tensor_batch_op_t, buffer) == 16);
const _: () = assert!(size_of::<b::nrt_tensor_batch_t>() == 24 && align_of::<b::nrt_tensor_batch_t>() == 8);
const _: () = assert!(offset_of!(b::nrt_tensor_batch_t, tensor) == 0);
const _: () = assert!(offset_of!(b::nrt_tensor_batch_t, ops) == 8);
const _: () = assert!(offset_of!(b::nrt_tensor_batch_t, num_ops) == 16);
const _: () = assert!(
    size_of::<b::nrt_tensor_device_allocation_info_t>() == 24
        && align_of::<b::nrt_tensor_device_allocation_info_t>() == 8
);
const _: () = assert!(offset_of!(b::nrt_tensor_device_allocation_info_t, physical_address) == 0);
const _: () = assert!(offset_of!(b::nrt_tensor_device_allocation_info_t, size) == 8);
const _: () = assert!(offset_of!(b::nrt_tensor_device_allocation_info_t, hbm_index) == 16);
const _: () = assert!(size_of::<b::nrt_vnc_memory_stats_t>() == 16 && align_of::<b::nrt_vnc_memory_stats_t>() == 8);
const _: () = assert!(offset_of!(b::nrt_vnc_memory_stats_t, bytes_used) == 0);
const _: () = assert!(offset_of!(b::nrt_vnc_memory_stats_t, bytes_limit) == 8);
const _: () = assert!(size_of::<b::nrt_model_info_t>() == 4 && align_of::<b::nrt_model_info_t>() == 4);
const _: () = assert!(offset_of!(b::nrt_model_info_t, vnc) == 0);
const _: () = assert!(size_of::<b::nrt_cc_comm_t>() == 32 && align_of::<b::nrt_cc_comm_t>() == 8);
const _: () = assert!(offset_of!(b::nrt_cc_comm_t, replica_group) == 0);
const _: () = assert!(offset_of!(b::nrt_cc_comm_t, rank) == 8);
const _: () = assert!(offset_of!(b::nrt_cc_comm_t, rank_n) == 12);
const _: () = assert!(offset_of!(b::nrt_cc_comm_t, ctx_device_id) == 16);
const _: () = assert!(offset_of!(b::nrt_cc_comm_t, ctx_device_count) == 20);
const _: () = assert!(offset_of!(b::nrt_cc_comm_t, vnc) == 24);
const _: () = assert!(b::NRT_TENSOR_NAME_MAX == 256);
