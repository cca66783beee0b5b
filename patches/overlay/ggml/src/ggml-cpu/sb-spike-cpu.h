#pragma once

#include "sb-spike.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

void sb_spike_code_compute   (const struct ggml_compute_params * params, struct ggml_tensor * dst);
void sb_spike_mul_mat_compute(const struct ggml_compute_params * params, struct ggml_tensor * dst);

bool sb_spike_mul_mat_supports(enum ggml_type type);

// An exported function by its name; null for another name.
void * sb_spike_proc_address(const char * name);

#ifdef __cplusplus
}
#endif
