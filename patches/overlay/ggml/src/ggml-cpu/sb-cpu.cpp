#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "sb-attn.h"
#include "sb-cpu.h"
#include "sb-gla.h"
#include "sb-sparse-cpu.h"
#include "sb-spike-cpu.h"
#include "tiled/tiled.h"
#include "traits.h"

#include <algorithm>
#include <cstring>

bool sb_cpu_compute_forward(ggml_compute_params * params, ggml_tensor * node, sb_cpu_compute_t compute) {
    switch (node->op) {
        case GGML_OP_SB_GLA:
            sb_gla_compute(params, node);
            return true;
        case GGML_OP_SB_SPIKE_CODE:
            sb_spike_code_compute(params, node);
            return true;
        case GGML_OP_SB_SPIKE_MUL_MAT:
            sb_spike_mul_mat_compute(params, node);
            return true;
        case GGML_OP_SB_SPARSE_MUL_MAT: {
            sb_sparse_dense dense;
            if (!sb_sparse_mul_mat_compute(params, node, &dense)) {
                compute(&dense.params, &dense.product);
            }
            return true;
        }
        case GGML_OP_FLASH_ATTN_EXT:
            if (!sb_attn_takes(node)) {
                return false;
            }
            sb_attn_compute(params, node);
            return true;
        default:
            return false;
    }
}

int sb_cpu_n_tasks(const ggml_tensor * node, int n_threads) {
    switch (node->op) {
        case GGML_OP_SB_GLA:
        case GGML_OP_SB_SPIKE_MUL_MAT:
        case GGML_OP_SB_SPARSE_MUL_MAT:
            return n_threads;
        case GGML_OP_SB_SPIKE_CODE:
            return (int) std::min<int64_t>(n_threads, ggml_nrows(node));
        default:
            return 0;
    }
}

// As ggml_graph_plan sizes the buffer of a MUL_MAT, and what finding the active channels needs.
static size_t sb_cpu_sparse_work_size(const ggml_tensor * node, int n_threads, int n_tasks) {
    sb_sparse_dense dense;
    sb_sparse_make_dense(node, &dense);
    size_t size = 0;
    if (!ggml_cpu_extra_work_size(n_threads, &dense.product, &size)) {
        const ggml_type vec_dot_type = ggml_get_type_traits_cpu(dense.product.src[0]->type)->vec_dot_type;
        size  = GGML_PAD(ggml_row_size(vec_dot_type, ggml_nelements(&dense.x)), 64);
        size += ggml_tiled_wdata_size(n_tasks, &dense.product);
    }
    return size + sb_sparse_work_size(node, n_tasks);
}

bool sb_cpu_work_size(const ggml_tensor * node, int n_threads, int n_tasks, size_t * size) {
    switch (node->op) {
        case GGML_OP_SB_GLA:
            *size = sb_gla_work_size(node, n_tasks);
            return true;
        case GGML_OP_SB_SPARSE_MUL_MAT:
            *size = sb_cpu_sparse_work_size(node, n_threads, n_tasks);
            return true;
        case GGML_OP_FLASH_ATTN_EXT:
            if (!sb_attn_takes(node)) {
                return false;
            }
            *size = sb_attn_work_size(node, n_tasks);
            return true;
        default:
            return false;
    }
}

bool sb_cpu_supports_op(ggml_backend_dev_t dev, const ggml_tensor * op, sb_cpu_supports_t supports, bool * supported) {
    switch (op->op) {
        case GGML_OP_SB_GLA:
        case GGML_OP_SB_SPIKE_CODE:
            *supported = true;
            return true;
        case GGML_OP_SB_SPIKE_MUL_MAT:
            *supported = ggml_backend_buft_is_host(op->src[0]->buffer ? op->src[0]->buffer->buft : ggml_backend_cpu_buffer_type()) &&
                         sb_spike_mul_mat_supports(op->src[0]->type);
            return true;
        case GGML_OP_SB_SPARSE_MUL_MAT: {
            sb_sparse_dense dense;
            sb_sparse_make_dense(op, &dense);
            *supported = sb_sparse_supports(op) && supports(dev, &dense.product);
            return true;
        }
        default:
            return false;
    }
}

void * sb_cpu_proc_address(const char * name) {
    void * address = sb_spike_proc_address(name);
    return address ? address : sb_sparse_proc_address(name);
}
