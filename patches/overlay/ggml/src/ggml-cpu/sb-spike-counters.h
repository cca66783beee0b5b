#pragma once

#include "sb-spike-cpu.h"

bool sb_spike_counters_enabled();

// Add coded rows of n channels to the counters of input `name`.
void sb_spike_count(const char * name, float k, int64_t n, int64_t n_rows, const char * rows, size_t row_size);

// The count of one channel, its digits put together.
int64_t sb_spike_count_of(const sb_spike_row * row, int64_t n, int64_t channel, bool burst);
