#include "sb-attn.h"
#include "sb-vec.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include "simd-mappings.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

constexpr float SB_NOTHING_YET = -1e30f; // a maximum of no scores; finite, so that differences are

struct sb_attn_args {
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * v;
    const ggml_tensor * mask;
    float *             out;
    int64_t             n_tokens;
    int64_t             n_head;
    int64_t             n_head_kv;
    int64_t             n_kv;
    int64_t             d_k;
    int64_t             d_v;
    float               scale;
};

sb_attn_args sb_attn_get_args(const ggml_tensor * dst) {
    sb_attn_args args;
    args.q         = dst->src[0];
    args.k         = dst->src[1];
    args.v         = dst->src[2];
    args.mask      = dst->src[3];
    args.out       = (float *) dst->data;
    args.n_tokens  = args.q->ne[1];
    args.n_head    = args.q->ne[2];
    args.n_head_kv = args.k->ne[2];
    args.n_kv      = args.k->ne[1];
    args.d_k       = args.k->ne[0];
    args.d_v       = args.v->ne[0];
    args.scale     = ggml_get_op_params_f32(dst, 0);
    return args;
}

const char * sb_attn_row(const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
    return (const char *) t->data + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3];
}

// Mask of a token: values added to the scores of the keys, or null.
const ggml_fp16_t * sb_attn_mask_row(const sb_attn_args & a, int64_t token, int64_t seq) {
    return a.mask ? (const ggml_fp16_t *) sb_attn_row(a.mask, token, 0, seq % a.mask->ne[3]) : nullptr;
}

float * sb_attn_out_row(const sb_attn_args & a, int64_t token, int64_t head, int64_t seq) {
    return a.out + ((seq*a.n_tokens + token)*a.n_head + head)*a.d_v;
}

void sb_attn_to_floats(ggml_type type, const void * row, int64_t n, float * out) {
    switch (type) {
        case GGML_TYPE_F32:
            memcpy(out, row, n*sizeof(float));
            break;
        case GGML_TYPE_F16:
            ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) row, out, n);
            break;
        case GGML_TYPE_Q8_0:
            for (int64_t i = 0; i < n/QK8_0; ++i) {
                const block_q8_0 & block = ((const block_q8_0 *) row)[i];
                const float        scale = GGML_CPU_FP16_TO_FP32(block.d);
                for (int j = 0; j < QK8_0; ++j) {
                    out[i*QK8_0 + j] = scale*block.qs[j];
                }
            }
            break;
        default:
            ggml_get_type_traits(type)->to_float(row, out, n);
    }
}

// ---- reference implementation ----

void sb_attn_reference(const sb_attn_args & a, int64_t token, int64_t head, int64_t seq) {
    const int64_t head_kv = head/(a.n_head/a.n_head_kv);
    const auto *  q       = (const float *) sb_attn_row(a.q, token, head, seq);
    const auto *  mask    = sb_attn_mask_row(a, token, seq);

    std::vector<float>  row(std::max(a.d_k, a.d_v));
    std::vector<double> scores(a.n_kv);
    double max = -INFINITY;
    for (int64_t j = 0; j < a.n_kv; ++j) {
        sb_attn_to_floats(a.k->type, sb_attn_row(a.k, j, head_kv, seq), a.d_k, row.data());
        double sum = 0.0;
        for (int64_t c = 0; c < a.d_k; ++c) {
            sum += (double) q[c]*row[c];
        }
        scores[j] = a.scale*sum + (mask ? GGML_CPU_FP16_TO_FP32(mask[j]) : 0.0f);
        max       = std::max(max, scores[j]);
    }
    std::vector<double> out(a.d_v);
    double total = 0.0;
    for (int64_t j = 0; j < a.n_kv && max > -INFINITY; ++j) {
        const double p = exp(scores[j] - max);
        sb_attn_to_floats(a.v->type, sb_attn_row(a.v, j, head_kv, seq), a.d_v, row.data());
        for (int64_t c = 0; c < a.d_v; ++c) {
            out[c] += p*row[c];
        }
        total += p;
    }
    for (int64_t c = 0; c < a.d_v; ++c) {
        sb_attn_out_row(a, token, head, seq)[c] = total > 0.0 ? (float) (out[c]/total) : 0.0f;
    }
}

#if defined(SB_VECTORS)

// ---- the fast form: a tile of rows (tokens by heads of a group) against blocks of keys ----

constexpr int64_t sb_attn_keys = 32; // of a block: with their values they stay in the first-level cache

