#include "ggml-sb.h"

#include "ggml-impl.h"

ggml_tensor * sb_gla(
        ggml_context * ctx, ggml_tensor * k, ggml_tensor * v, ggml_tensor * q, ggml_tensor * g, ggml_tensor * state, float scale) {
    const int64_t d        = k->ne[0];
    const int64_t n_head   = k->ne[1];
    const int64_t n_tokens = k->ne[2];
    const int64_t n_seqs   = state->ne[1];

    GGML_ASSERT(ggml_is_contiguous(k) && ggml_is_contiguous(v) && ggml_is_contiguous(q));
    GGML_ASSERT(ggml_is_contiguous(g) && ggml_is_contiguous(state));
    GGML_ASSERT(v->ne[0] == d && v->ne[1] == n_head && v->ne[2] == n_tokens);
    GGML_ASSERT(q->ne[0] == d && q->ne[1] % n_head == 0 && q->ne[2] == n_tokens);
    GGML_ASSERT(g->ne[0] == d && g->ne[1] == n_head && g->ne[2] == n_tokens);
    GGML_ASSERT(n_tokens % n_seqs == 0);
    GGML_ASSERT(ggml_nelements(state) == d*d*n_head*n_seqs);

    // the output and the new states, which the query heads of a group share
    const int64_t n_row = d*q->ne[1];
    ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_row, n_tokens + (d*d*n_head*n_seqs + n_row - 1)/n_row);

    ggml_set_op_params_f32(result, 0, scale);

    result->op     = GGML_OP_SB_GLA;
    result->src[0] = k;
    result->src[1] = v;
    result->src[2] = q;
    result->src[3] = g;
    result->src[4] = state;
    return result;
}
