#include "sb-compiler.h"
#include "sb-spike-cpu.h"
#include "sb-spike-counters.h"
#include "sb-spike-simd.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "simd-mappings.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

// Rows of weights that are multiplied with one token side by side where each is used once.
constexpr int sb_spike_rows = 4;

// Bytes of unpacked weights that stay in the second-level cache while the tokens pass by.
constexpr int64_t sb_spike_panel_bytes = 128*1024;

// Rows that a thread takes at once: a share of its part, but enough products that taking them costs little beside
// multiplying.
constexpr int64_t sb_spike_min_products    = 64*1024;
constexpr int64_t sb_spike_chunks_a_thread = 8;

// Rows side by side defeat the prefetcher where each is read once. Next to block b of four rows the b-th part of the four
// rows after them is asked for, or of what lies a page away if rows are short.
const char * sb_spike_ahead(const char * address, size_t stride) {
    return address + std::max<size_t>(sb_spike_rows*stride, 4096);
}

// ---- rows of weights ----

sb_spike_simd::weights sb_load(const block_q4_0 & w)                           { return sb_spike_simd::load_nibbles(w.qs); }
sb_spike_simd::weights sb_load(const block_q8_0 & w)                           { return sb_spike_simd::load_int8(w.qs); }
sb_spike_simd::sums    sb_spike_dot (const block_q4_0 & w, const sb_spike_simd::first & s) { return sb_spike_simd::dot_nibbles(w.qs, s); }
sb_spike_simd::sums    sb_spike_dot (const block_q8_0 & w, const sb_spike_simd::first & s) { return sb_spike_simd::dot_int8(w.qs, s); }

// Rows as they lie in the tensor.
template <typename Block>
struct sb_spike_rows_of {
    const char * data;
    size_t       stride;

    const Block & at(int64_t row, int64_t block) const {
        return ((const Block *) (data + row*stride))[block];
    }
    sb_spike_simd::weights load(int64_t row, int64_t block) const {
        return sb_load(at(row, block));
    }
    sb_spike_simd::sums dot(int64_t row, int64_t block, const sb_spike_simd::first & digits) const {
        return sb_spike_dot(at(row, block), digits);
    }
    sb_spike_simd::floats scale(int64_t row, int64_t block) const {
        return sb_spike_simd::half(at(row, block).d);
    }
    float plain_scale(int64_t row, int64_t block) const {
        return GGML_CPU_FP16_TO_FP32(at(row, block).d);
    }
    const char * prefetched(int64_t row, int64_t block) const {
        return sb_spike_ahead(data + row*stride + sb_spike_rows*block*sizeof(Block), stride);
    }
};

// A few rows unpacked for many products. The rows of two panels lie together: for each block and four channels of it, the
// bytes of all rows side by side.
class sb_spike_panels {
public:
    static constexpr int width = 2*sb_spike_simd::panel_rows;

    sb_spike_panels(int64_t n_blocks, int64_t n_rows) :
        n_blocks(n_blocks), weights(pad(n_rows)*n_blocks*SB_SPIKE_BLOCK), starts(pad(n_rows)*n_blocks),
        scales(pad(n_rows)*n_blocks) {}

    // As many rows of n_blocks blocks as stay in the cache.
    static int64_t fitting(int64_t n_blocks) {
        return std::max<int64_t>(1, sb_spike_panel_bytes/(n_blocks*SB_SPIKE_BLOCK)/width)*width;
    }

    // Unpack rows; what follows them in their panels becomes zero.
    template <typename Rows> void fill(const Rows & rows, int64_t row, int64_t n_rows) {
        for (int64_t at = 0; at < n_rows; at += width) {
            for (int64_t block = 0; block < n_blocks; ++block) {
                fill(rows, row, at, std::min(at + width, n_rows), block);
            }
        }
    }

