#pragma once

// Cases of SpikingBrain's operators, included by test-backend-ops.cpp.

#include "ggml-sb.h"

#include "sb-test-gla.hpp"
#include "sb-test-attn.hpp"
#include "sb-test-spike.hpp"
#include "sb-test-sparse.hpp"

static void sb_add_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    sb_add_gla_cases(cases);
    sb_add_attn_cases(cases);
    sb_add_spike_cases(cases);
    sb_add_sparse_cases(cases);
}

static void sb_add_perf_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    sb_add_gla_perf_cases(cases);
    sb_add_attn_perf_cases(cases);
    sb_add_spike_perf_cases(cases);
    sb_add_sparse_perf_cases(cases);
}
