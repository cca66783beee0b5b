#include "model.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

static int64_t     sb_kv_bytes, sb_state_bytes; // of the context that was made last
static std::string sb_last_error;

// The engine tells the sizes of a context in its log only: "llama_kv_cache: size =   12.00 MiB".
static void sb_read_size(const char * text) {
    const char * size = strstr(text, ": size = ");
    double       mib;
    if (size == nullptr || sscanf(size + 9, "%lf MiB", &mib) != 1) {
        return;
    }
    if (strncmp(text, "llama_kv_cache", 14) == 0) {
        sb_kv_bytes += (int64_t) (mib * 1048576 + 0.5);
    } else if (strncmp(text, "llama_memory_recurrent", 22) == 0) {
        sb_state_bytes += (int64_t) (mib * 1048576 + 0.5);
    }
}

static void sb_log(ggml_log_level level, const char * text, void *) {
    sb_read_size(text);
    if (level == GGML_LOG_LEVEL_ERROR) {
        sb_last_error = text;
        while (!sb_last_error.empty() && sb_last_error.back() == '\n') {
            sb_last_error.pop_back();
        }
    }
}

void sb_set_log() {
    llama_log_set(sb_log, nullptr);
}

static std::string sb_because() {
    return sb_last_error.empty() ? "" : ": " + sb_last_error;
}

static ggml_type sb_type(const std::string & name) {
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        const char * known = ggml_type_name((ggml_type) type);
        if (known != nullptr && name == known) {
            return (ggml_type) type;
        }
    }
    throw sb_error("unknown type '" + name + "'");
}

static void sb_pin(const std::vector<int> & cpus) {
    if (cpus.empty()) {
        return;
    }
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int cpu : cpus) {
        if (cpu >= 0 && cpu < CPU_SETSIZE) {
            CPU_SET(cpu, &set);
        }
    }
    if (sched_setaffinity(0, sizeof(set), &set) != 0) {
        throw sb_error(std::string("cannot use these CPUs: ") + strerror(errno));
    }
}

sb_threads::sb_threads(std::vector<int> chosen, int wanted) : cpus(std::move(chosen)), n(cpus.empty() ? wanted : (int) cpus.size()) {
    sb_pin(cpus); // the threads of the pool inherit it
    ggml_threadpool_params params;
    ggml_threadpool_params_init(&params, n);
    pool = ggml_threadpool_new(&params);
    if (pool == nullptr) {
        throw sb_error("cannot start " + std::to_string(n) + " threads");
    }
}

sb_threads::~sb_threads() {
    ggml_threadpool_free(pool);
}

