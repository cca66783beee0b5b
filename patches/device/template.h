// A model's chat template, rendered by llama.cpp's own Jinja.
#pragma once

#include "jinja/runtime.h"

#include <string>
#include <utility>
#include <vector>

class sb_template {
  public:
    // `bos` and `eos` are the texts of these tokens. Throws for a template that is not valid.
    sb_template(const std::string & source, std::string bos, std::string eos);

    // The prompt for the next answer; messages are pairs of role and content. `skip_bos`: the tokenizer adds it.
    std::string render(const std::vector<std::pair<std::string, std::string>> & messages, bool skip_bos) const;

  private:
    jinja::program program;
    std::string    source, bos, eos;
};
