/*
 * A stand-in for libnrt.so.1, just large enough for this crate's tests: host memory for device memory, and a "model" that
 * adds one to each byte. It is compiled against the project's header, with switches:
 *
 *   MAJOR, MINOR, PATCH       the version it tells (2, 34, 10)
 *   VERSION_STATUS, INIT_STATUS, UNLOAD_STATUS, EXECUTE_STATUS   what those calls return (0)
 *   OLD                       no scheduled runs, no memory statistics, the old names of the counts
 *   NO_EVENTFD                no completion through an eventfd
 *   BROKEN                    lacks nrt_execute and nrt_tensor_read
 *   SMALL_TENSORS             gives tensors of half the size
 *   BAD_INFO                  says that a tensor is neither input nor output
 *   SHORT_STATS               writes half of the memory statistics
 *   QUEUE_DEPTH               scheduled runs before the queue is full (2)
 *
 * It counts misuse (standin_faults): use of what was freed, closing with handles left, calls outside init to close.
 * An input whose first byte is 0xFF makes a run hang; one whose first byte is 0xEE makes it fail with 1006.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "njoule_nrt.h"

#ifndef MAJOR
#define MAJOR 2
#endif
#ifndef MINOR
#define MINOR 34
#endif
#ifndef PATCH
#define PATCH 10
#endif
#ifndef VERSION_STATUS
#define VERSION_STATUS 0
#endif
#ifndef INIT_STATUS
#define INIT_STATUS 0
#endif
#ifndef UNLOAD_STATUS
#define UNLOAD_STATUS 0
#endif
#ifndef EXECUTE_STATUS
#define EXECUTE_STATUS 0
#endif
#ifndef QUEUE_DEPTH
#define QUEUE_DEPTH 2
#endif

#define ALIVE 0x600df00du
#define SMALL 8
#define CACHE 16

struct nrt_model { unsigned magic; };
struct storage { atomic_int owners; unsigned char *bytes; };
struct nrt_tensor { unsigned magic; size_t size, offset; int vnc; struct storage *storage; };
struct nrt_tensor_set { unsigned magic; int count; struct { char name[256]; nrt_tensor_t *tensor; } bound[8]; };

static atomic_int state, live, faults, inits, closes;

int standin_faults(void) { return faults; }
int standin_live(void) { return live; }
int standin_inits(void) { return inits; }
int standin_closes(void) { return closes; }

static NRT_STATUS ready(void) {
    if (state == 1) return NRT_SUCCESS;
    faults++;
    return state == 0 ? NRT_UNINITIALIZED : NRT_CLOSED;
}
#define READY do { NRT_STATUS s = ready(); if (s) return s; } while (0)
#define LIVE(p) do { if ((p)->magic != ALIVE) { faults++; return NRT_INVALID_HANDLE; } } while (0)

NRT_STATUS nrt_get_version(nrt_version_t *v, size_t size) {
    if (VERSION_STATUS) return VERSION_STATUS;
    if (size != sizeof *v) return NRT_INVALID;
    *v = (nrt_version_t){.rt_major = MAJOR, .rt_minor = MINOR, .rt_patch = PATCH, .rt_detail = "STAND-IN"};
    memset(v->git_hash, 'f', sizeof v->git_hash); /* no terminating zero */
    return NRT_SUCCESS;
}

NRT_STATUS nrt_init(nrt_framework_type_t framework, const char *fw, const char *fal) {
    inits++;
    if (framework != NRT_FRAMEWORK_TYPE_NO_FW || *fw || *fal || state) faults++;
    if (INIT_STATUS) return INIT_STATUS;
    state = 1;
    return NRT_SUCCESS;
}

void nrt_close(void) {
    closes++;
    if (state != 1 || live) faults++;
    state = 2;
}

