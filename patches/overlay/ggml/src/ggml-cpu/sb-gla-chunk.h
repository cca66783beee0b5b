#pragma once

// Gated linear attention of prompts, a chunk of tokens at a time, as products of small matrices.
//
// Tokens 1 .. n of a chunk meet the state S of before it. Let w_s(t) = k_s a_{s+1} ... a_t, channel by channel: the key of
// token s as token t sees it. Then
//     o_t = (q_t a_1 ... a_t) S + sum_{s <= t} (q_t . w_s(t)) v_s
//     S'  = diag(a_1 ... a_n) S + sum_s w_s(n)^T v_s
// Decays are products of gates, never quotients, so that closed gates are as exact as open ones. k_s is decayed
// in place, so token t reads w_s(t), and the state reads w_s(n).
//
// A panel is the state of a few value channels with the chunk's values below. So a tile of results is one product,
// [queries | scores] times panel, and a tile of the new state another one, keys times the panel's values.

#include "sb-gla-args.h"
#include "sb-vec.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(SB_VECTORS)

namespace {

// Tokens of a chunk. More of them make more scores, fewer of them more passes over the state.
constexpr int sb_gla_chunk = 8;

// Tiles that stay in the registers, with a row of a panel and a factor: rows of results, key channels of the state.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int sb_gla_rows     = 8;
constexpr int sb_gla_channels = 8;
#elif defined(__AVX__)
constexpr int sb_gla_rows     = 6;
constexpr int sb_gla_channels = 4;
#else
constexpr int sb_gla_rows     = 4;
constexpr int sb_gla_channels = 4;
#endif
constexpr int sb_gla_vecs  = 2;
constexpr int sb_gla_panel = sb_gla_vecs*sb_lanes;

constexpr int sb_gla_line       = 64/sizeof(float);            // of the caches
constexpr int sb_gla_block      = 16;                          // key channels side by side, whatever the target
constexpr int sb_gla_score_rows = sb_lanes < 8 ? sb_lanes : 8; // heads in a tile of scores, at most

// Floats of a thread's scratch that stay in the second-level cache of most processors.
constexpr int64_t sb_gla_cached = 512*1024/sizeof(float);

struct sb_gla_plan {
    int64_t group;    // query heads to a key/value head
    int64_t d;        // key channels in whole blocks
    int64_t rows;     // of a chunk: its tokens, each with the heads of the group; in whole tiles
    int64_t n_panels; // of a head
    int64_t heads;    // of an item of work,
    int64_t n_parts;  // or items of a head, each of some of its panels
    int64_t n_items;
    int64_t scratch;  // floats of a head
};

inline int64_t sb_gla_pad(int64_t n, int64_t to) {
    return (n + to - 1)/to*to;
}

// Floats of a panel: the state, the values of a chunk.
inline int64_t sb_gla_panel_size(const sb_gla_plan & plan) {
    return (plan.d + sb_gla_chunk)*sb_gla_panel;
}

// Of a head, in its thread's scratch.
struct sb_gla_scratch {
    float * panels;  // [panel][d + sb_gla_chunk][sb_gla_panel]
    float * queries; // [d/sb_gla_block][rows][sb_gla_block], times the scale and all gates since the chunk began
    float * scores;  // [sb_gla_chunk][rows], zero where a token does not see another
    float * keys;    // [sb_gla_chunk][d], as the last token read sees them
    float * decay;   // [d], all gates since the chunk began
    float * a;       // [d], a token's gates, and
    float * q;       // [group][d], its queries, if their channels are not whole blocks
    float * end;
};

inline int64_t sb_gla_scratch_size(const sb_gla_plan & plan) {
    const int64_t panels = plan.n_panels*sb_gla_panel_size(plan);
    const int64_t floats = panels + plan.rows*plan.d + sb_gla_chunk*(plan.rows + plan.d) + (2 + plan.group)*plan.d;
    return sb_gla_pad(floats, sb_gla_line);
}

inline sb_gla_scratch sb_gla_lay_out(const sb_gla_plan & plan, float * own) {
    sb_gla_scratch s;
    s.panels  = own;
    s.queries = s.panels  + plan.n_panels*sb_gla_panel_size(plan);
    s.scores  = s.queries + plan.rows*plan.d;
    s.keys    = s.scores  + sb_gla_chunk*plan.rows;
    s.decay   = s.keys    + sb_gla_chunk*plan.d;
    s.a       = s.decay   + plan.d;
    s.q       = s.a       + plan.d;
    s.end     = s.q       + plan.group*plan.d;
    return s;
}

inline sb_gla_plan sb_gla_make_plan(const sb_gla_args & g, int n_threads) {
    const int64_t n_heads = g.n_seqs*g.n_head_kv;
    sb_gla_plan plan;
    plan.group    = g.n_head/g.n_head_kv;
    plan.d        = sb_gla_pad(g.d, sb_gla_block);
    plan.rows     = sb_gla_pad(sb_gla_chunk*plan.group, sb_gla_rows);
    plan.n_panels = (g.d + sb_gla_panel - 1)/sb_gla_panel;
    plan.scratch  = sb_gla_scratch_size(plan);
    // heads side by side in memory, as many as stay in the cache and share the work evenly
    plan.heads    = std::max<int64_t>(1, std::min(g.n_head_kv, sb_gla_cached/plan.scratch));
    while (plan.heads > 1 && (g.n_head_kv % plan.heads != 0 || n_heads/plan.heads % n_threads != 0)) {
        --plan.heads;
    }
    // else two items a thread, to be claimed
    plan.n_parts  = plan.heads > 1 ? 1 : std::min((2*n_threads + n_heads - 1)/n_heads, plan.n_panels);
    plan.n_items  = n_heads/plan.heads*plan.n_parts;
    return plan;
}

// Heads in the scratch of all threads, at most: a thread has one, or several where there are enough for all threads.
// So it does when fewer threads come than were planned for.
inline int64_t sb_gla_heads_in_scratch(const sb_gla_args & g, int n_threads) {
    return std::max<int64_t>(n_threads, g.n_seqs*g.n_head_kv);
}

// An item: panels of some heads of a sequence.
struct sb_gla_item {
    int64_t seq;
    int64_t head;
    int64_t head_end;
    int64_t panel;
    int64_t panel_end;
};

inline sb_gla_item sb_gla_get_item(const sb_gla_args & g, const sb_gla_plan & plan, int64_t i) {
    const int64_t part = i % plan.n_parts;
    const int64_t head = i/plan.n_parts*plan.heads;
    sb_gla_item item;
    item.seq       = head/g.n_head_kv;
    item.head      = head % g.n_head_kv;
    item.head_end  = item.head + plan.heads;
    item.panel     = plan.n_panels*part/plan.n_parts;
    item.panel_end = plan.n_panels*(part + 1)/plan.n_parts;
    return item;
}

// Value channels of a panel: all of its width but for a head's last one.
inline int64_t sb_gla_width(const sb_gla_args & g, int64_t panel) {
    return std::min<int64_t>(sb_gla_panel, g.d - panel*sb_gla_panel);
}

// Floats of a panel's row. Whole rows are copied without a call.
inline void sb_gla_copy(float * to, const float * from, int64_t width) {
    if (width == sb_gla_panel) {
        memcpy(to, from, sb_gla_panel*sizeof(float));
    } else {
        memcpy(to, from, width*sizeof(float));
    }
}

// scores[s][row + i] = scale q_i . w_s for H heads from row on; q: their queries, token: that of the chunk they belong to
template <int H>
void sb_gla_score_heads(const sb_gla_plan & plan, float scale, int64_t token, const float * q, const float * keys,
                        float * scores) {
    constexpr int n_keys = sb_lanes/H; // as many sums as lanes, or a few less
    for (int64_t s = 0; s <= token; s += n_keys) {
        const float * w[n_keys];
        for (int j = 0; j < n_keys; ++j) {
            w[j] = keys + std::min(s + j, token)*plan.d;
        }
        sb_vec acc[sb_lanes] = {};
        for (int64_t c = 0; c < plan.d; c += sb_lanes) {
            sb_vec x[n_keys];
            SB_UNROLL
            for (int j = 0; j < n_keys; ++j) {
                sb_load(x[j], w[j] + c);
            }
            SB_UNROLL
            for (int i = 0; i < H; ++i) {
                sb_vec y;
                sb_load(y, q + i*plan.d + c);
                SB_UNROLL
                for (int j = 0; j < n_keys; ++j) {
                    acc[j*H + i] += y*x[j];
                }
            }
        }
        sb_sum_each(acc);
        float sums[sb_lanes];
        sb_store(sums, scale*acc[0]);
        for (int j = 0; j < n_keys && s + j <= token; ++j) {
            memcpy(scores + (s + j)*plan.rows, sums + j*H, H*sizeof(float));
        }
    }
}

inline void sb_gla_score(const sb_gla_plan & plan, float scale, int64_t token, const float * queries,
                         const sb_gla_scratch & s) {
    for (int64_t i = 0; i < plan.group; i += sb_gla_score_rows) {
        const float * q      = queries + i*plan.d;
        float *       scores = s.scores + token*plan.group + i;
        switch (std::min<int64_t>(plan.group - i, sb_gla_score_rows)) {
            case 1: sb_gla_score_heads<1>(plan, scale, token, q, s.keys, scores); break;
            case 2: sb_gla_score_heads<2>(plan, scale, token, q, s.keys, scores); break;
            case 3: sb_gla_score_heads<3>(plan, scale, token, q, s.keys, scores); break;
            case 4: sb_gla_score_heads<4>(plan, scale, token, q, s.keys, scores); break;
#if defined(__AVX__)
            case 5: sb_gla_score_heads<5>(plan, scale, token, q, s.keys, scores); break;
            case 6: sb_gla_score_heads<6>(plan, scale, token, q, s.keys, scores); break;
            case 7: sb_gla_score_heads<7>(plan, scale, token, q, s.keys, scores); break;
            case 8: sb_gla_score_heads<8>(plan, scale, token, q, s.keys, scores); break;
#endif
        }
    }
}

// The gates a of token i of a chunk on what came before it, and on its queries q.
inline void sb_gla_decay(const sb_gla_plan & plan, float scale, int64_t i, const float * a, const float * q,
                         const sb_gla_scratch & s) {
    const int64_t d     = plan.d;
    const int64_t group = plan.group;
    const int64_t block = plan.rows*sb_gla_block;
    float *       row   = s.queries + i*group*sb_gla_block;
    for (int64_t c = 0; c < d; c += sb_lanes) {
        sb_vec gate, x;
        sb_load(gate, a + c);
        for (float * key = s.keys + c; key < s.keys + i*d; key += d) {
            sb_load(x, key);
            sb_store(key, gate*x);
        }
        sb_load(x, s.decay + c);
        gate *= x;
        sb_store(s.decay + c, gate);
        gate *= scale;
        float * to = row + c/sb_gla_block*block + c % sb_gla_block;
        for (int64_t j = 0; j < group; ++j) {
            sb_load(x, q + j*d + c);
            sb_store(to + j*sb_gla_block, gate*x);
        }
    }
}

// Inputs of a key/value head and a token on their way to the caches.
inline void sb_gla_prefetch(const sb_gla_args & g, const sb_gla_plan & plan, int64_t head, int64_t token) {
    const int64_t kv_row = token*g.n_head_kv + head;
    for (int64_t c = 0; c < g.d; c += sb_gla_line) {
        SB_PREFETCH(g.k + kv_row*g.d + c);
        SB_PREFETCH(g.v + kv_row*g.d + c);
        SB_PREFETCH(g.a + kv_row*g.d + c);
    }
    for (int64_t c = 0; c < plan.group*g.d; c += sb_gla_line) {
        SB_PREFETCH(g.q + kv_row*plan.group*g.d + c);
    }
}

// Query, scores, keys and decay of a head with token i of a chunk; token: its number in the batch.
inline void sb_gla_read(const sb_gla_args & g, const sb_gla_plan & plan, int64_t head, int64_t token, int64_t i,
                        const sb_gla_scratch & s) {
    const int64_t kv_row = token*g.n_head_kv + head;
    const float * a      = g.a + kv_row*g.d;
    const float * q      = g.q + kv_row*plan.group*g.d;
    memcpy(s.keys + i*plan.d, g.k + kv_row*g.d, g.d*sizeof(float));
    if (plan.d > g.d) {
        memcpy(s.a, a, g.d*sizeof(float));
        for (int64_t j = 0; j < plan.group; ++j) {
            memcpy(s.q + j*plan.d, q + j*g.d, g.d*sizeof(float));
        }
        a = s.a;
        q = s.q;
    }
    if (i == 0) {
        std::fill(s.decay, s.decay + plan.d, 1.0f);
    }
    sb_gla_decay(plan, g.scale, i, a, q, s);
    sb_gla_score(plan, g.scale, i, q, s);
}

template <int R> struct sb_gla_tile {
    sb_vec x[R][sb_gla_vecs];
};

// tile[r] += sum_i f[i*step + r*row] y[i], for n rows of a panel from y on
template <int row, int R>
inline void sb_gla_multiply(sb_gla_tile<R> & tile, const float * f, int64_t step, const float * y, int64_t n) {
    for (int64_t i = 0; i < n; ++i, f += step, y += sb_gla_panel) {
        sb_vec z[sb_gla_vecs];
        SB_UNROLL
        for (int j = 0; j < sb_gla_vecs; ++j) {
            sb_load(z[j], y + j*sb_lanes);
        }
        SB_UNROLL
        for (int r = 0; r < R; ++r) {
            SB_UNROLL
            for (int j = 0; j < sb_gla_vecs; ++j) {
                tile.x[r][j] += f[r*row]*z[j];
            }
        }
    }
}

// Where the results of a tile's rows go; rows past the last one go where the last one does.
struct sb_gla_out {
    float * to[sb_gla_rows];
    int     n_rows;
    int64_t n_seen; // tokens of the chunk that the last row sees
};

// A row of results: a token of the chunk, a head of the group.
struct sb_gla_row {
    float * out;
    int64_t token;
    int64_t head;
};

// The next tile of rows, of n that are left.
inline sb_gla_out sb_gla_next_rows(const sb_gla_args & g, const sb_gla_plan & plan, int64_t n, sb_gla_row & row) {
    sb_gla_out out;
    out.n_rows = (int) std::min<int64_t>(sb_gla_rows, n);
    for (int r = 0; r < sb_gla_rows; ++r) {
        out.to[r] = row.out;
        if (r < out.n_rows) {
            out.n_seen = row.token + 1;
        }
        if (r + 1 < n) {
            row.out += g.d;
            if (++row.head == plan.group) {
                row.out += (g.n_head - plan.group)*g.d;
                row.head = 0;
                row.token++;
            }
        }
    }
    return out;
}

// A panel's value channels of the results of the rows from r0 on.
inline void sb_gla_results(const sb_gla_plan & plan, int64_t r0, int64_t width, const sb_gla_scratch & s,
                           const float * panel, const sb_gla_out & out) {
    for (int r = 0; r < sb_gla_rows; ++r) {
        for (int64_t j = 0; j < width; j += sb_gla_line) {
            SB_PREFETCH_WRITE(out.to[r] + j);
        }
    }
    sb_gla_tile<sb_gla_rows> tile = {};
    for (int64_t c = 0; c < plan.d; c += sb_gla_block) {
        sb_gla_multiply<sb_gla_block>(tile, s.queries + c*plan.rows + r0*sb_gla_block, 1, panel + c*sb_gla_panel, sb_gla_block);
    }
    sb_gla_multiply<1>(tile, s.scores + r0, plan.rows, panel + plan.d*sb_gla_panel, out.n_seen);
    if (width == sb_gla_panel) {
        SB_UNROLL
        for (int r = sb_gla_rows - 1; r >= 0; --r) { // rows past the last one go first, to be written over
            SB_UNROLL
            for (int j = 0; j < sb_gla_vecs; ++j) {
                sb_store(out.to[r] + j*sb_lanes, tile.x[r][j]);
            }
        }
    } else {
        float rows[sb_gla_rows][sb_gla_panel];
        SB_UNROLL
        for (int r = 0; r < sb_gla_rows; ++r) {
            SB_UNROLL
            for (int j = 0; j < sb_gla_vecs; ++j) {
                sb_store(&rows[r][j*sb_lanes], tile.x[r][j]);
            }
        }
        for (int r = 0; r < out.n_rows; ++r) {
            memcpy(out.to[r], rows[r], width*sizeof(float));
        }
    }
}

// The state of sb_gla_channels key channels from c on, after the n tokens of a chunk.
inline void sb_gla_update(const sb_gla_plan & plan, int64_t c, int64_t n, const sb_gla_scratch & s, float * panel) {
    sb_gla_tile<sb_gla_channels> tile;
    float * state = panel + c*sb_gla_panel;
    SB_UNROLL
    for (int r = 0; r < sb_gla_channels; ++r) {
        SB_UNROLL
        for (int j = 0; j < sb_gla_vecs; ++j) {
            sb_load(tile.x[r][j], state + r*sb_gla_panel + j*sb_lanes);
            tile.x[r][j] *= s.decay[c + r];
        }
    }
    sb_gla_multiply<1>(tile, s.keys + c, plan.d, panel + plan.d*sb_gla_panel, n);
    SB_UNROLL
    for (int r = 0; r < sb_gla_channels; ++r) {
        SB_UNROLL
        for (int j = 0; j < sb_gla_vecs; ++j) {
            sb_store(state + r*sb_gla_panel + j*sb_lanes, tile.x[r][j]);
        }
    }
}

// A head's panels from the state `from`, [d][d].
inline void sb_gla_load_state(const sb_gla_args & g, const sb_gla_plan & plan, const sb_gla_item & item, const float * from,
                              float * panels) {
    for (int64_t p = item.panel; p < item.panel_end; ++p) {
        for (int64_t c = 0; c < g.d; ++c) {
            sb_gla_copy(panels + p*sb_gla_panel_size(plan) + c*sb_gla_panel, from + c*g.d + p*sb_gla_panel,
                        sb_gla_width(g, p));
        }
    }
}

inline void sb_gla_store_state(const sb_gla_args & g, const sb_gla_plan & plan, const sb_gla_item & item,
                               const float * panels, float * to) {
    for (int64_t p = item.panel; p < item.panel_end; ++p) {
        for (int64_t c = 0; c < g.d; ++c) {
            sb_gla_copy(to + c*g.d + p*sb_gla_panel, panels + p*sb_gla_panel_size(plan) + c*sb_gla_panel,
                        sb_gla_width(g, p));
        }
    }
}

// Tokens [t, t + n) of a head, read before, for the item's panels.
inline void sb_gla_run_head(const sb_gla_args & g, const sb_gla_plan & plan, const sb_gla_item & item, int64_t head,
                            int64_t t, int64_t n, const sb_gla_scratch & s) {
    for (int64_t p = item.panel; p < item.panel_end; ++p) {
        const int64_t width = sb_gla_width(g, p);
        const float * v     = g.v + (t*g.n_head_kv + head)*g.d + p*sb_gla_panel;
        float *       out   = g.out + (t*g.n_head + head*plan.group)*g.d + p*sb_gla_panel;
        float *       panel = s.panels + p*sb_gla_panel_size(plan);
        for (int64_t i = 0; i < n; ++i) {
            sb_gla_copy(panel + (plan.d + i)*sb_gla_panel, v + i*g.n_head_kv*g.d, width);
        }
        sb_gla_row row = { out, 0, 0 };
        for (int64_t r = 0; r < n*plan.group; r += sb_gla_rows) {
            sb_gla_results(plan, r, width, s, panel, sb_gla_next_rows(g, plan, n*plan.group - r, row));
        }
        for (int64_t c = 0; c < plan.d; c += sb_gla_channels) {
            sb_gla_update(plan, c, n, s, panel);
        }
    }
}

// All tokens of a sequence for one item. own: a thread's scratch
inline void sb_gla_run(const sb_gla_args & g, const sb_gla_plan & plan, const sb_gla_item & item, float * own) {
    const int64_t end        = (item.seq + 1)*g.n_seq_tokens;
    const auto    state_of   = [&](int64_t h) { return (item.seq*g.n_head_kv + h)*g.d*g.d; };
    const auto    scratch_of = [&](int64_t h) { return sb_gla_lay_out(plan, own + (h - item.head)*plan.scratch); };

    for (int64_t h = item.head; h < item.head_end; ++h) {
        const sb_gla_scratch s = scratch_of(h);
        if (plan.d > g.d || plan.n_panels*sb_gla_panel > g.d) {
            std::fill(s.panels, s.end, 0.0f); // channels up to whole blocks and panels are zeros, and stay so
        }
        std::fill(s.scores, s.keys, 0.0f);
        sb_gla_load_state(g, plan, item, g.state_in + state_of(h), s.panels);
    }
    for (int64_t t = item.seq*g.n_seq_tokens; t < end; t += sb_gla_chunk) {
        const int64_t n = std::min<int64_t>(sb_gla_chunk, end - t);
        for (int64_t i = 0; i < n; ++i) { // in the order of memory
            for (int64_t h = item.head; h < item.head_end; ++h) {
                sb_gla_prefetch(g, plan, h, std::min(t + i + sb_gla_chunk, end - 1));
                sb_gla_read(g, plan, h, t + i, i, scratch_of(h));
            }
        }
        for (int64_t h = item.head; h < item.head_end; ++h) {
            sb_gla_run_head(g, plan, item, h, t, n, scratch_of(h));
        }
    }
    for (int64_t h = item.head; h < item.head_end; ++h) {
        sb_gla_store_state(g, plan, item, scratch_of(h).panels, g.state_out + state_of(h));
    }
}

} // namespace

#endif
