#include "ggml-sb.h"

#include "ggml-impl.h"

void sb_attn_set_grouped(ggml_tensor * a, bool grouped) {
    GGML_ASSERT(a->op == GGML_OP_FLASH_ATTN_EXT);

    ggml_set_op_params_i32(a, 5, grouped);
}
