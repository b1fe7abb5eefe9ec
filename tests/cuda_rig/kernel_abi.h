// What kernels compiled for the host and the rig know of each other.
#pragma once
#include <stddef.h>

struct uint3 {
    unsigned x, y, z;
};

// The block that a thread is part of.
struct RigBlock {
    uint3 block_idx, block_dim, grid_dim;
    void *dynamic_shared;
};

// A CUDA thread.
struct RigLane {
    uint3 thread_idx;
    unsigned lane; // its number in its warp
    RigBlock *block;
};

// How a launch calls a kernel: the function, and the sizes of its parameters.
struct RigEntry {
    void (*call)(void *const *parameters);
    unsigned count;
    const unsigned short *sizes;
};

// Computes the results of a warp at once: operands[i] is what lane i brought, where bit i of `present` is set.
using RigWarpFunction = void (*)(void *const *operands, unsigned present);

extern "C" {
// The CUDA thread that runs on this thread of the host. Fibers stay on their thread, so its address may be cached.
extern __thread RigLane *rig_lane __attribute__((tls_model("initial-exec")));

// All threads of the block, at the same line.
void rig_sync_threads(const char *place);
// All lanes of the mask bring an operand; the last to arrive computes for all.
void rig_warp(unsigned mask, RigWarpFunction all, void *operand, const char *place);
// Copies that are done when waited for, or at any time before.
void rig_copy_async(void *shared, const void *global, bool valid);
void rig_copy_commit();
void rig_copy_wait(unsigned left);
// Whether bytes lie in the shared memory of this block.
bool rig_is_shared(const void *at, size_t bytes);
// Ends the launch with an error.
[[noreturn]] void rig_misaligned(const char *what, const void *at);
[[noreturn]] void rig_trap(const char *what);
}
