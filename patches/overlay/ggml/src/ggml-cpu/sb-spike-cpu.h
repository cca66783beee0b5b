#pragma once

#include "ggml.h"
#include "sb-spike.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

void ggml_compute_forward_spike_code   (const struct ggml_compute_params * params, struct ggml_tensor * dst);
void ggml_compute_forward_spike_mul_mat(const struct ggml_compute_params * params, struct ggml_tensor * dst);

bool sb_spike_mul_mat_supports(enum ggml_type type);

// One of the functions below, by its name; null for another name. ggml_backend_reg_get_proc_address asks here.
void * sb_spike_proc_address(const char * name);

// Code rows of n floats into rows of ggml_spike_row_size(n) bytes, as the operator does; counted under `name`.
void sb_spike_code_rows(const float * x, int64_t n, int64_t n_rows, float k, void * dst, const char * name);

// The product's integer accumulators: per block of SB_SPIKE_BLOCK channels, sum of weight times count, of one row of
// Q4_0 or Q8_0 weights and one coded row, from the operator's kernels: those for many tokens if `unpacked`. False for
// other types.
bool sb_spike_accumulate(int type, bool unpacked, int64_t n, const void * w, const void * row, int64_t * acc);

#define SB_SPIKE_BINS 1024

// What is counted of one node of SPIKE_CODE, all its tokens and channels together. s is a count, c a token's largest |s|.
struct sb_spike_site {
    char    name[64];
    float   k;                  // of the last coded row
    int64_t n_channels;         // of the last coded row
    int64_t n_tokens;
    int64_t histogram[SB_SPIKE_BINS]; // of |s|; the last bin holds all that are larger, too
    int64_t largest;            // |s|
    int64_t n_negative;         // s < 0
    int64_t n_bursts;           // |s| > 127
    double  threshold_sum;      // of Vth over the tokens
    int64_t unary_spikes;       // sum of |s|
    int64_t bit_spikes;         // sum of popcount(|s|)
    int64_t twos_spikes;        // sum of popcount(s mod 2^T), T = max(2, bits(c) + 1)
    int64_t unary_steps;        // sum of c over the tokens
    int64_t bit_steps;          // sum of bits(c)
    int64_t twos_steps;         // sum of max(2, bits(c) + 1)
    int64_t window_slots;       // sum of 3*max(1, ceil(bits(|s|)/3)): windows of three time steps
};

void   sb_spike_counters_enable(bool on);
void   sb_spike_counters_reset(void);
size_t sb_spike_counters_size(void);                             // sites seen since the last reset
bool   sb_spike_counters_get(size_t index, struct sb_spike_site * site); // in the order in which they were first seen

#ifdef __cplusplus
}
#endif
