#pragma once

#include "ggml-sb.h"

#ifdef __cplusplus
extern "C" {
#endif

// Sources of GGML_OP_SB_SPARSE_MUL_MAT: y = W x, in which the channels c of x with |x_c| < zone_c count as silent.
//   rows    [n, m] W as it is: the dense product is taken from it where too few channels are silent
//   columns [m, n] W transposed: a row of it holds the weights of one channel, so that those of silent ones are not fetched
//   zones   [n]    F32
//   x       [n, T] F32
enum sb_sparse_src { SB_SPARSE_ROWS, SB_SPARSE_COLUMNS, SB_SPARSE_ZONES, SB_SPARSE_X };

#ifdef __cplusplus
}
#endif
