#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

// GGML_OP_FLASH_ATTN_EXT with all query heads of a group at once: keys and values are read once a group, blocks of keys
// that no query of a tile sees are skipped. Exact in float32: neither queries nor an F32 cache are rounded to F16.

// Whether the node asks for it (ggml_flash_attn_ext_set_grouped) and this form can do what it asks.
bool   sb_attn_takes(const struct ggml_tensor * dst);
size_t sb_attn_work_size(const struct ggml_tensor * dst, int n_threads);
void   ggml_compute_forward_attn_grouped(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
