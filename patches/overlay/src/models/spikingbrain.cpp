#include "models.h"

#include "ggml-sb.h"
#include "llama-sb.h"

#include "../llama-memory-hybrid-iswa.h"

// SpikingBrain (arXiv 2509.05276): layers of gated linear attention (GLA) alternate with layers of
// sliding-window attention (SWA), in any map that `attention.recurrent_layers` gives.

// log a = logsigmoid(gate logits) / 16
static constexpr float sb_gate_logit_normalizer = 16.0f;

// Names of the projections in `spikingbrain.spike.projections`; ssm_f is the gate: ssm_f_b, or ssm_f_a where it has low rank.
static constexpr const char * sb_projection_names[llama_model_spikingbrain::N_PROJECTIONS] = {
    "attn_q", "attn_k", "attn_v", "ssm_f", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
};

// Coded rows number their blocks of channels with 16 bits.
static constexpr uint32_t sb_max_coded_width = UINT16_MAX*32;

static int sb_find_projection(const std::string & name) {
    const auto * end = std::end(sb_projection_names);
    return std::find(std::begin(sb_projection_names), end, name) - std::begin(sb_projection_names);
}

static float sb_require_k(float k, const char * key, bool zero_allowed) {
    if (!std::isfinite(k) || k < 0.0f || (k == 0.0f && !zero_allowed)) {
        throw std::runtime_error(format("spikingbrain: %s is %g, expected a positive number", key, k));
    }
    return k;
}

static int64_t sb_find_array(const gguf_context * meta, const char * key, gguf_type type) {
    const int64_t id = gguf_find_key(meta, key);
    if (id >= 0 && (gguf_get_kv_type(meta, id) != GGUF_TYPE_ARRAY || gguf_get_arr_type(meta, id) != type)) {
        throw std::runtime_error(format("spikingbrain: %s is no array of %s", key, gguf_type_name(type)));
    }
    return id;
}

static bool sb_find_number(const llama_model_loader & ml, const char * key, float & value) {
    const int64_t id = gguf_find_key(ml.metadata, key);
    if (id >= 0) {
        if (gguf_get_kv_type(ml.metadata, id) != GGUF_TYPE_FLOAT32) {
            throw std::runtime_error(format("spikingbrain: %s is no f32", key));
        }
        value = gguf_get_val_f32(ml.metadata, id);
    }
    return id >= 0;
}

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
    // all query heads of a group read one state, so a layer keeps n_head_kv states of [n_embd_head, n_embd_head]
    hparams.ssm_d_state = n_embd_head;
    hparams.ssm_d_inner = n_embd_head*n_head_kv;

    // 0: one merged gate projection, as in the W8ASpike release
    hparams.n_lora_decay = 16;
    ml.get_key(LLM_KV_ATTENTION_DECAY_LORA_RANK, hparams.n_lora_decay, false);

    load_spiking(ml);
    load_sparse_hparams(ml);

    switch (n_layer) {
        case 16: type = LLM_TYPE_1B; break;
        case 28: type = LLM_TYPE_7B; break;
        default: type = LLM_TYPE_UNKNOWN;
    }
}

// The projections that the file codes, as numbers of enum projection.
static std::vector<int> sb_coded_projections(const gguf_context * meta) {
    static const char * key = "spikingbrain.spike.projections";

    std::vector<int> result;
    const int64_t id = sb_find_array(meta, key, GGUF_TYPE_STRING);
    for (size_t i = 0; id >= 0 && i < gguf_get_arr_n(meta, id); ++i) {
        const std::string name = gguf_get_arr_str(meta, id, i);
        result.push_back(sb_find_projection(name));
        if (result.back() == llama_model_spikingbrain::N_PROJECTIONS) {
            throw std::runtime_error(format("spikingbrain: %s names '%s', which is no projection", key, name.c_str()));
        }
    }
    return result;
}