constexpr int     sb_attn_key_tile = 4;  // keys of a register tile of scores
constexpr int     sb_attn_row_tile = 4;  // rows of a register tile of results; channels: sb_row_vecs vectors
constexpr int64_t sb_attn_max_rows = 64; // of a tile

constexpr int64_t sb_attn_max_tiles = 8; // of an item: they share the copies of keys and values

// Maximum rows of a tile that takes all key/value heads together, so that the cache is read from end to end.
constexpr int64_t sb_attn_few_rows = 16;

// Pieces of work for each thread, so that uneven ones even out.
constexpr int64_t sb_attn_items_a_thread = 4;

int64_t sb_attn_pad(int64_t n, int64_t to) {
    return (n + to - 1)/to*to;
}

bool sb_attn_is_direct(const sb_attn_args & a, const ggml_tensor * t) {
    return (t->type == GGML_TYPE_F32 || t->type == GGML_TYPE_F16) && t->type == a.k->type && t->ne[0] % sb_lanes == 0;
}

// What a thread works in, for one tile. Those of its other tiles and heads follow.
struct sb_attn_scratch {
    float * q;      // [d_k][rows] scaled queries; [rows][d_k] if keys and values are read where they are
    float * k;      // [sb_attn_keys][d_k] copies as floats, of the head
    float * v;      // [sb_attn_keys][d_v padded]
    float * scores; // [sb_attn_keys][rows], then probabilities; one for all tiles of a head
    float * shrink; // [rows] what the sums so far are multiplied with
    float * max;    // [rows] of scores; with what follows the sums of a result
    float * total;  // [rows] of probabilities
    float * out;    // [rows][d_v padded]
};

struct sb_attn_plan {
    int64_t tokens;  // of a tile
    int64_t rows;    // of a tile, padded
    int64_t width;   // lanes of rows
    int64_t heads;   // key/value heads of an item
    int64_t tiles;   // of an item, for each of its heads
    int64_t n_spans; // of tokens, each as many as an item's tiles have
    bool    direct;  // few rows read keys and values where they are, many have them copied as floats
    int64_t d_v;     // padded
    int64_t n_parts; // of the keys
    int64_t part;    // keys of a part
    int64_t n_items;
    int64_t q;       // floats of a tile's queries
    int64_t k;       // of a head's keys
    int64_t v;       // of its values
    int64_t scores;  // of its scores, and what sums shrink by
    int64_t sums;    // of a tile's sums
    int64_t scratch; // of a thread
};

int64_t sb_attn_width(int64_t rows) {
    return rows <= 4 ? 4 : rows <= 8 && sb_lanes > 8 ? 8 : sb_lanes;
}

sb_attn_plan sb_attn_make_plan(const sb_attn_args & a, int n_threads) {
    const int64_t group = a.n_head/a.n_head_kv;

    sb_attn_plan plan;
    plan.tokens  = std::min(std::max<int64_t>(1, sb_attn_max_rows/group), a.n_tokens);
    plan.width   = sb_attn_width(plan.tokens*group);
    plan.rows    = sb_attn_pad(plan.tokens*group, std::max<int64_t>(plan.width, sb_attn_row_tile));
    plan.d_v     = sb_attn_pad(a.d_v, sb_lanes);
    plan.heads   = plan.rows <= sb_attn_few_rows ? a.n_head_kv : 1;
    plan.direct  = plan.rows <= sb_attn_few_rows && sb_attn_is_direct(a, a.k) && sb_attn_is_direct(a, a.v);

    const int64_t n_tiles   = (a.n_tokens + plan.tokens - 1)/plan.tokens;
    const int64_t n_heads   = a.q->ne[3]*(a.n_head_kv/plan.heads);
    const int64_t n_wanted  = sb_attn_items_a_thread*n_threads;
    plan.tiles   = std::min(std::max<int64_t>(1, n_heads*n_tiles/n_wanted), std::min(sb_attn_max_tiles, n_tiles));
    plan.n_spans = (n_tiles + plan.tiles - 1)/plan.tiles;

    const int64_t n_results = n_heads*plan.n_spans;
    const int64_t wanted    = (n_wanted + n_results - 1)/n_results;
    const int64_t n_blocks  = (a.n_kv + sb_attn_keys - 1)/sb_attn_keys;
    plan.n_parts = std::max<int64_t>(1, std::min(wanted, n_blocks/4));
    plan.part    = (n_blocks + plan.n_parts - 1)/plan.n_parts*sb_attn_keys;
    plan.n_items = n_results*plan.n_parts;

    plan.q       = sb_attn_pad(plan.rows*a.d_k, 16);
    plan.k       = sb_attn_pad(sb_attn_keys*a.d_k, 16);
    plan.v       = sb_attn_keys*plan.d_v;
    plan.sums    = sb_attn_pad(plan.rows*(plan.d_v + 2), 16);
    plan.scores  = sb_attn_pad(plan.rows*(sb_attn_keys + 1), 16);
    plan.scratch = plan.heads*(plan.tiles*plan.q + plan.k + plan.v + plan.scores);
    return plan;
}

