#include "block.h"

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>

#include <sys/mman.h>
#include <ucontext.h>

#include "fiber.h"
#include "memory.h"

__thread RigLane *rig_lane __attribute__((visibility("default")));

// The C library's: this thread's part of a library's thread-local memory. {module, offset}
extern "C" void *__tls_get_addr(std::size_t *index);

namespace rig {
namespace {

constexpr std::size_t PAGE = 4096;
constexpr std::size_t MOST_SHARED = 256 * 1024;

struct Copy {
    void *to;
    const void *from;
    bool valid;
};

struct Warp;

struct Lane : RigLane {
    Warp *warp;
    void *stack_pointer;
    std::size_t stack;
    bool started;
    // Copies under way: the open group, and how many the closed ones have.
    std::vector<Copy> copies;
    std::vector<std::size_t> groups;
};

struct Warp {
    Lane lanes[32];
    unsigned present;    // lanes that there are
    unsigned ready;      // lanes that can go on
    unsigned ended;
    unsigned at_barrier;
    // The one operation that lanes wait for, and those that have come.
    unsigned arrived, mask;
    RigWarpFunction all;
    const char *place;
    void *operands[32];
};

// What a thread of the host needs to run blocks.
struct Runner {
    Stacks stacks;
    std::vector<Warp> warps = std::vector<Warp>(32);
    void *scheduler = nullptr; // where to go when a lane cannot go on
    char *shared = nullptr;    // dynamic shared memory ends here, at a page that may not be touched
    const Launch *launch = nullptr;
    RigBlock block = {};
    std::size_t threads = 0, waiting = 0, ended = 0;
    const char *barrier = nullptr;
    std::uintptr_t tls = 0;
    std::mt19937_64 chance;
    Failure failure;
    int fault_signal = 0; // of a bad access
    bool fault_has_address = false;
    const void *fault = nullptr;
};

thread_local Runner *runner;

Lane &this_lane() {
    return *static_cast<Lane *>(rig_lane);
}

bool by_chance() {
    return runner->launch->seed != 0 && (runner->chance() & 1) != 0;
}

void lane_main(void *lane);

// What to switch to, to go on with a lane.
void *resume(Lane &lane) {
    if (!lane.started) {
        Stacks::Fiber fiber = runner->stacks.take(lane_main, &lane);
        lane.stack_pointer = fiber.pointer;
        lane.stack = fiber.number;
        lane.started = true;
    }
    rig_lane = &lane;
    return lane.stack_pointer;
}

// Leaves a lane that cannot go on, until it can: for the next of its warp at once, or for the scheduler, which chooses.
void pause(Lane &lane) {
    Warp &warp = *lane.warp;
    bool next = warp.ready != 0 && runner->launch->seed == 0;
    rig_switch(&lane.stack_pointer, next ? resume(warp.lanes[__builtin_ctz(warp.ready)]) : runner->scheduler);
}

bool is_same(const char *place, const char *other) {
    return place == other || std::strcmp(place, other) == 0;
}

std::string name_of(const Lane &lane) {
    std::ostringstream text;
    const uint3 &b = lane.block->block_idx, &t = lane.thread_idx;
    text << "kernel " << runner->launch->kernel << ", block (" << b.x << ", " << b.y << ", " << b.z << "), thread (" << t.x
         << ", " << t.y << ", " << t.z << ")";
    return text.str();
}

[[noreturn]] void fail(CUresult code, const std::string &what) {
    runner->failure = {code, name_of(this_lane()) + ": " + what};
    void *nowhere;
    rig_switch(&nowhere, runner->scheduler);
    std::abort(); // a lane that has failed is never gone back to
}

// Copies the operands' results, if all that must come have come.
void finish_warp_operation(Warp &warp) {
    unsigned wanted = warp.mask & warp.present & ~warp.ended;
    if (warp.arrived == 0 || warp.arrived != wanted) return;
    warp.all(warp.operands, warp.arrived);
    warp.ready |= warp.arrived;
    warp.arrived = 0;
}

void copy_now(const Copy &copy) {
    if (copy.valid)
        std::memcpy(copy.to, copy.from, 16);
    else
        std::memset(copy.to, 0, 16);
}

void lane_main(void *argument) {
    Lane &lane = *static_cast<Lane *>(argument);
    const Launch &launch = *runner->launch;
    void *parameters[256];
    for (std::size_t i = 0; i < launch.values.size(); i++)
        parameters[i] = const_cast<unsigned char *>(launch.values[i].data());
    launch.entry->call(parameters);
    unsigned bit = 1u << lane.lane;
    lane.warp->ended |= bit;
    lane.warp->ready &= ~bit;
    runner->ended++;
    finish_warp_operation(*lane.warp);
    rig_switch(&lane.stack_pointer, runner->scheduler);
    std::abort();
}

Failure failure_of_fault() {
    Runner &r = *runner;
    if (r.fault_signal != SIGSEGV && r.fault_signal != SIGBUS)
        return {CUDA_ERROR_LAUNCH_FAILED, "an instruction that cannot be executed"};
    if (!r.fault_has_address) return {CUDA_ERROR_MISALIGNED_ADDRESS, "a misaligned or impossible address"};
    auto *at = static_cast<const char *>(r.fault);
    bool shared = at >= r.shared && at < r.shared + PAGE;
    std::string where = shared ? "behind dynamic shared memory" : describe(r.fault);
    return {CUDA_ERROR_ILLEGAL_ADDRESS, "illegal address " + where};
}

// Goes on with a lane, and comes back from it or from another of its warp.
void run_lane(Lane &first) {
    Runner &r = *runner;
    rig_switch(&r.scheduler, resume(first));
    Lane &last = this_lane();
    if (r.fault_signal != 0) {
        r.failure = failure_of_fault();
        r.failure.what = name_of(last) + ": " + r.failure.what;
        r.fault_signal = 0;
    }
    rig_lane = nullptr;
    if (last.warp->ended >> last.lane & 1) r.stacks.give_back(last.stack);
}

// Until none of its lanes can go on.
void run_warp(Warp &warp) {
    while (warp.ready != 0 && runner->failure.code == CUDA_SUCCESS) {
        unsigned from = warp.ready;
        if (runner->launch->seed != 0) {
            unsigned rotated = from & (~0u << runner->chance() % 32);
            if (rotated != 0) from = rotated;
        }
        run_lane(warp.lanes[__builtin_ctz(from)]);
    }
}

// Why no lane can go on, though not all have ended.
Failure stuck(std::size_t warps) {
    Runner &r = *runner;
    std::ostringstream text;
    for (std::size_t w = 0; w < warps; w++) {
        const Warp &warp = r.warps[w];
        if (warp.arrived == 0) continue;
        text << name_of(warp.lanes[__builtin_ctz(warp.arrived)]) << ": " << __builtin_popcount(warp.arrived)
             << " lanes wait at " << warp.place << " for the others of their warp, which do not come";
        return {CUDA_ERROR_LAUNCH_FAILED, text.str()};
    }
    const uint3 &b = r.block.block_idx;
    text << "kernel " << r.launch->kernel << ", block (" << b.x << ", " << b.y << ", " << b.z << "): " << r.waiting << " of "
         << r.threads << " threads wait at the barrier at " << r.barrier << ", " << r.ended << " have ended";
    return {CUDA_ERROR_LAUNCH_FAILED, text.str()};
}

void prepare_block(const Launch &launch, std::size_t number) {
    Runner &r = *runner;
    const uint3 &grid = launch.grid, &block = launch.block;
    r.launch = &launch;
    r.threads = std::size_t(block.x) * block.y * block.z;
    r.waiting = r.ended = 0;
    r.failure = {};
    r.chance.seed(launch.seed + number);
    // All of the kernels' static shared memory, theirs and others': a read before a write gives no number.
    std::size_t index[2] = {launch.tls_module, 0};
    r.tls = 0;
    if (launch.tls_bytes > 0) {
        void *tls = __tls_get_addr(index);
        std::memset(tls, 0xff, launch.tls_bytes);
        r.tls = reinterpret_cast<std::uintptr_t>(tls);
    }
    std::size_t shared = (launch.shared_bytes + 15) / 16 * 16;
    std::memset(r.shared - shared, 0xff, shared);
    unsigned plane = static_cast<unsigned>(number % (std::size_t(grid.x) * grid.y));
    uint3 index_of_block = {plane % grid.x, plane / grid.x, static_cast<unsigned>(number / (std::size_t(grid.x) * grid.y))};
    r.block = {index_of_block, block, grid, r.shared - shared};
    for (std::size_t t = 0; t < r.threads; t++) {
        Warp &warp = r.warps[t / 32];
        if (t % 32 == 0) warp.present = warp.ready = warp.ended = warp.at_barrier = warp.arrived = 0;
        Lane &lane = warp.lanes[t % 32];
        auto i = static_cast<unsigned>(t);
        lane.thread_idx = {i % block.x, i / block.x % block.y, i / block.x / block.y};
        lane.lane = i % 32;
        lane.block = &r.block;
        lane.warp = &warp;
        lane.started = false;
        lane.copies.clear();
        lane.groups.clear();
        warp.present |= 1u << i % 32;
        warp.ready |= 1u << i % 32;
    }
}

// A thread of the host becomes one that runs blocks: dynamic shared memory, and a stack for signals, which may come for
// want of stack.
void become_runner() {
    static thread_local std::unique_ptr<Runner> mine;
    mine = std::make_unique<Runner>();
    runner = mine.get();
    void *shared = mmap(nullptr, MOST_SHARED + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) std::abort();
    char *first = static_cast<char *>(shared) + PAGE;
    if (mprotect(first, MOST_SHARED, PROT_READ | PROT_WRITE) != 0) std::abort();
    runner->shared = first + MOST_SHARED;
    stack_t stack = {};
    stack.ss_size = 64 * 1024;
    stack.ss_sp = std::malloc(stack.ss_size);
    if (sigaltstack(&stack, nullptr) != 0) std::abort();
}

struct sigaction before[NSIG];

// In a kernel: notes what happened and goes back to the scheduler, as if the lane had switched to it.
void on_fault(int signal, siginfo_t *info, void *context) {
    if (rig_lane != nullptr) {
        runner->fault_signal = signal;
        runner->fault_has_address = info->si_code != SI_KERNEL; // a bad alignment comes without
        runner->fault = info->si_addr;
        auto &registers = static_cast<ucontext_t *>(context)->uc_mcontext.gregs;
        registers[REG_RSP] = reinterpret_cast<greg_t>(runner->scheduler);
        registers[REG_RIP] = reinterpret_cast<greg_t>(&rig_resume);
        return;
    }
    struct sigaction &earlier = before[signal];
    if (earlier.sa_flags & SA_SIGINFO)
        earlier.sa_sigaction(signal, info, context);
    else if (earlier.sa_handler != SIG_DFL && earlier.sa_handler != SIG_IGN)
        earlier.sa_handler(signal);
    else
        sigaction(signal, &earlier, nullptr); // the instruction is tried again, and ends the process
}

} // namespace

void catch_faults() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigaction(signal, &action, &before[signal]);
}