// A number that a kv override gives, 0 or more; negative: there is none.
static float sb_override(const llama_model_loader & ml, const char * key) {
    const auto found = ml.kv_overrides.find(key);
    if (found == ml.kv_overrides.end()) {
        return -1.0f;
    }
    if (found->second.tag != LLAMA_KV_OVERRIDE_TYPE_FLOAT) {
        throw std::runtime_error(format("spikingbrain: %s is no float", key));
    }
    return sb_require_k((float) found->second.val_f64, key, true);
}

// Which projections are coded and with which k: keys of the file, unless a kv override replaces them all.
void llama_model_spikingbrain::load_spiking(llama_model_loader & ml) {
    static const char * key_k           = "spikingbrain.spike.k";
    static const char * key_layer_k     = "spikingbrain.spike.layer_k";
    static const char * key_query_k     = "spikingbrain.spike.query_k";
    static const char * key_kv_rounding = "spikingbrain.spike.kv_rounding";

    const std::vector<int> projections = sb_coded_projections(ml.metadata);

    float k = 0.0f;
    if (sb_find_number(ml, key_k, k)) {
        sb_require_k(k, key_k, false);
    } else if (!projections.empty()) {
        throw std::runtime_error(format("spikingbrain: coded projections without %s", key_k));
    }
    if (sb_find_number(ml, key_query_k, spike_query_k)) {
        sb_require_k(spike_query_k, key_query_k, true);
    }
    const int64_t id_rounding = gguf_find_key(ml.metadata, key_kv_rounding);
    if (id_rounding >= 0) {
        if (gguf_get_kv_type(ml.metadata, id_rounding) != GGUF_TYPE_BOOL) {
            throw std::runtime_error(format("spikingbrain: %s is no bool", key_kv_rounding));
        }
        spike_kv_rounding = gguf_get_val_bool(ml.metadata, id_rounding);
    }

    const uint32_t n_layer    = hparams.n_layer();
    const int64_t  id_layer_k = sb_find_array(ml.metadata, key_layer_k, GGUF_TYPE_FLOAT32);
    if (id_layer_k >= 0 && gguf_get_arr_n(ml.metadata, id_layer_k) != n_layer*projections.size()) {
        throw std::runtime_error(format("spikingbrain: %s has %zu values, expected %u layers of %zu projections", key_layer_k,
                gguf_get_arr_n(ml.metadata, id_layer_k), n_layer, projections.size()));
    }
    const float * layer_k = id_layer_k >= 0 ? (const float *) gguf_get_arr_data(ml.metadata, id_layer_k) : nullptr;

    spiking.assign(hparams.n_layer_all, spiking_layer());
    for (uint32_t il = 0; il < n_layer; ++il) {
        for (size_t i = 0; i < projections.size(); ++i) {
            spiking[il].k[projections[i]] = layer_k ? sb_require_k(layer_k[il*projections.size() + i], key_layer_k, true) : k;
        }
    }
    override_spiking(sb_override(ml, "spikingbrain.spike.override"), projections.empty());
    require_coded_projections(projections);
}

// forced: replaces every k that is not 0, and all of them in a file that codes nothing; negative: replaces nothing
void llama_model_spikingbrain::override_spiking(float forced, bool codes_nothing) {
    for (uint32_t il = 0; il < hparams.n_layer() && forced >= 0.0f; ++il) {
        for (float & k : spiking[il].k) {
            k = k > 0.0f || codes_nothing ? forced : 0.0f;
        }
    }
    if (forced >= 0.0f) {
        spike_query_k     = spike_query_k > 0.0f ? forced : 0.0f;
        spike_kv_rounding = spike_kv_rounding && forced > 0.0f;
    }
}

