#pragma once

#include "ggml-cpu-impl.h"
#include "sb-sparse.h"

#ifdef __cplusplus
extern "C" {
#endif

// The dense product that stands for a sparse one: an ordinary MUL_MAT of the rows with x, in which silent channels are 0.
struct sb_sparse_dense {
    struct ggml_tensor         product;
    struct ggml_tensor         x;
    struct ggml_compute_params params; // with the work space that is left for it
};

// Computes dst, or returns false if too few channels are silent: then all threads compute `dense` instead.
bool sb_sparse_mul_mat_compute(const struct ggml_compute_params * params, struct ggml_tensor * dst,
                                         struct sb_sparse_dense * dense);

// For planning: the dense product of `op`, and the work space in bytes that is needed besides that product's own.
void   sb_sparse_make_dense(const struct ggml_tensor * op, struct sb_sparse_dense * dense);
size_t sb_sparse_work_size (const struct ggml_tensor * op, int n_threads);

bool sb_sparse_supports(const struct ggml_tensor * op);

// An exported function by its name; null for another name.
void * sb_sparse_proc_address(const char * name);

#ifdef __cplusplus
}
#endif
