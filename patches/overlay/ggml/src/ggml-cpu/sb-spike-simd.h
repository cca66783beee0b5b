#pragma once

// Integer dot products of a block of 32 int8 weights and 32 int8 digits of counts, for one instruction set each.
// A type `sb_spike_simd` gives:
//   weights, counts  what a block is loaded into
//   dot()            their products summed into int32 lanes, exactly: weights in [-128, 127], counts in [-127, 127]
//   first            a block of first digits with its offsets (sb-spike.h), for weights that are used once:
//                    dot_nibbles() takes these straight from Q4_0, dot_int8() from Q8_0
//   panel            four channels of `panel_rows` rows, a row in each int32 lane, for weights that are used often
//   four             the digits of one token for the same channels, in every lane
//   panel_dot()      acc and their products, and what silent digits come to, which may be more than 0
//   panel_tokens     beside two panels, as many as the registers have room for
//   floats           float lanes, as many as of sums: splat(), half() of an IEEE half, multiply_add(acc, sums, scale) =
//                    acc + sums*scale, and their sum() or that of four

#include "ggml.h"

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#define SB_SIMD_X86

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define SB_SIMD_VNNI(acc, u, s) _mm256_dpbusd_epi32(acc, u, s)
#elif defined(__AVXVNNI__)
#define SB_SIMD_VNNI(acc, u, s) _mm256_dpbusd_avx_epi32(acc, u, s)
#endif

#include <immintrin.h>

struct sb_spike_simd {
#if defined(__AVX512VL__)
    static constexpr int panel_tokens = 6; // 32 registers
#else
    static constexpr int panel_tokens = 2;
#endif
    static constexpr int panel_rows = 8;

    using weights = __m256i;
    using counts  = __m256i;
    using panel   = __m256i;
    using four    = __m256i;
    using sums    = __m256i;
    using floats  = __m256;

    static counts load_counts(const int8_t * s) {
        return _mm256_loadu_si256((const __m256i *) s);
    }

    static weights load_int8(const int8_t * w) {
        return _mm256_loadu_si256((const __m256i *) w);
    }

    static sums dot(weights w, counts s) {
        return dot_signed(_mm256_setzero_si256(), w, s);
    }

    static panel load_panel(const int8_t * w) {
        return load_int8(w);
    }

#if defined(SB_SIMD_VNNI)
    // The instruction multiplies unsigned by signed bytes: here the digits are the unsigned ones, raised by 128.
    static four load_four(const int8_t * s) {
        return _mm256_xor_si256(broadcast(s), _mm256_set1_epi8(-128));
    }

    static sums panel_dot(sums acc, panel w, four s) {
        return dot_bytes(acc, s, w);
    }

    static __m256i dot_bytes(__m256i acc, __m256i u, __m256i s) {
        return SB_SIMD_VNNI(acc, u, s);
    }
#else
    static four load_four(const int8_t * s) {
        return broadcast(s);
    }

    static sums panel_dot(sums acc, panel w, four s) {
        return dot_signed(acc, w, s);
    }

    // pairs: at most 2*128*127 = 32512, which int16 holds
    static __m256i dot_bytes(__m256i acc, __m256i u, __m256i s) {
        const __m256i pairs = _mm256_maddubs_epi16(u, s);
        return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
#endif

    static __m256i dot_signed(__m256i acc, __m256i w, __m256i s) {
        return dot_bytes(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(s, w));
    }

    static __m256i broadcast(const int8_t * s) {
        int32_t bytes;
        memcpy(&bytes, s, sizeof(bytes));
        return _mm256_set1_epi32(bytes);
    }

    // 32 nibbles, the low ones first
    static __m256i nibbles(const uint8_t * q) {
        const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) q));
        const __m256i wide = _mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
        return _mm256_and_si256(wide, _mm256_set1_epi8(15));
    }

    static weights load_nibbles(const uint8_t * q) {
        return _mm256_sub_epi8(nibbles(q), _mm256_set1_epi8(8));
    }

    struct first {
        __m256i s;
        __m256i offsets;
    };

    static first load_first(const int8_t * s, const int32_t * offsets) {
        return { _mm256_loadu_si256((const __m256i *) s), _mm256_loadu_si256((const __m256i *) offsets) };
    }

    static sums dot_nibbles(const uint8_t * q, const first & x) {
        return dot_bytes(x.offsets, nibbles(q), x.s);
    }

    static sums dot_int8(const int8_t * w, const first & x) {
        return dot(load_int8(w), x.s);
    }

    static floats splat(float x) {
        return _mm256_set1_ps(x);
    }

    static floats half(uint16_t x) {
        return _mm256_cvtph_ps(_mm_set1_epi16((int16_t) x));
    }

    static sums load(const int32_t * x) {
        return _mm256_loadu_si256((const __m256i *) x);
    }

    static floats load(const float * x) {
        return _mm256_loadu_ps(x);
    }

    static void store(int8_t * out, weights w) {
        _mm256_storeu_si256((__m256i *) out, w);
    }

    static void store(int32_t * out, sums x) {
        _mm256_storeu_si256((__m256i *) out, x);
    }

    static void store(float * out, floats x) {
        _mm256_storeu_ps(out, x);
    }

    static sums negate(sums x) {
        return _mm256_sub_epi32(_mm256_setzero_si256(), x);
    }

    static floats multiply_add(floats acc, sums s, floats scale) {
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), scale, acc);
    }

    static floats multiply(floats x, float y) {
        return _mm256_mul_ps(x, _mm256_set1_ps(y));
    }

    static float sum(floats x) {
        __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_add_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
    }

    static void sum(const floats (&x)[4], float * out) {
        const __m256 low  = _mm256_hadd_ps(x[0], x[1]);
        const __m256 high = _mm256_hadd_ps(x[2], x[3]);
        const __m256 both = _mm256_hadd_ps(low, high);
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
    }

    static int64_t sum(sums s) {
        int32_t lanes[8];
        store(lanes, s);
        int64_t total = 0;
        for (const int32_t lane : lanes) {
            total += lane;
        }
        return total;
    }
};

