#include "settings.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <utility>

#include "device.h"
#include "driver_types.h"

namespace rig {
namespace {

struct Faults {
    long allocation = 0, launch = 0, graph = 0, node = 0; // turns left; 0: never
    std::map<int, long> calls_of;                         // of devices that will be lost
};

struct State {
    std::mutex mutex;
    Settings settings;
    Faults faults;
    std::map<std::pair<std::string, int>, std::uint64_t> calls; // of functions, by device
};

[[noreturn]] void refuse(const std::string &key, const std::string &value) {
    say("SDSHARD_RIG_" + key + " cannot be \"" + value + "\"");
    std::abort();
}

std::vector<std::string> parts(const std::string &text, char separator) {
    std::vector<std::string> found;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);)
        if (!part.empty()) found.push_back(part);
    return found;
}

long number(const std::string &key, const std::string &value, const std::string &digits) {
    char *end = nullptr;
    long result = std::strtol(digits.c_str(), &end, 10);
    if (digits.empty() || *end != 0 || result < 0) refuse(key, value);
    return result;
}

Faults faults_of(const std::string &value) {
    Faults faults;
    for (const std::string &fault : parts(value, ',')) {
        std::vector<std::string> words = parts(fault, ':');
        if (words.size() == 2 && words[0] == "alloc")
            faults.allocation = number("FAULTS", value, words[1]);
        else if (words.size() == 2 && words[0] == "launch")
            faults.launch = number("FAULTS", value, words[1]);
        else if (words.size() == 2 && words[0] == "node")
            faults.node = number("FAULTS", value, words[1]);
        else if (words.size() == 2 && words[0] == "graph")
            faults.graph = number("FAULTS", value, words[1]);
        else if (words.size() == 3 && words[0] == "lost")
            faults.calls_of[static_cast<int>(number("FAULTS", value, words[1]))] = number("FAULTS", value, words[2]);
        else if (words.size() != 2 || words[0] != "symbol") // symbols.cpp sees to those
            refuse("FAULTS", value);
    }
    return faults;
}

void set(State &state, const std::string &key, const std::string &value) {
    Settings &s = state.settings;
    if (key == "DEVICES") {
        s.devices = static_cast<int>(number(key, value, value));
        if (s.devices > MOST_DEVICES) refuse(key, value);
    } else if (key == "MEMORY") {
        s.memory.clear();
        for (const std::string &part : parts(value, ',')) s.memory.push_back(std::size_t(number(key, value, part)));
        if (s.memory.empty()) refuse(key, value);
    } else if (key == "CAPABILITY") {
        s.capability.clear();
        for (const std::string &part : parts(value, ',')) {
            std::vector<std::string> digits = parts(part, '.');
            if (digits.size() != 2) refuse(key, value);
            s.capability.push_back(
                static_cast<int>(number(key, value, digits[0]) * 10 + number(key, value, digits[1])));
        }
        if (s.capability.empty()) refuse(key, value);
    } else if (key == "PEERS") {
        if (value != "good" && value != "none" && value != "corrupt") refuse(key, value);
        s.peers = value == "good" ? Peers::Good : value == "none" ? Peers::None : Peers::Corrupt;
    } else if (key == "FAULTS") {
        state.faults = faults_of(value);
    } else if (key == "DELAYS") {
        s.delays = static_cast<std::uint64_t>(number(key, value, value));
    } else if (key == "KERNELS") {
        s.kernels = value;
    } else {
        refuse(key, value);
    }
}

void read_environment(State &state) {
    state.settings = Settings();
    state.faults = Faults();
    for (const char *key : {"DEVICES", "MEMORY", "CAPABILITY", "PEERS", "FAULTS", "DELAYS", "KERNELS"})
        if (const char *value = std::getenv((std::string("SDSHARD_RIG_") + key).c_str()); value && *value)
            set(state, key, value);
}

// Never destroyed: threads of the rig may outlive the main function.
State &state() {
    static State &only = *[] {
        auto *fresh = new State;
        read_environment(*fresh);
        return fresh;
    }();
    return only;
}

// Counts down; true at the last turn.
bool turn(long &left) {
    return left > 0 && --left == 0;
}

} // namespace

Settings settings() {
    std::lock_guard lock(state().mutex);
    return state().settings;
}

std::size_t memory_of(int device) {
    Settings s = settings();
    return std::size_t(device) < s.memory.size() ? s.memory[std::size_t(device)] : s.memory.back();
}

int capability_of(int device) {
    Settings s = settings();
    return std::size_t(device) < s.capability.size() ? s.capability[std::size_t(device)] : s.capability.back();
}

bool this_allocation_fails() {
    std::lock_guard lock(state().mutex);
    return turn(state().faults.allocation);
}

bool this_launch_fails() {
    std::lock_guard lock(state().mutex);
    return turn(state().faults.launch);
}

bool this_graph_fails() {
    std::lock_guard lock(state().mutex);
    return turn(state().faults.graph);
}

bool this_node_fails() {
    std::lock_guard lock(state().mutex);
    return turn(state().faults.node);
}

void count(const char *function, int device) {
    std::lock_guard lock(state().mutex);
    state().calls[{function, device}]++;
}

bool is_lost(int device) {
    std::lock_guard lock(state().mutex);
    auto found = state().faults.calls_of.find(device);
    if (found == state().faults.calls_of.end()) return false;
    if (found->second > 0) found->second--;
    return found->second == 0;
}

void say(const std::string &line) {
    std::fprintf(stderr, "cuda rig: %s\n", line.c_str());
}

} // namespace rig

// As SDSHARD_RIG_KEY=VALUE, from here on.
RIG_API void sdshard_rig_set(const char *key, const char *value) {
    std::lock_guard lock(rig::state().mutex);
    rig::set(rig::state(), key, value);
}

// How often a function of the driver was called on a device.
RIG_API std::uint64_t sdshard_rig_calls(const char *function, int device) {
    std::lock_guard lock(rig::state().mutex);
    auto found = rig::state().calls.find({function, device});
    return found == rig::state().calls.end() ? 0 : found->second;
}

// Back to the environment; devices that have failed or are lost work again.
RIG_API void sdshard_rig_reset() {
    {
        std::lock_guard lock(rig::state().mutex);
        rig::read_environment(rig::state());
    }
    rig::heal_devices();
}
