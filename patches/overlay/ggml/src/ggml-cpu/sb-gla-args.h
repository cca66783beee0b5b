#pragma once

// Arguments of GGML_OP_SB_GLA; shapes in sb-gla.h.

#include <cstdint>

struct sb_gla_args {
    const float * k;
    const float * v;
    const float * q;
    const float * a;
    const float * state_in;
    float *       state_out;
    float *       out;
    int64_t       d;
    int64_t       n_head;
    int64_t       n_head_kv;
    int64_t       n_seq_tokens;
    int64_t       n_seqs;
    float         scale;
};