sb_model::sb_model(const sb_model_options & wanted) : options(wanted) {
    sb_last_error.clear();
    model = llama_model_load_from_file(options.path.c_str(), llama_model_default_params());
    if (model == nullptr) {
        throw sb_error(options.path + ": cannot be loaded" + sb_because());
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = (uint32_t) options.n_ctx;
    params.n_batch = params.n_ubatch = (uint32_t) std::min(options.n_ubatch, options.n_ctx);
    params.n_seq_max       = options.helper ? 2 : 1;
    params.kv_unified      = options.helper;
    params.n_outputs_max   = options.all_logits ? 0 : params.n_seq_max;
    params.type_k          = sb_type(options.type_k);
    params.type_v          = sb_type(options.type_v);
    params.flash_attn_type = options.flash_attn;
    params.swa_full        = false;
    params.no_perf         = true;
    sb_kv_bytes = sb_state_bytes = 0;
    ctx = llama_init_from_model(model, params);
    if (ctx == nullptr) {
        llama_model_free(model);
        throw sb_error(options.path + ": no context of " + std::to_string(options.n_ctx) + " tokens" + sb_because());
    }
    kv_bytes    = sb_kv_bytes;
    state_bytes = sb_state_bytes;
}

sb_model::~sb_model() {
    llama_free(ctx);
    llama_model_free(model);
}

void sb_model::use(sb_threads & threads) {
    llama_attach_threadpool(ctx, threads.pool, threads.pool);
    llama_set_n_threads(ctx, threads.n, threads.n);
}

std::string sb_model::description() const {
    char text[128];
    llama_model_desc(model, text, sizeof(text));
    return text;
}

bool sb_model::can_cut() const {
    return !llama_model_is_recurrent(model) && !llama_model_is_hybrid(model) && llama_model_n_swa(model) == 0;
}

void sb_model::feed(const llama_token * tokens, int64_t n, bool all) {
    const int64_t step = llama_n_batch(ctx);
    for (int64_t i = 0; i < n; i += step) {
        const auto          count = (int32_t) std::min(step, n - i);
        llama_batch         batch = llama_batch_get_one(const_cast<llama_token *>(tokens + i), count);
        std::vector<int8_t> wanted((size_t) count, all ? 1 : 0);
        wanted.back() = 1;
        batch.logits  = wanted.data();
        if (const int status = llama_decode(ctx, batch)) {
            throw sb_error("the engine refused a batch at position " + std::to_string(position()) + " (status " +
                           std::to_string(status) + ")" + sb_because());
        }
    }
}

int64_t sb_model::position() const {
    return llama_memory_seq_pos_max(llama_get_memory(ctx), 0) + 1;
}

void sb_model::clear() {
    llama_memory_clear(llama_get_memory(ctx), true);
}

void sb_model::cut(int64_t position) {
    if (!llama_memory_seq_rm(llama_get_memory(ctx), 0, (llama_pos) position, -1)) {
        throw sb_error("this context cannot be cut to " + std::to_string(position) + " tokens");
    }
}

std::vector<uint8_t> sb_model::state() const {
    std::vector<uint8_t> data(llama_state_seq_get_size(ctx, 0));
    data.resize(llama_state_seq_get_data(ctx, data.data(), data.size(), 0));
    return data;
}

void sb_model::set_state(const std::vector<uint8_t> & data, llama_seq_id sequence) {
    llama_memory_seq_rm(llama_get_memory(ctx), sequence, -1, -1);
    if (llama_state_seq_set_data(ctx, data.data(), data.size(), sequence) == 0) {
        throw sb_error("a saved context does not belong to this model and these settings" + sb_because());
    }
}

void sb_write_file(const std::string & path, const std::string & head, const std::vector<uint8_t> & data) {
    const std::string partial = path + ".partial";
    FILE *            file    = fopen(partial.c_str(), "wb");
    bool              good    = file != nullptr;
    good = good && fwrite(head.data(), 1, head.size(), file) == head.size();
    good = good && fwrite(data.data(), 1, data.size(), file) == data.size();
    good = good && fflush(file) == 0 && fsync(fileno(file)) == 0;
    const int problem = errno;
    if (file != nullptr) {
        good = fclose(file) == 0 && good;
    }
    if (!good || rename(partial.c_str(), path.c_str()) != 0) {
        throw sb_error(path + ": " + strerror(good ? errno : problem));
    }
}

// ---- contexts on disk: magic, position, prefill_ns, source, size, CRC-32, state; little-endian ----

static const char SB_MAGIC[8] = { 'S', 'B', 'C', 'T', 'X', '0', '0', '1' };

struct sb_context_head {
    char     magic[8];
    int64_t  position;
    int64_t  prefill_ns;
    uint64_t size;
    uint32_t crc;
    uint32_t is_host;
};

static_assert(sizeof(sb_context_head) == 40, "the host writes the same layout");

static uint32_t sb_crc32(const std::vector<uint8_t> & data) {
    static const auto table = [] {
        std::array<uint32_t, 256> entries{};
        for (uint32_t i = 0; i < 256; ++i) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; ++bit) {
                value = value & 1 ? 0xEDB88320u ^ (value >> 1) : value >> 1;
            }
            entries[i] = value;
        }
        return entries;
    }();
    uint32_t crc = ~0u;
    for (const uint8_t byte : data) {
        crc = table[(crc ^ byte) & 0xff] ^ (crc >> 8);
    }
    return ~crc;
}

void sb_context_file::write(const std::string & path) const {
    sb_context_head head;
    memcpy(head.magic, SB_MAGIC, sizeof(SB_MAGIC));
    head.position   = position;
    head.prefill_ns = prefill_ns;
    head.size       = state.size();
    head.crc        = sb_crc32(state);
    head.is_host    = source == "host";
    sb_write_file(path, std::string((const char *) &head, sizeof(head)), state);
}

bool sb_context_file::read(const std::string & path) {
    FILE * file = fopen(path.c_str(), "rb");
    if (file == nullptr) {
        return false;
    }
    sb_context_head head;
    bool good = fread(&head, sizeof(head), 1, file) == 1 && memcmp(head.magic, SB_MAGIC, sizeof(SB_MAGIC)) == 0;
    good      = good && fseek(file, 0, SEEK_END) == 0 && (uint64_t) ftell(file) == sizeof(head) + head.size;
    if (good) {
        fseek(file, sizeof(head), SEEK_SET);
        state.resize(head.size);
        good = fread(state.data(), 1, state.size(), file) == state.size() && sb_crc32(state) == head.crc;
    }
    fclose(file);
    if (good) {
        position   = head.position;
        prefill_ns = head.prefill_ns;
        source     = head.is_host ? "host" : "device";
    }
    return good;
}
