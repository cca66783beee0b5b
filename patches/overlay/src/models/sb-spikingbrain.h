#pragma once

// The architecture "spikingbrain", included by models.h.

struct llama_model_spikingbrain : public llama_model_base {
    llama_model_spikingbrain(const struct llama_model_params & params) : llama_model_base(params) {}
    void load_arch_hparams(llama_model_loader & ml) override;
    void load_arch_tensors(llama_model_loader & ml) override;

    // projections whose input can be coded as spike counts
    enum projection { ATTN_Q, ATTN_K, ATTN_V, SSM_F, ATTN_OUTPUT, FFN_GATE, FFN_UP, FFN_DOWN, N_PROJECTIONS };

    struct spiking_layer {
        std::array<float, N_PROJECTIONS> k      = {}; // 0: not coded
        std::array<bool,  N_PROJECTIONS> loaded = {}; // its weight lies where the coded product can read it
    };

    // projections of which the weights of silent channels are left out while decoding; null: none are
    struct sparse_weight {
        ggml_tensor * columns = nullptr;
        ggml_tensor * zones   = nullptr;
    };
    typedef std::array<sparse_weight, N_PROJECTIONS> sparse_layer;

    std::vector<sparse_layer> sparse;
    float                     sparse_max_density = 0.0f; // 0: the file has no sparse projections
    int                       sparse_flags       = 0;    // of their tensors

    std::vector<spiking_layer> spiking;
    float                      spike_query_k     = 0.0f;
    bool                       spike_kv_rounding = false;

    // k of one projection from the next context on; false if there is no such projection that was coded when loaded
    bool set_spike_k(uint32_t il, const std::string & name, float k);

    struct graph : public llm_graph_context {
        graph(const llama_model_spikingbrain & model, const llm_graph_params & params);

        // what projections of one layer read: activations, and their counts for each k that was asked for
        struct input {
            ggml_tensor * x;
            std::vector<std::pair<float, ggml_tensor *>> coded = {};
        };

        ggml_tensor * build_projection(projection proj, ggml_tensor * w, ggml_tensor * w_s, input & in, int il);
        ggml_tensor * build_heads(projection proj, ggml_tensor * w, ggml_tensor * w_s, ggml_tensor * b, int64_t n, input & in, int il);
        ggml_tensor * build_mlp(const llama_layer & layer, ggml_tensor * cur, int il);
        ggml_tensor * build_swa(const llama_layer & layer, ggml_tensor * cur, ggml_tensor * inp_pos,
                llm_graph_input_attn_kv_iswa * inp_attn, int il);
        ggml_tensor * build_gla(const llama_layer & layer, ggml_tensor * cur, llm_graph_input_rs * inp_rs, int il);

        const llama_model_spikingbrain & sb;
    };

private:
    void load_spiking(llama_model_loader & ml);
    void load_sparse_hparams(llama_model_loader & ml);
    void load_sparse_tensors(uint32_t il);
    ggml_tensor * create_readable(const LLM_TN_IMPL & tn, const std::initializer_list<int64_t> & ne, int flags);
    ggml_tensor * create_projection(uint32_t il, projection proj, const LLM_TN_IMPL & tn, const std::initializer_list<int64_t> & ne);
    void override_spiking(float forced, bool codes_nothing);
    void require_coded_projections(const std::vector<int> & projections);

    std::unique_ptr<llm_graph_context> build_arch_graph(const llm_graph_params & params) const override;
};
