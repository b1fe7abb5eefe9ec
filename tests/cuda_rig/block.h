// Runs one block of a grid on this thread of the host: a fiber for each CUDA thread, warps in turn, until all have ended,
// one has failed, or none can go on.
#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "driver_types.h"
#include "kernel_abi.h"

namespace rig {

// A kernel, with what one launch gives it.
struct Launch {
    std::string kernel;
    const RigEntry *entry;
    std::vector<std::vector<unsigned char>> values; // copies of the arguments
    uint3 grid, block;
    std::size_t shared_bytes;
    std::size_t tls_module; // of the library, whose thread-local memory is the kernels' static shared memory
    std::size_t tls_bytes;
    std::uint64_t seed; // 0: threads in order, copies done when waited for; else both by chance
};

struct Failure {
    CUresult code = CUDA_SUCCESS;
    std::string what;
};

// Runs the block of this number, on the calling thread. Not to be called from within a kernel.
Failure run_block(const Launch &launch, std::size_t number);

// Turns bad accesses of kernels into failures of their launches; others stay what they were.
void catch_faults();

} // namespace rig
