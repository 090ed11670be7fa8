/*
 * The part of the Neuron Runtime's C ABI (libnrt.so.1) that njoule calls, declared by njoule.
 *
 * Written from facts: the names, types, numbers and layouts that AWS documents and that its headers of SDK 2.28 have
 * (with the two async calls in their form since libnrt 2.31). No text of those headers stands here.
 *
 * Enumerations are plain integers: a newer library knows values that this file does not. Handles are opaque.
 * `cargo xtask bindings` makes src/bindings.rs from this file; tests/headers.rs compares it with an installed SDK.
 */
#ifndef NJOULE_NRT_H
#define NJOULE_NRT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Status codes. */
typedef uint32_t NRT_STATUS;
#define NRT_SUCCESS 0
#define NRT_FAILURE 1
#define NRT_INVALID 2
#define NRT_INVALID_HANDLE 3
#define NRT_RESOURCE 4
#define NRT_TIMEOUT 5
#define NRT_HW_ERROR 6
#define NRT_QUEUE_FULL 7
#define NRT_LOAD_NOT_ENOUGH_NC 9
#define NRT_UNSUPPORTED_NEFF_VERSION 10
#define NRT_FAIL_HOST_MEM_ALLOC 11
#define NRT_UNINITIALIZED 13
#define NRT_CLOSED 14
#define NRT_QUEUE_EMPTY 15
#define NRT_EXEC_UNIT_UNRECOVERABLE 101
#define NRT_EXEC_BAD_INPUT 1002
#define NRT_EXEC_COMPLETED_WITH_NUM_ERR 1003
#define NRT_EXEC_COMPLETED_WITH_ERR 1004
#define NRT_EXEC_NC_BUSY 1005
#define NRT_EXEC_OOB 1006
#define NRT_COLL_PENDING 1100
#define NRT_EXEC_HW_ERR_COLLECTIVES 1200
#define NRT_EXEC_HW_ERR_HBM_UE 1201
#define NRT_EXEC_HW_ERR_NC_UE 1202
#define NRT_EXEC_HW_ERR_DMA_ABORT 1203
#define NRT_EXEC_SW_NQ_OVERFLOW 1204
#define NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE 1205
#define NRT_NETWORK_PROXY_FAILURE 1206

/* Who calls: "no framework" for njoule. */
typedef uint32_t nrt_framework_type_t;
#define NRT_FRAMEWORK_TYPE_NO_FW 1

/* Where a tensor lives. The third kind, virtual, is gone since libnrt 2.32.31. */
typedef uint32_t nrt_tensor_placement_t;
#define NRT_TENSOR_PLACEMENT_DEVICE 0
#define NRT_TENSOR_PLACEMENT_HOST 1

typedef uint32_t nrt_tensor_usage_t;
#define NRT_TENSOR_USAGE_INPUT 0
#define NRT_TENSOR_USAGE_OUTPUT 1

typedef uint32_t nrt_dtype_t;
#define NRT_DTYPE_UNKNOWN 0x0
#define NRT_DTYPE_UINT64 0x1
#define NRT_DTYPE_INT8 0x2
#define NRT_DTYPE_UINT8 0x3
#define NRT_DTYPE_INT16 0x4
#define NRT_DTYPE_UINT16 0x5
#define NRT_DTYPE_BFLOAT16 0x6
#define NRT_DTYPE_FLOAT16 0x7
#define NRT_DTYPE_INT32 0x8
#define NRT_DTYPE_UINT32 0x9
#define NRT_DTYPE_FLOAT32 0xA
#define NRT_DTYPE_FP32R 0xB
#define NRT_DTYPE_INT64 0xC
#define NRT_DTYPE_FP8_E3 0xD
#define NRT_DTYPE_FP8_E4 0xE
#define NRT_DTYPE_FP8_E5 0xF

