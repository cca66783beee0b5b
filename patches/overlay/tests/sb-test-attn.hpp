#pragma once

// Cases of GGML_OP_FLASH_ATTN_EXT with all heads of a group at once, included by sb-tests.hpp.

struct test_attn_grouped : public test_flash_attn_ext {
    const bool    grouped;
    const bool    cache;  // keys and values lie as in a model's cache, all heads of a cell together; else with gaps
    const int64_t window; // keys that the last token sees, the tokens before it one key earlier each; 0: random blocks

    std::string op_desc(ggml_tensor *) override {
        return "FLASH_ATTN_EXT_GROUPED";
    }

    std::string vars() override {
        return VARS_TO_STR11(grouped, cache, hsk, hsv, nh, nr23, kv, nb, type_K, type_V, window);
    }

    // both sides compute in float32 or better
    double max_nmse_err() override {
        return 1e-10;
    }

    test_attn_grouped(bool grouped, int64_t d_k, int64_t d_v, int64_t n_head, int64_t n_head_kv, int64_t n_kv,
                      int64_t n_tokens, int64_t n_seqs, int64_t window, ggml_type type, bool mask = true, bool cache = false) :
        test_flash_attn_ext(d_k, d_v, n_head_kv, { n_head/n_head_kv, n_seqs }, n_kv, n_tokens, mask, false, 0.0f, 0.0f,
                            GGML_PREC_F32, type, type, { 0, 2, 1, 3 }),
        grouped(grouped), cache(cache), window(window) {}

    ggml_tensor * cells(ggml_context * ctx, ggml_type type, int64_t d) {
        return ggml_permute(ctx, ggml_new_tensor_4d(ctx, type, d, nh, kv, nr23[1]), 0, 2, 1, 3);
    }

    ggml_tensor * build_graph(ggml_context * ctx) override {
        ggml_tensor * out = test_flash_attn_ext::build_graph(ctx);
        if (cache) {
            out->src[1] = cells(ctx, type_K, hsk);
            out->src[2] = cells(ctx, type_V, hsv);
        }
        sb_attn_set_grouped(out, grouped);
        return out;
    }

    void initialize_tensors(ggml_context * ctx) override {
        test_flash_attn_ext::initialize_tensors(ctx);
        ggml_tensor * m = mask ? ggml_get_tensor(ctx, "m") : nullptr;
        if (m == nullptr || window == 0) {
            return;
        }
        std::vector<ggml_fp16_t> data(ggml_nelements(m));
        for (size_t i = 0; i < data.size(); ++i) {
            const int64_t last = kv - nb + (int64_t) i/kv % nb;
            const int64_t key  = i % kv;
            data[i] = ggml_fp32_to_fp16(key <= last && key > last - window ? 0.0f : -INFINITY);
        }
        ggml_backend_tensor_set(m, data.data(), 0, ggml_nbytes(m));
    }
};

static void sb_add_attn_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    // head sizes and heads of the 7B, the 1B and the default model, then awkward ones
    static const int64_t shapes[][4] = {
        {128, 128, 28, 4}, {64, 64, 32, 8}, {64, 64, 9, 3}, {60, 40, 6, 2}, {17, 17, 3, 1}, {16, 16, 80, 1}, {40, 72, 5, 5},
    };
    for (const auto & s : shapes) {
        for (const int64_t n_tokens : {1, 2, 9, 33}) {
            cases.emplace_back(new test_attn_grouped(true, s[0], s[1], s[2], s[3], 517, n_tokens, 2, 100, GGML_TYPE_F16, true, true));
            for (const int64_t n_kv : {33, 64, 517}) {
                const auto add = [&](int64_t n_seqs, int64_t window, ggml_type type) {
                    cases.emplace_back(new test_attn_grouped(true, s[0], s[1], s[2], s[3], n_kv, n_tokens, n_seqs, window, type));
                };
                add(1, 0,   GGML_TYPE_F16);
                add(2, 100, GGML_TYPE_F32);
            }
        }
    }
    for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_BF16}) {
        for (const int64_t n_tokens : {1, 40}) {
            cases.emplace_back(new test_attn_grouped(true, 64, 64, 32, 8, 600, n_tokens, 1, 300, type));
            cases.emplace_back(new test_attn_grouped(true, 64, 64, 9,  3, 600, n_tokens, 1, 0,   type, false));
        }
    }
}

static void sb_add_attn_perf_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    for (const bool grouped : {false, true}) {
        for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
            for (const int64_t n_tokens : {1, 512}) {
                // with the cells that a window of 4096 has beside a batch of 512
                const auto add = [&](int64_t d, int64_t n_head, int64_t n_head_kv) {
                    cases.emplace_back(new test_attn_grouped(grouped, d, d, n_head, n_head_kv, 4608, n_tokens, 1, 4096, type, true, true));
                };
                add(64, 32, 8);  // 1B
                add(128, 28, 4); // 7B
            }
        }
    }
}