// Floats of an item's sums. They are kept until all parts are there; those of a whole result are written at once.
int64_t sb_attn_item_sums(const sb_attn_plan & plan) {
    return plan.heads*plan.tiles*plan.sums;
}

int64_t sb_attn_n_sums(const sb_attn_plan & plan, int n_threads) {
    return plan.n_parts > 1 ? plan.n_items : n_threads;
}

sb_attn_scratch sb_attn_lay_out(const sb_attn_plan & plan, float * own, float * sums, int64_t head, int64_t tile) {
    float * k      = own + plan.heads*plan.tiles*plan.q;
    float * v      = k + plan.heads*plan.k;
    float * scores = v + plan.heads*plan.v;

    sb_attn_scratch s;
    s.q      = own + (head*plan.tiles + tile)*plan.q;
    s.k      = k + head*plan.k;
    s.v      = v + head*plan.v;
    s.scores = scores + head*plan.scores;
    s.shrink = s.scores + sb_attn_keys*plan.rows;
    s.max    = sums + (head*plan.tiles + tile)*plan.sums;
    s.total  = s.max + plan.rows;
    s.out    = s.max + plan.rows*2;
    return s;
}

enum sb_attn_seen_by { SB_SEES_NONE, SB_SEES_SOME, SB_SEES_ALL };

// What a tile's tokens see of keys [j0, j1). Negative infinity hides a key, 0 shows it as it is.
sb_attn_seen_by sb_attn_seen(const sb_attn_args & a, int64_t token, int64_t token_end, int64_t seq, int64_t j0, int64_t j1) {
    if (a.mask == nullptr) {
        return SB_SEES_ALL;
    }
    uint16_t all = 0xffff;
    uint16_t any = 0;
    for (int64_t t = token; t < token_end; ++t) {
        const ggml_fp16_t * mask = sb_attn_mask_row(a, t, seq);
        for (int64_t j = j0; j < j1; ++j) {
            const uint16_t hidden = mask[j] == 0xfc00 ? 0xffff : 0;
            all &= hidden;
            any |= mask[j];
        }
    }
    return all ? SB_SEES_NONE : any ? SB_SEES_SOME : SB_SEES_ALL;
}

// scores[j][r] = k[j] q[r] for the `width`*N rows from r on
template <int W, int N, int K>
void sb_attn_score_tile(int64_t d, int64_t rows, const float * k, const float * q, float * scores) {
    using f = typename sb_vec_of<W>::f;
    f acc[K][N] = {};
    for (int64_t c = 0; c < d; ++c) {
        f x[N];
        SB_UNROLL
        for (int n = 0; n < N; ++n) {
            memcpy(&x[n], q + c*rows + n*W, sizeof(f));
            sb_keep(x[n]);
        }
        SB_UNROLL
        for (int j = 0; j < K; ++j) {
            SB_UNROLL
            for (int n = 0; n < N; ++n) {
                acc[j][n] += k[j*d + c]*x[n];
            }
        }
    }
    for (int j = 0; j < K; ++j) {
        for (int n = 0; n < N; ++n) {
            memcpy(scores + j*rows + n*W, &acc[j][n], sizeof(f));
        }
    }
}

template <int W> void sb_attn_scores(int64_t d, int64_t rows, const sb_attn_scratch & s) {
    int64_t r = 0;
    for (; r + sb_row_vecs*W <= rows; r += sb_row_vecs*W) {
        for (int64_t j = 0; j < sb_attn_keys; j += sb_attn_key_tile) {
            sb_attn_score_tile<W, sb_row_vecs, sb_attn_key_tile>(d, rows, s.k + j*d, s.q + r, s.scores + j*rows + r);
        }
    }
    for (; r < rows; r += W) {
        for (int64_t j = 0; j < sb_attn_keys; j += 2*sb_attn_key_tile) {
            sb_attn_score_tile<W, 1, 2*sb_attn_key_tile>(d, rows, s.k + j*d, s.q + r, s.scores + j*rows + r);
        }
    }
}