/* nrt_instance_info_t.family */
#define NRT_INSTANCE_UNKNOWN 0
#define NRT_INSTANCE_INF1 1
#define NRT_INSTANCE_TRN1 2
#define NRT_INSTANCE_TRN1N 3
#define NRT_INSTANCE_INF2 4
#define NRT_INSTANCE_TRN2 5
#define NRT_INSTANCE_TRN2N 6
#define NRT_INSTANCE_INF2E 7
#define NRT_INSTANCE_TRN2P 8
#define NRT_INSTANCE_TRN2U 9
#define NRT_INSTANCE_TRN2E 10
#define NRT_INSTANCE_TRN2EU 11
#define NRT_INSTANCE_TRN2AC 12
#define NRT_INSTANCE_TRN2UAC 13
#define NRT_INSTANCE_TRN3 14
#define NRT_INSTANCE_TRN3PDS98 15

#define NRT_TENSOR_NAME_MAX 256

/* Handles. */
typedef struct nrt_model nrt_model_t;
typedef struct nrt_tensor nrt_tensor_t;
typedef struct nrt_tensor_set nrt_tensor_set_t;

/* A scheduled run: number of the execution unit in the upper 16 bits, rising number in the lower 48. */
typedef uint64_t nrta_seq_t;

typedef struct nrt_version {
    uint64_t rt_major;
    uint64_t rt_minor;
    uint64_t rt_patch;
    uint64_t rt_maintenance;
    char rt_detail[128];
    char git_hash[64];
} nrt_version_t;

typedef struct nrt_instance_info {
    uint32_t family;
    uint32_t size; /* not bound: its "unknown" moves whenever a size is added */
    char arch_name[16];
    char device_revision[8];
} nrt_instance_info_t;

/* Grows at the end only: the caller passes its own size, the library says how much it wrote. */
typedef struct nrt_vnc_memory_stats {
    size_t bytes_used;
    size_t bytes_limit;
} nrt_vnc_memory_stats_t;

/* Grows at the end only, likewise. */
typedef struct nrt_model_info {
    uint32_t vnc;
} nrt_model_info_t;

typedef struct nrt_tensor_info {
    char name[NRT_TENSOR_NAME_MAX];
    nrt_tensor_usage_t usage;
    size_t size; /* bytes */
    nrt_dtype_t dtype;
    uint32_t *shape;
    uint32_t ndim;
} nrt_tensor_info_t;

typedef struct nrt_tensor_info_array {
    uint64_t tensor_count;
    nrt_tensor_info_t tensor_array[];
} nrt_tensor_info_array_t;

typedef struct nrt_tensor_batch_op {
    uint64_t offset;
    uint64_t size;
    void *buffer;
} nrt_tensor_batch_op_t;

typedef struct nrt_tensor_batch {
    const nrt_tensor_t *tensor;
    const nrt_tensor_batch_op_t *ops;
    uint32_t num_ops;
} nrt_tensor_batch_t;

typedef struct nrt_tensor_device_allocation_info {
    uint64_t physical_address;
    size_t size; /* of the allocation: may exceed the tensor */
    int32_t hbm_index;
} nrt_tensor_device_allocation_info_t;

typedef struct nrt_cc_comm {
    uint32_t *replica_group;
    uint32_t rank;
    uint32_t rank_n;
    uint32_t ctx_device_id;
    uint32_t ctx_device_count;
    uint32_t vnc;
} nrt_cc_comm_t;

/* Process and devices. The version and the counts may be asked before nrt_init. */
NRT_STATUS nrt_get_version(nrt_version_t *version, size_t size);
const char *nrt_get_status_as_str(NRT_STATUS status);
NRT_STATUS nrt_init(nrt_framework_type_t framework, const char *fw_version, const char *fal_version);
void nrt_close(void);
NRT_STATUS nrt_get_total_vnc_count(uint32_t *count);
NRT_STATUS nrt_get_visible_vnc_count(uint32_t *count);
NRT_STATUS nrt_get_total_nc_count(uint32_t *count);
NRT_STATUS nrt_get_visible_nc_count(uint32_t *count);
NRT_STATUS nrt_get_instance_info(nrt_instance_info_t *info, size_t size);
NRT_STATUS nrt_get_vnc_memory_stats(uint32_t vnc, nrt_vnc_memory_stats_t *stats, size_t size_in, size_t *size_out);

/* Models. vnc_count is deprecated: -1. */
NRT_STATUS nrt_load(const void *neff, size_t size, int32_t vnc, int32_t vnc_count, nrt_model_t **model);
NRT_STATUS nrt_load_collectives(const void *neff, size_t size, int32_t vnc, int32_t vnc_count, uint32_t rank,
                                uint32_t world, nrt_model_t **model);
