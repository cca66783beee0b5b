#pragma once

// Cases of GGML_OP_SB_GLA with fewer key/value heads than query heads, included by sb-tests.hpp.

enum sb_gla_gates { SB_GATES_ANY, SB_GATES_OPEN, SB_GATES_CLOSED };

struct test_gla_grouped : public test_case {
    const int64_t n_head;
    const int64_t n_head_kv;
    const int64_t head_size;
    const int64_t n_seq_tokens;
    const int64_t n_seqs;
    const sb_gla_gates gates;
    const bool by_token; // rather than in chunks

    std::string vars() override {
        static const char * const names[] = { "any", "open", "closed" };
        return VARS_TO_STR5(n_head, n_head_kv, head_size, n_seq_tokens, n_seqs) + ",gates=" + names[gates] +
               "," + VAR_TO_STR(by_token);
    }

    uint64_t op_flops(ggml_tensor *) override {
        // a multiply and an add for the decay, one for k^T v, and one a query head for the read-out
        const uint64_t per_state = head_size*head_size*(3*n_head_kv + 2*n_head);
        return per_state*n_seq_tokens*n_seqs;
    }

    test_gla_grouped(int64_t n_head, int64_t n_head_kv, int64_t head_size, int64_t n_seq_tokens, int64_t n_seqs,
                     sb_gla_gates gates = SB_GATES_ANY, bool by_token = false) :
        n_head(n_head), n_head_kv(n_head_kv), head_size(head_size), n_seq_tokens(n_seq_tokens), n_seqs(n_seqs),
        gates(gates), by_token(by_token) {}

    ggml_tensor * build_graph(ggml_context * ctx) override {
        const int64_t n_tokens = n_seq_tokens*n_seqs;
        ggml_tensor * q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, head_size, n_head,    n_tokens);
        ggml_tensor * k = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, head_size, n_head_kv, n_tokens);
        ggml_tensor * v = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, head_size, n_head_kv, n_tokens);
        ggml_tensor * a = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, head_size, n_head_kv, n_tokens);
        ggml_tensor * s = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, head_size*head_size*n_head_kv, n_seqs);
        ggml_set_name(a, "decay");
        ggml_tensor * out = sb_gla(ctx, k, v, q, a, s, 1.0f/sqrtf((float) head_size));
        out->op_params[1] = by_token;
        return out;
    }

    void initialize_tensors(ggml_context * ctx) override {
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
            if (strcmp(t->name, "decay") == 0) {
                init_gates(t);
            } else {
                init_tensor_uniform(t);
            }
        }
    }

    // any: from almost closed to fully open; open: 1; closed: 0, 1e-30 or 1e-20, so that products of them underflow,
    // with an open one among them now and then
    void init_gates(ggml_tensor * t) const {
        static const float closed[] = { 0.0f, 1e-30f, 1e-20f, 0.0f, 1.0f, 1e-20f, 1e-30f };
        if (gates == SB_GATES_ANY) {
            init_tensor_uniform(t, 0.001f, 1.0f);
            return;
        }
        std::vector<float> values(ggml_nelements(t), 1.0f);
        for (size_t i = 0; i < values.size() && gates == SB_GATES_CLOSED; ++i) {
            values[i] = closed[i*i % 97 % 7];
        }
        ggml_backend_tensor_set(t, values.data(), 0, values.size()*sizeof(float));
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
        // prompts in chunks: whole ones only, a last one of a token, of all but one
        for (const int64_t n_seq_tokens : {64, 65, 103}) {
            for (const sb_gla_gates gates : {SB_GATES_ANY, SB_GATES_OPEN, SB_GATES_CLOSED}) {
                cases.emplace_back(new test_gla_grouped(shape[0], shape[1], shape[2], n_seq_tokens, 1, gates));
            }
        }
        cases.emplace_back(new test_gla_grouped(shape[0], shape[1], shape[2], 70, 3));
    }
}

static void sb_add_gla_perf_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    static const int64_t shapes[][3] = { {28, 4, 128}, {32, 8, 64} }; // 7B, 1B
    for (const auto & shape : shapes) {
        for (const int64_t n_seq_tokens : {1, 512, 4096}) {
            // a state for each query head and for each key/value head, both token by token, then chunks
            const auto add = [&](int64_t n_head_kv, bool by_token) {
                cases.emplace_back(new test_gla_grouped(shape[0], n_head_kv, shape[2], n_seq_tokens, 1, SB_GATES_ANY, by_token));
            };
            add(shape[0], true);
            add(shape[1], true);
            if (n_seq_tokens > 1) {
                add(shape[1], false);
            }
        }
    }
}
