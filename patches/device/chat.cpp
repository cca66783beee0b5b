// A conversation in a folder: conversation.json names the state file that belongs to it, so that both change in one step.
#include "commands.h"
#include "template.h"

#include <algorithm>
#include <fstream>
#include <iostream>

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

// Length of the beginning of `text` that ends with a whole UTF-8 character.
static size_t sb_whole_utf8(const std::string & text) {
    for (size_t back = 1; back <= std::min<size_t>(4, text.size()); ++back) {
        const auto byte = (unsigned char) text[text.size() - back];
        if ((byte & 0xC0) != 0x80) {
            const size_t length = byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
            return length > back ? text.size() - back : text.size();
        }
    }
    return text.size();
}

class sb_conversation {
  public:
    sb_conversation(const sb_options & options, const sb_phone & phone);
    ~sb_conversation();

    // Answer the user's turn number `turn`, from 1. A turn that was answered before is answered alike.
    void say(size_t turn, const std::string & text);

    size_t turns() const { return messages.size() / 2; }

  private:
    const sb_options &        options;
    sb_threads                threads;
    sb_model                  model;
    sb_template               chat_template;
    llama_sampler *           sampler;

    std::vector<std::string> messages; // user, assistant, user, ...
    std::vector<llama_token> tokens;   // in the context
    std::string              rendered; // text of these tokens

    std::string file(const std::string & name) const { return options.state + "/" + name; }

    static sb_model_options model_options(const sb_options & options);
    static sb_template      template_of(const sb_model & model);

    void        load();
    void        save();
    size_t      read(const std::string & prompt);
    std::string write(bool & ended);
    void        show(const std::string & text) const;
    void        show(const json & line) const;
};

sb_model_options sb_conversation::model_options(const sb_options & options) {
    sb_model_options chosen = options.model;
    chosen.path             = options.files[0];
    return chosen;
}

static std::string sb_token_text(const llama_vocab * vocab, llama_token token) {
    std::string text(256, '\0');
    const int   size = token == LLAMA_TOKEN_NULL ? 0 : llama_token_to_piece(vocab, token, &text[0], (int32_t) text.size(), 0, true);
    return text.substr(0, (size_t) std::max(size, 0));
}

sb_template sb_conversation::template_of(const sb_model & model) {
    const char * source = llama_model_chat_template(model.model, nullptr);
    if (source == nullptr) {
        throw sb_error(model.options.path + ": has no chat template");
    }
    const llama_vocab * vocab = model.vocab();
    try {
        return sb_template(source, sb_token_text(vocab, llama_vocab_bos(vocab)), sb_token_text(vocab, llama_vocab_eos(vocab)));
    } catch (const std::exception & error) {
        throw sb_error(model.options.path + ": chat template: " + error.what());
    }
}

sb_conversation::sb_conversation(const sb_options & chosen, const sb_phone & phone)
    : options(chosen),
      threads(sb_pinned_cpus(options, phone), sb_chosen_threads(options, phone)),
      model(model_options(chosen)),
      chat_template(template_of(model)) {
    model.use(threads);
    sampler = llama_sampler_chain_init(llama_sampler_chain_default_params());
    if (options.temperature > 0) {
        llama_sampler_chain_add(sampler, llama_sampler_init_min_p(0.05f, 1));
        llama_sampler_chain_add(sampler, llama_sampler_init_temp(options.temperature));
        llama_sampler_chain_add(sampler, llama_sampler_init_dist((uint32_t) options.seed));
    } else {
        llama_sampler_chain_add(sampler, llama_sampler_init_greedy());
    }
    if (!options.state.empty()) {
        load();
    }
}

sb_conversation::~sb_conversation() {
    llama_sampler_free(sampler);
    llama_detach_threadpool(model.ctx);
}

void sb_conversation::load() {
    std::ifstream in(file("conversation.json"), std::ios::binary);
    if (!in) {
        return;
    }
    const json found = json::parse(in, nullptr, false);
    if (!found.is_object() || !found.contains("messages") || !found.contains("rendered") || !found.contains("state")) {
        throw sb_error(file("conversation.json") + ": is damaged; remove it to begin a new conversation");
    }
    for (const auto & message : found["messages"]) {
        messages.push_back(message.get<std::string>());
    }
    tokens.resize((size_t) options.model.n_ctx);
    size_t            n     = 0;
    const std::string state = file(found["state"].get<std::string>());
    if (llama_state_seq_load_file(model.ctx, state.c_str(), 0, tokens.data(), tokens.size(), &n) == 0) {
        model.clear(); // read the whole conversation again
        n = 0;
    }
    tokens.resize(n);
    rendered = n ? found["rendered"].get<std::string>() : "";
}

void sb_conversation::save() {
    const std::string state   = "turn-" + std::to_string(turns()) + ".state";
    const std::string partial = file(state + ".partial");
    if (llama_state_seq_save_file(model.ctx, partial.c_str(), 0, tokens.data(), tokens.size()) == 0 ||
        rename(partial.c_str(), file(state).c_str()) != 0) {
        throw sb_error(partial + ": cannot be written");
    }
    sb_write_file(file("conversation.json"), sb_dump({ { "messages", messages }, { "rendered", rendered }, { "state", state } }) + "\n");
    if (DIR * dir = opendir(options.state.c_str())) {
        while (const dirent * entry = readdir(dir)) {
            const std::string name = entry->d_name;
            if (name.rfind("turn-", 0) == 0 && name != state) {
                unlink(file(name).c_str());
            }
        }
        closedir(dir);
    }
}

