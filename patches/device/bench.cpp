// Decode speed at several depths, interleaved between models, in a folder that holds all that a killed run needs to go on:
//   lock            held while a benchmark runs
//   threads.json    the calibrated CPUs
//   mI-N.context    model I after N tokens
//   progress.json   what is being done
//   rows.jsonl      one line a measurement, synced
#include "commands.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <set>
#include <thread>

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

static const int64_t SB_AUTO_REAL_DEPTH = 4096; // deepest real prefill of a Transformer with --fill auto
static const int64_t SB_CHUNK           = 512;  // tokens that a synthetic fill repeats
static const int64_t SB_TRIAL_NS        = 700000000;
static const size_t  SB_BUFFER_BYTES    = 256u << 20;
static const size_t  SB_MAX_READINGS    = 1200;

// The same token at a position in every run; the host draws the same ones.
static llama_token sb_token_at(uint64_t position, int n_vocab) {
    uint64_t x = position * 0x9E3779B97F4A7C15ull + 0x20260101ull;
    x ^= x >> 30;
    x *= 0xBF58476D1CE4E5B9ull;
    x ^= x >> 27;
    x *= 0x94D049BB133111EBull;
    x ^= x >> 31;
    return (llama_token) (x % (uint64_t) n_vocab);
}

static std::vector<llama_token> sb_tokens(int64_t from, int64_t n, int n_vocab) {
    std::vector<llama_token> tokens((size_t) n);
    for (int64_t i = 0; i < n; ++i) {
        tokens[(size_t) i] = sb_token_at((uint64_t) (from + i), n_vocab);
    }
    return tokens;
}

// Best of five passes over a buffer, bytes per second; each thread reads its part.
static double sb_read_bandwidth(int n_threads) {
    std::vector<uint64_t> buffer(SB_BUFFER_BYTES / sizeof(uint64_t), 1);
    double                best = 0;
    for (int pass = 0; pass < 5; ++pass) {
        std::atomic<uint64_t>    total{ 0 };
        std::vector<std::thread> threads;
        const int64_t            start = sb_now_ns();
        for (int t = 0; t < n_threads; ++t) {
            threads.emplace_back([&, t] {
                const size_t from = buffer.size() * (size_t) t / (size_t) n_threads;
                const size_t to   = buffer.size() * (size_t) (t + 1) / (size_t) n_threads;
                uint64_t     sums[8] = {};
                size_t       i       = from;
                for (; i + 8 <= to; i += 8) {
                    for (size_t j = 0; j < 8; ++j) {
                        sums[j] += buffer[i + j];
                    }
                }
                for (; i < to; ++i) {
                    sums[0] += buffer[i];
                }
                for (const uint64_t sum : sums) {
                    total += sum;
                }
            });
        }
        for (auto & thread : threads) {
            thread.join();
        }
        if (total != buffer.size()) {
            throw sb_error("the bandwidth measurement read wrong data");
        }
        best = std::max(best, (double) SB_BUFFER_BYTES / ((double) (sb_now_ns() - start) * 1e-9));
    }
    return best;
}

class sb_benchmark {
  public:
    sb_benchmark(const sb_options & options, const sb_phone & phone);
    ~sb_benchmark();

    int run();

  private:
    struct subject {
        size_t                    index;
        std::unique_ptr<sb_model> model;
        std::string               fill = "real", source = "device";
        int64_t                   prefill_ns   = 0;
        int64_t                   resumed_from = 0;
        std::vector<uint8_t>      snapshot;
        std::vector<int64_t>      samples_ns, samples_at_ms;
    };

    const sb_options & options;
    const sb_phone &   phone;

    int                                     lock  = -1;
    int64_t                                 since = sb_now_ns();
    std::set<std::pair<size_t, int64_t>>    done; // model and depth
    std::unique_ptr<sb_threads>             threads;
    json                                    tried = json::array();
    int64_t                                 told_ns = 0;

    std::string file(const std::string & name) const { return options.work + "/" + name; }
    std::string context_file(size_t model, int64_t position) const {
        return file("m" + std::to_string(model) + "-" + std::to_string(position) + ".context");
    }

    void read_rows();
    void tell(const char * phase, size_t model, int64_t depth, int64_t position, bool now);

    std::vector<int64_t> contexts_of(size_t model) const;
    void                 choose_threads();
    double               trial(sb_model & model, sb_threads & candidate) const;

    std::unique_ptr<sb_model> load(size_t index, int64_t depth, bool helper) const;

    subject prepare(size_t index, int64_t depth);
    bool    reach(subject & one, int64_t depth);
    void    rewind(subject & one, int64_t depth) const;
    void    sample(subject & one, int64_t depth, int repetition);
    json    row(const subject & one, int64_t depth, double bandwidth, size_t together, const std::string & turns) const;
    bool    measure(int64_t depth, const std::vector<size_t> & models);
};

