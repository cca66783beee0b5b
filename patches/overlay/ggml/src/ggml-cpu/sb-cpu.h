#pragma once

// The CPU backend's hooks for SpikingBrain's operators: one call each before the backend's own switch.

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

typedef void (*sb_cpu_compute_t)(struct ggml_compute_params * params, struct ggml_tensor * node);

// Compute the node if it is one of these operators. `compute` is the backend's own function, for products that turn out dense.
bool sb_cpu_compute_forward(struct ggml_compute_params * params, struct ggml_tensor * node, sb_cpu_compute_t compute);

// Threads for the node; 0: another operator.
int sb_cpu_n_tasks(const struct ggml_tensor * node, int n_threads);

// Bytes of work buffer for the node in *size; false: another operator.
bool sb_cpu_work_size(const struct ggml_tensor * node, int n_threads, int n_tasks, size_t * size);

// An exported function by its name; null for another name.
void * sb_cpu_proc_address(const char * name);

#ifdef __cplusplus
}

typedef bool (*sb_cpu_supports_t)(ggml_backend_dev_t dev, const ggml_tensor * op);

// Whether the backend supports the operator in *supported; false: another operator.
// `supports` is the backend's own function, for the dense product.
bool sb_cpu_supports_op(ggml_backend_dev_t dev, const ggml_tensor * op, sb_cpu_supports_t supports, bool * supported);
#endif
