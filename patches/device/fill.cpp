// Synthetic context fill: decode speed depends on the number of cached positions, not on their content.
#include "model.h"

#include <algorithm>

void sb_synthetic_fill(sb_model & model, int64_t depth, const std::vector<llama_token> & tokens) {
    const llama_seq_id main = 0, helper = 1;
    llama_memory_t     memory = llama_get_memory(model.ctx);
    if (!model.can_cut() || !llama_memory_can_shift(memory)) {
        throw sb_error("this model does not support a synthetic context fill");
    }
    const int64_t chunk = std::min<int64_t>((int64_t) tokens.size(), depth);
    model.feed(tokens.data(), chunk);
    const auto state = model.state();
    for (int64_t start = chunk; start < depth; start += chunk) {
        const int64_t length = std::min(chunk, depth - start);
        model.set_state(state, helper);
        llama_memory_seq_rm(memory, helper, (llama_pos) length, -1);
        llama_memory_seq_add(memory, helper, 0, -1, (llama_pos) start);
        llama_memory_seq_cp(memory, helper, main, 0, -1);
        llama_memory_seq_rm(memory, helper, 0, -1);
    }
    if (model.position() != depth) {
        throw sb_error("the synthetic context fill reached " + std::to_string(model.position()) + " instead of " +
                       std::to_string(depth) + " tokens");
    }
}
