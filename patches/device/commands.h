// The commands of the program and their options.
#pragma once

#include "model.h"
#include "phone.h"

#include <atomic>

extern std::atomic<bool> sb_stop_asked; // by a signal

struct sb_options {
    std::vector<std::string> files; // arguments that are no options
    std::string              root = "/", work, state, context, system, cpus = "auto", threads = "auto", fill = "auto";
    sb_model_options         model;
    std::vector<int64_t>     depths = { 0 };

    int   n_gen = 32, repetitions = 5, n_warmup = 1, piece = 0, sample_ms = 1000, seed = 1;
    float temperature = 0;
    int64_t save_every = 4096;
    bool    is_json    = false;
};

// CPUs and number of threads that the options name, or the big cores.
std::vector<int> sb_chosen_cpus(const sb_options & options, const sb_phone & phone);
int              sb_chosen_threads(const sb_options & options, const sb_phone & phone);

// CPUs to pin threads to: none where only their number is told, or where the phone is a folder.
std::vector<int> sb_pinned_cpus(const sb_options & options, const sb_phone & phone);

int sb_bench(const sb_options & options, const sb_phone & phone);
int sb_chat(const sb_options & options, const sb_phone & phone);
