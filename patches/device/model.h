// A model and its context, on chosen CPUs.
#pragma once

#include "ggml-cpu.h"
#include "llama.h"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// A problem to print on one line.
struct sb_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct sb_model_options {
    std::string           path;
    std::string           type_k     = "f16";
    std::string           type_v     = "f16";
    llama_flash_attn_type flash_attn = LLAMA_FLASH_ATTN_TYPE_AUTO;
    int64_t               n_ctx      = 4096;
    int64_t               n_ubatch   = 256;
    bool                  all_logits = false;
    bool                  helper     = false; // a second sequence in the same cache, for a synthetic fill
};

// Threads on CPUs of their own: as many as there are CPUs, or as many as are told where no CPU is.
class sb_threads {
  public:
    sb_threads(std::vector<int> cpus, int n);
    ~sb_threads();
    sb_threads(const sb_threads &)             = delete;
    sb_threads & operator=(const sb_threads &) = delete;

    const std::vector<int> cpus;
    const int              n;

    ggml_threadpool * pool;
};

class sb_model {
  public:
    explicit sb_model(const sb_model_options & options);
    ~sb_model();
    sb_model(const sb_model &)             = delete;
    sb_model & operator=(const sb_model &) = delete;

    const sb_model_options options;

    llama_model *   model = nullptr;
    llama_context * ctx   = nullptr;

    int64_t kv_bytes    = 0; // from the engine's log
    int64_t state_bytes = 0;

    void use(sb_threads & threads);

    const llama_vocab * vocab() const { return llama_model_get_vocab(model); }

    int n_vocab() const { return llama_vocab_n_tokens(vocab()); }

    std::string description() const;

    // Whether its context can be cut to any length: attention over everything, no recurrent state.
    bool can_cut() const;

    // Evaluate tokens after the present ones; logits of the last one, or of all.
    void feed(const llama_token * tokens, int64_t n, bool all = false);

    int64_t position() const;
    void    clear();
    void    cut(int64_t position);

    std::vector<uint8_t> state() const;
    void                 set_state(const std::vector<uint8_t> & data, llama_seq_id sequence = 0);
};

// Fill an empty context to `depth` with copies of one real chunk. `sb_model_options::helper` must have been set.
void sb_synthetic_fill(sb_model & model, int64_t depth, const std::vector<llama_token> & chunk);

// A context on disk, complete under its name. `prefill_ns` is the time that its tokens took, `source` who read them.
struct sb_context_file {
    int64_t              position   = 0;
    int64_t              prefill_ns = 0;
    std::string          source     = "device"; // or "host"
    std::vector<uint8_t> state;

    // Throws sb_error.
    void write(const std::string & path) const;

    // False if there is no file, or a damaged one.
    bool read(const std::string & path);
};

// Replace `path` by `data`, synced to disk. Throws sb_error.
void sb_write_file(const std::string & path, const std::string & head, const std::vector<uint8_t> & data = {});

// Called for messages of the engine that a user should see.
void sb_set_log();
