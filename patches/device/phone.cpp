#include "phone.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include <dirent.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/utsname.h>
#include <unistd.h>

static const char * const SB_CPUFREQ = "/sys/devices/system/cpu/cpufreq";
static const char * const SB_THERMAL = "/sys/class/thermal";
static const char * const SB_SUPPLY  = "/sys/class/power_supply";

static const size_t SB_MAX_TEXT    = 1 << 20; // bytes of a file or of a command's output
static const size_t SB_MAX_CPUS    = 1024;
static const int    SB_BATTERY_TTL = 10;      // seconds between two calls of a program that reports the battery

std::string sb_dump(const json & value) {
    return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

int64_t sb_now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool sb_phone::read_text(const std::string & path, std::string & text) const {
    std::ifstream file(is_real() ? path : root + path);
    if (!file) {
        return false;
    }
    text.resize(SB_MAX_TEXT);
    file.read(&text[0], (std::streamsize) text.size());
    text.resize((size_t) std::max<std::streamsize>(file.gcount(), 0));
    if (file.bad()) {
        return false;
    }
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) {
        text.pop_back();
    }
    return !text.empty();
}

bool sb_phone::read_number(const std::string & path, int64_t & value) const {
    std::string text;
    if (!read_text(path, text)) {
        return false;
    }
    char * end;
    value = strtoll(text.c_str(), &end, 10);
    return end != text.c_str();
}

std::vector<std::string> sb_phone::list(const std::string & path, const std::string & prefix) const {
    std::vector<std::string> names;
    if (DIR * dir = opendir((is_real() ? path : root + path).c_str())) {
        while (const dirent * entry = readdir(dir)) {
            if (entry->d_name[0] != '.' && std::string(entry->d_name).rfind(prefix, 0) == 0) {
                names.push_back(entry->d_name);
            }
        }
        closedir(dir);
    }
    std::sort(names.begin(), names.end(), [](const std::string & a, const std::string & b) {
        return a.size() != b.size() ? a.size() < b.size() : a < b;
    });
    return names;
}

static std::vector<int> sb_parse_numbers(const std::string & text) {
    std::vector<int>   numbers;
    std::istringstream parts(text);
    for (int number; parts >> number && numbers.size() < SB_MAX_CPUS;) {
        numbers.push_back(number);
    }
    return numbers;
}

static int64_t sb_speed(const sb_cluster & cluster) {
    return cluster.capacity ? cluster.capacity : cluster.max_khz;
}

std::vector<sb_cluster> sb_phone::clusters() const {
    std::vector<sb_cluster> result;
    for (const auto & name : list(SB_CPUFREQ, "policy")) {
        const std::string base = std::string(SB_CPUFREQ) + "/" + name + "/";
        std::string       cpus;
        if (!read_text(base + "related_cpus", cpus) && !read_text(base + "affected_cpus", cpus)) {
            continue;
        }
        sb_cluster cluster;
        cluster.policy = name;
        cluster.cpus   = sb_parse_numbers(cpus);
        read_number(base + "cpuinfo_max_freq", cluster.max_khz);
        if (!cluster.cpus.empty()) {
            read_number("/sys/devices/system/cpu/cpu" + std::to_string(cluster.cpus[0]) + "/cpu_capacity", cluster.capacity);
        }
        result.push_back(cluster);
    }
    std::stable_sort(result.begin(), result.end(),
                     [](const sb_cluster & a, const sb_cluster & b) { return sb_speed(a) < sb_speed(b); });
    return result;
}

static std::vector<int> sb_allowed_cpus() {
    cpu_set_t set;
    CPU_ZERO(&set);
    std::vector<int> cpus;
    if (sched_getaffinity(getpid(), sizeof(set), &set) == 0) {
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (CPU_ISSET(cpu, &set)) {
                cpus.push_back(cpu);
            }
        }
    }
    return cpus;
}

std::vector<int> sb_phone::cpus_by_speed() const {
    const auto       allowed = sb_allowed_cpus();
    const auto       all     = clusters();
    std::vector<int> result;
    for (auto cluster = all.rbegin(); cluster != all.rend(); ++cluster) {
        for (const int cpu : cluster->cpus) {
            if (!is_real() || std::count(allowed.begin(), allowed.end(), cpu)) {
                result.push_back(cpu);
            }
        }
    }
    return result.empty() ? allowed : result;
}

