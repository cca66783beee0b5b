#pragma once

// Functions that libllama exports for the architecture "spikingbrain".

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

// Set k of one projection of one layer, from the next context on; 0: not coded.
// False if the model is of another architecture, has no such projection, or the projection was not coded when it was loaded.
LLAMA_API bool llama_spikingbrain_set_spike_k(struct llama_model * model, int32_t il, const char * projection, float k);

#ifdef __cplusplus
}
#endif
