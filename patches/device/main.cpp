// SpikingBrain and other GGUF models on a phone or board: one static program, no Python.
#include "commands.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>

#include <sys/auxv.h>

std::atomic<bool> sb_stop_asked{ false };

static const char * const SB_USAGE =
    R"(sb-device info | bench MODEL... | chat MODEL | logits MODEL TOKENS.i32 OUT.f32

all:     --cpus LIST       CPUs to use, 4,5,6 or 0-3 (default: the big cores)
         -t N              threads (default: one for each of these CPUs)
         -ctk, -ctv TYPE   types of cached keys and values (f16)
         -fa auto|on|off   flash attention (auto)
         -ub N             prompt tokens computed at once (256)
         --root DIR        folder to read /proc and /sys from
bench:   --work DIR        folder of rows and progress; the same command continues there
         -d N,N,...        context depths in tokens (0)
         -n N  -r N        tokens for each repetition (32), repetitions (5)
         --warm-up N       tokens before the first repetition (1)
         --fill auto|real|synthetic
         --save-every N    tokens between two saved contexts (4096)
         --sample-ms N     time between two readings of the sensors (1000)
chat:    --state DIR       folder of the conversation
         --system TEXT  -n N  --temp T  --seed N  --ctx N
         --json            one {"turn": N, "text": "..."} a line; answers as JSON lines
logits:  --piece N         tokens for each call (all that fit in a batch)
         --context FILE    continue a saved context
)";

static std::vector<int> sb_parse_cpus(const std::string & text) {
    std::vector<int>   cpus;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) {
        int       from, to;
        const int n = sscanf(part.c_str(), "%d-%d", &from, &to);
        to          = n == 2 ? to : from;
        if (n < 1 || from < 0 || to < from || to >= 1024) {
            throw sb_error("--cpus: '" + text + "' is not a list of CPUs");
        }
        for (int cpu = from; cpu <= to; ++cpu) {
            cpus.push_back(cpu);
        }
    }
    return cpus;
}

std::vector<int> sb_chosen_cpus(const sb_options & options, const sb_phone & phone) {
    auto cpus = options.cpus == "auto" ? phone.big_cpus() : sb_parse_cpus(options.cpus);
    if (options.threads != "auto") {
        cpus.resize(std::min(cpus.size(), (size_t) std::stoi(options.threads)));
    }
    return cpus;
}

int sb_chosen_threads(const sb_options & options, const sb_phone & phone) {
    return options.threads == "auto" ? std::max(1, (int) sb_chosen_cpus(options, phone).size()) : std::stoi(options.threads);
}

std::vector<int> sb_pinned_cpus(const sb_options & options, const sb_phone & phone) {
    return phone.is_real() && options.threads == "auto" ? sb_chosen_cpus(options, phone) : std::vector<int>();
}