#ifdef OLD
NRT_STATUS nrt_get_total_nc_count(uint32_t *n) { *n = 2; return NRT_SUCCESS; }
NRT_STATUS nrt_get_visible_nc_count(uint32_t *n) { *n = 2; return NRT_SUCCESS; }
#else
NRT_STATUS nrt_get_total_vnc_count(uint32_t *n) { *n = 12; return NRT_SUCCESS; }
NRT_STATUS nrt_get_visible_vnc_count(uint32_t *n) { *n = 2; return NRT_SUCCESS; }
NRT_STATUS nrt_get_vnc_memory_stats(uint32_t vnc, nrt_vnc_memory_stats_t *stats, size_t in, size_t *out) {
    READY;
    if (vnc > 1 || in < sizeof *stats) return NRT_INVALID;
    *stats = (nrt_vnc_memory_stats_t){.bytes_used = 1000u + vnc, .bytes_limit = 16ull << 30};
#ifdef SHORT_STATS
    *out = 8;
#else
    *out = sizeof *stats;
#endif
    return NRT_SUCCESS;
}
#endif

NRT_STATUS nrt_get_instance_info(nrt_instance_info_t *info, size_t size) {
    if (size != sizeof *info) return NRT_INVALID;
    *info = (nrt_instance_info_t){.family = NRT_INSTANCE_INF2, .arch_name = "NCv2", .device_revision = "r1"};
    return NRT_SUCCESS;
}

NRT_STATUS nrt_load(const void *neff, size_t size, int32_t vnc, int32_t vnc_count, nrt_model_t **model) {
    READY;
    if (size < 4 || memcmp(neff, "NEFF", 4)) return NRT_INVALID;
    if (vnc_count != -1 || vnc > 1) faults++;
    *model = malloc(sizeof **model);
    (*model)->magic = ALIVE;
    live++;
    return NRT_SUCCESS;
}

NRT_STATUS nrt_load_collectives(const void *neff, size_t size, int32_t vnc, int32_t vnc_count, uint32_t rank,
                                uint32_t world, nrt_model_t **model) {
    return rank < world ? nrt_load(neff, size, vnc, vnc_count, model) : NRT_INVALID;
}

NRT_STATUS nrt_unload(nrt_model_t *model) {
    READY;
    LIVE(model);
    model->magic = 0; /* kept, so that use after it is seen */
    live--;
    return UNLOAD_STATUS;
}

static nrt_tensor_info_t info_of(const char *name, uint32_t usage, size_t size) {
    nrt_tensor_info_t info = {.usage = usage, .size = size, .dtype = NRT_DTYPE_UINT8, .ndim = 2};
    strcpy(info.name, name);
    info.shape = malloc(2 * sizeof *info.shape);
    info.shape[0] = 1;
    info.shape[1] = (uint32_t)size;
    return info;
}

NRT_STATUS nrt_get_model_tensor_info(nrt_model_t *model, nrt_tensor_info_array_t **info) {
    READY;
    LIVE(model);
    *info = malloc(sizeof **info + 4 * sizeof(nrt_tensor_info_t));
    (*info)->tensor_count = 4;
    (*info)->tensor_array[0] = info_of("input0", NRT_TENSOR_USAGE_INPUT, SMALL);
    (*info)->tensor_array[1] = info_of("output0", NRT_TENSOR_USAGE_OUTPUT, SMALL);
    (*info)->tensor_array[2] = info_of("input1", NRT_TENSOR_USAGE_INPUT, CACHE);
    (*info)->tensor_array[3] = info_of("output1", NRT_TENSOR_USAGE_OUTPUT, CACHE);
#ifdef BAD_INFO
    (*info)->tensor_array[3].usage = 7;
#endif
    live++;
    return NRT_SUCCESS;
}

NRT_STATUS nrt_free_model_tensor_info(nrt_tensor_info_array_t *info) {
    for (uint64_t i = 0; i < info->tensor_count; i++) free(info->tensor_array[i].shape);
    free(info);
    live--;
    return NRT_SUCCESS;
}

static nrt_tensor_t *tensor_of(struct storage *storage, size_t offset, size_t size, int vnc) {
    nrt_tensor_t *tensor = malloc(sizeof *tensor);
    *tensor = (nrt_tensor_t){.magic = ALIVE, .size = size, .offset = offset, .vnc = vnc, .storage = storage};
    storage->owners++;
    live++;
    return tensor;
}

NRT_STATUS nrt_tensor_allocate(nrt_tensor_placement_t placement, int32_t vnc, size_t size, const char *name,
                               nrt_tensor_t **tensor) {
    READY;
    (void)name;
    if (placement > 1 || (placement == 1) != (vnc == -1)) return NRT_INVALID;
    if (size > 1u << 20) return NRT_RESOURCE;
    struct storage *storage = calloc(1, sizeof *storage);
    storage->bytes = malloc(size);
    memset(storage->bytes, 0xA5, size); /* not zeroed by contract */
#ifdef SMALL_TENSORS
    size /= 2;
#endif
    *tensor = tensor_of(storage, 0, size, vnc);
    return NRT_SUCCESS;
}

