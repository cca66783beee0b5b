#include "sb-spike-cpu.h"
#include "sb-spike-counters.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

constexpr float sb_spike_threshold_min = 1e-5f;
constexpr float sb_spike_threshold_max = 1e4f;

float sb_spike_clamp(float x, float low, float high) {
    return x < low ? low : x > high ? high : x;
}

struct sb_spike_magnitudes {
    double sum; // of |x|; not finite if some x is not
    float  max;
};

// Sixteen sums side by side, which compilers keep in vector registers.
sb_spike_magnitudes sb_spike_measure(int64_t n, const float * x) {
    constexpr int lanes = 16;
    double sum[lanes] = {};
    float  max[lanes] = {};
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int j = 0; j < lanes; ++j) {
            const float a = fabsf(x[i + j]);
            sum[j] += a;
            max[j]  = a > max[j] ? a : max[j];
        }
    }
    sb_spike_magnitudes result = { 0.0, 0.0f };
    for (; i < n; ++i) {
        result.sum += fabsf(x[i]);
        result.max  = std::max(result.max, fabsf(x[i]));
    }
    for (int j = 0; j < lanes; ++j) {
        result.sum += sum[j];
        result.max  = std::max(result.max, max[j]);
    }
    return result;
}

sb_spike_magnitudes sb_spike_measure_reference(int64_t n, const float * x) {
    sb_spike_magnitudes result = { 0.0, 0.0f };
    for (int64_t i = 0; i < n; ++i) {
        result.sum += fabsf(x[i]);
        result.max  = std::max(result.max, fabsf(x[i]));
    }
    return result;
}

float sb_spike_threshold(const sb_spike_magnitudes & m, int64_t n, float k) {
    if (!std::isfinite(m.sum)) {
        return NAN;
    }
    return sb_spike_clamp((float) (m.sum/n)/k, sb_spike_threshold_min, sb_spike_threshold_max);
}

int32_t sb_spike_round_count(float x, float threshold) {
    return (int32_t) sb_spike_clamp(rintf(x/threshold), -SB_SPIKE_MAX, SB_SPIKE_MAX);
}

int sb_spike_planes_for(int32_t largest) {
    int64_t limit = SB_SPIKE_BASE/2;
    int     planes = 1;
    while (largest > limit) {
        limit = limit*SB_SPIKE_BASE + SB_SPIKE_BASE/2;
        ++planes;
    }
    return planes;
}

int8_t sb_spike_take_digit(int32_t & s) {
    int32_t digit = s % SB_SPIKE_BASE;
    digit += digit < -SB_SPIKE_BASE/2 ? SB_SPIKE_BASE : digit > SB_SPIKE_BASE/2 ? -SB_SPIKE_BASE : 0;
    s = (s - digit)/SB_SPIKE_BASE;
    return (int8_t) digit;
}

// A block with larger counts: all of its digits, and its number in the list.
void sb_spike_code_block(sb_spike_row * row, int64_t n, int64_t block, const int32_t * s) {
    bool burst = false;
    for (int j = 0; j < SB_SPIKE_BLOCK; ++j) {
        int32_t rest = s[j];
        for (int plane = 0; plane < row->n_planes; ++plane) {
            sb_spike_plane(row, n, plane)[block*SB_SPIKE_BLOCK + j] = sb_spike_take_digit(rest);
        }
        burst |= s[j] < -SB_SPIKE_BASE/2 || s[j] > SB_SPIKE_BASE/2;
    }
    if (burst) {
        sb_spike_burst_blocks(row, n)[row->n_burst_blocks++] = (uint16_t) block;
    }
}

void sb_spike_set_offsets(sb_spike_row * row, int64_t n) {
    const int8_t * digits  = sb_spike_plane(row, n, 0);
    int32_t *      offsets = sb_spike_offsets(row, n);
    for (int64_t i = 0; i < sb_spike_n_blocks(n)*SB_SPIKE_BLOCK/4; ++i) {
        offsets[i] = -8*(digits[4*i] + digits[4*i + 1] + digits[4*i + 2] + digits[4*i + 3]);
    }
}

