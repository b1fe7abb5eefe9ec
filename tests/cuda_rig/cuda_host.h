// CUDA C++ for a compiler of the host: included in front of every kernel. Only what kernels use is here, and nothing of the
// C library's headers, whose names and macros would get into the kernels' way.
#pragma once
#include "kernel_abi.h"

#define __global__ __attribute__((annotate("rig_kernel")))
#define __device__
#define __host__
#define __forceinline__ __attribute__((always_inline)) inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __constant__ static const
#define __align__(n) __attribute__((aligned(n)))
// A block runs on one thread of the host. The rig poisons the library's thread-local memory before each block.
#define __shared__ static thread_local
#define DYN_SHARED(T, name) T *const name = static_cast<T *>(rig_lane->block->dynamic_shared)

#define threadIdx (rig_lane->thread_idx)
#define blockIdx (rig_lane->block->block_idx)
#define blockDim (rig_lane->block->block_dim)
#define gridDim (rig_lane->block->grid_dim)
#define warpSize 32

#define RIG_TEXT(x) #x
#define RIG_LINE(line) RIG_TEXT(line)
#define RIG_PLACE (__FILE_NAME__ ":" RIG_LINE(__LINE__))

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Mathematics: the C library's, which is at least as exact as the device's.
extern "C" {
float expf(float), exp2f(float), logf(float), log2f(float), erff(float), tanhf(float), sqrtf(float), fmaf(float, float, float);
float fmaxf(float, float), fminf(float, float), fabsf(float), floorf(float), sinf(float), cosf(float), powf(float, float);
}
static inline float __expf(float x) { return expf(x); }
static inline float __logf(float x) { return logf(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline size_t min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t max(size_t a, size_t b) { return a > b ? a : b; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

static inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
static inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
static inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
static inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
template <typename T> static inline T __ldg(const T *p) { return *p; }

#define __syncthreads() rig_sync_threads(RIG_PLACE)
#define __syncwarp(...) rig_sync_warp(RIG_PLACE, ##__VA_ARGS__)
#define __shfl_sync(...) rig_shuffle(RIG_PLACE, RIG_FROM, __VA_ARGS__)
#define __shfl_xor_sync(...) rig_shuffle(RIG_PLACE, RIG_XOR, __VA_ARGS__)
#define __shfl_down_sync(...) rig_shuffle(RIG_PLACE, RIG_DOWN, __VA_ARGS__)
#define __shfl_up_sync(...) rig_shuffle(RIG_PLACE, RIG_UP, __VA_ARGS__)
#define __ballot_sync(mask, predicate) rig_ballot(RIG_PLACE, mask, predicate)
#define __any_sync(mask, predicate) (rig_ballot(RIG_PLACE, mask, predicate) != 0)
#define __all_sync(mask, predicate) (rig_ballot(RIG_PLACE, mask, !(predicate)) == 0)
#define __trap() rig_trap("__trap()")

static inline void rig_nothing(void *const *, unsigned) {}
static inline void rig_sync_warp(const char *place, unsigned mask = 0xffffffffu) { rig_warp(mask, rig_nothing, nullptr, place); }

enum RigShuffle { RIG_FROM, RIG_XOR, RIG_DOWN, RIG_UP };

template <typename T> struct RigShuffled {
    T in, out;
    unsigned from;
};

// A lane that is not there gives poison, as reading from it is undefined.
template <typename T> static void rig_shuffle_all(void *const *operands, unsigned present) {
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(present >> lane & 1)) continue;
        auto *mine = static_cast<RigShuffled<T> *>(operands[lane]);
        if (present >> mine->from & 1)
            mine->out = static_cast<RigShuffled<T> *>(operands[mine->from])->in;
        else
            __builtin_memset(&mine->out, 0xff, sizeof(T));
    }
}

template <typename T>
static inline T rig_shuffle(const char *place, RigShuffle how, unsigned mask, T value, int by, int width = 32) {
    int lane = static_cast<int>(rig_lane->lane), first = lane & -width, from = lane;
    switch (how) {
    case RIG_FROM: from = first + (by & (width - 1)); break;
    case RIG_XOR: from = lane ^ by; break;
    case RIG_DOWN: from = lane + by; break;
    case RIG_UP: from = lane - by; break;
    }
    // Beyond its group a lane keeps its own value; xor may go down into an earlier group, never into a later one.
    if (from >= first + width || (from < first && how != RIG_XOR)) from = lane;
    RigShuffled<T> operand = {value, value, static_cast<unsigned>(from)};
    rig_warp(mask, rig_shuffle_all<T>, &operand, place);
    return operand.out;
}

struct RigBallot {
    bool in;
    unsigned out;
};

static inline void rig_ballot_all(void *const *operands, unsigned present) {
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; lane++)
        if (present >> lane & 1) votes |= static_cast<unsigned>(static_cast<RigBallot *>(operands[lane])->in) << lane;
    for (unsigned lane = 0; lane < 32; lane++)
        if (present >> lane & 1) static_cast<RigBallot *>(operands[lane])->out = votes;
}

static inline unsigned rig_ballot(const char *place, unsigned mask, bool predicate) {
    RigBallot operand = {predicate, 0};
    rig_warp(mask, rig_ballot_all, &operand, place);
    return operand.out;
}