void nrt_tensor_free(nrt_tensor_t **tensor) {
    if ((*tensor)->magic != ALIVE || state != 1) { faults++; return; }
    (*tensor)->magic = 0; /* kept, so that use after it is seen */
    if (--(*tensor)->storage->owners == 0) { free((*tensor)->storage->bytes); free((*tensor)->storage); }
    *tensor = NULL;
    live--;
}

NRT_STATUS nrt_tensor_allocate_slice(const nrt_tensor_t *source, size_t offset, size_t size, const char *name,
                                     nrt_tensor_t **slice) {
    READY;
    LIVE(source);
    (void)name;
    if (offset + size > source->size) { faults++; return NRT_INVALID; }
    *slice = tensor_of(source->storage, source->offset + offset, size, source->vnc);
    return NRT_SUCCESS;
}

static unsigned char *at(const nrt_tensor_t *tensor, size_t offset, size_t size) {
    if (offset + size > tensor->size) { faults++; abort(); }
    return tensor->storage->bytes + tensor->offset + offset;
}

NRT_STATUS nrt_tensor_write(nrt_tensor_t *tensor, const void *buffer, size_t offset, size_t size) {
    READY;
    LIVE(tensor);
    memcpy(at(tensor, offset, size), buffer, size);
    return NRT_SUCCESS;
}

#ifndef BROKEN
NRT_STATUS nrt_tensor_read(const nrt_tensor_t *tensor, void *buffer, size_t offset, size_t size) {
    READY;
    LIVE(tensor);
    memcpy(buffer, at(tensor, offset, size), size);
    return NRT_SUCCESS;
}
#endif

NRT_STATUS nrt_tensor_copy(const nrt_tensor_t *source, size_t source_offset, nrt_tensor_t *target,
                           size_t target_offset, size_t size) {
    READY;
    LIVE(source);
    LIVE(target);
    if (source->vnc != target->vnc) return NRT_INVALID;
    memmove(at(target, target_offset, size), at(source, source_offset, size), size);
    return NRT_SUCCESS;
}

NRT_STATUS nrt_tensor_memset(nrt_tensor_t *tensor, uint64_t offset, int32_t value, size_t size) {
    READY;
    LIVE(tensor);
    memset(at(tensor, offset, size), value, size);
    return NRT_SUCCESS;
}

size_t nrt_tensor_get_size(const nrt_tensor_t *tensor) { return tensor->size; }

NRT_STATUS nrt_allocate_tensor_set(nrt_tensor_set_t **set) {
    READY;
    *set = calloc(1, sizeof **set);
    (*set)->magic = ALIVE;
    live++;
    return NRT_SUCCESS;
}

void nrt_destroy_tensor_set(nrt_tensor_set_t **set) {
    if ((*set)->magic != ALIVE || state != 1) { faults++; return; }
    for (int i = 0; i < (*set)->count; i++) /* its tensors outlive it */
        if ((*set)->bound[i].tensor->magic != ALIVE) faults++;
    (*set)->magic = 0; /* kept, so that use after it is seen */
    *set = NULL;
    live--;
}

NRT_STATUS nrt_add_tensor_to_tensor_set(nrt_tensor_set_t *set, const char *name, nrt_tensor_t *tensor) {
    READY;
    LIVE(set);
    LIVE(tensor);
    int i = 0;
    while (i < set->count && strcmp(set->bound[i].name, name)) i++;
    if (i == 8) return NRT_RESOURCE;
    if (i == set->count) { strcpy(set->bound[i].name, name); set->count++; }
    set->bound[i].tensor = tensor;
    return NRT_SUCCESS;
}

NRT_STATUS nrt_get_tensor_from_tensor_set(nrt_tensor_set_t *set, const char *name, nrt_tensor_t **tensor) {
    READY;
    LIVE(set);
    for (int i = 0; i < set->count; i++)
        if (!strcmp(set->bound[i].name, name)) {
            LIVE(set->bound[i].tensor);
            *tensor = set->bound[i].tensor;
            return NRT_SUCCESS;
        }
    return NRT_FAILURE;
}