// Scores to probabilities relative to the largest so far; whether the sums so far have to shrink. Where rows are fewer
// than lanes, a vector holds several keys.
bool sb_attn_soft_max(int64_t rows, const sb_attn_scratch & s) {
    const int64_t width = std::min<int64_t>(rows, sb_lanes);
    const int64_t step  = std::max<int64_t>(rows, sb_lanes);
    bool shrinks = false;
    for (int64_t r = 0; r < rows; r += width) {
        float * scores = s.scores + r;
        float * end    = s.scores + sb_attn_keys*rows;
        sb_vec  max    = sb_vec{} + SB_NOTHING_YET;
        for (const float * at = scores; at < end; at += step) {
            sb_vec x;
            sb_load(x, at);
            max = x > max ? x : max;
        }
        float shrink[sb_lanes];
        for (int64_t i = 0; i < width; ++i) {
            const float old = s.max[r + i];
            float       top = old;
            for (int64_t j = i; j < sb_lanes; j += width) {
                top = std::max(top, max[j]);
            }
            for (int64_t j = i; j < sb_lanes; j += width) {
                max[j]    = top;
                shrink[j] = old - top;
            }
            s.max[r + i] = top;
        }
        sb_vec factor;
        sb_load(factor, shrink);
        sb_exp(factor);
        sb_vec total = {};
        for (float * at = scores; at < end; at += step) {
            sb_vec x;
            sb_load(x, at);
            x -= max;
            sb_exp(x);
            total += x;
            sb_store(at, x);
        }
        for (int64_t i = 0; i < width; ++i) {
            s.shrink[r + i] = factor[i];
            s.total[r + i] *= factor[i];
            for (int64_t j = i; j < sb_lanes; j += width) {
                s.total[r + i] += total[j];
            }
            shrinks |= factor[i] != 1.0f;
        }
    }
    return shrinks;
}

// n rows of values, `stride` bytes from one to the next
template <typename T> struct sb_attn_values {
    const char * data;
    size_t       stride;
    int64_t      n;
};

// out[r][c] += sum_j p[j][r] v[j][c] for sb_attn_row_tile rows and N vectors of channels from c on
template <int N, typename T>
void sb_attn_result_tile(int64_t rows, int64_t d, int64_t c, const float * p, const sb_attn_values<T> & values,
                         float * out) {
    sb_vec acc[sb_attn_row_tile][N];
    SB_UNROLL
    for (int r = 0; r < sb_attn_row_tile; ++r) {
        SB_UNROLL
        for (int n = 0; n < N; ++n) {
            sb_load(acc[r][n], out + r*d + c + n*sb_lanes);
        }
    }
    for (int64_t j = 0; j < values.n; ++j, p += rows) {
        const T * v = (const T *) (values.data + j*values.stride) + c;
        sb_vec x[N];
        SB_UNROLL
        for (int n = 0; n < N; ++n) {
            sb_load(x[n], v + n*sb_lanes);
            sb_keep(x[n]);
        }
        SB_UNROLL
        for (int r = 0; r < sb_attn_row_tile; ++r) {
            SB_UNROLL
            for (int n = 0; n < N; ++n) {
                acc[r][n] += p[r]*x[n];
            }
        }
    }
    SB_UNROLL
    for (int r = 0; r < sb_attn_row_tile; ++r) {
        SB_UNROLL
        for (int n = 0; n < N; ++n) {
            sb_store(out + r*d + c + n*sb_lanes, acc[r][n]);
        }
    }
}

template <typename T>
void sb_attn_results(int64_t rows, int64_t n_rows, int64_t d, const float * p, const sb_attn_values<T> & values, float * out) {
    for (int64_t r = 0; r < n_rows; r += sb_attn_row_tile) {
        int64_t c = 0;
        for (; c + sb_row_vecs*sb_lanes <= d; c += sb_row_vecs*sb_lanes) {
            sb_attn_result_tile<sb_row_vecs>(rows, d, c, p + r, values, out + r*d);
        }
        for (; c < d; c += sb_lanes) {
            sb_attn_result_tile<1>(rows, d, c, p + r, values, out + r*d);
        }
    }
}

// ---- few rows: keys and values where they are ----

constexpr int sb_attn_direct_keys = sb_lanes/sb_attn_row_tile; // with the rows of a tile as many sums as lanes

