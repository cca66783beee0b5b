#pragma once

// Cases of GGML_OP_SB_SPARSE_MUL_MAT, included by sb-tests.hpp.

struct test_sparse_mul_mat : public test_case {
    const ggml_type type; // of the columns
    const int64_t   m;
    const int64_t   n;
    const int64_t   n_tokens;
    const float     silent;      // share of the channels
    const float     max_density; // 0: always dense, of the same weights if they are F32

    std::string op_desc(ggml_tensor *) override {
        return "SB_SPARSE_MUL_MAT";
    }

    std::string vars() override {
        return VARS_TO_STR6(type, m, n, n_tokens, silent, max_density);
    }

    uint64_t op_flops(ggml_tensor *) override {
        return 2*m*n*n_tokens;
    }

    // float sums in two orders
    double max_nmse_err() override {
        return 1e-11;
    }

    test_sparse_mul_mat(ggml_type type, int64_t m, int64_t n, int64_t n_tokens, float silent, float max_density) :
        type(type), m(m), n(n), n_tokens(n_tokens), silent(silent), max_density(max_density) {}

    ggml_tensor * build_graph(ggml_context * ctx) override {
        ggml_tensor * columns = ggml_new_tensor_2d(ctx, type, m, n);
        ggml_tensor * rows    = max_density > 0.0f || type != GGML_TYPE_F32 ?
            ggml_new_tensor_2d(ctx, n % ggml_blck_size(type) == 0 ? type : GGML_TYPE_F32, n, m) :
            ggml_cont(ctx, ggml_transpose(ctx, columns));
        ggml_tensor * zones   = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n);
        ggml_tensor * x       = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n, n_tokens);
        ggml_set_name(zones, "zones");
        return sb_sparse_mul_mat(ctx, rows, columns, zones, x, max_density);
    }

    bool run_whole_graph() override {
        return true;
    }

    // activations are uniform in [-1, 1], so a zone of z makes a share of z silent
    void initialize_tensors(ggml_context * ctx) override {
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
            if (strcmp(t->name, "zones") == 0) {
                init_tensor_uniform(t, silent, silent);
            } else if (t->op == GGML_OP_NONE) {
                init_tensor_uniform(t);
            }
        }
    }
};

static void sb_add_sparse_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    for (const ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_F16, GGML_TYPE_F32, GGML_TYPE_Q4_K}) {
        for (const int64_t m : {256, 1536}) {
            for (const int64_t n : {1, 7, 576}) {
                for (const float silent : {0.0f, 0.5f, 0.97f, 2.0f}) {
                    cases.emplace_back(new test_sparse_mul_mat(type, m, n, 1, silent, 1.0f));
                }
            }
        }
    }
    for (const int64_t n_tokens : {1, 3}) {
        for (const float silent : {0.0f, 0.5f}) {
            cases.emplace_back(new test_sparse_mul_mat(GGML_TYPE_F32, 96, 33, n_tokens, silent, 1.0f));
            cases.emplace_back(new test_sparse_mul_mat(GGML_TYPE_F32, 96, 33, n_tokens, silent, 0.0f));
        }
    }
}

static void sb_add_sparse_perf_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    // the default model's and the 1B's projections back from the feed-forward network
    for (const auto & [m, n] : {std::pair<int64_t, int64_t>{576, 1536}, {2048, 8192}}) {
        for (const ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0}) {
            cases.emplace_back(new test_sparse_mul_mat(type, m, n, 1, 0.0f, 0.0f));
            for (const float silent : {0.0f, 0.2f, 0.4f, 0.6f, 0.8f, 0.9f}) {
                cases.emplace_back(new test_sparse_mul_mat(type, m, n, 1, silent, 1.0f));
            }
        }
    }
}
