#include "sb-compiler.h"
#include "sb-sparse-cpu.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "simd-mappings.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

// Columns that are added together, so that sums are loaded and stored once for all of them.
constexpr int sb_sparse_together = 4;

struct sb_sparse_args {
    const ggml_tensor * columns;
    const float *       zones;
    const float *       x;
    float *             out;
    int64_t             n;
    int64_t             m;
    int64_t             n_tokens;
    float               max_density;
};

sb_sparse_args sb_sparse_get_args(const ggml_tensor * dst) {
    sb_sparse_args args;
    args.columns     = dst->src[SB_SPARSE_COLUMNS];
    args.zones       = (const float *) dst->src[SB_SPARSE_ZONES]->data;
    args.x           = (const float *) dst->src[SB_SPARSE_X]->data;
    args.out         = (float *) dst->data;
    args.n           = dst->src[SB_SPARSE_X]->ne[0];
    args.m           = dst->ne[0];
    args.n_tokens    = dst->ne[1];
    args.max_density = ggml_get_op_params_f32(dst, 0);
    return args;
}

// Not finite entries are never silent.
bool sb_sparse_is_silent(float x, float zone) {
    return std::fabs(x) < zone;
}

// A token's active channels, ascending, after their number.
int32_t * sb_sparse_list_of(const sb_sparse_args & a, int32_t * lists, int64_t token) {
    return lists + token*(a.n + 1);
}

// Lists the active channels of all tokens; returns how many there are.
int64_t sb_sparse_list_active(const sb_sparse_args & a, int32_t * lists) {
    int64_t n_all = 0;
    for (int64_t t = 0; t < a.n_tokens; ++t) {
        int32_t * list     = sb_sparse_list_of(a, lists, t);
        int32_t   n_active = 0;
        for (int64_t c = 0; c < a.n; ++c) {
            list[1 + n_active] = (int32_t) c;
            n_active += !sb_sparse_is_silent(a.x[t*a.n + c], a.zones[c]);
        }
        list[0] = n_active;
        n_all  += n_active;
    }
    return n_all;
}

// ---- a column times a number, added to sums ----

// A column and what it is multiplied with.
template <typename Block> struct sb_sparse_term {
    const Block * column;
    float         x;
};

#if defined(__AVX512F__)
// sums[0, 32) += x * block; of the nibbles vpermps looks at no more than it needs, the index into 16 weights
void sb_sparse_add_block(const block_q4_0 & b, __m512 x, __m512 & low, __m512 & high) {
    const __m512  weights = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i bytes   = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) b.qs));
    low  = _mm512_fmadd_ps(x, _mm512_permutexvar_ps(bytes, weights), low);
    high = _mm512_fmadd_ps(x, _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), weights), high);
}

void sb_sparse_add_block(const block_q8_0 & b, __m512 x, __m512 & low, __m512 & high) {
    const __m128i * bytes = (const __m128i *) b.qs;
    low  = _mm512_fmadd_ps(x, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes))), low);
    high = _mm512_fmadd_ps(x, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes + 1))), high);
}

template <typename Block, int N>
void sb_sparse_add_blocks(const sb_sparse_term<Block> * terms, int64_t i, float * sums) {
    __m512 low  = _mm512_loadu_ps(sums);
    __m512 high = _mm512_loadu_ps(sums + 16);
    SB_UNROLL
    for (int k = 0; k < N; ++k) {
        const Block & block = terms[k].column[i];
        sb_sparse_add_block(block, _mm512_set1_ps(terms[k].x*GGML_CPU_FP16_TO_FP32(block.d)), low, high);
    }
    _mm512_storeu_ps(sums, low);
    _mm512_storeu_ps(sums + 16, high);
}
#else
float sb_sparse_weight(const block_q4_0 & b, int j) { return (float) ((j < 16 ? b.qs[j] & 15 : b.qs[j - 16] >> 4) - 8); }
float sb_sparse_weight(const block_q8_0 & b, int j) { return (float) b.qs[j]; }