// Some heads' rows [j, j + n) on their way to the second-level cache.
void sb_attn_prefetch(const ggml_tensor * t, int64_t head, int64_t n_heads, int64_t seq, int64_t j, int64_t n) {
    const int64_t size = ggml_row_size(t->type, t->ne[0]);
    for (int64_t end = std::min(j + n, t->ne[1]); j < end; ++j) {
        for (int64_t h = head; h < head + n_heads; ++h) {
            for (int64_t i = 0; i < size; i += 64) {
                SB_PREFETCH_L2(sb_attn_row(t, j, h, seq) + i);
            }
        }
    }
}

// scores[j][r] = q[r] k[j] for sb_attn_direct_keys keys from j on; those from j1 on are read as the last one
template <typename T>
void sb_attn_direct_scores(const sb_attn_args & a, int64_t rows, int64_t head, int64_t seq, int64_t j, int64_t j1,
                           const float * queries, float * scores) {
    const T * k[sb_attn_direct_keys];
    for (int i = 0; i < sb_attn_direct_keys; ++i) {
        k[i] = (const T *) sb_attn_row(a.k, std::min(j + i, j1 - 1), head, seq);
    }
    for (int64_t r = 0; r < rows; r += sb_attn_row_tile) {
        sb_vec acc[sb_lanes] = {};
        for (int64_t c = 0; c < a.d_k; c += sb_lanes) {
            sb_vec x[sb_attn_direct_keys];
            SB_UNROLL
            for (int i = 0; i < sb_attn_direct_keys; ++i) {
                sb_load(x[i], k[i] + c);
            }
            SB_UNROLL
            for (int n = 0; n < sb_attn_row_tile; ++n) {
                sb_vec q;
                sb_load(q, queries + (r + n)*a.d_k + c);
                SB_UNROLL
                for (int i = 0; i < sb_attn_direct_keys; ++i) {
                    acc[i*sb_attn_row_tile + n] += q*x[i];
                }
            }
        }
        sb_sum_each(acc);
        float sums[sb_lanes];
        sb_store(sums, acc[0]);
        for (int i = 0; i < sb_attn_direct_keys; ++i) {
            memcpy(scores + i*rows + r, sums + i*sb_attn_row_tile, sb_attn_row_tile*sizeof(float));
        }
    }
}

// ---- many rows: copies as floats ----

// Keys or values [j0, j1) of some heads as floats, [head][sb_attn_keys][stride].
void sb_attn_load(const ggml_tensor * t, int64_t head, int64_t n_heads, int64_t seq, int64_t j0, int64_t j1,
                  int64_t stride, int64_t head_stride, float * out) {
    for (int64_t j = j0; j < j1; ++j) {
        for (int64_t h = 0; h < n_heads; ++h) {
            sb_attn_to_floats(t->type, sb_attn_row(t, j, head + h, seq), t->ne[0], out + h*head_stride + (j - j0)*stride);
        }
    }
}

// An item: some key/value heads, some tiles of tokens, a part of the keys.
struct sb_attn_item {
    int64_t seq;
    int64_t head;  // the first
    int64_t token; // the first
    int64_t part;
};

sb_attn_item sb_attn_get_item(const sb_attn_args & a, const sb_attn_plan & plan, int64_t i) {
    sb_attn_item item;
    item.part  = i % plan.n_parts;
    i         /= plan.n_parts;
    item.head  = i % (a.n_head_kv/plan.heads)*plan.heads;
    i         /= a.n_head_kv/plan.heads;
    item.token = i % plan.n_spans*plan.tiles*plan.tokens;
    item.seq   = i/plan.n_spans;
    return item;
}

// Tokens of one of an item's tiles; none if they have run out.
struct sb_attn_tile {
    int64_t token;
    int64_t end;
};

sb_attn_tile sb_attn_get_tile(const sb_attn_args & a, const sb_attn_plan & plan, const sb_attn_item & item, int64_t i) {
    const int64_t token = std::min(item.token + i*plan.tokens, a.n_tokens);
    return { token, std::min(token + plan.tokens, a.n_tokens) };
}

int64_t sb_attn_n_rows(const sb_attn_args & a, const sb_attn_tile & tile) {
    return (tile.end - tile.token)*(a.n_head/a.n_head_kv);
}

// A block of keys [j0, j1), and its visibility to each of the item's tiles.
struct sb_attn_block {
    int64_t j0;
    int64_t j1;
    sb_attn_seen_by seen[sb_attn_max_tiles];
};