void llama_model_spikingbrain::require_coded_projections(const std::vector<int> & projections) {
    bool any_coded = false;
    bool any_gate  = false;
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        auto & k = spiking[il].k;
        k[SSM_F]   = hparams.is_recr(il) ? k[SSM_F] : 0.0f;
        any_gate  |= hparams.is_recr(il);
        any_coded |= *std::max_element(k.begin(), k.end()) > 0.0f;
    }
    if (!any_gate && std::find(projections.begin(), projections.end(), SSM_F) != projections.end()) {
        throw std::runtime_error("spikingbrain: the gate 'ssm_f' is to be coded, but the model has no GLA layer");
    }
    if (any_coded && std::max(hparams.n_embd, hparams.n_ff()) > sb_max_coded_width) {
        throw std::runtime_error(format("spikingbrain: rows of more than %u channels cannot be coded", sb_max_coded_width));
    }
}

bool llama_model_spikingbrain::set_spike_k(uint32_t il, const std::string & name, float k) {
    const int proj = sb_find_projection(name);
    if (il >= spiking.size() || proj == N_PROJECTIONS || !spiking[il].loaded[proj] || !(k >= 0.0f) || !std::isfinite(k)) {
        return false;
    }
    spiking[il].k[proj] = k;
    return true;
}

bool llama_spikingbrain_set_spike_k(llama_model * model, int32_t il, const char * projection, float k) {
    auto * sb = dynamic_cast<llama_model_spikingbrain *>(model);
    return sb != nullptr && sb->set_spike_k(il, projection, k);
}

void llama_model_spikingbrain::load_sparse_hparams(llama_model_loader & ml) {
    static const char * key = "spikingbrain.sparse.max_density";

    sparse.assign(hparams.n_layer_all, sparse_layer());
    if (sb_find_number(ml, key, sparse_max_density) && !(sparse_max_density > 0.0f && sparse_max_density <= 1.0f)) {
        throw std::runtime_error(format("spikingbrain: %s is %g, expected more than 0 and at most 1", key, sparse_max_density));
    }
    sparse_flags = sb_override(ml, "spikingbrain.sparse.override") == 0.0f ? llama_model_loader::TENSOR_SKIP : 0;
}

// Transposed weights and dead zones of the projections that have them.
void llama_model_spikingbrain::load_sparse_tensors(uint32_t il) {
    const auto & layer = layers[il];
    const struct {
        projection    proj;
        llm_tensor    name;
        ggml_tensor * rows;
    } projections[] = {
        { ATTN_Q,      LLM_TENSOR_ATTN_Q,   layer.wq       },
        { ATTN_K,      LLM_TENSOR_ATTN_K,   layer.wk       },
        { ATTN_V,      LLM_TENSOR_ATTN_V,   layer.wv       },
        { ATTN_OUTPUT, LLM_TENSOR_ATTN_OUT, layer.wo       },
        { FFN_GATE,    LLM_TENSOR_FFN_GATE, layer.ffn_gate },
        { FFN_UP,      LLM_TENSOR_FFN_UP,   layer.ffn_up   },
        { FFN_DOWN,    LLM_TENSOR_FFN_DOWN, layer.ffn_down },
    };
    for (const auto & [proj, name, rows] : projections) {
        const int flags = TENSOR_NOT_REQUIRED | sparse_flags;
        ggml_tensor * columns = create_readable(tn(name, "columns.weight", il), { rows->ne[1], rows->ne[0] }, flags);
        ggml_tensor * zones   = create_readable(tn(name, "zones.weight",   il), { rows->ne[0] }, flags);
        if ((columns == nullptr) != (zones == nullptr)) {
            throw std::runtime_error(format("spikingbrain: layer %u has only one of columns and zones of %s", il, sb_projection_names[proj]));
        }
        if (zones && zones->type != GGML_TYPE_F32) {
            throw std::runtime_error(format("spikingbrain: %s is %s, expected F32", zones->name, ggml_type_name(zones->type)));
        }
        sparse[il][proj] = { columns, zones };
    }
}

// A tensor in plain host memory, where these operators read it, rather than in a layout made for other products.
ggml_tensor * llama_model_spikingbrain::create_readable(
        const LLM_TN_IMPL & tn, const std::initializer_list<int64_t> & ne, int flags) {
    const buft_list_t plain = { { ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), ggml_backend_cpu_buffer_type() } };
    return ml->create_tensor(hparams, &plain, &plain, &plain, &plain, tn, ne, flags);
}

