#pragma once

// Spike coding (SpikingBrain, arXiv 2509.05276, section 3.3): a row x of activations becomes integer counts
//   Vth = clamp(mean|x|/k, 1e-5, 1e4),   s = round(x/Vth), half to even, not clipped,   y = Vth*(W s)

#include "ggml-sb.h"

#ifdef __cplusplus
extern "C" {
#endif

// Channels that share a scale in Q4_0 and Q8_0 weights.
#define SB_SPIKE_BLOCK 32

// A count is a sum of digits in balanced base 255: s = s0 + 255*s1 + 255^2*s2 + 255^3*s3, each in [-127, 127].
// Nearly all counts are their first digit; those that are not are called bursts.
#define SB_SPIKE_DIGITS 4
#define SB_SPIKE_BASE   255
#define SB_SPIKE_MANY   8          // minimum rows for which weights are unpacked once, and offsets are not written
#define SB_SPIKE_MAX    1000000000 // counts saturate here; 1e9 < 127*(1 + 255 + 255^2 + 255^3)

// One coded row: this header; SB_SPIKE_DIGITS planes of int8 digits, each padded with zeros to whole blocks; one int32_t
// for every four channels, -8 times the sum of their first digits, which unsigned nibbles have too much; and a uint16_t
// for each block that has digits beyond the first: `n_burst_blocks` block numbers, ascending.
// Planes beyond `n_planes` are not written.
struct sb_spike_row {
    float   threshold;       // Vth; NaN if the row was not finite
    int32_t n_planes;        // 1 to SB_SPIKE_DIGITS
    int32_t largest;         // of |s|
    int32_t n_burst_blocks;
    int32_t reserved[12];    // planes begin on a cache line
};

static inline int64_t sb_spike_n_blocks(int64_t n) {
    return (n + SB_SPIKE_BLOCK - 1)/SB_SPIKE_BLOCK;
}

static inline int8_t * sb_spike_plane(struct sb_spike_row * row, int64_t n, int plane) {
    return (int8_t *) (row + 1) + plane*sb_spike_n_blocks(n)*SB_SPIKE_BLOCK;
}

static inline const int8_t * sb_spike_plane_const(const struct sb_spike_row * row, int64_t n, int plane) {
    return (const int8_t *) (row + 1) + plane*sb_spike_n_blocks(n)*SB_SPIKE_BLOCK;
}

static inline int32_t * sb_spike_offsets(struct sb_spike_row * row, int64_t n) {
    return (int32_t *) sb_spike_plane(row, n, SB_SPIKE_DIGITS);
}

static inline const int32_t * sb_spike_offsets_const(const struct sb_spike_row * row, int64_t n) {
    return (const int32_t *) sb_spike_plane_const(row, n, SB_SPIKE_DIGITS);
}

static inline uint16_t * sb_spike_burst_blocks(struct sb_spike_row * row, int64_t n) {
    return (uint16_t *) (sb_spike_offsets(row, n) + sb_spike_n_blocks(n)*SB_SPIKE_BLOCK/4);
}

static inline const uint16_t * sb_spike_burst_blocks_const(const struct sb_spike_row * row, int64_t n) {
    return (const uint16_t *) (sb_spike_offsets_const(row, n) + sb_spike_n_blocks(n)*SB_SPIKE_BLOCK/4);
}

enum sb_spike_mode {
    SB_SPIKE_COUNTS     = 0, // coded rows, I8
    SB_SPIKE_ROUND      = 1, // Vth*s, F32
    SB_SPIKE_ROUND_INT8 = 2, // d*round(x/d) with d = clamp(max|x|/127, 1e-5, 1e4), F32
};

#ifdef __cplusplus
}
#endif
