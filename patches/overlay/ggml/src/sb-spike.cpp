#include "sb-spike.h"

#include "ggml-impl.h"

size_t sb_spike_row_size(int64_t n) {
    const int64_t n_blocks = sb_spike_n_blocks(n);
    GGML_ASSERT(n > 0 && n_blocks <= UINT16_MAX);
    const size_t size = sizeof(sb_spike_row) + n_blocks*(SB_SPIKE_DIGITS*SB_SPIKE_BLOCK +
        SB_SPIKE_BLOCK/4*sizeof(int32_t) + sizeof(uint16_t));
    return GGML_PAD(size, 64);
}

static ggml_tensor * sb_spike_coded(ggml_context * ctx, ggml_tensor * a, sb_spike_mode mode, float k) {
    GGML_ASSERT(a->type == GGML_TYPE_F32 && a->nb[0] == sizeof(float));
    GGML_ASSERT(mode == SB_SPIKE_ROUND_INT8 || k > 0.0f);

    ggml_tensor * result = mode == SB_SPIKE_COUNTS ?
        ggml_new_tensor_4d(ctx, GGML_TYPE_I8,  sb_spike_row_size(a->ne[0]), a->ne[1], a->ne[2], a->ne[3]) :
        ggml_new_tensor_4d(ctx, GGML_TYPE_F32, a->ne[0], a->ne[1], a->ne[2], a->ne[3]);

    ggml_set_op_params_i32(result, 0, mode);
    ggml_set_op_params_f32(result, 1, k);

    result->op     = GGML_OP_SB_SPIKE_CODE;
    result->src[0] = a;
    return result;
}

ggml_tensor * sb_spike_code(ggml_context * ctx, ggml_tensor * a, float k) {
    return sb_spike_coded(ctx, a, SB_SPIKE_COUNTS, k);
}

ggml_tensor * sb_spike_round(ggml_context * ctx, ggml_tensor * a, float k) {
    return sb_spike_coded(ctx, a, SB_SPIKE_ROUND, k);
}

ggml_tensor * sb_spike_round_int8(ggml_context * ctx, ggml_tensor * a) {
    return sb_spike_coded(ctx, a, SB_SPIKE_ROUND_INT8, 0.0f);
}

ggml_tensor * sb_spike_mul_mat(ggml_context * ctx, ggml_tensor * w, ggml_tensor * s) {
    GGML_ASSERT(w->ne[2] == 1 && w->ne[3] == 1 && !ggml_is_transposed(w));
    GGML_ASSERT(s->type == GGML_TYPE_I8 && ggml_is_contiguous(s));
    GGML_ASSERT(s->ne[0] == (int64_t) sb_spike_row_size(w->ne[0]));

    ggml_tensor * result = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, w->ne[1], s->ne[1], s->ne[2], s->ne[3]);

    result->op     = GGML_OP_SB_SPIKE_MUL_MAT;
    result->src[0] = w;
    result->src[1] = s;
    return result;
}