// Evaluate the part of the prompt that is not in the context yet; the number of its tokens.
size_t sb_conversation::read(const std::string & prompt) {
    const bool is_continued = !tokens.empty() && prompt.compare(0, rendered.size(), rendered) == 0;
    if (!is_continued) {
        model.clear();
        tokens.clear();
        rendered.clear();
    }
    const std::string        text = prompt.substr(rendered.size());
    std::vector<llama_token> next(text.size() + 8);
    const int n = llama_tokenize(model.vocab(), text.data(), (int32_t) text.size(), next.data(), (int32_t) next.size(), !is_continued, true);
    if (n < 0 || (int64_t) tokens.size() + n >= model.options.n_ctx) {
        throw sb_error("the conversation exceeds the context of " + std::to_string(model.options.n_ctx) + " tokens; use --ctx");
    }
    next.resize((size_t) n);
    model.feed(next.data(), n);
    tokens.insert(tokens.end(), next.begin(), next.end());
    rendered = prompt;
    return next.size();
}

std::string sb_conversation::write(bool & ended) {
    std::string answer;
    size_t      shown = 0;
    ended             = false;
    for (int made = 0; made < options.n_gen && (int64_t) tokens.size() + 1 < model.options.n_ctx && !sb_stop_asked; ++made) {
        const llama_token next = llama_sampler_sample(sampler, model.ctx, -1);
        if (llama_vocab_is_eog(model.vocab(), next)) {
            ended = true;
            break;
        }
        std::string piece(256, '\0');
        const int   size = llama_token_to_piece(model.vocab(), next, &piece[0], (int32_t) piece.size(), 0, true);
        answer.append(piece, 0, (size_t) std::max(size, 0));
        const size_t whole = sb_whole_utf8(answer);
        show(answer.substr(shown, whole - shown));
        shown = whole;
        model.feed(&next, 1);
        tokens.push_back(next);
    }
    show(answer.substr(shown));
    rendered += answer;
    return answer;
}

void sb_conversation::show(const std::string & text) const {
    if (options.is_json && !text.empty()) {
        show(json{ { "text", text } });
    } else {
        fwrite(text.data(), 1, text.size(), stdout);
        fflush(stdout);
    }
}

void sb_conversation::show(const json & line) const {
    printf("%s\n", sb_dump(line).c_str());
    fflush(stdout);
}

void sb_conversation::say(size_t turn, const std::string & text) {
    if (turn == turns() && turn > 0 && messages[messages.size() - 2] == text) {
        show(messages.back());
        show(json{ { "turn", turn }, { "repeated", true }, { "tokens", tokens.size() } });
        return;
    }
    if (turn != turns() + 1) {
        throw sb_error("turn " + std::to_string(turn) + " does not follow turn " + std::to_string(turns()));
    }
    std::vector<std::pair<std::string, std::string>> all;
    if (!options.system.empty()) {
        all.push_back({ "system", options.system });
    }
    for (const auto & message : messages) {
        all.push_back({ all.size() % 2 == (options.system.empty() ? 0 : 1) ? "user" : "assistant", message });
    }
    all.push_back({ "user", text });
    const std::string prompt = chat_template.render(all, llama_vocab_get_add_bos(model.vocab()));

    const int64_t     start    = sb_now_ns();
    const size_t      n_read   = read(prompt);
    const int64_t     middle   = sb_now_ns();
    const size_t      prompted = tokens.size();
    bool              ended;
    const std::string answer = write(ended);
    if (sb_stop_asked) {
        return;
    }
    const int64_t end = sb_now_ns();
    messages.push_back(text);
    messages.push_back(answer);
    if (!options.state.empty()) {
        save();
    }
    const json line = {
        { "turn", turns() },
        { "read", n_read },
        { "read_ns", middle - start },
        { "written", tokens.size() - prompted },
        { "written_ns", end - middle },
        { "tokens", tokens.size() },
        { "end", ended ? "stop" : "length" },
    };
    if (options.is_json) {
        show(line);
    } else {
        printf("\n");
        fprintf(stderr, "%s\n", sb_dump(line).c_str());
    }
}

int sb_chat(const sb_options & options, const sb_phone & phone) {
    if (!options.state.empty() && mkdir(options.state.c_str(), 0700) != 0 && errno != EEXIST) {
        throw sb_error(options.state + ": " + strerror(errno));
    }
    // A program of a connection that broke may still write its turn: wait for it.
    const int lock = options.state.empty() ? -1 : open((options.state + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock >= 0) {
        flock(lock, LOCK_EX);
    }
    sb_conversation conversation(options, phone);
    if (options.is_json) {
        printf("%s\n", sb_dump({ { "turns", conversation.turns() } }).c_str());
        fflush(stdout);
    }
    for (std::string line; !sb_stop_asked && std::getline(std::cin, line);) {
        if (!options.is_json) {
            conversation.say(conversation.turns() + 1, line);
            continue;
        }
        const json request = json::parse(line, nullptr, false);
        if (!request.is_object() || !request.contains("turn") || !request.contains("text")) {
            throw sb_error("expected {\"turn\": N, \"text\": \"...\"} on a line");
        }
        conversation.say(request["turn"].get<size_t>(), request["text"].get<std::string>());
    }
    return 0;
}