sb_benchmark::sb_benchmark(const sb_options & wanted, const sb_phone & device) : options(wanted), phone(device) {
    lock = open(file("lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (lock < 0) {
        throw sb_error(file("lock") + ": " + strerror(errno));
    }
    if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
        throw sb_error(options.work + ": another benchmark runs in this folder");
    }
}

sb_benchmark::~sb_benchmark() {
    close(lock);
}

// Finished measurements; the end of a line that was not written whole is removed.
void sb_benchmark::read_rows() {
    std::ifstream in(file("rows.jsonl"), std::ios::binary);
    if (!in) {
        return;
    }
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    size_t            start = 0;
    for (size_t end; (end = text.find('\n', start)) != std::string::npos; start = end + 1) {
        const json found = json::parse(text.substr(start, end - start), nullptr, false);
        if (found.is_object() && found.contains("model_index") && found.contains("n_depth")) {
            done.insert({ found["model_index"].get<size_t>(), found["n_depth"].get<int64_t>() });
        }
    }
    if (start < text.size() && truncate(file("rows.jsonl").c_str(), (off_t) start) != 0) {
        throw sb_error(file("rows.jsonl") + ": " + strerror(errno));
    }
}

void sb_benchmark::tell(const char * phase, size_t model, int64_t depth, int64_t position, bool now) {
    if (!now && sb_now_ns() - told_ns < 2000000000ll) {
        return;
    }
    told_ns          = sb_now_ns();
    const json state = {
        { "phase", phase },       { "model_index", model }, { "n_depth", depth },
        { "position", position }, { "rows", done.size() },  { "t_ms", (told_ns - since) / 1000000 },
    };
    sb_write_file(file("progress.json"), sb_dump(state) + "\n");
}

std::vector<int64_t> sb_benchmark::contexts_of(size_t model) const {
    std::vector<int64_t> positions;
    const std::string    prefix = "m" + std::to_string(model) + "-";
    if (DIR * dir = opendir(options.work.c_str())) {
        while (const dirent * entry = readdir(dir)) {
            const std::string name = entry->d_name;
            const size_t      end  = name.find(".context");
            if (name.rfind(prefix, 0) == 0 && end != std::string::npos && end + 8 == name.size()) {
                positions.push_back(atoll(name.c_str() + prefix.size()));
            }
        }
        closedir(dir);
    }
    std::sort(positions.rbegin(), positions.rend());
    return positions;
}

std::unique_ptr<sb_model> sb_benchmark::load(size_t index, int64_t depth, bool helper) const {
    sb_model_options chosen = options.model;
    chosen.path             = options.files[index];
    chosen.helper           = helper;
    const int64_t needed    = std::max<int64_t>({ options.n_gen, options.n_warmup, 8 }) + 1;
    chosen.n_ctx            = depth + (helper ? std::max(needed, SB_CHUNK) : needed);
    chosen.n_ctx            = (chosen.n_ctx + 255) / 256 * 256;
    return std::make_unique<sb_model>(chosen);
}

// Tokens per second of decoding from an empty context.
double sb_benchmark::trial(sb_model & model, sb_threads & candidate) const {
    model.use(candidate);
    model.clear();
    const auto tokens = sb_tokens(0, 9, model.n_vocab());
    model.feed(&tokens[0], 1);
    const int64_t start = sb_now_ns();
    int           n     = 0;
    while (n < 8 && (n < 2 || sb_now_ns() - start < SB_TRIAL_NS)) {
        model.feed(&tokens[(size_t) ++n], 1);
    }
    return n / ((double) (sb_now_ns() - start) * 1e-9);
}