    // For the panel whose first row is `row`: four channels of a block, the initial values of their sums, and their scales.
    sb_spike_simd::panel load(int64_t row, int64_t block, int channel) const {
        return sb_spike_simd::load_panel(&weights[bytes(row, block) + channel*width]);
    }
    sb_spike_simd::sums start(int64_t row, int64_t block) const {
        return sb_spike_simd::load(&starts[index(row, block)]);
    }
    sb_spike_simd::floats scale(int64_t row, int64_t block) const {
        return sb_spike_simd::load(&scales[index(row, block)]);
    }

    sb_spike_simd::sums dot(int64_t row, int64_t block, const int8_t * digits) const {
        sb_spike_simd::sums acc = start(row, block);
        SB_UNROLL
        for (int i = 0; i < SB_SPIKE_BLOCK; i += 4) {
            acc = sb_spike_simd::panel_dot(acc, load(row, block, i), sb_spike_simd::load_four(digits + i));
        }
        return acc;
    }

private:
    int64_t              n_blocks;
    std::vector<int8_t>  weights; // [rows/width][blocks][channels/4][width][4]
    std::vector<int32_t> starts;  // [rows/width][blocks][width]
    std::vector<float>   scales;  // [rows/width][blocks][width]

    template <typename Rows> void fill(const Rows & rows, int64_t row, int64_t at, int64_t end, int64_t block) {
        for (int64_t i = at; i < at + width; ++i) {
            int8_t w[SB_SPIKE_BLOCK] = {};
            if (i < end) {
                sb_spike_simd::store(w, rows.load(row + i, block));
            }
            scales[index(i, block)] = i < end ? rows.plain_scale(row + i, block) : 0.0f;
            for (int channel = 0; channel < SB_SPIKE_BLOCK; channel += 4) {
                memcpy(&weights[bytes(i, block) + channel*width], w + channel, 4);
            }
        }
        // What silent digits come to has to be taken back.
        static constexpr int8_t silent[SB_SPIKE_BLOCK] = {};
        for (int64_t i = at; i < at + width; i += sb_spike_simd::panel_rows) {
            int32_t * start = &starts[index(i, block)];
            std::fill_n(start, sb_spike_simd::panel_rows, 0);
            sb_spike_simd::store(start, sb_spike_simd::negate(dot(i, block, silent)));
        }
    }
    static int64_t pad(int64_t n_rows) {
        return (n_rows + width - 1)/width*width;
    }
    int64_t index(int64_t row, int64_t block) const {
        return (row/width*n_blocks + block)*width + row % width;
    }
    int64_t bytes(int64_t row, int64_t block) const {
        return (row/width*n_blocks + block)*width*SB_SPIKE_BLOCK + row % width*4;
    }
};

// ---- the product ----

struct sb_spike_product {
    int64_t      n;        // channels
    int64_t      n_tokens;
    const char * codes;
    size_t       codes_stride;
    char *       out;
    size_t       out_stride;

    const sb_spike_row * token(int64_t t) const {
        return (const sb_spike_row *) (codes + t*codes_stride);
    }
    float * result(int64_t t) const {
        return (float *) (out + t*out_stride);
    }
};

// What the digits beyond the first add to a row's sum.
template <typename Rows>
float sb_spike_bursts(const Rows & rows, int64_t row, const sb_spike_row * code, int64_t n) {
    const uint16_t * blocks = sb_spike_burst_blocks_const(code, n);
    sb_spike_simd::floats  acc    = sb_spike_simd::splat(0.0f);
    for (int32_t i = 0; i < code->n_burst_blocks; ++i) {
        const int64_t   block = blocks[i];
        const auto      w     = rows.load(row, block);
        sb_spike_simd::floats scale = rows.scale(row, block);
        for (int plane = 1; plane < code->n_planes; ++plane) {
            const auto s = sb_spike_simd::load_counts(sb_spike_plane_const(code, n, plane) + block*SB_SPIKE_BLOCK);
            scale = sb_spike_simd::multiply(scale, SB_SPIKE_BASE);
            acc   = sb_spike_simd::multiply_add(acc, sb_spike_simd::dot(w, s), scale);
        }
    }
    return sb_spike_simd::sum(acc);
}