template <typename Block, int N>
void sb_sparse_add_blocks(const sb_sparse_term<Block> * terms, int64_t i, float * sums) {
    for (int k = 0; k < N; ++k) {
        const Block & block = terms[k].column[i];
        const float   x     = terms[k].x*GGML_CPU_FP16_TO_FP32(block.d);
        for (int j = 0; j < 16; ++j) {
            sums[j]      += x*sb_sparse_weight(block, j);
            sums[j + 16] += x*sb_sparse_weight(block, j + 16);
        }
    }
}
#endif

// sums[0, m) += N columns; meanwhile those after them are on their way to the caches
template <typename Block, int N>
void sb_sparse_add_terms(int64_t m, const sb_sparse_term<Block> * terms, const sb_sparse_term<Block> * next, int n_next, float * sums) {
    constexpr int64_t line = 64/sizeof(Block);
    for (int64_t i = 0; i < m/32; ++i) {
        for (int k = 0; k < n_next && i % line == 0; ++k) {
            SB_PREFETCH(next[k].column + i);
        }
        sb_sparse_add_blocks<Block, N>(terms, i, sums + i*32);
    }
}

template <typename Block>
void sb_sparse_add_columns(const sb_sparse_args & a, int64_t token, const int32_t * list, int64_t n_list, float * sums) {
    const auto term = [&](int64_t i) {
        return sb_sparse_term<Block>{ (const Block *) ((const char *) a.columns->data + list[i]*a.columns->nb[1]), a.x[token*a.n + list[i]] };
    };
    sb_sparse_term<Block> terms[sb_sparse_together];
    sb_sparse_term<Block> next[sb_sparse_together];
    int n_next = 0;
    const auto fetch = [&](int64_t i) {
        n_next = (int) std::min<int64_t>(sb_sparse_together, n_list - i);
        for (int k = 0; k < n_next; ++k) {
            next[k] = term(i + k);
        }
    };
    fetch(0);
    for (int64_t i = 0; i < n_list; ) {
        const int n_terms = n_next;
        std::copy(next, next + n_terms, terms);
        i += n_terms;
        fetch(i);
        if (n_terms == sb_sparse_together) {
            sb_sparse_add_terms<Block, sb_sparse_together>(a.m, terms, next, n_next, sums);
            continue;
        }
        for (int k = 0; k < n_terms; ++k) {
            sb_sparse_add_terms<Block, 1>(a.m, terms + k, next, 0, sums);
        }
    }
}

// Columns of any type that ggml can convert, through a copy as floats.
void sb_sparse_add_converted(const sb_sparse_args & a, int64_t token, const int32_t * list, int64_t n_list, float * sums, float * copy) {
    const auto to_float = ggml_get_type_traits(a.columns->type)->to_float;
    for (int64_t i = 0; i < n_list; ++i) {
        const char *  column  = (const char *) a.columns->data + list[i]*a.columns->nb[1];
        const float   x       = a.x[token*a.n + list[i]];
        const float * weights = (const float *) column;
        if (to_float) {
            to_float(column, copy, a.m);
            weights = copy;
        }
        for (int64_t j = 0; j < a.m; ++j) {
            sums[j] += x*weights[j];
        }
    }
}

void sb_sparse_add_listed(const sb_sparse_args & a, int64_t token, const int32_t * list, int64_t n_list, float * sums, float * copy) {
    switch (a.columns->type) {
        case GGML_TYPE_Q4_0: sb_sparse_add_columns<block_q4_0>(a, token, list, n_list, sums); break;
        case GGML_TYPE_Q8_0: sb_sparse_add_columns<block_q8_0>(a, token, list, n_list, sums); break;
        default:             sb_sparse_add_converted(a, token, list, n_list, sums, copy);
    }
}

// ---- reference implementation, in double precision ----