// Whether any tile sees a key of the block.
bool sb_attn_look(const sb_attn_args & a, const sb_attn_plan & plan, const sb_attn_item & item, sb_attn_block & block) {
    bool any = false;
    for (int64_t i = 0; i < plan.tiles; ++i) {
        const sb_attn_tile tile = sb_attn_get_tile(a, plan, item, i);
        block.seen[i] = tile.token < tile.end ? sb_attn_seen(a, tile.token, tile.end, item.seq, block.j0, block.j1) : SB_SEES_NONE;
        any |= block.seen[i] != SB_SEES_NONE;
    }
    return any;
}

void sb_attn_load_queries(const sb_attn_args & a, const sb_attn_plan & plan, const sb_attn_tile & tile, int64_t head_kv,
                          int64_t seq, float * q) {
    const int64_t group = a.n_head/a.n_head_kv;
    std::fill(q, q + plan.rows*a.d_k, 0.0f);
    int64_t r = 0;
    for (int64_t t = tile.token; t < tile.end; ++t) {
        for (int64_t h = head_kv*group; h < (head_kv + 1)*group; ++h, ++r) {
            const auto * row = (const float *) sb_attn_row(a.q, t, h, seq);
            for (int64_t c = 0; c < a.d_k; ++c) {
                q[plan.direct ? r*a.d_k + c : c*plan.rows + r] = a.scale*row[c];
            }
        }
    }
}

// Add the mask, and hide the keys from j1 on, which do not exist.
void sb_attn_hide(const sb_attn_args & a, const sb_attn_plan & plan, const sb_attn_tile & tile, int64_t seq,
                  const sb_attn_block & block, float * scores) {
    const int64_t group = a.n_head/a.n_head_kv;
    for (int64_t t = tile.token; t < tile.end && a.mask; ++t) {
        const ggml_fp16_t * mask = sb_attn_mask_row(a, t, seq);
        for (int64_t j = block.j0; j < block.j1; ++j) {
            float * of_token = scores + (j - block.j0)*plan.rows + (t - tile.token)*group;
            for (int64_t g = 0; g < group; ++g) {
                of_token[g] += GGML_CPU_FP16_TO_FP32(mask[j]);
            }
        }
    }
    std::fill(scores + (block.j1 - block.j0)*plan.rows, scores + sb_attn_keys*plan.rows, -INFINITY);
}

// Scores of a block to probabilities, for one tile of one head, with its sums so far made ready for them.
void sb_attn_weigh(const sb_attn_args & a, const sb_attn_plan & plan, const sb_attn_item & item, int64_t i,
                   const sb_attn_block & block, const sb_attn_scratch & s) {
    const sb_attn_tile tile = sb_attn_get_tile(a, plan, item, i);
    if (block.seen[i] == SB_SEES_SOME || block.j1 < block.j0 + sb_attn_keys) {
        sb_attn_hide(a, plan, tile, item.seq, block, s.scores);
    }
    if (!sb_attn_soft_max(plan.rows, s)) {
        return;
    }
    for (int64_t r = 0; r < sb_attn_n_rows(a, tile); ++r) {
        for (int64_t c = 0; c < plan.d_v; ++c) {
            s.out[r*plan.d_v + c] *= s.shrink[r];
        }
    }
}

// While all heads meet a block's keys, a few cells after the other, its values are on their way, and while those are added
// up, the keys of the next block: the cache is read in the order in which it lies in memory.
template <typename T>
void sb_attn_add_direct(const sb_attn_args & a, const sb_attn_plan & plan, const sb_attn_item & item,
                        const sb_attn_block & block, float * own, float * sums) {
    const sb_attn_scratch first  = sb_attn_lay_out(plan, own, sums, 0, 0);
    const int64_t         n_rows = sb_attn_n_rows(a, sb_attn_get_tile(a, plan, item, 0));
    for (int64_t j = block.j0; j < block.j1; j += sb_attn_direct_keys) {
        sb_attn_prefetch(a.v, item.head, plan.heads, item.seq, j, sb_attn_direct_keys);
        for (int64_t h = 0; h < plan.heads; ++h) {
            sb_attn_direct_scores<T>(a, plan.rows, item.head + h, item.seq, j, block.j1, first.q + h*plan.q,
                                     first.scores + h*plan.scores + (j - block.j0)*plan.rows);
        }
    }
    const int64_t ahead = (sb_attn_keys + plan.heads - 1)/plan.heads;
    for (int64_t h = 0; h < plan.heads; ++h) {
        const sb_attn_scratch   s      = sb_attn_lay_out(plan, own, sums, h, 0);
        const sb_attn_values<T> values = { sb_attn_row(a.v, block.j0, item.head + h, item.seq), a.v->nb[1], block.j1 - block.j0 };
        sb_attn_prefetch(a.k, item.head, plan.heads, item.seq, block.j0 + sb_attn_keys + h*ahead, ahead);
        sb_attn_weigh(a, plan, item, 0, block, s);
        sb_attn_results(plan.rows, n_rows, plan.d_v, s.scores, values, s.out);
    }
}

