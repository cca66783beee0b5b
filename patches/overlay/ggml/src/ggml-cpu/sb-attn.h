#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

// GGML_OP_FLASH_ATTN_EXT with all query heads of a group at once: keys and values are read once a group, blocks of keys
// that no query of a tile sees are skipped. Exact in float32: neither queries nor an F32 cache are rounded to F16.

// True if the node asks for grouped heads (sb_attn_set_grouped) and this kernel supports its arguments.
bool   sb_attn_takes(const struct ggml_tensor * dst);
size_t sb_attn_work_size(const struct ggml_tensor * dst, int n_threads);
void   sb_attn_compute(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