std::vector<int> sb_phone::big_cpus() const {
    std::set<int> big;
    const auto    all = clusters();
    for (const auto & cluster : all) {
        if (2 * sb_speed(cluster) >= sb_speed(all.back())) {
            big.insert(cluster.cpus.begin(), cluster.cpus.end());
        }
    }
    const auto       cpus = cpus_by_speed();
    std::vector<int> result;
    std::copy_if(cpus.begin(), cpus.end(), std::back_inserter(result), [&](int cpu) { return big.count(cpu) != 0; });
    return result.empty() ? cpus : result;
}

int64_t sb_phone::memory_kib(const char * key) const {
    std::string text;
    if (!read_text("/proc/meminfo", text)) {
        return 0;
    }
    const size_t found = text.find(key);
    return found == std::string::npos ? 0 : strtoll(text.c_str() + found + strlen(key), nullptr, 10);
}

static std::string sb_output_of(const char * command) {
    std::string text;
    if (FILE * pipe = popen(command, "r")) {
        char   part[4096];
        size_t size;
        while (text.size() < SB_MAX_TEXT && (size = fread(part, 1, sizeof(part), pipe)) > 0) {
            text.append(part, size);
        }
        pclose(pipe);
    }
    return text;
}

// "  level: 71" of dumpsys.
static bool sb_field(const std::string & text, const std::string & key, int64_t & value) {
    const size_t found = text.find("\n  " + key + ": ");
    if (found == std::string::npos) {
        return false;
    }
    const char * start = text.c_str() + found + key.size() + 5;
    char *       end;
    value = strtoll(start, &end, 10);
    return end != start;
}

// Programs that report the battery where /sys is closed: Android's for the shell, Termux:API's for apps. Units as in /sys.
static json sb_battery_of_programs() {
    static json        last = json::object();
    static int64_t     taken_ns = 0;
    static std::string source   = "unknown";
    if (source == "none" || (taken_ns && sb_now_ns() - taken_ns < SB_BATTERY_TTL * 1000000000ll)) {
        return last;
    }
    taken_ns = sb_now_ns();
    if (source == "unknown") {
        source = access("/system/bin/dumpsys", X_OK) == 0 && geteuid() < 10000 ? "dumpsys" :
                 access("/data/data/com.termux/files/usr/bin/termux-battery-status", X_OK) == 0 ? "termux-battery-status" : "none";
    }
    json battery = json::object();
    if (source == "dumpsys") {
        const std::string text = sb_output_of("/system/bin/dumpsys battery 2>/dev/null");
        int64_t           value;
        if (sb_field(text, "level", value)) {
            battery["capacity"] = value;
        }
        if (sb_field(text, "Charge counter", value)) {
            battery["charge_counter"] = value;
        }
        if (sb_field(text, "voltage", value)) {
            battery["voltage_now"] = value * 1000;
        }
        if (sb_field(text, "temperature", value)) {
            battery["temp"] = value;
        }
        if (sb_field(text, "status", value)) { // BatteryManager's constants
            battery["status"] = value == 2 ? "Charging" : value == 5 ? "Full" : value == 3 ? "Discharging" : "Not charging";
        }
    } else if (source == "termux-battery-status") {
        const json found = json::parse(sb_output_of("/data/data/com.termux/files/usr/bin/termux-battery-status 2>/dev/null"), nullptr, false);
        if (found.is_object()) {
            if (found.contains("percentage") && found["percentage"].is_number()) {
                battery["capacity"] = found["percentage"];
            }
            if (found.contains("current") && found["current"].is_number()) {
                battery["current_now"] = found["current"];
            }
            if (found.contains("temperature") && found["temperature"].is_number()) {
                battery["temp"] = (int64_t) (found["temperature"].get<double>() * 10);
            }
            if (found.contains("status") && found["status"].is_string()) {
                const auto status = found["status"].get<std::string>();
                battery["status"] = status == "CHARGING" ? "Charging" : status == "DISCHARGING" ? "Discharging" : status;
            }
        }
    }
    if (source != "none") {
        battery["source"] = source;
    }
    return last = battery;
}

void sb_phone::add_battery(json & reading) const {
    for (const auto & name : list(SB_SUPPLY, "")) {
        const std::string base = std::string(SB_SUPPLY) + "/" + name + "/";
        std::string       text;
        int64_t           value;
        if (!read_text(base + "type", text) || text != "Battery" || !read_number(base + "capacity", value)) {
            continue;
        }
        json battery = { { "source", "sysfs" } };
        if (read_text(base + "status", text)) {
            battery["status"] = text;
        }
        for (const char * key : { "capacity", "charge_counter", "charge_now", "energy_now", "current_now", "voltage_now", "temp" }) {
            if (read_number(base + key, value)) {
                battery[key] = value;
            }
        }
        reading["battery"] = battery;
        return;
    }
    const json battery = is_real() ? sb_battery_of_programs() : json::object();
    reading["battery"] = battery.empty() ? json{ { "source", "none" } } : battery;
}

