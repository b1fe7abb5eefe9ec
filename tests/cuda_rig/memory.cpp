#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>

#include "settings.h"

namespace rig {
namespace {

constexpr std::size_t PAGE = 4096;
constexpr std::size_t REGION = std::size_t(1) << 40; // addresses of one home

// Allocations of one home, in a region of addresses of its own; a new one lies behind all earlier ones.
struct Home {
    std::uintptr_t region = 0, next = 0;
    std::size_t used = 0;
    std::map<std::uintptr_t, std::size_t> live;
};

struct State {
    std::mutex mutex;
    std::array<Home, MOST_DEVICES + 1> homes; // the host's is the first
    std::map<std::uintptr_t, std::size_t> pinned;
};

State &state() {
    static State &only = *new State;
    return only;
}

Home &home_of(int home) {
    return state().homes[std::size_t(home + 1)];
}

std::size_t round_up(std::size_t value, std::size_t to) {
    return (value + to - 1) / to * to;
}

// A file full of 0xFF, whose pages are everybody's until somebody writes to them: fresh memory costs nothing.
constexpr std::size_t POISON = std::size_t(4) << 20;

int poison() {
    static int file = [] {
        int made = memfd_create("poison", MFD_CLOEXEC);
        void *bytes = made < 0 || ftruncate(made, POISON) != 0
                          ? MAP_FAILED
                          : mmap(nullptr, POISON, PROT_READ | PROT_WRITE, MAP_SHARED, made, 0);
        if (bytes == MAP_FAILED) std::abort();
        std::memset(bytes, 0xff, POISON);
        munmap(bytes, POISON);
        return made;
    }();
    return file;
}

bool map_poison(std::uintptr_t first, std::size_t bytes) {
    for (std::size_t at = 0; at < bytes; at += POISON) {
        void *wanted = reinterpret_cast<void *>(first + at);
        void *got = mmap(wanted, std::min(POISON, bytes - at), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, poison(), 0);
        if (got != wanted) return false;
    }
    return true;
}

// The last allocation that begins at or before an address.
std::optional<Range> before(const std::map<std::uintptr_t, std::size_t> &live, int home, std::uintptr_t at) {
    auto after = live.upper_bound(at);
    if (after == live.begin()) return std::nullopt;
    --after;
    return Range{home, after->first, after->second};
}

std::optional<Range> find(std::uintptr_t at) {
    for (int home = HOST; home < MOST_DEVICES; home++)
        if (auto range = before(home_of(home).live, home, at); range && at < range->start + range->bytes) return range;
    if (auto range = before(state().pinned, HOST, at); range && at < range->start + range->bytes) return range;
    return std::nullopt;
}

} // namespace

void *allocate(int home, std::size_t bytes) {
    std::lock_guard lock(state().mutex);
    Home &h = home_of(home);
    if (home != HOST && bytes > memory_of(home) - std::min(h.used, memory_of(home))) return nullptr;
    if (h.region == 0) {
        void *region = mmap(nullptr, REGION, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (region == MAP_FAILED) return nullptr;
        h.region = h.next = reinterpret_cast<std::uintptr_t>(region);
    }
    std::size_t held = round_up(bytes, 16), pages = round_up(held, PAGE);
    if (h.next + pages + 2 * PAGE > h.region + REGION) return nullptr;
    if (!map_poison(h.next + PAGE, pages)) return nullptr;
    std::uintptr_t start = h.next + PAGE + pages - held;
    h.next += PAGE + pages; // the page behind is the one in front of the next
    h.used += bytes;
    h.live[start] = bytes;
    return reinterpret_cast<void *>(start);
}

bool release(int home, void *start) {
    std::lock_guard lock(state().mutex);
    Home &h = home_of(home);
    auto found = h.live.find(reinterpret_cast<std::uintptr_t>(start));
    if (found == h.live.end()) return false;
    std::uintptr_t first = found->first / PAGE * PAGE, end = found->first + round_up(found->second, 16);
    // Mapping anew gives the memory back and keeps the addresses, so that a late use faults.
    void *kept = mmap(reinterpret_cast<void *>(first), end - first, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (kept == MAP_FAILED) std::abort();
    h.used -= found->second;
    h.live.erase(found);
    return true;
}

std::size_t used_bytes(int device) {
    std::lock_guard lock(state().mutex);
    return home_of(device).used;
}

std::optional<Range> range_of(const void *at) {
    std::lock_guard lock(state().mutex);
    return find(reinterpret_cast<std::uintptr_t>(at));
}

bool is_within(const void *at, std::size_t bytes) {
    auto range = range_of(at);
    return range && reinterpret_cast<std::uintptr_t>(at) + bytes <= range->start + range->bytes;
}

std::string describe(const void *at) {
    std::lock_guard lock(state().mutex);
    std::ostringstream text;
    auto address = reinterpret_cast<std::uintptr_t>(at);
    text << at;
    for (int home = HOST; home < MOST_DEVICES; home++) {
        const Home &h = home_of(home);
        if (h.region == 0 || address < h.region || address >= h.region + REGION) continue;
        const char *whose = home == HOST ? "pinned memory" : "device memory";
        if (auto range = before(h.live, home, address); range && address < range->start + range->bytes)
            text << ", inside an allocation of " << range->bytes << " bytes of " << whose;
        else if (range && address < range->start + range->bytes + PAGE)
            text << ", " << address - range->start - range->bytes << " bytes behind an allocation of " << range->bytes
                 << " bytes of " << whose;
        else if (auto after = h.live.upper_bound(address); after != h.live.end() && after->first - address <= PAGE)
            text << ", " << after->first - address << " bytes in front of an allocation of " << after->second
                 << " bytes of " << whose;
        else
            text << ", in " << whose << " that is not allocated";
        if (home != HOST) text << " of device " << home;
    }
    return text.str();
}

bool pin(void *start, std::size_t bytes) {
    std::lock_guard lock(state().mutex);
    return state().pinned.emplace(reinterpret_cast<std::uintptr_t>(start), bytes).second;
}

bool unpin(void *start) {
    std::lock_guard lock(state().mutex);
    return state().pinned.erase(reinterpret_cast<std::uintptr_t>(start)) == 1;
}

} // namespace rig