// Add what digits beyond the first give, scale with the threshold and write the rows of two panels.
void sb_spike_finish(const sb_spike_product & p, const sb_spike_panels & panels, int64_t at, int64_t token, float * sums, float * out,
               int64_t n_rows) {
    const sb_spike_row * code   = p.token(token);
    const uint16_t *     blocks = sb_spike_burst_blocks_const(code, p.n);
    for (int32_t b = 0; b < code->n_burst_blocks; ++b) {
        for (int i = 0; i < sb_spike_panels::width; i += sb_spike_simd::panel_rows) {
            sb_spike_simd::floats scale = panels.scale(at + i, blocks[b]);
            for (int plane = 1; plane < code->n_planes; ++plane) {
                const int8_t * digits = sb_spike_plane_const(code, p.n, plane) + blocks[b]*SB_SPIKE_BLOCK;
                scale = sb_spike_simd::multiply(scale, SB_SPIKE_BASE);
                const auto more = panels.dot(at + i, blocks[b], digits);
                sb_spike_simd::store(sums + i, sb_spike_simd::multiply_add(sb_spike_simd::load(sums + i), more, scale));
            }
        }
    }
    for (int64_t i = 0; i < n_rows; ++i) {
        out[i] = code->threshold*sums[i];
    }
}

// Two panels by N tokens, written to `row` and those after it. All loops over the tile unroll, so that its sums stay in
// registers.
template <int N>
void sb_spike_tile(const sb_spike_product & p, const sb_spike_panels & panels, int64_t at, int64_t row, int64_t n_rows, int64_t token) {
    const int8_t *  digits[N];
    sb_spike_simd::floats acc[2][N];
    SB_UNROLL
    for (int j = 0; j < N; ++j) {
        digits[j] = sb_spike_plane_const(p.token(token + j), p.n, 0);
        acc[0][j] = acc[1][j] = sb_spike_simd::splat(0.0f);
    }
    for (int64_t block = 0; block < sb_spike_n_blocks(p.n); ++block) {
        sb_spike_simd::sums sums[2][N];
        SB_UNROLL
        for (int j = 0; j < N; ++j) {
            sums[0][j] = panels.start(at, block);
            sums[1][j] = panels.start(at + sb_spike_simd::panel_rows, block);
        }
        SB_UNROLL
        for (int i = 0; i < SB_SPIKE_BLOCK; i += 4) {
            const auto first  = panels.load(at, block, i);
            const auto second = panels.load(at + sb_spike_simd::panel_rows, block, i);
            SB_UNROLL
            for (int j = 0; j < N; ++j) {
                const auto s = sb_spike_simd::load_four(digits[j] + block*SB_SPIKE_BLOCK + i);
                sums[0][j] = sb_spike_simd::panel_dot(sums[0][j], first, s);
                sums[1][j] = sb_spike_simd::panel_dot(sums[1][j], second, s);
            }
        }
        SB_UNROLL
        for (int j = 0; j < N; ++j) {
            acc[0][j] = sb_spike_simd::multiply_add(acc[0][j], sums[0][j], panels.scale(at, block));
            acc[1][j] = sb_spike_simd::multiply_add(acc[1][j], sums[1][j], panels.scale(at + sb_spike_simd::panel_rows, block));
        }
    }
    for (int j = 0; j < N; ++j) {
        float sums[sb_spike_panels::width];
        sb_spike_simd::store(sums, acc[0][j]);
        sb_spike_simd::store(sums + sb_spike_simd::panel_rows, acc[1][j]);
        sb_spike_finish(p, panels, at, token + j, sums, p.result(token + j) + row, n_rows);
    }
}

template <int N>
void sb_spike_panel_tile(const sb_spike_product & p, const sb_spike_panels & panels, int64_t row, int64_t n_rows, int64_t token) {
    for (int64_t at = 0; at < n_rows; at += sb_spike_panels::width) {
        sb_spike_tile<N>(p, panels, at, row + at, std::min<int64_t>(sb_spike_panels::width, n_rows - at), token);
    }
}

