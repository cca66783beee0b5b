// The phone's own files: CPU clusters, telemetry, description.
#pragma once

#include <nlohmann/json.hpp>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

using json = nlohmann::ordered_json;

// Names and texts from /sys can hold any bytes.
std::string sb_dump(const json & value);

int64_t sb_now_ns();

struct sb_cluster {
    std::string      policy;
    std::vector<int> cpus;
    int64_t          max_khz  = 0;
    int64_t          capacity = 0; // the scheduler's; 1024 for the fastest core, 0 where it is not readable
};

// `root` is "/" on a phone; a folder with copies of /proc and /sys in tests.
class sb_phone {
  public:
    explicit sb_phone(std::string root) : root(std::move(root)) {}

    bool is_real() const { return root == "/"; }

    // Slowest first; empty where the kernel has no cpufreq.
    std::vector<sb_cluster> clusters() const;

    // CPUs that this process may use, fastest first.
    std::vector<int> cpus_by_speed() const;

    // The cores of the clusters that are at least half as fast as the fastest, fastest first.
    std::vector<int> big_cpus() const;

    // A reading of frequencies and their limits, temperatures, cooling, battery and memory. Values that cannot be read are left out.
    json reading(int64_t since_ns) const;

    json info() const;

  private:
    std::string root;

    bool                     read_text(const std::string & path, std::string & text) const;
    bool                     read_number(const std::string & path, int64_t & value) const;
    std::vector<std::string> list(const std::string & path, const std::string & prefix) const;
    void                     add_battery(json & reading) const;
    int64_t                  memory_kib(const char * key) const;
};

// Takes a reading every `ms` in a thread of its own, which runs on any CPU.
class sb_sampler {
  public:
    sb_sampler(const sb_phone & phone, int ms, int64_t since_ns);
    ~sb_sampler();

    // Stop; all readings.
    json finish();

  private:
    const sb_phone &        phone;
    int64_t                 since_ns;
    bool                    ended = false;
    std::mutex              mutex;
    std::condition_variable wake;
    json                    readings = json::array();
    std::thread             thread;

    void run(int ms);
};