// The digits of counts whose threshold and largest magnitude are known.
void sb_spike_code_digits(int64_t n, const float * x, sb_spike_row * row, bool use_ref) {
    if (row->n_planes == 1 && !use_ref) {
        int8_t * plane = sb_spike_plane(row, n, 0);
        for (int64_t i = 0; i < n; ++i) {
            plane[i] = (int8_t) (int32_t) rintf(x[i]/row->threshold);
        }
        memset(plane + n, 0, sb_spike_n_blocks(n)*SB_SPIKE_BLOCK - n);
        return;
    }
    for (int64_t block = 0; block < sb_spike_n_blocks(n); ++block) {
        const int64_t start = block*SB_SPIKE_BLOCK;
        const int64_t width = std::min<int64_t>(SB_SPIKE_BLOCK, n - start);
        int32_t s[SB_SPIKE_BLOCK] = {};
        for (int64_t j = 0; j < width; ++j) {
            s[j] = sb_spike_round_count(x[start + j], row->threshold);
        }
        sb_spike_code_block(row, n, block, s);
    }
}

void sb_spike_code_row(int64_t n, const float * x, float k, sb_spike_row * row, bool use_ref) {
    const sb_spike_magnitudes m = use_ref ? sb_spike_measure_reference(n, x) : sb_spike_measure(n, x);

    memset(row, 0, sizeof(*row));
    row->threshold = sb_spike_threshold(m, n, k);
    row->n_planes  = 1;
    if (std::isnan(row->threshold)) {
        memset(sb_spike_plane(row, n, 0), 0, sb_spike_n_blocks(n)*SB_SPIKE_BLOCK);
    } else {
        row->largest  = sb_spike_round_count(m.max, row->threshold);
        row->n_planes = sb_spike_planes_for(row->largest);
        sb_spike_code_digits(n, x, row, use_ref);
    }
}

void sb_spike_round_row(int64_t n, const float * x, float unit, float * y) {
    for (int64_t i = 0; i < n; ++i) {
        y[i] = unit*rintf(x[i]/unit);
    }
}

float sb_spike_int8_unit(const sb_spike_magnitudes & m) {
    return std::isfinite(m.sum) ? sb_spike_clamp(m.max/127.0f, sb_spike_threshold_min, sb_spike_threshold_max) : NAN;
}

} // namespace

void sb_spike_code_rows(const float * x, int64_t n, int64_t n_rows, float k, void * dst, const char * name) {
    const size_t row_size = sb_spike_row_size(n);
    for (int64_t i = 0; i < n_rows; ++i) {
        auto * row = (sb_spike_row *) ((char *) dst + i*row_size);
        sb_spike_code_row(n, x + i*n, k, row, false);
        sb_spike_set_offsets(row, n);
    }
    if (sb_spike_counters_enabled()) {
        sb_spike_count(name, k, n, n_rows, (const char *) dst, row_size);
    }
}

void sb_spike_code_compute(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * src = dst->src[0];

    const auto    mode   = (sb_spike_mode) ggml_get_op_params_i32(dst, 0);
    const float   k      = ggml_get_op_params_f32(dst, 1);
    const int64_t n      = src->ne[0];
    const int64_t n_rows = ggml_nrows(src);
    const int64_t first  = n_rows*params->ith/params->nth;
    const int64_t last   = n_rows*(params->ith + 1)/params->nth;

    for (int64_t i = first; i < last; ++i) {
        const int64_t i1 = i % src->ne[1];
        const int64_t i2 = i/src->ne[1] % src->ne[2];
        const int64_t i3 = i/src->ne[1]/src->ne[2];
        const float * x  = (const float *) ((const char *) src->data + i1*src->nb[1] + i2*src->nb[2] + i3*src->nb[3]);
        char *        y  = (char *) dst->data + i*dst->nb[1];

        if (mode == SB_SPIKE_COUNTS) {
            sb_spike_code_row(n, x, k, (sb_spike_row *) y, params->use_ref);
            if (n_rows < SB_SPIKE_MANY) {
                sb_spike_set_offsets((sb_spike_row *) y, n);
            }
            continue;
        }
        const sb_spike_magnitudes m = params->use_ref ? sb_spike_measure_reference(n, x) : sb_spike_measure(n, x);
        sb_spike_round_row(n, x, mode == SB_SPIKE_ROUND ? sb_spike_threshold(m, n, k) : sb_spike_int8_unit(m), (float *) y);
    }
    if (mode == SB_SPIKE_COUNTS && first < last && sb_spike_counters_enabled()) {
        sb_spike_count(dst->name, k, n, last - first, (const char *) dst->data + first*dst->nb[1], dst->nb[1]);
    }
}
