#include "template.h"

#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "json.h"

sb_template::sb_template(const std::string & text, std::string bos_text, std::string eos_text)
    : bos(std::move(bos_text)), eos(std::move(eos_text)) {
    jinja::lexer lexer;
    const auto   lexed = lexer.tokenize(text);
    program            = jinja::parse_from_tokens(lexed);
    source             = lexed.source;
}

std::string sb_template::render(const std::vector<std::pair<std::string, std::string>> & messages, bool skip_bos) const {
    common_json list = common_json::array();
    for (const auto & [role, content] : messages) {
        common_json message;
        message["role"]    = role;
        message["content"] = content;
        list.push_back(message);
    }
    common_json input;
    input["messages"]              = list;
    input["bos_token"]             = bos;
    input["eos_token"]             = eos;
    input["add_generation_prompt"] = true;

    jinja::context context(source);
    jinja::global_from_json(context, input, false);
    jinja::runtime    runtime(context);
    const auto        results = runtime.execute(program);
    const std::string prompt  = jinja::runtime::gather_string_parts(results)->as_string().str();
    return skip_bos && !bos.empty() && prompt.compare(0, bos.size(), bos) == 0 ? prompt.substr(bos.size()) : prompt;
}
