// Stacks, and switching between them: one for each CUDA thread of a block.
#pragma once
#include <cstddef>
#include <vector>

namespace rig {

// Puts the caller's registers on its stack, whose pointer goes to *from, and goes on where `to` was left.
extern "C" void rig_switch(void **from, void *to);
// Where rig_switch goes on, once the stack pointer is set: for a signal handler, which sets it itself.
extern "C" void rig_resume();

// Stacks that one thread of the host uses again and again.
class Stacks {
  public:
    Stacks() = default;
    Stacks(const Stacks &) = delete;
    Stacks &operator=(const Stacks &) = delete;

    // A stack on which rig_switch will call entry(argument), which must not return. Its top identifies it.
    struct Fiber {
        void *pointer;
        std::size_t number;
    };
    Fiber take(void (*entry)(void *), void *argument);
    void give_back(std::size_t number) { free_.push_back(number); }

  private:
    std::vector<char *> tops_;
    std::vector<std::size_t> free_;
};

} // namespace rig