// The fastest cores first: one, two, four, the fastest cluster, all big cores; the fastest of these is taken and remembered.
void sb_benchmark::choose_threads() {
    const bool is_real = phone.is_real();
    const auto make    = [&](const std::vector<int> & cpus) {
        return std::make_unique<sb_threads>(is_real ? cpus : std::vector<int>(), (int) cpus.size());
    };
    std::ifstream in(file("threads.json"));
    const json    kept = json::parse(in, nullptr, false);
    if (kept.is_object() && kept.contains("cpus") && kept.contains("tried")) {
        tried   = kept["tried"];
        threads = make(kept["cpus"].get<std::vector<int>>());
        return;
    }
    if (options.cpus != "auto" || options.threads != "auto") {
        const auto cpus = sb_chosen_cpus(options, phone);
        threads         = std::make_unique<sb_threads>(is_real ? cpus : std::vector<int>(), sb_chosen_threads(options, phone));
        return;
    }
    tell("calibration", 0, 0, 0, true);
    const auto       big = phone.big_cpus();
    std::set<size_t> sizes{ 1, 2, 4, big.size() };
    const auto       clusters = phone.clusters();
    if (!clusters.empty()) {
        sizes.insert(clusters.back().cpus.size());
    }
    const auto       model = load(0, 0, false);
    std::vector<int> best;
    double           best_ts = 0;
    for (const size_t size : sizes) {
        if (size == 0 || size > big.size()) {
            continue;
        }
        const std::vector<int> cpus(big.begin(), big.begin() + (std::ptrdiff_t) size);
        auto                   candidate = make(cpus);
        const double           ts        = std::max(trial(*model, *candidate), trial(*model, *candidate));
        llama_detach_threadpool(model->ctx);
        tried.push_back({ { "cpus", cpus }, { "ts", ts } });
        if (ts > best_ts) {
            best_ts = ts;
            best    = cpus;
        }
    }
    threads = make(best);
    sb_write_file(file("threads.json"), sb_dump({ { "cpus", best }, { "tried", tried } }) + "\n");
}

// False: asked to stop; the context so far is on disk.
bool sb_benchmark::reach(subject & one, int64_t depth) {
    sb_model & model = *one.model;
    if (one.fill == "synthetic") {
        tell("fill", one.index, depth, 0, true);
        sb_synthetic_fill(model, depth, sb_tokens(0, SB_CHUNK, model.n_vocab()));
        return true;
    }
    sb_context_file context;
    for (const int64_t position : contexts_of(one.index)) {
        if (position <= depth && position > 0 && context.read(context_file(one.index, position)) && context.position == position) {
            model.set_state(context.state);
            one.resumed_from = position;
            break;
        }
        context = {};
    }
    while (model.position() < depth) {
        const int64_t at    = model.position();
        const int64_t until = std::min(depth, (at / options.save_every + 1) * options.save_every);
        const auto    next  = sb_tokens(at, std::min(until - at, options.model.n_ubatch), model.n_vocab());
        const int64_t start = sb_now_ns();
        model.feed(next.data(), (int64_t) next.size());
        context.prefill_ns += sb_now_ns() - start;
        const int64_t now = model.position();
        tell("prefill", one.index, depth, now, false);
        if (now == depth || now == until || sb_stop_asked) {
            context.position = now;
            context.state    = model.state();
            context.write(context_file(one.index, now));
            for (const int64_t older : contexts_of(one.index)) {
                if (older < now) {
                    unlink(context_file(one.index, older).c_str());
                }
            }
        }
        if (sb_stop_asked) {
            return false;
        }
    }
    one.prefill_ns = context.prefill_ns;
    one.source     = context.source;
    return true;
}

sb_benchmark::subject sb_benchmark::prepare(size_t index, int64_t depth) {
    subject one;
    one.index = index;
    one.model = load(index, depth, false);
    if (one.model->can_cut() && depth > 0 && (options.fill == "synthetic" || (options.fill == "auto" && depth > SB_AUTO_REAL_DEPTH))) {
        one.fill = one.source = "synthetic";
        one.model.reset();
        one.model = load(index, depth, true);
    }
    one.model->use(*threads);
    return one;
}

void sb_benchmark::rewind(subject & one, int64_t depth) const {
    if (depth == 0) {
        one.model->clear();
    } else if (one.model->can_cut()) {
        one.model->cut(depth);
    } else {
        one.model->set_state(one.snapshot);
    }
}

void sb_benchmark::sample(subject & one, int64_t depth, int repetition) {
    const auto tokens = sb_tokens(depth + 1000003ll * (repetition + 1), options.n_gen, one.model->n_vocab());
    rewind(one, depth);
    const int64_t start = sb_now_ns();
    for (const llama_token & token : tokens) {
        one.model->feed(&token, 1);
    }
    one.samples_ns.push_back(sb_now_ns() - start);
    one.samples_at_ms.push_back((start - since) / 1000000);
}

