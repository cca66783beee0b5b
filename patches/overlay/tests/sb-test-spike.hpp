#pragma once

// Cases of GGML_OP_SB_SPIKE_CODE and GGML_OP_SB_SPIKE_MUL_MAT, included by sb-tests.hpp.

// Activations as a model has them: mostly small, a few channels a thousand times larger.
static void sb_init_heavy_tailed(ggml_tensor * t) {
    std::vector<float> x(ggml_nelements(t));
    std::mt19937 rng(1234 + t->ne[0]);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < x.size(); ++i) {
        x[i] = normal(rng)*(i % 97 == 5 ? 1000.0f : 1.0f);
    }
    ggml_backend_tensor_set(t, x.data(), 0, ggml_nbytes(t));
}

struct test_spike_mul_mat : public test_case {
    const ggml_type type;
    const int64_t   m;
    const int64_t   n;
    const int64_t   n_tokens;
    const float     k;
    const bool      heavy_tailed;

    std::string op_desc(ggml_tensor *) override {
        return "SB_SPIKE_MUL_MAT";
    }

    std::string vars() override {
        return VARS_TO_STR6(type, m, n, n_tokens, k, heavy_tailed);
    }

    uint64_t op_flops(ggml_tensor *) override {
        return 2*m*n*n_tokens;
    }

    test_spike_mul_mat(ggml_type type, int64_t m, int64_t n, int64_t n_tokens, float k = 3.0f, bool heavy_tailed = false) :
        type(type), m(m), n(n), n_tokens(n_tokens), k(k), heavy_tailed(heavy_tailed) {}

    bool run_whole_graph() override {
        return true;
    }

    ggml_tensor * build_graph(ggml_context * ctx) override {
        ggml_tensor * w = ggml_new_tensor_2d(ctx, type, n, m);
        ggml_tensor * x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n, n_tokens);
        ggml_set_name(x, "activations");
        return sb_spike_mul_mat(ctx, w, sb_spike_code(ctx, x, k));
    }

    void initialize_tensors(ggml_context * ctx) override {
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
            if (heavy_tailed && strcmp(t->name, "activations") == 0) {
                sb_init_heavy_tailed(t);
            } else if (t->op == GGML_OP_NONE) {
                init_tensor_uniform(t);
            }
        }
    }
};

// The stock product of the same weights and activations, to measure beside.
struct test_spike_baseline : public test_case {
    const ggml_type type;
    const int64_t   m;
    const int64_t   n;
    const int64_t   n_tokens;

    std::string vars() override {
        return VARS_TO_STR4(type, m, n, n_tokens);
    }

    uint64_t op_flops(ggml_tensor *) override {
        return 2*m*n*n_tokens;
    }

    test_spike_baseline(ggml_type type, int64_t m, int64_t n, int64_t n_tokens) : type(type), m(m), n(n), n_tokens(n_tokens) {}

    ggml_tensor * build_graph(ggml_context * ctx) override {
        return ggml_mul_mat(ctx, ggml_new_tensor_2d(ctx, type, n, m), ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n, n_tokens));
    }
};

struct test_spike_round : public test_case {
    const int64_t n;
    const int64_t n_head;
    const int64_t n_tokens;
    const float   k; // 0: to INT8

    std::string op_desc(ggml_tensor *) override {
        return "SB_SPIKE_CODE";
    }

    std::string vars() override {
        return VARS_TO_STR4(n, n_head, n_tokens, k);
    }

    test_spike_round(int64_t n, int64_t n_head, int64_t n_tokens, float k) : n(n), n_head(n_head), n_tokens(n_tokens), k(k) {}

    ggml_tensor * build_graph(ggml_context * ctx) override {
        // rows that do not follow each other, as of one of several fused projections
        ggml_tensor * wide = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 2*n, n_head, n_tokens);
        ggml_tensor * x    = ggml_view_3d(ctx, wide, n, n_head, n_tokens, wide->nb[1], wide->nb[2], n*sizeof(float));
        return k > 0.0f ? sb_spike_round(ctx, x, k) : sb_spike_round_int8(ctx, x);
    }
};

static void sb_add_spike_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    for (const ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_1, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K}) {
        const int64_t block = std::max<int64_t>(ggml_blck_size(type), 32);
        for (const int64_t n_tokens : {1, 2, 7, 8, 33}) {
            cases.emplace_back(new test_spike_mul_mat(type, 17, block,   n_tokens));
            cases.emplace_back(new test_spike_mul_mat(type, 64, 3*block, n_tokens));
            cases.emplace_back(new test_spike_mul_mat(type, 5,  6*block, n_tokens, 3.0f,    true));
            cases.emplace_back(new test_spike_mul_mat(type, 23, 4*block, n_tokens, 1000.0f, false));
            cases.emplace_back(new test_spike_mul_mat(type, 3,  2*block, n_tokens, 1e6f,    true));
        }
    }
    for (const int64_t n : {1, 17, 60, 100}) {
        cases.emplace_back(new test_spike_mul_mat(GGML_TYPE_F32, 7, n, 3));
        cases.emplace_back(new test_spike_mul_mat(GGML_TYPE_F32, 7, n, 3, 500.0f, true));
    }
    cases.emplace_back(new test_spike_mul_mat(GGML_TYPE_Q4_0, 576, 1536, 300));
    cases.emplace_back(new test_spike_mul_mat(GGML_TYPE_Q8_0, 576, 576,  515, 3.0f, true));
    for (const float k : {3.0f, 100.0f, 0.0f}) {
        cases.emplace_back(new test_spike_round(64, 9, 1,  k));
        cases.emplace_back(new test_spike_round(60, 3, 33, k));
        cases.emplace_back(new test_spike_round(17, 1, 5,  k));
    }
}

static void sb_add_spike_perf_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    for (const ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0}) {
        for (const int64_t n_tokens : {1, 512}) {
            cases.emplace_back(new test_spike_mul_mat (type, 8192, 2048, n_tokens)); // 1B, up
            cases.emplace_back(new test_spike_baseline(type, 8192, 2048, n_tokens));
            cases.emplace_back(new test_spike_mul_mat (type, 2048, 8192, n_tokens)); // 1B, down
            cases.emplace_back(new test_spike_baseline(type, 2048, 8192, n_tokens));
        }
    }
}