// Rows by many tokens.
template <typename Rows>
void sb_spike_panel_range(const sb_spike_product & p, const Rows & rows, int64_t row, int64_t row_end) {
    const int64_t n_blocks = sb_spike_n_blocks(p.n);
    const int64_t step     = std::min(sb_spike_panels::fitting(n_blocks), row_end - row);
    sb_spike_panels panels(n_blocks, step);
    for (; row < row_end; row += step) {
        const int64_t n_rows = std::min(step, row_end - row);
        panels.fill(rows, row, n_rows);
        int64_t token = 0;
        for (; token + sb_spike_simd::panel_tokens <= p.n_tokens; token += sb_spike_simd::panel_tokens) {
            sb_spike_panel_tile<sb_spike_simd::panel_tokens>(p, panels, row, n_rows, token);
        }
        for (; token < p.n_tokens; ++token) {
            sb_spike_panel_tile<1>(p, panels, row, n_rows, token);
        }
    }
}

// M rows, each used once, by one token.
template <int M, typename Rows>
void sb_spike_column(const sb_spike_product & p, const Rows & rows, int64_t row, int64_t token) {
    const sb_spike_row * code    = p.token(token);
    const int8_t *       digits  = sb_spike_plane_const(code, p.n, 0);
    const int32_t *      offsets = sb_spike_offsets_const(code, p.n);

    sb_spike_simd::floats acc[M];
    SB_UNROLL
    for (int i = 0; i < M; ++i) {
        acc[i] = sb_spike_simd::splat(0.0f);
    }
    for (int64_t block = 0; block < sb_spike_n_blocks(p.n); ++block) {
        SB_PREFETCH(rows.prefetched(row, block));
        const auto s = sb_spike_simd::load_first(digits + block*SB_SPIKE_BLOCK, offsets + block*SB_SPIKE_BLOCK/4);
        SB_UNROLL
        for (int i = 0; i < M; ++i) {
            acc[i] = sb_spike_simd::multiply_add(acc[i], rows.dot(row + i, block, s), rows.scale(row + i, block));
        }
    }
    float sums[M];
    if constexpr (M == 4) {
        sb_spike_simd::sum(acc, sums);
    } else {
        for (int i = 0; i < M; ++i) {
            sums[i] = sb_spike_simd::sum(acc[i]);
        }
    }
    for (int i = 0; i < M; ++i) {
        const float more = code->n_burst_blocks > 0 ? sb_spike_bursts(rows, row + i, code, p.n) : 0.0f;
        p.result(token)[row + i] = code->threshold*(sums[i] + more);
    }
}

// Rows by few tokens.
template <typename Rows>
void sb_spike_row_range(const sb_spike_product & p, const Rows & rows, int64_t row, int64_t row_end) {
    for (int64_t token = 0; token < p.n_tokens; ++token) {
        int64_t at = row;
        for (; at + sb_spike_rows <= row_end; at += sb_spike_rows) {
            sb_spike_column<sb_spike_rows>(p, rows, at, token);
        }
        for (; at < row_end; ++at) {
            sb_spike_column<1>(p, rows, at, token);
        }
    }
}

template <typename Rows>
void sb_spike_row_chunk(const sb_spike_product & p, const Rows & rows, int64_t row, int64_t row_end) {
    if (p.n_tokens < SB_SPIKE_MANY) {
        sb_spike_row_range(p, rows, row, row_end);
    } else {
        sb_spike_panel_range(p, rows, row, row_end);
    }
}

// ---- other types of weights, and the reference: rows as floats ----

const float * sb_spike_float_row(const ggml_tensor * w, int64_t row, std::vector<float> & buffer) {
    const void * data = (const char *) w->data + row*w->nb[1];
    if (w->type == GGML_TYPE_F32) {
        return (const float *) data;
    }
    ggml_get_type_traits(w->type)->to_float(data, buffer.data(), w->ne[0]);
    return buffer.data();
}