Failure run_block(const Launch &launch, std::size_t number) {
    if (!runner) become_runner();
    prepare_block(launch, number);
    Runner &r = *runner;
    std::size_t warps = (r.threads + 31) / 32;
    bool moved = true;
    while (r.ended < r.threads && moved && r.failure.code == CUDA_SUCCESS) {
        moved = false;
        std::size_t first = launch.seed != 0 ? r.chance() % warps : 0;
        for (std::size_t w = 0; w < warps && r.failure.code == CUDA_SUCCESS; w++) {
            Warp &warp = r.warps[(first + w) % warps];
            moved |= warp.ready != 0;
            run_warp(warp);
        }
    }
    if (r.failure.code == CUDA_SUCCESS && r.ended < r.threads) r.failure = stuck(warps);
    if (r.failure.code != CUDA_SUCCESS) // the stacks of lanes that were left behind
        for (std::size_t t = 0; t < r.threads; t++) {
            Lane &lane = r.warps[t / 32].lanes[t % 32];
            if (lane.started && !(lane.warp->ended >> lane.lane & 1)) r.stacks.give_back(lane.stack);
        }
    return r.failure;
}

} // namespace rig

using namespace rig;

RIG_API void rig_sync_threads(const char *place) {
    Runner &r = *runner;
    Lane &lane = this_lane();
    if (r.waiting == 0)
        r.barrier = place;
    else if (!is_same(place, r.barrier))
        fail(CUDA_ERROR_LAUNCH_FAILED,
             std::string("is at the barrier at ") + place + ", others of its block at the one at " + r.barrier);
    if (++r.waiting < r.threads) {
        lane.warp->at_barrier |= 1u << lane.lane;
        lane.warp->ready &= ~(1u << lane.lane);
        pause(lane);
        return;
    }
    r.waiting = 0;
    for (std::size_t w = 0; w < (r.threads + 31) / 32; w++) {
        r.warps[w].ready |= r.warps[w].at_barrier;
        r.warps[w].at_barrier = 0;
    }
}