NRT_STATUS nrt_unload(nrt_model_t *model);
NRT_STATUS nrt_get_model_tensor_info(nrt_model_t *model, nrt_tensor_info_array_t **info);
NRT_STATUS nrt_free_model_tensor_info(nrt_tensor_info_array_t *info);
NRT_STATUS nrt_get_model_info(const nrt_model_t *model, nrt_model_info_t *info, size_t size_in, size_t *size_out);
NRT_STATUS nrt_get_model_vnc_count(const nrt_model_t *model, uint32_t *count);
NRT_STATUS nrt_get_model_instance_count(nrt_model_t *model, uint32_t *count);
NRT_STATUS nrt_build_global_comm(int32_t vnc, uint32_t rank, uint32_t world);
NRT_STATUS nrt_barrier(int32_t vnc, uint32_t rank, uint32_t world);

/* Tensors. The name is for the library's logs and may be null. */
NRT_STATUS nrt_tensor_allocate(nrt_tensor_placement_t placement, int32_t vnc, size_t size, const char *name,
                               nrt_tensor_t **tensor);
void nrt_tensor_free(nrt_tensor_t **tensor);
NRT_STATUS nrt_tensor_allocate_slice(const nrt_tensor_t *source, size_t offset, size_t size, const char *name,
                                     nrt_tensor_t **slice);
NRT_STATUS nrt_tensor_write(nrt_tensor_t *tensor, const void *buffer, size_t offset, size_t size);
NRT_STATUS nrt_tensor_read(const nrt_tensor_t *tensor, void *buffer, size_t offset, size_t size);
NRT_STATUS nrt_tensor_write_batch(const nrt_tensor_batch_t *batches, uint64_t count, bool untracked);
NRT_STATUS nrt_tensor_read_batch(const nrt_tensor_batch_t *batches, uint64_t count, bool untracked);
NRT_STATUS nrt_tensor_copy(const nrt_tensor_t *source, size_t source_offset, nrt_tensor_t *target,
                           size_t target_offset, size_t size);
NRT_STATUS nrt_tensor_memset(nrt_tensor_t *tensor, uint64_t offset, int32_t value, size_t size);
size_t nrt_tensor_get_size(const nrt_tensor_t *tensor);
void *nrt_tensor_get_va(const nrt_tensor_t *tensor);
NRT_STATUS nrt_tensor_get_device_allocation_info(const nrt_tensor_t *tensor,
                                                 nrt_tensor_device_allocation_info_t *info);
NRT_STATUS nrt_tensor_check_output_completion(const nrt_tensor_t *tensor, int64_t timeout_us, uint64_t count);
NRT_STATUS nrt_tensor_reset_output_completion(nrt_tensor_t *tensor);

/* Tensor sets and execution. */
NRT_STATUS nrt_allocate_tensor_set(nrt_tensor_set_t **set);
void nrt_destroy_tensor_set(nrt_tensor_set_t **set);
NRT_STATUS nrt_add_tensor_to_tensor_set(nrt_tensor_set_t *set, const char *name, nrt_tensor_t *tensor);
NRT_STATUS nrt_get_tensor_from_tensor_set(nrt_tensor_set_t *set, const char *name, nrt_tensor_t **tensor);
NRT_STATUS nrt_execute(nrt_model_t *model, const nrt_tensor_set_t *inputs, nrt_tensor_set_t *outputs);

/*
 * Scheduled runs, since libnrt 2.31: `status` is written at completion and must stay valid until then; queue is 0.
 * Libraries before 2.31 export the first two names with another meaning of `status`: never call them there.
 */
NRT_STATUS nrta_execute_schedule(nrt_model_t *model, const nrt_tensor_set_t *inputs, nrt_tensor_set_t *outputs,
                                 int32_t queue, NRT_STATUS *status, nrta_seq_t *seq);
NRT_STATUS nrta_is_completed(nrta_seq_t seq, bool *completed);
/* Since 2.32.31: the eventfd gets a count when the run completes, at once if it already has. */
NRT_STATUS nrta_event_register_seq_id_completion(nrta_seq_t seq, int32_t eventfd);

#ifdef __cplusplus
}
#endif

#endif