// A row's counts as floats; those beyond 2^24 lose their last bits, as the products would.
void sb_spike_counts_to_floats(const sb_spike_row * code, int64_t n, float * out) {
    const int8_t * digits = sb_spike_plane_const(code, n, 0);
    for (int64_t i = 0; i < n; ++i) {
        out[i] = digits[i];
    }
    const uint16_t * blocks = sb_spike_burst_blocks_const(code, n);
    for (int32_t b = 0; b < code->n_burst_blocks; ++b) {
        const int64_t start = blocks[b]*SB_SPIKE_BLOCK;
        for (int64_t i = start; i < std::min<int64_t>(start + SB_SPIKE_BLOCK, n); ++i) {
            out[i] = (float) sb_spike_count_of(code, n, i, true);
        }
    }
}

float sb_spike_dot_floats(int64_t n, const float * x, const float * y) {
    constexpr int lanes = 32;
    float sum[lanes] = {};
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int j = 0; j < lanes; ++j) {
            sum[j] += x[i + j]*y[i + j];
        }
    }
    for (; i < n; ++i) {
        sum[0] += x[i]*y[i];
    }
    float total = 0.0f;
    for (const float part : sum) {
        total += part;
    }
    return total;
}

void sb_spike_rows_of_floats(const sb_spike_product & p, const ggml_tensor * w, int64_t row, int64_t row_end) {
    constexpr int64_t at_once = 16; // tokens whose counts stay in the cache
    std::vector<float> buffer(p.n);
    std::vector<float> counts(at_once*p.n);
    for (int64_t token = 0; token < p.n_tokens; token += at_once) {
        const int64_t n_tokens = std::min(at_once, p.n_tokens - token);
        for (int64_t t = 0; t < n_tokens; ++t) {
            sb_spike_counts_to_floats(p.token(token + t), p.n, counts.data() + t*p.n);
        }
        for (int64_t i = row; i < row_end; ++i) {
            const float * floats = sb_spike_float_row(w, i, buffer);
            for (int64_t t = 0; t < n_tokens; ++t) {
                const float sum = sb_spike_dot_floats(p.n, floats, counts.data() + t*p.n);
                p.result(token + t)[i] = p.token(token + t)->threshold*sum;
            }
        }
    }
}

// The sum as it is written, in double; each count put together on its own.
void sb_spike_reference(const sb_spike_product & p, const ggml_tensor * w, int64_t row, int64_t row_end) {
    std::vector<float> buffer(w->ne[0]);
    for (; row < row_end; ++row) {
        const float * floats = sb_spike_float_row(w, row, buffer);
        for (int64_t t = 0; t < p.n_tokens; ++t) {
            const sb_spike_row * code      = p.token(t);
            const uint16_t *     blocks    = sb_spike_burst_blocks_const(code, p.n);
            const uint16_t *     block_end = blocks + code->n_burst_blocks;
            double sum = 0.0;
            for (int64_t i = 0; i < p.n; ++i) {
                const bool burst = std::find(blocks, block_end, i/SB_SPIKE_BLOCK) != block_end;
                sum += (double) floats[i]*(double) sb_spike_count_of(code, p.n, i, burst);
            }
            p.result(t)[row] = (float) (code->threshold*sum);
        }
    }
}

// The sums of a block's products with the digits of a plane come from dot(block, plane, digits).
template <typename Dot>
void sb_spike_accumulate_row(int64_t n, const sb_spike_row * code, int64_t * acc, Dot dot) {
    const uint16_t * blocks    = sb_spike_burst_blocks_const(code, n);
    const uint16_t * block_end = blocks + code->n_burst_blocks;
    for (int64_t block = 0; block < sb_spike_n_blocks(n); ++block) {
        const bool burst = std::find(blocks, block_end, block) != block_end;
        int64_t    unit  = 1;
        acc[block] = 0;
        for (int plane = 0; plane < (burst ? code->n_planes : 1); ++plane) {
            acc[block] += unit*dot(block, plane, sb_spike_plane_const(code, n, plane) + block*SB_SPIKE_BLOCK);
            unit *= SB_SPIKE_BASE;
        }
    }
}