RIG_API void rig_warp(unsigned mask, RigWarpFunction all, void *operand, const char *place) {
    Lane &lane = this_lane();
    Warp &warp = *lane.warp;
    unsigned bit = 1u << lane.lane;
    if (!(mask & bit)) fail(CUDA_ERROR_LAUNCH_FAILED, std::string("is not in its own mask at ") + place);
    if (warp.arrived == 0) {
        warp.mask = mask;
        warp.all = all;
        warp.place = place;
    } else if (warp.mask != mask || warp.all != all || !is_same(warp.place, place)) {
        fail(CUDA_ERROR_LAUNCH_FAILED, std::string("is at ") + place + ", others of its warp at " + warp.place);
    }
    warp.operands[lane.lane] = operand;
    warp.arrived |= bit;
    warp.ready &= ~bit;
    finish_warp_operation(warp);
    if (!(warp.ready & bit)) pause(lane);
}

RIG_API void rig_copy_async(void *shared, const void *global, bool valid) {
    if (reinterpret_cast<std::uintptr_t>(shared) % 16 != 0) rig_misaligned("cp.async to", shared);
    if (reinterpret_cast<std::uintptr_t>(global) % 16 != 0) rig_misaligned("cp.async from", global);
    if (!rig_is_shared(shared, 16)) rig_misaligned("cp.async to outside shared memory", shared);
    Copy copy = {shared, global, valid};
    // The hardware may be early: then a buffer is overwritten that is still being read, if a barrier is missing.
    if (by_chance())
        copy_now(copy);
    else
        this_lane().copies.push_back(copy);
}