template <int W>
void sb_attn_add_copied(const sb_attn_args & a, const sb_attn_plan & plan, const sb_attn_item & item,
                        const sb_attn_block & block, float * own, float * sums) {
    const sb_attn_scratch first = sb_attn_lay_out(plan, own, sums, 0, 0);
    sb_attn_load(a.k, item.head, plan.heads, item.seq, block.j0, block.j1, a.d_k,    plan.k, first.k);
    sb_attn_load(a.v, item.head, plan.heads, item.seq, block.j0, block.j1, plan.d_v, plan.v, first.v);
    for (int64_t h = 0; h < plan.heads; ++h) {
        for (int64_t i = 0; i < plan.tiles; ++i) {
            if (block.seen[i] == SB_SEES_NONE) {
                continue;
            }
            const sb_attn_scratch       s      = sb_attn_lay_out(plan, own, sums, h, i);
            const sb_attn_values<float> values = { (const char *) s.v, plan.d_v*sizeof(float), block.j1 - block.j0 };
            const int64_t               n_rows = sb_attn_n_rows(a, sb_attn_get_tile(a, plan, item, i));
            sb_attn_scores<W>(a.d_k, plan.rows, s);
            sb_attn_weigh(a, plan, item, i, block, s);
            sb_attn_results(plan.rows, n_rows, plan.d_v, s.scores, values, s.out);
        }
    }
}

typedef void (*sb_attn_add_t)(const sb_attn_args &, const sb_attn_plan &, const sb_attn_item &, const sb_attn_block &,
                              float *, float *);

sb_attn_add_t sb_attn_choose(const sb_attn_args & a, const sb_attn_plan & plan) {
    if (plan.direct) {
        return a.k->type == GGML_TYPE_F16 ? sb_attn_add_direct<ggml_fp16_t> : sb_attn_add_direct<float>;
    }
    switch (plan.width) {
        case 4:  return sb_attn_add_copied<4>;
        case 8:  return sb_attn_add_copied<8>;
        default: return sb_attn_add_copied<sb_lanes>;
    }
}

// After it `sums` holds those of the item's tiles.
void sb_attn_run(const sb_attn_args & a, const sb_attn_plan & plan, const sb_attn_item & item, float * own, float * sums) {
    const sb_attn_add_t add = sb_attn_choose(a, plan);
    const int64_t       end = std::min((item.part + 1)*plan.part, a.n_kv);

    std::fill(sums, sums + sb_attn_item_sums(plan), 0.0f);
    for (int64_t h = 0; h < plan.heads; ++h) {
        const sb_attn_scratch first = sb_attn_lay_out(plan, own, sums, h, 0);
        std::fill(first.k, first.k + plan.k, 0.0f); // the first block may end early,
        std::fill(first.v, first.v + plan.v, 0.0f); // and rows of values are padded
        for (int64_t i = 0; i < plan.tiles; ++i) {
            const sb_attn_scratch s = sb_attn_lay_out(plan, own, sums, h, i);
            std::fill(s.max, s.max + plan.rows, SB_NOTHING_YET);
            sb_attn_load_queries(a, plan, sb_attn_get_tile(a, plan, item, i), item.head + h, item.seq, s.q);
        }
    }
    for (int64_t j = item.part*plan.part; j < end; j += sb_attn_keys) {
        sb_attn_block block = { j, std::min(j + sb_attn_keys, end), {} };
        if (sb_attn_look(a, plan, item, block)) {
            add(a, plan, item, block, own, sums);
        }
    }
}

// One row of a result from the sums of an item's parts: `sums` of its tile in the first part, row r.
void sb_attn_write_row(const sb_attn_plan & plan, const float * sums, int64_t r, int64_t d_v, float * out) {
    const auto part = [&](int64_t p) { return sums + p*sb_attn_item_sums(plan); };
    float max = SB_NOTHING_YET;
    for (int64_t p = 0; p < plan.n_parts; ++p) {
        max = std::max(max, part(p)[r]);
    }
    float total = 0.0f;
    std::fill(out, out + d_v, 0.0f);
    for (int64_t p = 0; p < plan.n_parts; ++p) {
        const float * from  = part(p) + 2*plan.rows + r*plan.d_v;
        const float   share = expf(part(p)[r] - max);
        total += share*part(p)[plan.rows + r];
        for (int64_t c = 0; c < d_v; ++c) {
            out[c] += share*from[c];
        }
    }
    for (int64_t c = 0; c < d_v; ++c) {
        out[c] = total == 0.0f ? 0.0f : out[c]/total;
    }
}

