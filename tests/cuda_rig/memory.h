// Memory of devices and pinned memory of the host. Each allocation ends at a page that may not be touched, begins behind
// one, is full of 0xFF (which is no number in any float type), and its addresses are never used again.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace rig {

// Whose memory an address is: a device's number, or the host's pinned memory.
constexpr int HOST = -1;

struct Range {
    int home;
    std::uintptr_t start;
    std::size_t bytes;
};

// Null if the device has no room. Aligned to 256 bytes where the size is a multiple of 256, else to 16.
void *allocate(int home, std::size_t bytes);
// Whether there was such an allocation.
bool release(int home, void *start);
std::size_t used_bytes(int device);

// The allocation that an address lies in.
std::optional<Range> range_of(const void *at);
// Whether all of these bytes are one allocation's.
bool is_within(const void *at, std::size_t bytes);
// In words, for a message about an address that is nobody's.
std::string describe(const void *at);

// Pages of the host's that are made as good as pinned.
bool pin(void *start, std::size_t bytes);
bool unpin(void *start);

} // namespace rig
