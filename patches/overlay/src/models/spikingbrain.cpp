#include "models.h"

#include "../llama-memory-hybrid-iswa.h"

// SpikingBrain (arXiv 2509.05276): layers of gated linear attention (GLA) alternate with layers of
// sliding-window attention (SWA), in any map that `attention.recurrent_layers` gives.

// log a = logsigmoid(gate logits) / 16
static constexpr float sb_gate_logit_normalizer = 16.0f;

void llama_model_spikingbrain::load_arch_hparams(llama_model_loader & ml) {
    ml.get_key(LLM_KV_ATTENTION_LAYERNORM_RMS_EPS, hparams.f_norm_rms_eps);

    // one head size and one rotary setting for the whole model
    hparams.n_embd_head_k_swa         = hparams.n_embd_head_k_full;
    hparams.n_embd_head_v_swa         = hparams.n_embd_head_v_full;
    hparams.n_rot_swa                 = hparams.n_rot_full;
    hparams.rope_freq_base_train_swa  = hparams.rope_freq_base_train;
    hparams.rope_freq_scale_train_swa = hparams.rope_freq_scale_train;

    const uint32_t n_layer     = hparams.n_layer();
    const uint32_t n_head      = hparams.n_head();
    const uint32_t n_head_kv   = hparams.n_head_kv();
    const uint32_t n_embd_head = hparams.n_embd_head_k();

    if (n_embd_head == 0 || n_embd_head != hparams.n_embd_head_v()) {
        throw std::runtime_error(format("spikingbrain: key and value head sizes must be equal, found %u and %u",
                n_embd_head, hparams.n_embd_head_v()));
    }
    if (hparams.n_rot() == 0 || hparams.n_rot() > n_embd_head || hparams.n_rot() % 2 != 0) {
        throw std::runtime_error(format("spikingbrain: %u rotary dimensions do not fit heads of %u", hparams.n_rot(), n_embd_head));
    }
    for (uint32_t il = 0; il < n_layer; ++il) {
        if (hparams.n_head(il) != n_head || hparams.n_head_kv(il) != n_head_kv) {
            throw std::runtime_error(format("spikingbrain: layer %u has other head counts than layer 0", il));
        }
    }
    if (n_head_kv == 0 || n_head % n_head_kv != 0) {
        throw std::runtime_error(format("spikingbrain: %u query heads cannot share %u key/value heads", n_head, n_head_kv));
    }

    // without the key the layers alternate as in the 7B: even GLA, odd SWA
    if (!ml.get_key_or_arr(LLM_KV_ATTENTION_RECURRENT_LAYERS, hparams.is_recr_impl, hparams.n_layer_all, false)) {
        hparams.set_recr_pattern(2, false);
    }

    ml.get_key(LLM_KV_ATTENTION_SLIDING_WINDOW, hparams.n_swa);
    if (hparams.n_swa == 0) {
        throw std::runtime_error("spikingbrain: attention.sliding_window is 0");
    }
    hparams.swa_type = LLAMA_SWA_TYPE_STANDARD;
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        hparams.is_swa_impl[il] = !hparams.is_recr(il);
    }
    // all query heads of a group read one state, so a layer keeps n_head_kv of them
    hparams.n_embd_state_gla = n_embd_head*n_embd_head*n_head_kv;

    // 0: one merged gate projection, as in the W8ASpike release
    hparams.n_lora_decay = 16;
    ml.get_key(LLM_KV_ATTENTION_DECAY_LORA_RANK, hparams.n_lora_decay, false);

    switch (n_layer) {
        case 16: type = LLM_TYPE_1B; break;
        case 28: type = LLM_TYPE_7B; break;
        default: type = LLM_TYPE_UNKNOWN;
    }
}

