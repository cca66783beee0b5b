#pragma once

// Vectors of floats: GCC and Clang keep their own vector types in whatever registers the target has. Other compilers do
// without (SB_VECTORS is not defined): the window attention is upstream's then, linear attention goes token by token.

#include "ggml.h"
#include "sb-compiler.h"

#include <cstdint>
#include <cstring>

#if defined(__GNUC__)
#define SB_VECTORS

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int sb_lanes    = 16;
constexpr int sb_row_vecs = 4; // a register tile of scores: row vectors by keys
#elif defined(__AVX__)
constexpr int sb_lanes    = 8;
constexpr int sb_row_vecs = 2;
#else
constexpr int sb_lanes    = 4;
constexpr int sb_row_vecs = 4;
#endif

template <int W> struct sb_vec_of {
    typedef float f __attribute__((vector_size(W*sizeof(float))));
};
typedef sb_vec_of<sb_lanes>::f sb_vec;
typedef int32_t                sb_ivec __attribute__((vector_size(sb_lanes*sizeof(float))));

inline void sb_load(sb_vec & x, const float * from) {
    memcpy(&x, from, sizeof(x));
}

inline void sb_load(sb_vec & x, const ggml_fp16_t * from) {
#if defined(__AVX512F__)
    x = (sb_vec) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) from));
#elif defined(__AVX__) && defined(__F16C__)
    x = (sb_vec) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) from));
#elif defined(__ARM_NEON) && defined(__aarch64__)
    uint16x4_t half;
    memcpy(&half, from, sizeof(half));
    x = (sb_vec) vcvt_f32_f16(vreinterpret_f16_u16(half));
#else
    for (int i = 0; i < sb_lanes; ++i) {
        x[i] = ggml_fp16_to_fp32(from[i]);
    }
#endif
}

// Keeps a vector that is used several times in a register: compilers like to load it anew for each use, and with wide
// vectors loads are what a tile then waits for.
template <typename V> inline void sb_keep(V & x) {
#if defined(__AVX__)
    __asm__("" : "+v"(x));
#else
    (void) x;
#endif
}

inline void sb_store(float * to, const sb_vec & x) {
    memcpy(to, &x, sizeof(x));
}

// x becomes exp(x), for x <= 0; relative error below 2e-7, 0 below -87
inline void sb_exp(sb_vec & x) {
    const sb_vec  z = x < -87.0f ? sb_vec{} - 87.0f : x;
    const sb_ivec n = __builtin_convertvector(z*1.44269504f - 0.5f, sb_ivec); // rounds towards zero
    const sb_vec  m = __builtin_convertvector(n, sb_vec);
    const sb_vec  y = z - m*0.693359375f + m*2.12194440e-4f;
    sb_vec p = y*1.98412698e-4f + 1.38888889e-3f;
    p = p*y + 8.33333333e-3f;
    p = p*y + 4.16666667e-2f;
    p = p*y + 1.66666667e-1f;
    p = p*y + 0.5f;
    p = p*y*y + y + 1.0f;
    const sb_ivec bits = (n + 127) << 23;
    sb_vec power;
    memcpy(&power, &bits, sizeof(power));
    x = x < -87.0f ? sb_vec{} : p*power;
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SB_SHUFFLES
#endif
#endif

// x becomes the sums of neighbouring units of floats: within each 128 bits those of x, then those of y, if a unit is one
// float; those of all x, then those of all y, if it is four.
template <int unit> inline void sb_add_pairs(sb_vec & x, const sb_vec & y) {
#if defined(SB_SHUFFLES) && defined(__AVX512F__)
    if (unit == 1) {
        x = __builtin_shufflevector(x, y, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
            __builtin_shufflevector(x, y, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
    } else {
        x = __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
            __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
#elif defined(SB_SHUFFLES) && defined(__AVX__)
    if (unit == 1) {
        x = __builtin_shufflevector(x, y, 0, 2, 8, 10, 4, 6, 12, 14) + __builtin_shufflevector(x, y, 1, 3, 9, 11, 5, 7, 13, 15);
    } else {
        x = __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11) + __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15);
    }
#elif defined(SB_SHUFFLES)
    x = __builtin_shufflevector(x, y, 0, 2, 4, 6) + __builtin_shufflevector(x, y, 1, 3, 5, 7);
#else
    constexpr int group = unit == 1 ? 4 : sb_lanes; // floats that a result's sums come from, half of them in each vector
    sb_vec sums;
    for (int i = 0; i < sb_lanes; ++i) {
        const sb_vec & from = i % group < group/2 ? x : y;
        const int      at   = i/group*group + (i % group % (group/2))/unit*2*unit + i % unit;
        sums[i] = from[at] + from[at + unit];
    }
    x = sums;
#endif
}

template <int unit, int N> inline void sb_add_all_pairs(sb_vec * x) {
    SB_UNROLL
    for (int i = 0; i < N; ++i) {
        if (i > 0) {
            x[i] = x[2*i];
        }
        sb_add_pairs<unit>(x[i], x[2*i + 1]);
    }
}

// x[0] becomes the sums of sb_lanes vectors, in their order; the others are used up.
inline void sb_sum_each(sb_vec (&x)[sb_lanes]) {
    sb_add_all_pairs<1, sb_lanes/2>(x);
    sb_add_all_pairs<1, sb_lanes/4>(x);
    if (sb_lanes > 4) {
        sb_add_all_pairs<4, sb_lanes/8>(x);
    }
    if (sb_lanes > 8) {
        sb_add_all_pairs<4, sb_lanes/16>(x);
    }
}

} // namespace

#endif
