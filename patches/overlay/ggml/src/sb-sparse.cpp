#include "sb-sparse.h"

#include "ggml-impl.h"

ggml_tensor * sb_sparse_mul_mat(
        ggml_context * ctx, ggml_tensor * rows, ggml_tensor * columns, ggml_tensor * zones, ggml_tensor * x, float max_density) {
    GGML_ASSERT(ggml_is_matrix(rows) && ggml_is_matrix(columns) && ggml_is_vector(zones) && ggml_is_matrix(x));
    GGML_ASSERT(columns->ne[0] == rows->ne[1] && columns->ne[1] == rows->ne[0]);
    GGML_ASSERT(zones->ne[0] == rows->ne[0] && x->ne[0] == rows->ne[0]);
    GGML_ASSERT(zones->type == GGML_TYPE_F32 && x->type == GGML_TYPE_F32);
    GGML_ASSERT(max_density >= 0.0f && max_density <= 1.0f);

    ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, rows->ne[1], x->ne[1]);

    result->op = GGML_OP_SB_SPARSE_MUL_MAT;
    ggml_set_op_params_f32(result, 0, max_density);
    result->src[SB_SPARSE_ROWS]    = rows;
    result->src[SB_SPARSE_COLUMNS] = columns;
    result->src[SB_SPARSE_ZONES]   = zones;
    result->src[SB_SPARSE_X]       = x;
    return result;
}
