#pragma once

// Cases of GGML_OP_GATED_LINEAR_ATTN with fewer key/value heads than query heads, included by test-backend-ops.cpp.

struct test_gla_grouped : public test_case {
    const int64_t n_head;
    const int64_t n_head_kv;
    const int64_t head_size;
    const int64_t n_seq_tokens;
    const int64_t n_seqs;

    std::string vars() override {
        return VARS_TO_STR5(n_head, n_head_kv, head_size, n_seq_tokens, n_seqs);
    }

    uint64_t op_flops(ggml_tensor *) override {
        // a multiply and an add for the decay, one for k^T v, and one a query head for the read-out
        const uint64_t per_state = head_size*head_size*(3*n_head_kv + 2*n_head);
        return per_state*n_seq_tokens*n_seqs;
    }

    test_gla_grouped(int64_t n_head, int64_t n_head_kv, int64_t head_size, int64_t n_seq_tokens, int64_t n_seqs) :
        n_head(n_head), n_head_kv(n_head_kv), head_size(head_size), n_seq_tokens(n_seq_tokens), n_seqs(n_seqs) {}

    ggml_tensor * build_graph(ggml_context * ctx) override {
        const int64_t n_tokens = n_seq_tokens*n_seqs;
        ggml_tensor * q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, head_size, n_head,    n_tokens);
        ggml_tensor * k = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, head_size, n_head_kv, n_tokens);
        ggml_tensor * v = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, head_size, n_head_kv, n_tokens);
        ggml_tensor * a = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, head_size, n_head_kv, n_tokens);
        ggml_tensor * s = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, head_size*head_size*n_head_kv, n_seqs);
        ggml_set_name(a, "decay");
        return ggml_gated_linear_attn(ctx, k, v, q, a, s, 1.0f/sqrtf((float) head_size));
    }

    void initialize_tensors(ggml_context * ctx) override {
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
            // gates from almost closed to fully open
            const bool is_decay = strcmp(t->name, "decay") == 0;
            init_tensor_uniform(t, is_decay ? 0.001f : -1.0f, 1.0f);
        }
    }
};

static void sb_add_gla_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    // the shapes of the 7B, the 1B and the default model, then awkward ones: odd sizes, groups beyond eight heads
    static const int64_t shapes[][3] = {
        {28, 4, 128}, {32, 8, 64}, {9, 3, 64}, {4, 4, 64}, {6, 2, 60}, {3, 1, 17}, {12, 1, 40}, {8, 8, 16},
    };
    for (const auto & shape : shapes) {
        for (const int64_t n_seq_tokens : {1, 2, 33, 63}) {
            for (const int64_t n_seqs : {1, 3}) {
                cases.emplace_back(new test_gla_grouped(shape[0], shape[1], shape[2], n_seq_tokens, n_seqs));
            }
        }
    }
}

static void sb_add_gla_perf_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    for (const int64_t n_seq_tokens : {1, 512}) {
        cases.emplace_back(new test_gla_grouped(28,  4, 128, n_seq_tokens, 1)); // 7B, Hkv states
        cases.emplace_back(new test_gla_grouped(28, 28, 128, n_seq_tokens, 1)); // 7B, H states
        cases.emplace_back(new test_gla_grouped(32,  8,  64, n_seq_tokens, 1)); // 1B, Hkv states
        cases.emplace_back(new test_gla_grouped(32, 32,  64, n_seq_tokens, 1)); // 1B, H states
    }
}