RIG_API void rig_copy_commit() {
    Lane &lane = this_lane();
    std::size_t closed = 0;
    for (std::size_t count : lane.groups) closed += count;
    lane.groups.push_back(lane.copies.size() - closed);
}

RIG_API void rig_copy_wait(unsigned left) {
    Lane &lane = this_lane();
    while (lane.groups.size() > left) {
        std::size_t count = lane.groups.front();
        for (std::size_t i = 0; i < count; i++) copy_now(lane.copies[i]);
        lane.copies.erase(lane.copies.begin(), lane.copies.begin() + static_cast<std::ptrdiff_t>(count));
        lane.groups.erase(lane.groups.begin());
    }
}

RIG_API bool rig_is_shared(const void *at, size_t bytes) {
    const Runner &r = *runner;
    auto address = reinterpret_cast<std::uintptr_t>(at);
    auto is_in = [&](std::uintptr_t start, std::size_t size) { return address >= start && address + bytes <= start + size; };
    auto dynamic = reinterpret_cast<std::uintptr_t>(r.block.dynamic_shared);
    return is_in(dynamic, reinterpret_cast<std::uintptr_t>(r.shared) - dynamic) || is_in(r.tls, r.launch->tls_bytes);
}

RIG_API void rig_misaligned(const char *what, const void *at) {
    std::ostringstream text;
    text << what << " " << at;
    fail(CUDA_ERROR_MISALIGNED_ADDRESS, text.str());
}

RIG_API void rig_trap(const char *what) {
    fail(CUDA_ERROR_LAUNCH_FAILED, what);
}
