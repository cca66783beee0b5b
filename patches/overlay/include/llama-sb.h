#pragma once

// Functions that this project adds to libllama.

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

// Set k of one projection of one layer, from the next context on; 0: not coded.
// False if the model is of another architecture, has no such projection, or the projection was not coded when it was loaded.
LLAMA_API bool llama_spikingbrain_set_spike_k(struct llama_model * model, int32_t il, const char * projection, float k);

// As llama_sampler_init_grammar and llama_sampler_sample, for callers in C: an exception is logged, and the result is NULL or
// LLAMA_TOKEN_NULL.
LLAMA_API struct llama_sampler * llama_sb_sampler_init_grammar(
        const struct llama_vocab * vocab, const char * grammar, const char * root);
LLAMA_API llama_token llama_sb_sampler_sample(struct llama_sampler * smpl, struct llama_context * ctx, int32_t idx);

#ifdef __cplusplus
}
#endif
