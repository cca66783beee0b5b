#pragma once

// Operators of SpikingBrain (arXiv 2509.05276), and the functions that the CPU backend exports for them.

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// Gated linear attention with grouped heads, see ggml-cpu/sb-gla.h
// k, v, g: F32 [d, Hkv, T], q: F32 [d, H, T], H a multiple of Hkv, state: F32 [d*d*Hkv, n_seqs]
// result: F32, [d*H, T] followed by the new states
GGML_API struct ggml_tensor * sb_gla(
        struct ggml_context * ctx,
        struct ggml_tensor  * k,
        struct ggml_tensor  * v,
        struct ggml_tensor  * q,
        struct ggml_tensor  * g,
        struct ggml_tensor  * state,
        float scale);

// Flag of a GGML_OP_FLASH_ATTN_EXT node: one pass over K and V for all heads of a group, F32 keys and values are not rounded.
// Backends without such a kernel ignore it.
GGML_API void sb_attn_set_grouped(struct ggml_tensor * a, bool grouped);

// Spike coding of every row: Vth = clamp(mean|a|/k, 1e-5, 1e4), s = round(a/Vth), see sb-spike.h
// a: F32 [n, ...], result: coded rows, I8 [sb_spike_row_size(n), ...]
GGML_API struct ggml_tensor * sb_spike_code(
        struct ggml_context * ctx,
        struct ggml_tensor  * a,
        float k);

GGML_API size_t sb_spike_row_size(int64_t n);

// Vth*s, F32 of a's shape
GGML_API struct ggml_tensor * sb_spike_round(
        struct ggml_context * ctx,
        struct ggml_tensor  * a,
        float k);

// Every row rounded to symmetric INT8: d*round(a/d), d = clamp(max|a|/127, 1e-5, 1e4), F32 of a's shape
GGML_API struct ggml_tensor * sb_spike_round_int8(
        struct ggml_context * ctx,
        struct ggml_tensor  * a);

// Vth*(w s), computed from the integer counts
// w: [n, m], s: coded rows of n channels, result: F32 [m, ...]
GGML_API struct ggml_tensor * sb_spike_mul_mat(
        struct ggml_context * ctx,
        struct ggml_tensor  * w,
        struct ggml_tensor  * s);

// y = W x without the channels c for which |x_c| < zones_c, whose weights are not read; see sb-sparse.h
// rows: W [n, m], columns: W transposed [m, n], zones: F32 [n], x: F32 [n, n_tokens], result: F32 [m, n_tokens]
// If more than max_density of the channels are active, the product is computed from the rows.
GGML_API struct ggml_tensor * sb_sparse_mul_mat(
        struct ggml_context * ctx,
        struct ggml_tensor  * rows,
        struct ggml_tensor  * columns,
        struct ggml_tensor  * zones,
        struct ggml_tensor  * x,
        float max_density);

// ---- exported by the CPU backend: ggml_backend_reg_get_proc_address finds these functions by name ----

// Code rows of n floats into rows of sb_spike_row_size(n) bytes, as the operator does; counted under `name`.
void sb_spike_code_rows(const float * x, int64_t n, int64_t n_rows, float k, void * dst, const char * name);

// Integer accumulators of the product: for each block of 32 channels, the sum of weight times count, for one row of Q4_0 or
// Q8_0 weights and one coded row. `unpacked` selects the kernels for many tokens. False for other types.
bool sb_spike_accumulate(int type, bool unpacked, int64_t n, const void * w, const void * row, int64_t * acc);

#define SB_SPIKE_BINS 1024

// Counters of one SPIKE_CODE node, over all its tokens and channels. s is a count, c a token's largest |s|.
struct sb_spike_site {
    char    name[64];
    float   k;                        // of the last coded row
    int64_t channels;                 // of the last coded row
    int64_t tokens;
    int64_t histogram[SB_SPIKE_BINS]; // of |s|; the last bin also holds all larger ones
    int64_t largest;                  // |s|
    int64_t negative;                 // s < 0
    int64_t bursts;                   // |s| > 127
    double  threshold_sum;            // of Vth over the tokens
    int64_t unary_spikes;             // sum of |s|
    int64_t bit_spikes;               // sum of popcount(|s|)
    int64_t twos_complement_spikes;   // sum of popcount(s mod 2^T), T = max(2, bits(c) + 1)
    int64_t unary_steps;              // sum of c over the tokens
    int64_t bit_steps;                // sum of bits(c)
    int64_t twos_complement_steps;    // sum of max(2, bits(c) + 1)
    int64_t window_slots;             // sum of 3*max(1, ceil(bits(|s|)/3)): windows of three time steps
};

void   sb_spike_counters_enable(bool on);
void   sb_spike_counters_reset(void);
size_t sb_spike_counters_size(void);                                     // inputs seen since the last reset
bool   sb_spike_counters_get(size_t index, struct sb_spike_site * site); // in the order in which they were first seen
size_t sb_spike_site_size(void);                                         // sizeof(struct sb_spike_site)

// Totals of GGML_OP_SB_SPARSE_MUL_MAT since the last reset.
struct sb_sparse_counts {
    int64_t products; // of a matrix and a token
    int64_t dense;    // products computed from the rows
    int64_t channels; // of all inputs
    int64_t active;   // channels that were not silent
};

void sb_sparse_counters_reset(void);
void sb_sparse_counters_get(struct sb_sparse_counts * counts);

#ifdef __cplusplus
}
#endif