static int64_t sb_number(const std::string & name, const std::string & value, int64_t least, int64_t most = INT32_MAX) {
    char *        end;
    const int64_t number = strtoll(value.c_str(), &end, 10);
    if (value.empty() || *end != '\0' || number < least || number > most) {
        throw sb_error(name + ": '" + value + "' is not a number from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return number;
}

static sb_options sb_parse(int argc, char ** argv) {
    sb_options o;
    const auto integer = [](auto & target, int64_t least, int64_t most = INT32_MAX) {
        return [&target, least, most](const std::string & name, const std::string & value) {
            target = (std::decay_t<decltype(target)>) sb_number(name, value, least, most);
        };
    };
    const auto text = [](std::string & target) {
        return [&target](const std::string &, const std::string & value) { target = value; };
    };
    const std::map<std::string, std::function<void(const std::string &, const std::string &)>> known = {
        { "--root", text(o.root) },
        { "--work", text(o.work) },
        { "--state", text(o.state) },
        { "--context", text(o.context) },
        { "--system", text(o.system) },
        { "--cpus", text(o.cpus) },
        { "--fill", text(o.fill) },
        { "-ctk", text(o.model.type_k) },
        { "-ctv", text(o.model.type_v) },
        { "-n", integer(o.n_gen, 1) },
        { "-r", integer(o.repetitions, 1) },
        { "-ub", integer(o.model.n_ubatch, 1, 65536) },
        { "--warm-up", integer(o.n_warmup, 1) },
        { "--save-every", integer(o.save_every, 1) },
        { "--sample-ms", integer(o.sample_ms, 1) },
        { "--piece", integer(o.piece, 1) },
        { "--ctx", integer(o.model.n_ctx, 16) },
        { "--seed", integer(o.seed, 0) },
        { "--temp", [&o](const std::string &, const std::string & value) { o.temperature = std::strtof(value.c_str(), nullptr); } },
        { "-t", [&o](const std::string & name, const std::string & value) { o.threads = std::to_string(sb_number(name, value, 1, 512)); } },
        { "-fa",
          [&o](const std::string & name, const std::string & value) {
              if (value != "auto" && value != "on" && value != "off") {
                  throw sb_error(name + ": '" + value + "' is not auto, on or off");
              }
              o.model.flash_attn = value == "auto" ? LLAMA_FLASH_ATTN_TYPE_AUTO :
                                   value == "on"   ? LLAMA_FLASH_ATTN_TYPE_ENABLED :
                                                     LLAMA_FLASH_ATTN_TYPE_DISABLED;
          } },
        { "-d",
          [&o](const std::string & name, const std::string & value) {
              o.depths.clear();
              std::istringstream parts(value);
              for (std::string part; std::getline(parts, part, ',');) {
                  o.depths.push_back(sb_number(name, part, 0));
              }
          } },
    };
    for (int i = 2; i < argc; ++i) {
        const std::string name = argv[i];
        if (name == "--json") {
            o.is_json = true;
        } else if (name.empty() || name[0] != '-') {
            o.files.push_back(name);
        } else if (!known.count(name)) {
            throw sb_error("unknown option " + name);
        } else if (i + 1 == argc) {
            throw sb_error(name + " needs a value");
        } else {
            known.at(name)(name, argv[++i]);
        }
    }
    return o;
}

// Only ggml's kernels are compiled for more than ARMv8.0, so that this is said before an illegal instruction.
static void sb_require_cpu() {
#if defined(__aarch64__)
    const struct {
        int          needed;
        bool         present;
        const char * name;
    } features[] = {
        { ggml_cpu_has_dotprod(), (getauxval(AT_HWCAP) >> 20 & 1) != 0, "dot products (asimddp)" },
        { ggml_cpu_has_fp16_va(), (getauxval(AT_HWCAP) >> 10 & 1) != 0, "half-precision arithmetic (asimdhp)" },
        { ggml_cpu_has_matmul_int8(), (getauxval(AT_HWCAP2) >> 13 & 1) != 0, "integer matrix products (i8mm)" },
    };
    for (const auto & feature : features) {
        if (feature.needed && !feature.present) {
            throw sb_error(std::string("this program needs ") + feature.name +
                           ", which this CPU does not have; use the program for an older one");
        }
    }
#endif
}

static int sb_logits(const sb_options & options, const sb_phone & phone) {
    std::ifstream            in(options.files[1], std::ios::binary);
    const std::vector<char>  raw((std::istreambuf_iterator<char>(in)), {});
    std::vector<llama_token> tokens(raw.size() / sizeof(llama_token));
    memcpy(tokens.data(), raw.data(), tokens.size() * sizeof(llama_token));
    if (tokens.empty()) {
        throw sb_error(options.files[1] + ": no tokens");
    }
    sb_context_file context;
    if (!options.context.empty() && !context.read(options.context)) {
        throw sb_error(options.context + ": not a saved context");
    }
    sb_threads       threads(sb_pinned_cpus(options, phone), sb_chosen_threads(options, phone));
    sb_model_options chosen = options.model;
    chosen.path             = options.files[0];
    chosen.n_ctx            = (context.position + (int64_t) tokens.size() + 255) / 256 * 256;
    chosen.all_logits       = true;
    sb_model model(chosen);
    model.use(threads);
    if (context.position) {
        model.set_state(context.state);
    }
    FILE * out = fopen(options.files[2].c_str(), "wb");
    if (out == nullptr) {
        throw sb_error(options.files[2] + ": " + strerror(errno));
    }
    const int64_t batch = llama_n_batch(model.ctx);
    const int64_t piece = options.piece ? std::min<int64_t>(options.piece, batch) : batch;
    bool          good  = true;
    for (int64_t i = 0; i < (int64_t) tokens.size(); i += piece) {
        const int64_t n = std::min<int64_t>(piece, (int64_t) tokens.size() - i);
        model.feed(&tokens[(size_t) i], n, true);
        const auto values = (size_t) (n * model.n_vocab());
        good              = good && fwrite(llama_get_logits(model.ctx), sizeof(float), values, out) == values;
    }
    good = fclose(out) == 0 && good;
    llama_detach_threadpool(model.ctx);
    if (!good) {
        throw sb_error(options.files[2] + ": " + strerror(errno));
    }
    return 0;
}

static int sb_run(int argc, char ** argv) {
    const std::string command = argc < 2 ? "" : argv[1];
    if (command == "--help" || command == "-h") {
        fputs(SB_USAGE, stdout);
        return 0;
    }
    const sb_options options = sb_parse(argc, argv);
    const sb_phone   phone(options.root);
    const size_t     files = options.files.size();
    if (command == "info" && files == 0) {
        json found    = phone.info();
        found["arch_of_program"] = SB_DEVICE_ARCH;
        printf("%s\n", sb_dump(found).c_str());
        return 0;
    }
    sb_require_cpu();
    for (const auto signal_number : { SIGTERM, SIGHUP, SIGINT }) {
        signal(signal_number, [](int) { sb_stop_asked = true; });
    }
    signal(SIGPIPE, SIG_IGN);
    sb_set_log();
    if (command == "bench" && files >= 1 && !options.work.empty()) {
        return sb_bench(options, phone);
    }
    if (command == "chat" && files == 1) {
        return sb_chat(options, phone);
    }
    if (command == "logits" && files == 3) {
        return sb_logits(options, phone);
    }
    fputs(SB_USAGE, stderr);
    return 2;
}

int main(int argc, char ** argv) {
    try {
        return sb_run(argc, argv);
    } catch (const std::exception & error) {
        std::string line = error.what();
        std::replace(line.begin(), line.end(), '\n', ' ');
        fprintf(stderr, "error: %s\n", line.c_str());
        return 1;
    }
}
