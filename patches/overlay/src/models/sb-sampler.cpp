#include "llama-impl.h"
#include "llama-sb.h"

#include <exception>

llama_sampler * llama_sb_sampler_init_grammar(const llama_vocab * vocab, const char * grammar, const char * root) {
    try {
        return llama_sampler_init_grammar(vocab, grammar, root);
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        return nullptr;
    }
}

llama_token llama_sb_sampler_sample(llama_sampler * smpl, llama_context * ctx, int32_t idx) {
    try {
        return llama_sampler_sample(smpl, ctx, idx);
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        return LLAMA_TOKEN_NULL;
    }
}