json sb_phone::reading(int64_t since_ns) const {
    json    result = { { "t_ms", (sb_now_ns() - since_ns) / 1000000 } };
    json    khz = json::object(), limit = json::object(), celsius = json::object(), cooling = json::object();
    int64_t value;
    for (const auto & name : list(SB_CPUFREQ, "policy")) {
        const std::string base = std::string(SB_CPUFREQ) + "/" + name + "/";
        if (read_number(base + "scaling_cur_freq", value)) {
            khz[name] = value;
        }
        if (read_number(base + "scaling_max_freq", value)) {
            limit[name] = value;
        }
    }
    for (const auto & name : list(SB_THERMAL, "thermal_zone")) {
        const std::string base = std::string(SB_THERMAL) + "/" + name + "/";
        std::string       type;
        if (read_number(base + "temp", value) && read_text(base + "type", type)) {
            const std::string key = celsius.contains(type) ? type + "#" + name.substr(12) : type;
            celsius[key]          = std::llabs(value) >= 1000 ? (double) value / 1000 : (double) value;
        }
    }
    for (const auto & name : list(SB_THERMAL, "cooling_device")) {
        const std::string base = std::string(SB_THERMAL) + "/" + name + "/";
        std::string       type;
        if (read_number(base + "cur_state", value) && value > 0) {
            cooling[read_text(base + "type", type) ? type : name] = value;
        }
    }
    result["khz"]       = khz;
    result["khz_limit"] = limit;
    result["celsius"]   = celsius;
    result["cooling"]   = cooling;
    add_battery(result);
    if ((value = memory_kib("MemAvailable:"))) {
        result["available_kib"] = value;
    }
    std::ifstream own("/proc/self/status");
    for (std::string line; std::getline(own, line);) {
        if (line.rfind("VmRSS:", 0) == 0) {
            result["rss_kib"] = strtoll(line.c_str() + 6, nullptr, 10);
        }
    }
    return result;
}

json sb_phone::info() const {
    utsname names;
    uname(&names);
    json result = {
        { "kernel", std::string(names.sysname) + " " + names.release },
        { "arch", names.machine },
        { "page_size", sysconf(_SC_PAGESIZE) },
        { "memory_kib", memory_kib("MemTotal:") },
    };
    std::string text, implementer;
    std::map<std::string, int> parts; // "0x41:0xd05" is a Cortex-A55
    if (read_text("/proc/cpuinfo", text)) {
        std::istringstream lines(text);
        for (std::string line; std::getline(lines, line);) {
            const size_t colon = line.find(':');
            if (colon == std::string::npos) {
                continue;
            }
            const std::string value = line.substr(std::min(line.size(), colon + 2));
            if (line.rfind("CPU implementer", 0) == 0) {
                implementer = value;
            } else if (line.rfind("CPU part", 0) == 0) {
                parts[implementer + ":" + value]++;
            } else if (line.rfind("Features", 0) == 0) {
                result["features"] = value;
            }
        }
    }
    result["parts"]    = parts;
    result["clusters"] = json::array();
    for (const auto & cluster : clusters()) {
        result["clusters"].push_back({ { "policy", cluster.policy },
                                       { "cpus", cluster.cpus },
                                       { "max_khz", cluster.max_khz },
                                       { "capacity", cluster.capacity } });
    }
    result["cpus"]     = cpus_by_speed();
    result["big_cpus"] = big_cpus();
    result["now"]      = reading(sb_now_ns());
    return result;
}

sb_sampler::sb_sampler(const sb_phone & phone, int ms, int64_t since_ns) : phone(phone), since_ns(since_ns) {
    readings.push_back(phone.reading(since_ns));
    thread = std::thread([this, ms] { run(ms); });
}

void sb_sampler::run(int ms) {
    cpu_set_t any; // not on the cores that are measured, if there are others
    memset(&any, 0xff, sizeof(any));
    sched_setaffinity(0, sizeof(any), &any);
    std::unique_lock<std::mutex> lock(mutex);
    while (!wake.wait_for(lock, std::chrono::milliseconds(ms), [this] { return ended; })) {
        readings.push_back(phone.reading(since_ns));
    }
}

json sb_sampler::finish() {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        if (ended) {
            return readings;
        }
        ended = true;
    }
    wake.notify_all();
    thread.join();
    readings.push_back(phone.reading(since_ns));
    return readings;
}

sb_sampler::~sb_sampler() {
    finish();
}