void sb_attn_write(const sb_attn_args & a, const sb_attn_plan & plan, const sb_attn_item & item, const float * sums) {
    const int64_t group = a.n_head/a.n_head_kv;
    for (int64_t h = 0; h < plan.heads; ++h) {
        for (int64_t i = 0; i < plan.tiles; ++i) {
            const sb_attn_tile tile = sb_attn_get_tile(a, plan, item, i);
            for (int64_t r = 0; r < sb_attn_n_rows(a, tile); ++r) {
                sb_attn_write_row(plan, sums + (h*plan.tiles + i)*plan.sums, r, a.d_v,
                                  sb_attn_out_row(a, tile.token + r/group, (item.head + h)*group + r % group, item.seq));
            }
        }
    }
}
#endif

} // namespace

#if defined(SB_VECTORS)
bool sb_attn_takes(const ggml_tensor * dst) {
    const ggml_tensor * q    = dst->src[0];
    const ggml_tensor * k    = dst->src[1];
    const ggml_tensor * v    = dst->src[2];
    const ggml_tensor * mask = dst->src[3];
    const auto readable = [](ggml_type type) {
        return type == GGML_TYPE_F32 || ggml_get_type_traits(type)->to_float != nullptr;
    };
    const bool asked   = ggml_get_op_params_i32(dst, 5) != 0;
    const bool plain   = ggml_get_op_params_f32(dst, 1) == 0.0f && ggml_get_op_params_f32(dst, 2) == 0.0f; // no ALiBi, no cap
    const bool types   = q->type == GGML_TYPE_F32 && readable(k->type) && readable(v->type);
    const bool heads   = q->ne[2] % k->ne[2] == 0 && k->ne[2] == v->ne[2] && (mask == nullptr || mask->ne[2] == 1);
    const bool streams = q->ne[3] == k->ne[3] && k->ne[3] == v->ne[3];
    const bool sinks   = dst->src[4] != nullptr;
    return asked && plain && types && heads && streams && !sinks;
}

size_t sb_attn_work_size(const ggml_tensor * dst, int n_threads) {
    const sb_attn_args a = sb_attn_get_args(dst);
    const sb_attn_plan p = sb_attn_make_plan(a, n_threads);
    return sizeof(float)*(n_threads*p.scratch + sb_attn_n_sums(p, n_threads)*sb_attn_item_sums(p)) + 64;
}
#else
bool   sb_attn_takes(const ggml_tensor *)          { return false; }
size_t sb_attn_work_size(const ggml_tensor *, int) { return 0; }
#endif

void sb_attn_compute(const ggml_compute_params * params, ggml_tensor * dst) {
    const sb_attn_args a = sb_attn_get_args(dst);
    if (params->use_ref) {
        const int64_t n_rows = a.n_tokens*a.n_head*a.q->ne[3];
        for (int64_t i = params->ith; i < n_rows; i += params->nth) {
            sb_attn_reference(a, i/a.n_head % a.n_tokens, i % a.n_head, i/a.n_head/a.n_tokens);
        }
        return;
    }
#if defined(SB_VECTORS)
    const sb_attn_plan plan = sb_attn_make_plan(a, params->nth);
    float *            work = (float *) sb_attn_pad((intptr_t) params->wdata, 64);
    float *            sums = work + params->nth*plan.scratch;
    const auto sums_of = [&](int64_t i) { return sums + i*sb_attn_item_sums(plan); };

    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    for (int64_t i = params->ith; i < plan.n_items; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const sb_attn_item item = sb_attn_get_item(a, plan, i);
        float *            to   = sums_of(plan.n_parts > 1 ? i : params->ith);
        sb_attn_run(a, plan, item, work + params->ith*plan.scratch, to);
        if (plan.n_parts == 1) {
            sb_attn_write(a, plan, item, to);
        }
    }
    if (plan.n_parts > 1) {
        ggml_barrier(params->threadpool);
        for (int64_t i = params->ith*plan.n_parts; i < plan.n_items; i += params->nth*plan.n_parts) {
            sb_attn_write(a, plan, sb_attn_get_item(a, plan, i), sums_of(i));
        }
    }
#endif
}