void llama_model_spikingbrain::load_arch_tensors(llama_model_loader &) {
    LLAMA_LOAD_LOCALS;

    const int64_t n_rank = hparams.n_lora_decay;

    tok_embd = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD, "weight"), {n_embd, n_vocab}, 0);

    output_norm = create_tensor(tn(LLM_TENSOR_OUTPUT_NORM, "weight"), {n_embd}, 0);
    output      = create_tensor(tn(LLM_TENSOR_OUTPUT,      "weight"), {n_embd, n_vocab}, TENSOR_NOT_REQUIRED);
    if (output == nullptr) {
        output = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD, "weight"), {n_embd, n_vocab}, TENSOR_DUPLICATED);
    }

    for (int i = 0; i < n_layer; ++i) {
        auto & layer = layers[i];

        layer.attn_norm = create_tensor(tn(LLM_TENSOR_ATTN_NORM, "weight", i), {n_embd}, 0);

        create_tensor_qkv(layer, i, n_embd, n_embd_head_k*n_head, n_embd_k_gqa, n_embd_v_gqa, 0);
        layer.wo = create_tensor(tn(LLM_TENSOR_ATTN_OUT, "weight", i), {n_embd_head_k*n_head, n_embd}, 0);

        if (hparams.is_recr(i)) {
            if (n_rank > 0) {
                layer.ssm_f_a = create_tensor(tn(LLM_TENSOR_SSM_F_A, "weight", i), {n_embd, n_rank}, 0);
            }
            layer.ssm_f_b  = create_tensor(tn(LLM_TENSOR_SSM_F_B, "weight", i), {n_rank > 0 ? n_rank : n_embd, n_embd_k_gqa}, 0);
            layer.ssm_dt_b = create_tensor(tn(LLM_TENSOR_SSM_F_B, "bias",   i), {n_embd_k_gqa}, 0);
            layer.ssm_norm = create_tensor(tn(LLM_TENSOR_SSM_NORM, "weight", i), {n_embd_head_v}, 0);
        }

        layer.ffn_norm = create_tensor(tn(LLM_TENSOR_FFN_NORM, "weight", i), {n_embd}, 0);
        layer.ffn_gate = create_tensor(tn(LLM_TENSOR_FFN_GATE, "weight", i), {n_embd, n_ff}, 0);
        layer.ffn_up   = create_tensor(tn(LLM_TENSOR_FFN_UP,   "weight", i), {n_embd, n_ff}, 0);
        layer.ffn_down = create_tensor(tn(LLM_TENSOR_FFN_DOWN, "weight", i), {n_ff, n_embd}, 0);
    }
}

std::unique_ptr<llm_graph_context> llama_model_spikingbrain::build_arch_graph(const llm_graph_params & params) const {
    return std::make_unique<graph>(*this, params);
}

llama_model_spikingbrain::graph::graph(const llama_model & model, const llm_graph_params & params) :
    llm_graph_context(params) {
    ggml_tensor * inpL = build_inp_embd(model.tok_embd);

    auto * inp_hybrid = build_inp_mem_hybrid_iswa();

    ggml_tensor * inp_pos     = build_inp_pos();
    ggml_tensor * inp_out_ids = build_inp_out_ids();

    // inputs are set whether they are read or not: a model without SWA layers does not read the positions,
    // one without GLA layers not the state indices
    ggml_build_forward_expand(gf, inp_pos);
    ggml_build_forward_expand(gf, inp_hybrid->get_recr()->s_copy);

    for (int il = 0; il < n_layer; ++il) {
        const auto & layer = model.layers[il];

        res->t_layer_inp[il] = inpL;

        ggml_tensor * cur = build_norm(inpL, layer.attn_norm, nullptr, LLM_NORM_RMS, il);
        cb(cur, "attn_norm", il);

        cur = hparams.is_recr(il) ?
            build_gla(layer, cur, inp_hybrid->get_recr(), il) :
            build_swa(layer, cur, inp_pos, inp_hybrid->get_attn(), il);

        if (il == n_layer - 1 && inp_out_ids) {
            cur  = ggml_get_rows(ctx0, cur,  inp_out_ids);
            inpL = ggml_get_rows(ctx0, inpL, inp_out_ids);
        }

        ggml_tensor * ffn_inp = ggml_add(ctx0, cur, inpL);
        cb(ffn_inp, "ffn_inp", il);

        cur = build_norm(ffn_inp, layer.ffn_norm, nullptr, LLM_NORM_RMS, il);
        cb(cur, "ffn_norm", il);

        cur = build_ffn(cur,
                layer.ffn_up,   nullptr, nullptr,
                layer.ffn_gate, nullptr, nullptr,
                layer.ffn_down, nullptr, nullptr,
                nullptr, LLM_FFN_SILU, LLM_FFN_PAR, il);
        cb(cur, "ffn_out", il);

        cur = ggml_add(ctx0, cur, ffn_inp);
        cur = build_cvec(cur, il);
        cb(cur, "l_out", il);

        inpL = cur;
    }

    ggml_tensor * cur = build_norm(inpL, model.output_norm, nullptr, LLM_NORM_RMS, -1);
    cb(cur, "result_norm", -1);
    res->t_embd = cur;

    cur = build_lora_mm(model.output, cur, model.output_s);
    cb(cur, "result_output", -1);
    res->t_logits = cur;

    ggml_build_forward_expand(gf, cur);
}

