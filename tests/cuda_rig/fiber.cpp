#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

// System V: these registers are the callee's to keep. Kernels leave the rounding modes alone.
asm(R"(
.text
.globl rig_switch
.hidden rig_switch
.type rig_switch, @function
rig_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
.globl rig_resume
.hidden rig_resume
rig_resume:
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size rig_switch, . - rig_switch

.type rig_begin, @function
rig_begin:
    mov %r12, %rdi
    call *%r13
    ud2
.size rig_begin, . - rig_begin
)");

extern "C" void rig_begin() __attribute__((visibility("hidden")));

namespace rig {
namespace {

constexpr std::size_t PAGE = 4096;
constexpr std::size_t STACK = 128 * 1024;
// Stacks begin at different places in their pages: equal ones would fall on the same lines of the caches.
constexpr std::size_t STAGGER = 576;

} // namespace

Stacks::Fiber Stacks::take(void (*entry)(void *), void *argument) {
    if (free_.empty()) {
        void *memory = mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, PAGE, PROT_NONE) != 0) std::abort();
        char *end = static_cast<char *>(memory) + PAGE + STACK;
        tops_.push_back(end - tops_.size() * STAGGER % (4 * PAGE) / 64 * 64);
        free_.push_back(tops_.size() - 1);
    }
    std::size_t number = free_.back();
    free_.pop_back();
    // What rig_switch pops: r15 r14 r13 r12 rbx rbp, and where to go on; then the stack is aligned for a call.
    auto **frame = reinterpret_cast<void **>(tops_[number]) - 9;
    frame[2] = reinterpret_cast<void *>(entry);
    frame[3] = argument;
    frame[4] = frame[5] = nullptr;
    frame[6] = reinterpret_cast<void *>(&rig_begin);
    return {frame, number};
}

} // namespace rig