#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)

#include <arm_neon.h>

struct sb_spike_simd_blocks {
    static constexpr int panel_tokens = 6;
    static constexpr int panel_rows   = 4;

    struct weights {
        int8x16_t low;
        int8x16_t high;
    };
    using counts = weights;
    using panel  = int8x16_t;
    using four   = int8x16_t;
    using sums   = int32x4_t;
    using floats = float32x4_t;

    static counts load_counts(const int8_t * s) {
        return { vld1q_s8(s), vld1q_s8(s + 16) };
    }

    static weights load_int8(const int8_t * w) {
        return load_counts(w);
    }

    static weights load_nibbles(const uint8_t * q) {
        const uint8x16_t both  = vld1q_u8(q);
        const int8x16_t  eight = vdupq_n_s8(8);
        return {
            vsubq_s8(vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), eight),
            vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), eight),
        };
    }

    static sums dot(const weights & w, const counts & s) {
        return vdotq_s32(vdotq_s32(vdupq_n_s32(0), w.low, s.low), w.high, s.high);
    }

    static panel load_panel(const int8_t * w) {
        return vld1q_s8(w);
    }

    static four load_four(const int8_t * s) {
        int32_t bytes;
        memcpy(&bytes, s, sizeof(bytes));
        return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
    }

    static sums panel_dot(sums acc, panel w, four s) {
        return vdotq_s32(acc, w, s);
    }

    static floats splat(float x) {
        return vdupq_n_f32(x);
    }

    static sums load(const int32_t * x) {
        return vld1q_s32(x);
    }

    static floats load(const float * x) {
        return vld1q_f32(x);
    }

    static void store(int8_t * out, const weights & w) {
        vst1q_s8(out, w.low);
        vst1q_s8(out + 16, w.high);
    }

    static void store(int32_t * out, sums x) {
        vst1q_s32(out, x);
    }

    static void store(float * out, floats x) {
        vst1q_f32(out, x);
    }

    static floats half(uint16_t x) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x)));
    }

    static sums negate(sums x) {
        return vnegq_s32(x);
    }

    static floats multiply_add(floats acc, sums s, floats scale) {
        return vfmaq_f32(acc, vcvtq_f32_s32(s), scale);
    }

    static floats multiply(floats x, float y) {
        return vmulq_n_f32(x, y);
    }

    static float sum(floats x) {
        return vaddvq_f32(x);
    }

    static void sum(const floats (&x)[4], float * out) {
        vst1q_f32(out, vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3])));
    }

    static int64_t sum(sums s) {
        return vaddlvq_s32(s);
    }
};

#else

struct sb_spike_simd_blocks {
    static constexpr int panel_tokens = 1;
    static constexpr int panel_rows   = 1;

    struct weights {
        int8_t x[32];
    };
    using counts = const int8_t *;
    using panel  = const int8_t *;
    using four   = const int8_t *;
    using sums   = int32_t;
    using floats = float;

    static counts load_counts(const int8_t * s) {
        return s;
    }

    static weights load_int8(const int8_t * w) {
        weights result;
        for (int i = 0; i < 32; ++i) {
            result.x[i] = w[i];
        }
        return result;
    }

    static weights load_nibbles(const uint8_t * q) {
        weights result;
        for (int i = 0; i < 16; ++i) {
            result.x[i]      = (int8_t) (q[i] & 15) - 8;
            result.x[i + 16] = (int8_t) (q[i] >> 4) - 8;
        }
        return result;
    }

    static sums dot(const weights & w, counts s) {
        int32_t total = 0;
        for (int i = 0; i < 32; ++i) {
            total += w.x[i]*s[i];
        }
        return total;
    }

    static panel load_panel(const int8_t * w) {
        return w;
    }

    static four load_four(const int8_t * s) {
        return s;
    }

    static sums panel_dot(sums acc, panel w, four s) {
        for (int i = 0; i < 4; ++i) {
            acc += w[i]*s[i];
        }
        return acc;
    }

    static floats splat(float x) {
        return x;
    }

    static sums load(const int32_t * x) {
        return *x;
    }

    static floats load(const float * x) {
        return *x;
    }

    static void store(int8_t * out, const weights & w) {
        memcpy(out, w.x, sizeof(w.x));
    }

    static void store(int32_t * out, sums x) {
        *out = x;
    }

    static void store(float * out, floats x) {
        *out = x;
    }

    static floats half(uint16_t x) {
        return ggml_fp16_to_fp32(x);
    }

    static sums negate(sums x) {
        return -x;
    }

    static floats multiply_add(floats acc, sums s, floats scale) {
        return acc + (float) s*scale;
    }

    static floats multiply(floats x, float y) {
        return x*y;
    }

    static float sum(floats x) {
        return x;
    }

    static void sum(const floats (&x)[4], float * out) {
        for (int i = 0; i < 4; ++i) {
            out[i] = x[i];
        }
    }

    static int64_t sum(sums s) {
        return s;
    }
};

#endif

#if !defined(SB_SIMD_X86)

// Weights that are used once are treated as all others.
struct sb_spike_simd : sb_spike_simd_blocks {
    using first = counts;

    static first load_first(const int8_t * s, const int32_t *) {
        return load_counts(s);
    }

    static sums dot_nibbles(const uint8_t * q, const first & x) {
        return dot(load_nibbles(q), x);
    }

    static sums dot_int8(const int8_t * w, const first & x) {
        return dot(load_int8(w), x);
    }
};

#endif
