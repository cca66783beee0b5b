#include "sb-spike-counters.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

std::atomic<bool> sb_spike_counting{false};

std::mutex                                  sb_spike_sites_mutex;
std::vector<std::unique_ptr<sb_spike_site>> sb_spike_sites;

int sb_spike_bits(uint64_t x) {
    int bits = 0;
    for (; x != 0; x >>= 1) {
        ++bits;
    }
    return bits;
}

int sb_spike_popcount(uint64_t x) {
    int count = 0;
    for (; x != 0; x &= x - 1) {
        ++count;
    }
    return count;
}

void sb_spike_count_row(sb_spike_site & site, int64_t n, const sb_spike_row & row) {
    const int64_t bits_largest = sb_spike_bits(row.largest);
    const int64_t twos_steps   = std::max<int64_t>(2, bits_largest + 1);
    const uint64_t twos_mask   = (uint64_t(1) << twos_steps) - 1;

    site.tokens += 1;
    site.largest = std::max<int64_t>(site.largest, row.largest);
    site.threshold_sum += row.threshold;
    site.unary_steps += row.largest;
    site.bit_steps += bits_largest;
    site.twos_complement_steps += twos_steps;

    const uint16_t * burst     = sb_spike_burst_blocks_const(&row, n);
    const uint16_t * burst_end = burst + row.n_burst_blocks;
    for (int64_t i = 0; i < n; ++i) {
        while (burst != burst_end && *burst < i/SB_SPIKE_BLOCK) {
            ++burst;
        }
        const bool     in_burst  = burst != burst_end && *burst == i/SB_SPIKE_BLOCK;
        const int64_t  s         = sb_spike_count_of(&row, n, i, in_burst);
        const uint64_t magnitude = s < 0 ? -s : s;

        site.histogram[std::min<uint64_t>(magnitude, SB_SPIKE_BINS - 1)] += 1;
        site.negative += s < 0;
        site.bursts += magnitude > 127;
        site.unary_spikes += magnitude;
        site.bit_spikes += sb_spike_popcount(magnitude);
        site.twos_complement_spikes += sb_spike_popcount(uint64_t(s) & twos_mask);
        site.window_slots += 3*std::max(1, (sb_spike_bits(magnitude) + 2)/3);
    }
}

void sb_spike_merge(sb_spike_site & to, const sb_spike_site & from) {
    to.k = from.k;
    to.channels = from.channels;
    to.tokens += from.tokens;
    for (int i = 0; i < SB_SPIKE_BINS; ++i) {
        to.histogram[i] += from.histogram[i];
    }
    to.largest = std::max(to.largest, from.largest);
    to.negative += from.negative;
    to.bursts += from.bursts;
    to.threshold_sum += from.threshold_sum;
    to.unary_spikes += from.unary_spikes;
    to.bit_spikes += from.bit_spikes;
    to.twos_complement_spikes += from.twos_complement_spikes;
    to.unary_steps += from.unary_steps;
    to.bit_steps += from.bit_steps;
    to.twos_complement_steps += from.twos_complement_steps;
    to.window_slots += from.window_slots;
}

} // namespace

int64_t sb_spike_count_of(const sb_spike_row * row, int64_t n, int64_t channel, bool burst) {
    int64_t s     = sb_spike_plane_const(row, n, 0)[channel];
    int64_t scale = SB_SPIKE_BASE;
    for (int plane = 1; burst && plane < row->n_planes; ++plane) {
        s     += scale*sb_spike_plane_const(row, n, plane)[channel];
        scale *= SB_SPIKE_BASE;
    }
    return s;
}

bool sb_spike_counters_enabled() {
    return sb_spike_counting.load(std::memory_order_relaxed);
}

void sb_spike_count(const char * name, float k, int64_t n, int64_t n_rows, const char * rows, size_t row_size) {
    sb_spike_site sum = {};
    sum.k = k;
    sum.channels = n;
    for (int64_t i = 0; i < n_rows; ++i) {
        sb_spike_count_row(sum, n, *(const sb_spike_row *) (rows + i*row_size));
    }

    const std::lock_guard<std::mutex> lock(sb_spike_sites_mutex);
    const auto found = std::find_if(sb_spike_sites.begin(), sb_spike_sites.end(), [&](const auto & site) {
        return strncmp(site->name, name, sizeof(site->name) - 1) == 0;
    });
    if (found != sb_spike_sites.end()) {
        sb_spike_merge(**found, sum);
        return;
    }
    strncpy(sum.name, name, sizeof(sum.name) - 1);
    sb_spike_sites.push_back(std::make_unique<sb_spike_site>(sum));
}

void sb_spike_counters_enable(bool on) {
    sb_spike_counting.store(on, std::memory_order_relaxed);
}

void sb_spike_counters_reset() {
    const std::lock_guard<std::mutex> lock(sb_spike_sites_mutex);
    sb_spike_sites.clear();
}

size_t sb_spike_counters_size() {
    const std::lock_guard<std::mutex> lock(sb_spike_sites_mutex);
    return sb_spike_sites.size();
}

bool sb_spike_counters_get(size_t index, sb_spike_site * site) {
    const std::lock_guard<std::mutex> lock(sb_spike_sites_mutex);
    if (index >= sb_spike_sites.size()) {
        return false;
    }
    *site = *sb_spike_sites[index];
    return true;
}

size_t sb_spike_site_size() {
    return sizeof(sb_spike_site);
}

void * sb_spike_proc_address(const char * name) {
    static const struct {
        const char * name;
        void *       function;
    } table[] = {
        { "sb_spike_code_rows",       (void *) sb_spike_code_rows       },
        { "sb_spike_accumulate",      (void *) sb_spike_accumulate      },
        { "sb_spike_counters_enable", (void *) sb_spike_counters_enable },
        { "sb_spike_counters_reset",  (void *) sb_spike_counters_reset  },
        { "sb_spike_counters_size",   (void *) sb_spike_counters_size   },
        { "sb_spike_counters_get",    (void *) sb_spike_counters_get    },
        { "sb_spike_site_size",       (void *) sb_spike_site_size       },
    };
    for (const auto & entry : table) {
        if (strcmp(entry.name, name) == 0) {
            return entry.function;
        }
    }
    return nullptr;
}