void sb_sparse_reference(const sb_sparse_args & a) {
    const auto to_float = ggml_get_type_traits(a.columns->type)->to_float;
    std::vector<float>  copy(a.m);
    std::vector<double> sums(a.m);
    for (int64_t t = 0; t < a.n_tokens; ++t) {
        std::fill(sums.begin(), sums.end(), 0.0);
        for (int64_t c = 0; c < a.n; ++c) {
            const float  x      = a.x[t*a.n + c];
            const char * column = (const char *) a.columns->data + c*a.columns->nb[1];
            if (sb_sparse_is_silent(x, a.zones[c])) {
                continue;
            }
            if (to_float) {
                to_float(column, copy.data(), a.m);
            } else {
                memcpy(copy.data(), column, a.m*sizeof(float));
            }
            for (int64_t j = 0; j < a.m; ++j) {
                sums[j] += (double) x*copy[j];
            }
        }
        std::copy(sums.begin(), sums.end(), a.out + t*a.m);
    }
}

// ---- the work space: for each thread its lists, its sums and a converted column; then x for the dense product ----

size_t sb_sparse_pad(size_t n) {
    return (n + 63)/64*64;
}

struct sb_sparse_work {
    size_t lists;  // bytes
    size_t sums;
    size_t thread; // all of a thread's
    size_t x;

    sb_sparse_work(int64_t n, int64_t m, int64_t n_tokens) :
        lists(sb_sparse_pad(n_tokens*(n + 1)*sizeof(int32_t))), sums(sb_sparse_pad(m*sizeof(float))), thread(lists + 2*sums),
        x(sb_sparse_pad(n*n_tokens*sizeof(float))) {}

    size_t all(int n_threads) const { return n_threads*thread + x; }
};

std::atomic<int64_t> sb_sparse_n_products, sb_sparse_n_dense, sb_sparse_n_channels, sb_sparse_n_active;

void sb_sparse_round_count(const sb_sparse_args & a, int64_t n_active, bool dense) {
    sb_sparse_n_products.fetch_add(a.n_tokens, std::memory_order_relaxed);
    sb_sparse_n_dense   .fetch_add(dense ? a.n_tokens : 0, std::memory_order_relaxed);
    sb_sparse_n_channels.fetch_add(a.n*a.n_tokens, std::memory_order_relaxed);
    sb_sparse_n_active  .fetch_add(n_active, std::memory_order_relaxed);
}

char * sb_sparse_work_of(const ggml_compute_params * params) {
    return (char *) sb_sparse_pad((size_t) params->wdata);
}

// Of one token: every thread adds its share of the active columns, then every thread its share of the sums.
void sb_sparse_token(const ggml_compute_params * params, const sb_sparse_args & a, const sb_sparse_work & work, int64_t token) {
    const int ith = params->ith;
    const int nth = params->nth;

    char * own  = sb_sparse_work_of(params) + ith*work.thread;
    auto * list = sb_sparse_list_of(a, (int32_t *) own, token);
    auto * sums = (float *) (own + work.lists);
    auto * copy = (float *) (own + work.lists + work.sums);

    const int64_t n_active = *list++;
    const int64_t n_groups = (n_active + sb_sparse_together - 1)/sb_sparse_together;
    const int64_t first    = std::min(n_groups*ith/nth*sb_sparse_together, n_active);
    const int64_t last     = std::min(n_groups*(ith + 1)/nth*sb_sparse_together, n_active);
    std::fill(sums, sums + a.m, 0.0f);
    sb_sparse_add_listed(a, token, list + first, last - first, sums, copy);

    ggml_barrier(params->threadpool);
    for (int64_t j = a.m*ith/nth; j < a.m*(ith + 1)/nth; ++j) {
        float sum = 0.0f;
        for (int i = 0; i < nth; ++i) {
            sum += ((const float *) (sb_sparse_work_of(params) + i*work.thread + work.lists))[j];
        }
        a.out[token*a.m + j] = sum;
    }
}

} // namespace

