#pragma once

#include "ggml.h"

struct ggml_compute_params;

#ifdef __cplusplus
extern "C" {
#endif

// GGML_OP_SB_GLA with grouped heads:
//   S_t = diag(a_t) S_{t-1} + k_t^T v_t,   o_t[h] = scale * q_t[h] S_t[h / (H/Hkv)]
// src: k, v [d, Hkv, T], q [d, H, T], a [d, Hkv, T], state [d*d*Hkv, n_seqs], all F32 and contiguous;
// dst: o [d*H, T] followed by the new states. A state is [key channel][value channel], row-major.
// Many tokens of a sequence are taken in chunks, unless the second of the operator's parameters, an integer, is not 0.
void sb_gla_compute(const struct ggml_compute_params * params, struct ggml_tensor * dst);

// Bytes of work buffer that it needs with at most n_threads threads.
size_t sb_gla_work_size(const struct ggml_tensor * dst, int n_threads);

#ifdef __cplusplus
}
#endif
