// Memory that a model and a context would take, from the engine's own simulated allocation: nothing is allocated, no weight read.
//
//   sb-memory MODEL [n_ctx=N n_batch=N n_ubatch=N n_seq_max=N n_outputs=N type_k=NAME type_v=NAME flash_attn=-1|0|1 swa_full=0|1
//                    kv_unified=0|1 KEY=FLOAT ...]
//
// KEY=FLOAT overrides a key of the model, such as spikingbrain.spike.override. Without n_ctx, only the model is looked at.
// The result is one line of JSON: bytes by buffer type, and how many of the context's bytes are recurrent states. The engine's
// log goes to standard error. Exit status: 1 for a model that cannot be loaded, 3 for a context that cannot be made.

#include "llama.h"
#include "llama-ext.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-recurrent.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <string>
#include <vector>

static ggml_type sb_memory_type(const std::string & name) {
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        const char * known = ggml_type_name((ggml_type) type);
        if (known != nullptr && name == known) {
            return (ggml_type) type;
        }
    }
    fprintf(stderr, "sb-memory: unknown type '%s'\n", name.c_str());
    exit(2);
}

static bool sb_memory_set(llama_context_params & params, const std::string & key, const std::string & value) {
    const std::map<std::string, uint32_t *> numbers = {
        { "n_ctx",     &params.n_ctx     }, { "n_batch",   &params.n_batch       }, { "n_ubatch", &params.n_ubatch },
        { "n_seq_max", &params.n_seq_max }, { "n_outputs", &params.n_outputs_max },
    };
    const auto found = numbers.find(key);
    if (found != numbers.end()) {
        *found->second = (uint32_t) strtoul(value.c_str(), nullptr, 10);
    } else if (key == "type_k") {
        params.type_k = sb_memory_type(value);
    } else if (key == "type_v") {
        params.type_v = sb_memory_type(value);
    } else if (key == "flash_attn") {
        params.flash_attn_type = (llama_flash_attn_type) atoi(value.c_str());
    } else if (key == "swa_full") {
        params.swa_full = value == "1";
    } else if (key == "kv_unified") {
        params.kv_unified = value == "1";
    } else {
        return false;
    }
    return true;
}

// Bytes of the recurrent states.
static size_t sb_memory_states(llama_memory_t memory) {
    const llama_memory_i * states = dynamic_cast<llama_memory_recurrent *>(memory);
    if (const auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        states = hybrid->get_mem_recr();
    } else if (const auto * hybrid_iswa = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        states = hybrid_iswa->get_mem_recr();
    }
    size_t size = 0;
    if (states != nullptr) {
        for (const auto & [buft, bytes] : states->memory_breakdown()) {
            size += bytes;
        }
    }
    return size;
}

static void sb_memory_print(const llama_memory_breakdown & breakdown, size_t states) {
    const char * separator = "";
    printf("{\"states\": %zu, \"buffers\": {", states);
    for (const auto & [buft, bytes] : breakdown) {
        printf("%s\"%s\": {\"in_place\": %s, \"model\": %zu, \"context\": %zu, \"compute\": %zu}", separator,
               ggml_backend_buft_name(buft), buft == ggml_backend_cpu_buffer_type() ? "true" : "false", bytes.model, bytes.context,
               bytes.compute);
        separator = ", ";
    }
    printf("}}\n");
}

// The engine's log, without what only its developers need.
static void sb_memory_log(ggml_log_level level, const char * text, void *) {
    static bool skipped = false;
    skipped             = level == GGML_LOG_LEVEL_DEBUG || (level == GGML_LOG_LEVEL_CONT && skipped);
    if (!skipped) {
        fputs(text, stderr);
    }
}

int main(int argc, char ** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: sb-memory MODEL [NAME=VALUE ...]\n");
        return 2;
    }
    llama_context_params                 cparams = llama_context_default_params();
    std::vector<llama_model_kv_override> overrides;
    bool                                 has_context = false;
    for (int i = 2; i < argc; ++i) {
        const char * equals = strchr(argv[i], '=');
        if (equals == nullptr) {
            fprintf(stderr, "sb-memory: '%s' is not NAME=VALUE\n", argv[i]);
            return 2;
        }
        const std::string key(argv[i], equals - argv[i]);
        has_context |= key == "n_ctx";
        if (!sb_memory_set(cparams, key, equals + 1)) {
            llama_model_kv_override override = {};
            override.tag                     = LLAMA_KV_OVERRIDE_TYPE_FLOAT;
            override.val_f64                 = atof(equals + 1);
            snprintf(override.key, sizeof(override.key), "%s", key.c_str());
            overrides.push_back(override);
        }
    }
    overrides.push_back({});
    llama_log_set(sb_memory_log, nullptr);

    try {
        ggml_backend_load_all();
        llama_model_params mparams = llama_model_default_params();
        mparams.no_alloc           = true;
        mparams.load_mode          = LLAMA_LOAD_MODE_NONE;
        mparams.kv_overrides       = overrides.data();
        llama_model * model        = llama_model_load_from_file(argv[1], mparams);
        if (model == nullptr) {
            return 1;
        }
        if (!has_context) {
            cparams.n_ctx = 32;
        }
        llama_context * context = llama_init_from_model(model, cparams);
        if (context == nullptr) {
            return 3;
        }
        sb_memory_print(llama_get_memory_breakdown(context), sb_memory_states(llama_get_memory(context)));
        llama_free(context);
        llama_model_free(model);
    } catch (const std::exception & error) {
        fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