// The weight of a projection: readable if its inputs are coded.
ggml_tensor * llama_model_spikingbrain::create_projection(
        uint32_t il, projection proj, const LLM_TN_IMPL & tn, const std::initializer_list<int64_t> & ne) {
    spiking[il].loaded[proj] = spiking[il].k[proj] > 0.0f;
    return spiking[il].loaded[proj] ? create_readable(tn, ne, 0) : create_tensor(tn, ne, 0);
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

        const int64_t n_embd_q = n_embd_head_k*n_head;
        layer.wq   = create_projection(i, ATTN_Q, tn(LLM_TENSOR_ATTN_Q,   "weight", i), {n_embd, n_embd_q});
        layer.wk   = create_projection(i, ATTN_K, tn(LLM_TENSOR_ATTN_K,   "weight", i), {n_embd, n_embd_k_gqa});
        layer.wv   = create_projection(i, ATTN_V, tn(LLM_TENSOR_ATTN_V,   "weight", i), {n_embd, n_embd_v_gqa});
        layer.wq_b = create_tensor(tn(LLM_TENSOR_ATTN_Q,   "bias",   i), {n_embd_q},     TENSOR_NOT_REQUIRED);
        layer.wk_b = create_tensor(tn(LLM_TENSOR_ATTN_K,   "bias",   i), {n_embd_k_gqa}, TENSOR_NOT_REQUIRED);
        layer.wv_b = create_tensor(tn(LLM_TENSOR_ATTN_V,   "bias",   i), {n_embd_v_gqa}, TENSOR_NOT_REQUIRED);
        layer.wo   = create_projection(i, ATTN_OUTPUT, tn(LLM_TENSOR_ATTN_OUT, "weight", i), {n_embd_q, n_embd});

        if (hparams.is_recr(i)) {
            if (n_rank > 0) {
                layer.ssm_f_a = create_projection(i, SSM_F, tn(LLM_TENSOR_SSM_F_A, "weight", i), {n_embd, n_rank});
                layer.ssm_f_b = create_tensor(tn(LLM_TENSOR_SSM_F_B, "weight", i), {n_rank, n_embd_k_gqa}, 0);
            } else {
                layer.ssm_f_b = create_projection(i, SSM_F, tn(LLM_TENSOR_SSM_F_B, "weight", i), {n_embd, n_embd_k_gqa});
            }
            layer.ssm_dt_b = create_tensor(tn(LLM_TENSOR_SSM_F_B, "bias",   i), {n_embd_k_gqa}, 0);
            layer.ssm_norm = create_tensor(tn(LLM_TENSOR_SSM_NORM, "weight", i), {n_embd_head_v}, 0);
        }

        layer.ffn_norm = create_tensor(tn(LLM_TENSOR_FFN_NORM, "weight", i), {n_embd}, 0);
        layer.ffn_gate = create_projection(i, FFN_GATE, tn(LLM_TENSOR_FFN_GATE, "weight", i), {n_embd, n_ff});
        layer.ffn_up   = create_projection(i, FFN_UP, tn(LLM_TENSOR_FFN_UP,   "weight", i), {n_embd, n_ff});
        layer.ffn_down = create_projection(i, FFN_DOWN, tn(LLM_TENSOR_FFN_DOWN, "weight", i), {n_ff, n_embd});

        if (sparse_max_density > 0.0f) {
            load_sparse_tensors(i);
        }
    }
}

std::unique_ptr<llm_graph_context> llama_model_spikingbrain::build_arch_graph(const llm_graph_params & params) const {
    return std::make_unique<graph>(*this, params);
}

