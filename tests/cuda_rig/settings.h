// What the rig is told: by SDSHARD_RIG_* in the environment, and within one process by sdshard_rig_set.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace rig {

constexpr int MOST_DEVICES = 32;

enum class Peers { Good, None, Corrupt };

struct Settings {
    int devices = 2;
    std::vector<std::size_t> memory = {std::size_t(2) << 30}; // the last is for all further devices
    std::vector<int> capability = {80};
    Peers peers = Peers::Good;
    std::uint64_t delays = 0; // a seed; 0: none
    std::string kernels;      // folder of the host builds; empty: beside this library
};

// A copy of what holds now.
Settings settings();
std::size_t memory_of(int device);
int capability_of(int device);

// Faults, each of which happens once, at its turn. A device that is lost stays so.
bool this_allocation_fails();
bool this_launch_fails();
bool this_graph_fails();
bool this_node_fails();
// Counts a call on a device; whether the device is lost by now.
bool is_lost(int device);

// Counts a call of a function on a device: see sdshard_rig_calls.
void count(const char *function, int device);

// Prints a line for whoever reads the test's output.
void say(const std::string &line);

} // namespace rig