json sb_benchmark::row(const subject & one, int64_t depth, double bandwidth, size_t together, const std::string & turns) const {
    const sb_model & model = *one.model;
    json             out   = {
        { "model_index", one.index },
        { "model_type", model.description() },
        { "model_size", llama_model_size(model.model) },
        { "model_n_params", llama_model_n_params(model.model) },
        { "n_ctx_train", llama_model_n_ctx_train(model.model) },
        { "n_batch", options.model.n_ubatch },
        { "n_ubatch", options.model.n_ubatch },
        { "n_threads", threads->n },
        { "type_k", options.model.type_k },
        { "type_v", options.model.type_v },
        { "flash_attn", (int) options.model.flash_attn },
        { "n_prompt", 0 },
        { "n_gen", options.n_gen },
        { "n_depth", depth },
        { "repetitions", options.repetitions },
        { "n_warmup", options.n_warmup },
        { "samples_ns", one.samples_ns },
        { "fill", one.fill },
        { "turns", nullptr },
        { "kv_bytes", model.kv_bytes },
        { "state_bytes", model.state_bytes },
        { "rss_bytes", nullptr },
        { "read_bandwidth", bandwidth },
        { "arch", SB_DEVICE_ARCH },
        { "cpus", threads->cpus },
        { "tried", tried },
        { "depth_source", one.source },
        { "prefill_ns", one.prefill_ns },
        { "resumed_from", one.resumed_from },
        { "samples_at_ms", one.samples_at_ms },
    };
    if (together == 1) {
        out["rss_bytes"] = phone.reading(since).value("rss_kib", int64_t{ 0 }) * 1024;
    } else {
        out["turns"] = turns;
    }
    return out;
}

// Every second reading, until there are few: a long prefill takes hours.
static json sb_thinned(json readings) {
    while (readings.size() > SB_MAX_READINGS) {
        json fewer = json::array();
        for (size_t i = 0; i < readings.size(); i += 2) {
            fewer.push_back(std::move(readings[i]));
        }
        readings = std::move(fewer);
    }
    return readings;
}

// False: asked to stop.
bool sb_benchmark::measure(int64_t depth, const std::vector<size_t> & models) {
    since = sb_now_ns();
    sb_sampler           sampler(phone, options.sample_ms, since);
    std::vector<subject> subjects;
    for (const size_t index : models) {
        subjects.push_back(prepare(index, depth));
        if (!reach(subjects.back(), depth)) {
            return false;
        }
    }
    const double  bandwidth = sb_read_bandwidth(threads->n);
    const int64_t began_ms  = (sb_now_ns() - since) / 1000000;
    for (auto & one : subjects) {
        if (depth > 0 && !one.model->can_cut()) {
            one.snapshot = one.model->state();
        }
        const auto warm = sb_tokens(depth, options.n_warmup, one.model->n_vocab());
        for (const llama_token & token : warm) {
            one.model->feed(&token, 1);
        }
    }
    std::vector<subject *> order;
    for (auto & one : subjects) {
        order.push_back(&one);
    }
    for (int repetition = 0; repetition < options.repetitions; ++repetition) {
        for (subject * one : order) {
            tell("decode", one->index, depth, depth, false);
            sample(*one, depth, repetition);
            if (sb_stop_asked) {
                return false;
            }
        }
        std::reverse(order.begin(), order.end());
    }
    const json        telemetry = sb_thinned(sampler.finish());
    char              turns[13];
    std::random_device random;
    snprintf(turns, sizeof(turns), "%06x%06x", random() & 0xffffff, random() & 0xffffff);
    std::string lines;
    for (const auto & one : subjects) {
        json out              = row(one, depth, bandwidth, subjects.size(), turns);
        out["decode_from_ms"] = began_ms;
        out["telemetry"]      = telemetry;
        lines += sb_dump(out) + "\n";
    }
    FILE * out  = fopen(file("rows.jsonl").c_str(), "ab");
    bool   good = out != nullptr && fwrite(lines.data(), 1, lines.size(), out) == lines.size() && fflush(out) == 0 &&
                fsync(fileno(out)) == 0;
    if (out != nullptr) {
        good = fclose(out) == 0 && good;
    }
    if (!good) {
        throw sb_error(file("rows.jsonl") + ": " + strerror(errno));
    }
    for (const auto & one : subjects) {
        done.insert({ one.index, depth });
    }
    for (auto & one : subjects) {
        llama_detach_threadpool(one.model->ctx);
    }
    return true;
}

int sb_benchmark::run() {
    read_rows();
    choose_threads();
    std::set<int64_t> depths(options.depths.begin(), options.depths.end());
    for (const int64_t depth : depths) {
        std::vector<size_t> pending;
        for (size_t index = 0; index < options.files.size(); ++index) {
            if (!done.count({ index, depth })) {
                pending.push_back(index);
            }
        }
        if (!pending.empty() && !measure(depth, pending)) {
            fprintf(stderr, "stopped; the same command continues\n");
            return 3;
        }
    }
    for (size_t index = 0; index < options.files.size(); ++index) {
        for (const int64_t position : contexts_of(index)) {
            unlink(context_file(index, position).c_str());
        }
    }
    tell("done", 0, 0, 0, true);
    return 0;
}

int sb_bench(const sb_options & options, const sb_phone & phone) {
    return sb_benchmark(options, phone).run();
}