// As products of many tokens take them if `unpacked`, else as those of few.
template <typename Rows>
void sb_spike_accumulate_row(const Rows & rows, bool unpacked, int64_t n, const sb_spike_row * code, int64_t * acc) {
    if (unpacked) {
        sb_spike_panels panels(sb_spike_n_blocks(n), 1);
        panels.fill(rows, 0, 1);
        sb_spike_accumulate_row(n, code, acc, [&](int64_t block, int, const int8_t * digits) -> int64_t {
            int32_t lanes[sb_spike_simd::panel_rows];
            sb_spike_simd::store(lanes, panels.dot(0, block, digits));
            return lanes[0];
        });
    } else {
        const int32_t * offsets = sb_spike_offsets_const(code, n);
        sb_spike_accumulate_row(n, code, acc, [&](int64_t block, int plane, const int8_t * digits) {
            return sb_spike_simd::sum(plane == 0 ?
                rows.dot(0, block, sb_spike_simd::load_first(digits, offsets + block*SB_SPIKE_BLOCK/4)) :
                sb_spike_simd::dot(rows.load(0, block), sb_spike_simd::load_counts(digits)));
        });
    }
}

} // namespace

bool sb_spike_accumulate(int type, bool unpacked, int64_t n, const void * w, const void * row, int64_t * acc) {
    const auto * data = (const char *) w;
    const auto * code = (const sb_spike_row *) row;
    switch (type) {
        case GGML_TYPE_Q4_0: sb_spike_accumulate_row(sb_spike_rows_of<block_q4_0>{ data, 0 }, unpacked, n, code, acc); return true;
        case GGML_TYPE_Q8_0: sb_spike_accumulate_row(sb_spike_rows_of<block_q8_0>{ data, 0 }, unpacked, n, code, acc); return true;
        default:             return false;
    }
}

bool sb_spike_mul_mat_supports(enum ggml_type type) {
    return type == GGML_TYPE_F32 || ggml_get_type_traits(type)->to_float != nullptr;
}

void sb_spike_mul_mat_compute(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * w     = dst->src[0];
    const ggml_tensor * codes = dst->src[1];

    sb_spike_product p;
    p.n            = w->ne[0];
    p.n_tokens     = ggml_nrows(codes);
    p.codes        = (const char *) codes->data;
    p.codes_stride = codes->nb[1];
    p.out          = (char *) dst->data;
    p.out_stride   = dst->nb[1];

    // Threads take whole tiles of rows when they are ready, because cores differ and are not always free. For a few tokens the
    // barrier that this needs costs more than it gains: then each thread has its own share.
    const int64_t n_rows = w->ne[1];
    const int64_t part   = (n_rows + params->nth - 1)/params->nth;
    const bool    shared = p.n_tokens >= SB_SPIKE_MANY;
    const int64_t wanted = shared ? std::max(part/sb_spike_chunks_a_thread, std::min(part, sb_spike_min_products/(p.n*p.n_tokens))) : part - 1;
    const int64_t chunk  = (wanted/sb_spike_panels::width + 1)*sb_spike_panels::width;

    if (shared) {
        if (params->ith == 0) {
            ggml_threadpool_chunk_set(params->threadpool, params->nth);
        }
        ggml_barrier(params->threadpool);
    }
    for (int64_t i = params->ith; i*chunk < n_rows; i = shared ? ggml_threadpool_chunk_add(params->threadpool, 1) : n_rows) {
        const int64_t row     = i*chunk;
        const int64_t row_end = std::min(row + chunk, n_rows);
        if (params->use_ref) {
            sb_spike_reference(p, w, row, row_end);
        } else if (w->type == GGML_TYPE_Q4_0) {
            sb_spike_row_chunk(p, sb_spike_rows_of<block_q4_0>{ (const char *) w->data, w->nb[1] }, row, row_end);
        } else if (w->type == GGML_TYPE_Q8_0) {
            sb_spike_row_chunk(p, sb_spike_rows_of<block_q8_0>{ (const char *) w->data, w->nb[1] }, row, row_end);
        } else {
            sb_spike_rows_of_floats(p, w, row, row_end);
        }
    }
}