// cur: [n_embd, n_tokens] -> [n_embd, n_tokens]
ggml_tensor * llama_model_spikingbrain::graph::build_swa(
        const llama_layer & layer, ggml_tensor * cur, ggml_tensor * inp_pos,
        llm_graph_input_attn_kv_iswa * inp_attn, int il) {
    const int64_t n_embd_head = hparams.n_embd_head_k();

    auto [q, k, v] = build_qkv(layer, cur, n_embd_head, n_head, n_head_kv, il);

    q = ggml_rope_ext(ctx0, q, inp_pos, nullptr, n_rot, rope_type, n_ctx_orig, freq_base, freq_scale,
            ext_factor, attn_factor, beta_fast, beta_slow);
    k = ggml_rope_ext(ctx0, k, inp_pos, nullptr, n_rot, rope_type, n_ctx_orig, freq_base, freq_scale,
            ext_factor, attn_factor, beta_fast, beta_slow);
    cb(q, "Qcur_rope", il);
    cb(k, "Kcur_rope", il);

    cur = build_attn(inp_attn, layer.wo, nullptr, layer.wo_s, q, k, v, nullptr, nullptr, nullptr,
            1.0f/sqrtf(float(n_embd_head)), il);
    cb(cur, "attn_out", il);
    return cur;
}

// cur: [n_embd, n_tokens] -> [n_embd, n_tokens]; no rotary embedding
ggml_tensor * llama_model_spikingbrain::graph::build_gla(
        const llama_layer & layer, ggml_tensor * cur, llm_graph_input_rs * inp_rs, int il) {
    const int64_t n_embd_head = hparams.n_embd_head_k();
    const int64_t n_seqs      = ubatch.n_seqs;

    GGML_ASSERT(n_seqs != 0 && ubatch.equal_seqs());

    auto [q, k, v] = build_qkv(layer, cur, n_embd_head, n_head, n_head_kv, il);
    q = ggml_relu(ctx0, q); // [d, H,   n_tokens]
    k = ggml_relu(ctx0, k); // [d, Hkv, n_tokens]
    cb(q, "gla_q", il);
    cb(k, "gla_k", il);

    // a = exp(logsigmoid(z)/16) = exp(-softplus(-z)/16), [d, Hkv, n_tokens]
    ggml_tensor * a = cur;
    if (layer.ssm_f_a) {
        a = build_lora_mm(layer.ssm_f_a, a);
    }
    a = ggml_add(ctx0, build_lora_mm(layer.ssm_f_b, a), layer.ssm_dt_b);
    a = ggml_softplus(ctx0, ggml_neg(ctx0, a));
    a = ggml_exp(ctx0, ggml_scale(ctx0, a, -1.0f/sb_gate_logit_normalizer));
    a = ggml_reshape_3d(ctx0, a, n_embd_head, n_head_kv, n_tokens);
    cb(a, "gla_decay", il);

    const auto * mctx_rs  = inp_rs->mctx;
    ggml_tensor * s_all   = mctx_rs->get_s_l(il);
    const int64_t n_state = hparams.n_embd_s();

    ggml_tensor * state = build_rs(inp_rs, s_all, n_state, n_seqs);

    // v is a view where one fused projection gives q, k and v
    v = ggml_is_contiguous(v) ? v : ggml_cont(ctx0, v);

    ggml_tensor * out = ggml_gated_linear_attn(ctx0, k, v, q, a, state, 1.0f/sqrtf(float(n_embd_head)));
    cb(out, "gla_out", il);

    const size_t n_out = n_embd_head*n_head*n_tokens;
    ggml_build_forward_expand(gf, ggml_cpy(ctx0,
            ggml_view_1d(ctx0, out, n_state*n_seqs, n_out*ggml_element_size(out)),
            ggml_view_1d(ctx0, s_all, n_state*n_seqs, mctx_rs->get_head()*n_state*ggml_element_size(s_all))));

    // normalised per head, one weight for all heads
    cur = ggml_view_3d(ctx0, out, n_embd_head, n_head, n_tokens,
            n_embd_head*ggml_element_size(out), n_embd_head*n_head*ggml_element_size(out), 0);
    cur = build_norm(cur, layer.ssm_norm, nullptr, LLM_NORM_RMS, il);
    cur = ggml_reshape_2d(ctx0, cur, n_embd_head*n_head, n_tokens);
    cb(cur, "gla_norm", il);

    cur = build_lora_mm(layer.wo, cur, layer.wo_s);
    cb(cur, "attn_out", il);
    return cur;
}