llama_model_spikingbrain::graph::graph(const llama_model_spikingbrain & model, const llm_graph_params & params) :
    llm_graph_context(params), sb(model) {
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

        cur = build_mlp(layer, cur, il);

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

// in.x: [n, n_tokens] -> w's [m, n_tokens]. Projections that read one input with one k share its counts.
ggml_tensor * llama_model_spikingbrain::graph::build_projection(
        projection proj, ggml_tensor * w, ggml_tensor * w_s, input & in, int il) {
    const float k = sb.spiking[il].k[proj];
    const auto & sparse = sb.sparse[il][proj];
    if (k == 0.0f && sparse.columns && in.x->ne[1] == 1 && loras->empty()) {
        ggml_tensor * res = sb_sparse_mul_mat(ctx0, w, sparse.columns, sparse.zones, in.x, sb.sparse_max_density);
        return w_s ? ggml_mul(ctx0, res, w_s) : res;
    }
    if (k == 0.0f) {
        return build_lora_mm(w, in.x, w_s);
    }

    auto found = std::find_if(in.coded.begin(), in.coded.end(), [k](const auto & entry) { return entry.first == k; });
    if (found == in.coded.end()) {
        ggml_tensor * counts = sb_spike_code(ctx0, in.x, k);
        cb(counts, (std::string("spike_") + sb_projection_names[proj]).c_str(), il);
        found = in.coded.insert(in.coded.end(), { k, counts });
    }
    ggml_tensor * res = sb_spike_mul_mat(ctx0, w, found->second);
    if (w_s) {
        res = ggml_mul(ctx0, res, w_s);
    }

    // adapters were trained on activations
    for (const auto & [adapter, strength] : *loras) {
        if (llama_adapter_lora_weight * lw = adapter->get_weight(w)) {
            ggml_tensor * ab = ggml_mul_mat(ctx0, lw->b, ggml_mul_mat(ctx0, lw->a, in.x));
            res = ggml_add(ctx0, res, ggml_scale(ctx0, ab, lw->get_scale(adapter->alpha, strength)));
        }
    }
    return res;
}

// in.x: [n_embd, n_tokens] -> [d, n, n_tokens], n heads
ggml_tensor * llama_model_spikingbrain::graph::build_heads(
        projection proj, ggml_tensor * w, ggml_tensor * w_s, ggml_tensor * b, int64_t n, input & in, int il) {
    ggml_tensor * cur = build_projection(proj, w, w_s, in, il);
    if (b) {
        cur = ggml_add(ctx0, cur, b);
    }
    return ggml_reshape_3d(ctx0, cur, hparams.n_embd_head_k(), n, n_tokens);
}

// cur: [n_embd, n_tokens] -> [n_embd, n_tokens]
ggml_tensor * llama_model_spikingbrain::graph::build_mlp(const llama_layer & layer, ggml_tensor * cur, int il) {
    input in = { cur };
    ggml_tensor * gate = build_projection(FFN_GATE, layer.ffn_gate, layer.ffn_gate_s, in, il);
    ggml_tensor * up   = build_projection(FFN_UP,   layer.ffn_up,   layer.ffn_up_s,   in, il);
    cb(gate, "ffn_gate", il);
    cb(up,   "ffn_up",   il);

    input gated = { ggml_swiglu_split(ctx0, gate, up) };
    cb(gated.x, "ffn_swiglu", il);

    cur = build_projection(FFN_DOWN, layer.ffn_down, layer.ffn_down_s, gated, il);
    cb(cur, "ffn_out", il);
    return cur;
}

// cur: [n_embd, n_tokens] -> [n_embd, n_tokens]
ggml_tensor * llama_model_spikingbrain::graph::build_swa(
        const llama_layer & layer, ggml_tensor * cur, ggml_tensor * inp_pos,
        llm_graph_input_attn_kv_iswa * inp_attn, int il) {
    input in = { cur };
    ggml_tensor * q = build_heads(ATTN_Q, layer.wq, layer.wq_s, layer.wq_b, n_head,    in, il);
    ggml_tensor * k = build_heads(ATTN_K, layer.wk, layer.wk_s, layer.wk_b, n_head_kv, in, il);
    ggml_tensor * v = build_heads(ATTN_V, layer.wv, layer.wv_s, layer.wv_b, n_head_kv, in, il);

    q = ggml_rope_ext(ctx0, q, inp_pos, nullptr, n_rot, rope_type, n_ctx_orig, freq_base, freq_scale,
            ext_factor, attn_factor, beta_fast, beta_slow);
    k = ggml_rope_ext(ctx0, k, inp_pos, nullptr, n_rot, rope_type, n_ctx_orig, freq_base, freq_scale,
            ext_factor, attn_factor, beta_fast, beta_slow);
    cb(q, "Qcur_rope", il);
    cb(k, "Kcur_rope", il);

    if (sb.spike_query_k > 0.0f) {
        q = sb_spike_round(ctx0, q, sb.spike_query_k);
    }
    if (sb.spike_kv_rounding) {
        k = sb_spike_round_int8(ctx0, k);
        v = sb_spike_round_int8(ctx0, v);
    }

    input heads = { build_attn(inp_attn, nullptr, nullptr, nullptr, q, k, v, nullptr, nullptr, nullptr,
            1.0f/sqrtf(float(hparams.n_embd_head_k())), il) };
    cur = build_projection(ATTN_OUTPUT, layer.wo, layer.wo_s, heads, il);
    cb(cur, "attn_out", il);
    return cur;
}

// cur: [n_embd, n_tokens] -> [n_embd, n_tokens]; no rotary embedding
ggml_tensor * llama_model_spikingbrain::graph::build_gla(
        const llama_layer & layer, ggml_tensor * cur, llm_graph_input_rs * inp_rs, int il) {
    const int64_t n_embd_head = hparams.n_embd_head_k();
    const int64_t n_seqs      = ubatch.n_seqs;

    GGML_ASSERT(n_seqs != 0 && ubatch.equal_seqs());

    input in = { cur };
    ggml_tensor * q = build_heads(ATTN_Q, layer.wq, layer.wq_s, layer.wq_b, n_head,    in, il);
    ggml_tensor * k = build_heads(ATTN_K, layer.wk, layer.wk_s, layer.wk_b, n_head_kv, in, il);
    ggml_tensor * v = build_heads(ATTN_V, layer.wv, layer.wv_s, layer.wv_b, n_head_kv, in, il);
    q = ggml_relu(ctx0, q); // [d, H,   n_tokens]
    k = ggml_relu(ctx0, k); // [d, Hkv, n_tokens]
    cb(q, "gla_q", il);
    cb(k, "gla_k", il);

    // a = exp(logsigmoid(z)/16) = exp(-softplus(-z)/16), [d, Hkv, n_tokens]
    ggml_tensor * a = build_projection(SSM_F, layer.ssm_f_a ? layer.ssm_f_a : layer.ssm_f_b, nullptr, in, il);
    if (layer.ssm_f_a) {
        a = build_lora_mm(layer.ssm_f_b, a);
    }
    a = ggml_add(ctx0, a, layer.ssm_dt_b);
    a = ggml_softplus(ctx0, ggml_neg(ctx0, a));
    a = ggml_exp(ctx0, ggml_scale(ctx0, a, -1.0f/sb_gate_logit_normalizer));
    a = ggml_reshape_3d(ctx0, a, n_embd_head, n_head_kv, n_tokens);
    cb(a, "gla_decay", il);

    const auto * mctx_rs  = inp_rs->mctx;
    ggml_tensor * s_all   = mctx_rs->get_s_l(il);
    const int64_t n_state = hparams.n_embd_s();

    ggml_tensor * state = build_rs(inp_rs, s_all, n_state, n_seqs);

    ggml_tensor * out = sb_gla(ctx0, k, v, q, a, state, 1.0f/sqrtf(float(n_embd_head)));
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

    input heads = { cur };
    cur = build_projection(ATTN_OUTPUT, layer.wo, layer.wo_s, heads, il);
    cb(cur, "attn_out", il);
    return cur;
}