static NRT_STATUS run(nrt_model_t *model, const nrt_tensor_set_t *inputs, nrt_tensor_set_t *outputs) {
    READY;
    LIVE(model);
    const char *names[2] = {"0", "1"};
    for (int k = 0; k < 2; k++) {
        char in[16] = "input", out[16] = "output";
        nrt_tensor_t *from, *to;
        NRT_STATUS s = nrt_get_tensor_from_tensor_set((nrt_tensor_set_t *)inputs, strcat(in, names[k]), &from);
        if (!s) s = nrt_get_tensor_from_tensor_set(outputs, strcat(out, names[k]), &to);
        if (s) return NRT_INVALID;
        if (from->size != to->size) return NRT_INVALID;
        unsigned char *source = at(from, 0, from->size), *target = at(to, 0, to->size);
        if (k == 0 && source[0] == 0xFF) for (;;) pause();
        if (k == 0 && source[0] == 0xEE) return NRT_EXEC_OOB;
        for (size_t i = 0; i < from->size; i++) target[i] = (unsigned char)(source[i] + 1);
    }
    return EXECUTE_STATUS;
}

#ifndef BROKEN
NRT_STATUS nrt_execute(nrt_model_t *model, const nrt_tensor_set_t *inputs, nrt_tensor_set_t *outputs) {
    return run(model, inputs, outputs);
}
#endif

#ifndef OLD
struct flight {
    nrt_model_t *model;
    const nrt_tensor_set_t *inputs;
    nrt_tensor_set_t *outputs;
    NRT_STATUS *status;
    atomic_int done;
    int eventfd;
};
static struct flight flights[1024];
static atomic_int scheduled, in_flight;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *fly(void *arg) {
    struct flight *f = arg;
    usleep(2000);
    *f->status = run(f->model, f->inputs, f->outputs);
    pthread_mutex_lock(&lock);
    f->done = 1;
    in_flight--;
    uint64_t one = 1;
    if (f->eventfd >= 0 && write(f->eventfd, &one, 8) != 8) faults++;
    pthread_mutex_unlock(&lock);
    return NULL;
}

NRT_STATUS nrta_execute_schedule(nrt_model_t *model, const nrt_tensor_set_t *inputs, nrt_tensor_set_t *outputs,
                                 int32_t queue, NRT_STATUS *status, nrta_seq_t *seq) {
    READY;
    LIVE(model);
    if (MINOR < 31) { faults++; abort(); } /* the fifth argument was another pointer then */
    if (queue) return NRT_INVALID;
    if (in_flight >= QUEUE_DEPTH) return NRT_QUEUE_FULL;
    in_flight++;
    int i = scheduled++;
    flights[i] = (struct flight){model, inputs, outputs, status, 0, -1};
    *seq = ((uint64_t)3 << 48) | (unsigned)(i + 1);
    pthread_t thread;
    pthread_create(&thread, NULL, fly, &flights[i]);
    pthread_detach(thread);
    return NRT_SUCCESS;
}

static struct flight *flight_of(nrta_seq_t seq) {
    uint64_t number = seq & 0xffffffffffff;
    return seq >> 48 == 3 && number >= 1 && number <= (uint64_t)scheduled ? &flights[number - 1] : NULL;
}

NRT_STATUS nrta_is_completed(nrta_seq_t seq, bool *completed) {
    struct flight *f = flight_of(seq);
    if (!f) return NRT_INVALID;
    *completed = f->done;
    return NRT_SUCCESS;
}

#ifndef NO_EVENTFD
int standin_armed(void) {
    int n = 0;
    for (int i = 0; i < scheduled; i++) n += flights[i].eventfd >= 0;
    return n;
}

NRT_STATUS nrta_event_register_seq_id_completion(nrta_seq_t seq, int32_t eventfd) {
    struct flight *f = flight_of(seq);
    if (!f) return NRT_INVALID;
    pthread_mutex_lock(&lock);
    f->eventfd = eventfd;
    uint64_t one = 1;
    if (f->done && write(eventfd, &one, 8) != 8) faults++;
    pthread_mutex_unlock(&lock);
    return NRT_SUCCESS;
}
#endif
#endif
