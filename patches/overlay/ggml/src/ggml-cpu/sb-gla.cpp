#include "sb-gla.h"
#include "sb-gla-args.h"
#include "sb-gla-chunk.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace {

// Token by token an item of work is a column of value channels: a cache line of floats. Its d rows fit into the first-level
// cache (8 KiB for d = 128), so that tokens follow each other without touching the state in memory.
constexpr int sb_gla_column_width = 16;

// Tokens of a sequence for which there are chunks. Inputs of fewer stay in the caches while the columns walk them.
constexpr int sb_gla_min_chunked = 64;

// Query heads served by one pass over the state; more than these spill out of the registers.
constexpr int sb_gla_heads_at_once = 8;

bool sb_gla_in_chunks(const ggml_tensor * dst) {
#if defined(SB_VECTORS)
    const bool    by_token     = ggml_get_op_params_i32(dst, 1) != 0;
    const int64_t n_seq_tokens = dst->src[0]->ne[2]/dst->src[4]->ne[1];
    return n_seq_tokens >= sb_gla_min_chunked && !by_token;
#else
    GGML_UNUSED(dst);
    return false;
#endif
}

sb_gla_args sb_gla_get_args(const ggml_tensor * dst) {
    const ggml_tensor * k     = dst->src[0];
    const ggml_tensor * q     = dst->src[2];
    const ggml_tensor * state = dst->src[4];

    sb_gla_args args;
    args.k            = (const float *) k->data;
    args.v            = (const float *) dst->src[1]->data;
    args.q            = (const float *) q->data;
    args.a            = (const float *) dst->src[3]->data;
    args.state_in     = (const float *) state->data;
    args.d            = k->ne[0];
    args.n_head       = q->ne[1];
    args.n_head_kv    = k->ne[1];
    args.n_seqs       = state->ne[1];
    args.n_seq_tokens = k->ne[2]/args.n_seqs;
    args.out          = (float *) dst->data;
    args.state_out    = args.out + args.d*args.n_head*k->ne[2];
    args.scale        = ggml_get_op_params_f32(dst, 0);
    return args;
}

// Reference implementation of the recurrence, one scalar at a time.
void sb_gla_reference(const sb_gla_args & g) {
    const int64_t d     = g.d;
    const int64_t group = g.n_head/g.n_head_kv;

    std::copy(g.state_in, g.state_in + d*d*g.n_head_kv*g.n_seqs, g.state_out);

    for (int64_t t = 0; t < g.n_seq_tokens*g.n_seqs; ++t) {
        const int64_t seq = t/g.n_seq_tokens;
        for (int64_t h = 0; h < g.n_head_kv; ++h) {
            float *       S = g.state_out + (seq*g.n_head_kv + h)*d*d;
            const float * k = g.k + (t*g.n_head_kv + h)*d;
            const float * v = g.v + (t*g.n_head_kv + h)*d;
            const float * a = g.a + (t*g.n_head_kv + h)*d;
            for (int64_t i = 0; i < d; ++i) {
                for (int64_t j = 0; j < d; ++j) {
                    S[i*d + j] = a[i]*S[i*d + j] + k[i]*v[j];
                }
            }
        }
        for (int64_t h = 0; h < g.n_head; ++h) {
            const float * S = g.state_out + (seq*g.n_head_kv + h/group)*d*d;
            const float * q = g.q + (t*g.n_head + h)*d;
            float *       o = g.out + (t*g.n_head + h)*d;
            for (int64_t j = 0; j < d; ++j) {
                float sum = 0.0f;
                for (int64_t i = 0; i < d; ++i) {
                    sum += q[i]*S[i*d + j];
                }
                o[j] = g.scale*sum;
            }
        }
    }
}

// A block of value channels. Loops over an array leave it to luck whether many heads stay in registers.
#if defined(SB_VECTORS)
typedef sb_vec_of<sb_gla_column_width>::f sb_gla_vec;
#else
struct sb_gla_vec {
    float x[sb_gla_column_width];
    float & operator[](int j) { return x[j]; }
    friend sb_gla_vec operator*(float a, sb_gla_vec b) { for (float & y : b.x) { y *= a; } return b; }
    friend sb_gla_vec operator+(sb_gla_vec a, const sb_gla_vec & b) {
        for (int j = 0; j < sb_gla_column_width; ++j) {
            a.x[j] += b.x[j];
        }
        return a;
    }
};
#endif

// `width` is a constant sb_gla_column_width for whole blocks, so that these become plain vector loads and stores.
// Vectors go by reference: passed by value, their registers would depend on the target.
template <typename W> void sb_gla_load(sb_gla_vec & v, const float * x, W width) {
    v = sb_gla_vec{};
    memcpy(&v, x, width*sizeof(float));
}

template <typename W> void sb_gla_store(float * x, const sb_gla_vec & v, W width) {
    memcpy(x, &v, width*sizeof(float));
}

// One token, `width` value channels and G query heads that share a state.
// update: decay the state and add k^T v before reading it; else only read it.
template <int G, bool update, typename W>
void sb_gla_token(
        int64_t d, W width, float scale,
        const float * k, const float * v, const float * a, const float * q,
        const float * prev, float * cur, float * out) {
    sb_gla_vec acc[G] = {};
    sb_gla_vec vj     = {};
    if (update) {
        sb_gla_load(vj, v, width);
    }
    for (int64_t i = 0; i < d; ++i) {
        sb_gla_vec s;
        sb_gla_load(s, prev + i*d, width);
        if (update) {
            s = a[i]*s + k[i]*vj;
            sb_gla_store(cur + i*d, s, width);
        }
        for (int g = 0; g < G; ++g) {
            acc[g] = acc[g] + q[g*d + i]*s;
        }
    }
    for (int g = 0; g < G; ++g) {
        sb_gla_store(out + g*d, scale*acc[g], width);
    }
}