void sb_sparse_make_dense(const ggml_tensor * op, sb_sparse_dense * dense) {
    dense->x       = *op->src[SB_SPARSE_X];
    dense->product = *op;
    dense->product.op = GGML_OP_MUL_MAT;
    memset(dense->product.op_params, 0, sizeof(dense->product.op_params));
    std::fill(std::begin(dense->product.src), std::end(dense->product.src), nullptr);
    dense->product.src[0] = op->src[SB_SPARSE_ROWS];
    dense->product.src[1] = &dense->x;
}

size_t sb_sparse_work_size(const ggml_tensor * op, int n_threads) {
    return sb_sparse_work(op->src[SB_SPARSE_X]->ne[0], op->ne[0], op->ne[1]).all(n_threads) + 64;
}

// Only the rows may lie in a layout of their own.
bool sb_sparse_supports(const ggml_tensor * op) {
    for (int i = SB_SPARSE_COLUMNS; i <= SB_SPARSE_X; ++i) {
        const ggml_backend_buffer_t buffer = op->src[i]->buffer;
        if (buffer != nullptr && !ggml_backend_buft_is_host(ggml_backend_buffer_get_type(buffer))) {
            return false;
        }
    }
    const ggml_tensor * columns = op->src[SB_SPARSE_COLUMNS];
    return ggml_is_contiguous(columns) && ggml_is_contiguous(op->src[SB_SPARSE_X]) &&
        (columns->type == GGML_TYPE_F32 || ggml_get_type_traits(columns->type)->to_float != nullptr);
}

bool sb_sparse_mul_mat_compute(const ggml_compute_params * params, ggml_tensor * dst, sb_sparse_dense * dense) {
    const sb_sparse_args a = sb_sparse_get_args(dst);
    if (params->use_ref) {
        if (params->ith == 0) {
            sb_sparse_reference(a);
        }
        return true;
    }
    const sb_sparse_work work(a.n, a.m, a.n_tokens);
    const int64_t n_active = sb_sparse_list_active(a, (int32_t *) (sb_sparse_work_of(params) + params->ith*work.thread));
    const bool    is_dense = n_active > a.max_density*(float) (a.n*a.n_tokens);
    if (params->ith == 0) {
        sb_sparse_round_count(a, n_active, is_dense);
    }
    if (!is_dense) {
        for (int64_t t = 0; t < a.n_tokens; ++t) {
            if (t > 0) {
                ggml_barrier(params->threadpool); // the sums of the token before have been read
            }
            sb_sparse_token(params, a, work, t);
        }
        return true;
    }

    auto * x = (float *) (sb_sparse_work_of(params) + params->nth*work.thread);
    for (int64_t i = params->ith; i < a.n*a.n_tokens; i += params->nth) {
        x[i] = sb_sparse_is_silent(a.x[i], a.zones[i % a.n]) ? 0.0f : a.x[i];
    }
    ggml_barrier(params->threadpool);
    sb_sparse_make_dense(dst, dense);
    dense->x.data       = x;
    dense->params       = *params;
    dense->params.wdata = (char *) x + work.x;
    dense->params.wsize = (char *) params->wdata + params->wsize - (char *) dense->params.wdata;
    return false;
}

void sb_sparse_counters_reset() {
    for (auto * counter : { &sb_sparse_n_products, &sb_sparse_n_dense, &sb_sparse_n_channels, &sb_sparse_n_active }) {
        counter->store(0, std::memory_order_relaxed);
    }
}

void sb_sparse_counters_get(sb_sparse_counts * counts) {
    *counts = { sb_sparse_n_products.load(std::memory_order_relaxed), sb_sparse_n_dense.load(std::memory_order_relaxed),
                sb_sparse_n_channels.load(std::memory_order_relaxed), sb_sparse_n_active.load(std::memory_order_relaxed) };
}

void * sb_sparse_proc_address(const char * name) {
    if (strcmp(name, "sb_sparse_counters_reset") == 0) {
        return (void *) sb_sparse_counters_reset;
    }
    return strcmp(name, "sb_sparse_counters_get") == 0 ? (void *) sb_sparse_counters_get : nullptr;
}