template <bool update, typename W>
void sb_gla_heads(
        int n, int64_t d, W width, float scale,
        const float * k, const float * v, const float * a, const float * q,
        const float * prev, float * cur, float * out) {
    switch (n) {
        case 1: sb_gla_token<1, update>(d, width, scale, k, v, a, q, prev, cur, out); break;
        case 2: sb_gla_token<2, update>(d, width, scale, k, v, a, q, prev, cur, out); break;
        case 3: sb_gla_token<3, update>(d, width, scale, k, v, a, q, prev, cur, out); break;
        case 4: sb_gla_token<4, update>(d, width, scale, k, v, a, q, prev, cur, out); break;
        case 5: sb_gla_token<5, update>(d, width, scale, k, v, a, q, prev, cur, out); break;
        case 6: sb_gla_token<6, update>(d, width, scale, k, v, a, q, prev, cur, out); break;
        case 7: sb_gla_token<7, update>(d, width, scale, k, v, a, q, prev, cur, out); break;
        case 8: sb_gla_token<8, update>(d, width, scale, k, v, a, q, prev, cur, out); break;
        default: GGML_ABORT("sb_gla: %d query heads at once", n);
    }
}

// All tokens of one sequence, for one key/value head and value channels [j0, j0 + width).
template <typename W>
void sb_gla_column(const sb_gla_args & g, int64_t seq, int64_t h, int64_t j0, W width) {
    const int64_t d     = g.d;
    const int64_t group = g.n_head/g.n_head_kv;

    const int64_t s_off = (seq*g.n_head_kv + h)*d*d + j0;
    const float * prev  = g.state_in  + s_off;
    float *       cur   = g.state_out + s_off;

    for (int64_t t = seq*g.n_seq_tokens; t < (seq + 1)*g.n_seq_tokens; ++t) {
        const int64_t kv_off = (t*g.n_head_kv + h)*d;
        for (int64_t g0 = 0; g0 < group; g0 += sb_gla_heads_at_once) {
            const int     n     = (int) std::min<int64_t>(sb_gla_heads_at_once, group - g0);
            const int64_t q_off = (t*g.n_head + h*group + g0)*d;
            const auto    heads = g0 == 0 ? sb_gla_heads<true, W> : sb_gla_heads<false, W>;
            heads(n, d, width, g.scale, g.k + kv_off, g.v + kv_off + j0, g.a + kv_off, g.q + q_off,
                    prev, cur, g.out + q_off + j0);
            prev = cur;
        }
    }
}

void sb_gla_token_by_token(const ggml_compute_params * params, const sb_gla_args & g) {
    const int64_t n_columns = (g.d + sb_gla_column_width - 1)/sb_gla_column_width;
    const int64_t n_items   = g.n_seqs*g.n_head_kv*n_columns;
    const int64_t first     = n_items*(params->ith    )/params->nth;
    const int64_t last      = n_items*(params->ith + 1)/params->nth;

    for (int64_t item = first; item < last; ++item) {
        const int64_t seq = item/(g.n_head_kv*n_columns);
        const int64_t h   = item/n_columns % g.n_head_kv;
        const int64_t j0  = item % n_columns*sb_gla_column_width;
        if (j0 + sb_gla_column_width <= g.d) {
            sb_gla_column(g, seq, h, j0, std::integral_constant<int, sb_gla_column_width>());
        } else {
            sb_gla_column(g, seq, h, j0, (int) (g.d - j0));
        }
    }
}

#if defined(SB_VECTORS)
void sb_gla_by_chunks(const ggml_compute_params * params, const sb_gla_args & g) {
    const sb_gla_plan plan = sb_gla_make_plan(g, params->nth);
    float *           work = (float *) sb_gla_pad((intptr_t) params->wdata, 64);

    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    for (int64_t i = params->ith; i < plan.n_items; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        sb_gla_run(g, plan, sb_gla_get_item(g, plan, i), work + params->ith*plan.heads*plan.scratch);
    }
}

size_t sb_gla_by_chunks_size(const sb_gla_args & g, int n_threads) {
    return sb_gla_heads_in_scratch(g, n_threads)*sb_gla_make_plan(g, n_threads).scratch*sizeof(float) + 64;
}
#else
void   sb_gla_by_chunks(const ggml_compute_params *, const sb_gla_args &) {}
size_t sb_gla_by_chunks_size(const sb_gla_args &, int) { return 0; }
#endif

} // namespace

size_t sb_gla_work_size(const ggml_tensor * dst, int n_threads) {
    return sb_gla_in_chunks(dst) ? sb_gla_by_chunks_size(sb_gla_get_args(dst), n_threads) : 0;
}

void sb_gla_compute(const ggml_compute_params * params, ggml_tensor * dst) {
    for (int i = 0; i < 5; ++i) {
        GGML_ASSERT(dst->src[i]->type == GGML_TYPE_F32);
    }
    const sb_gla_args g = sb_gla_get_args(dst);

    if (params->ith == 0) {
        // the result has whole rows, the states may end inside the last one
        std::fill(g.state_out + g.d*g.d*g.n_head_kv*g.n_seqs, (float *) dst->data + ggml_nelements(dst), 0.0f);
    }

    if (params->use_ref) {
        if (params->ith == 0) {
            sb_gla_reference(g);
        }
        return;
    }
    if (sb_gla_in_chunks(dst)) {
        sb_gla_by_chunks(params, g);
    } else {
        sb_gla_token_by_token(params, g);
    }
}
