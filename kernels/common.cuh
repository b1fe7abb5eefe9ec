// What all kernels share. Arithmetic is f32, every fused multiply-add is written as fmaf (the compiler fuses none by
// itself), so that an element is the same chain of operations in whichever kernel it is computed.
#pragma once
#include "ptx.cuh"

#ifndef DYN_SHARED
#define DYN_SHARED(T, name) extern __shared__ __align__(16) T name[]
#endif

// The lowest a score may be: a masked one. Not infinity, of which differences are no numbers.
#define LOWEST (-3.0e38f)
#define FULL_WARP 0xffffffffu

static __device__ __forceinline__ float to_f32(float x) {
    return x;
}
static __device__ __forceinline__ float to_f32(f16 x) {
    return f16_to_f32(x.bits);
}
static __device__ __forceinline__ float to_f32(bf16 x) {
    return __uint_as_float((unsigned)x.bits << 16);
}

// To nearest even; what is no number stays so.
static __device__ __forceinline__ void from_f32(float x, float &y) {
    y = x;
}
static __device__ __forceinline__ void from_f32(float x, f16 &y) {
    y.bits = f32_to_f16(x);
}
static __device__ __forceinline__ void from_f32(float x, bf16 &y) {
    unsigned bits = __float_as_uint(x);
    unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    y.bits = (unsigned short)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

template <typename T> static __device__ __forceinline__ T rounded(float x) {
    T y;
    from_f32(x, y);
    return y;
}

// Two neighbours in a register, the first in the lower half.
template <typename T> static __device__ __forceinline__ unsigned pair(float first, float second) {
    return (unsigned)rounded<T>(first).bits | (unsigned)rounded<T>(second).bits << 16;
}

// N neighbouring elements, moved at once.
template <typename T, int N> struct alignas(N * sizeof(T)) Pack {
    T at[N];
};

// Elements in 16 bytes, the widest access there is.
template <typename T> struct Wide {
    static constexpr int N = 16 / sizeof(T);
};

// Whether addresses suit 16-byte accesses.
static __device__ __forceinline__ bool wide(const void *a, const void *b = nullptr, const void *c = nullptr) {
    return (((size_t)a | (size_t)b | (size_t)c) & 15) == 0;
}

static __device__ __forceinline__ float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

// x * Phi(x).
static __device__ __forceinline__ float gelu(float x) {
    return 0.5f * x * (1.0f + erff(x * 0.70710678f));
}

#define GEGLU 4u
#define RELU 5u

// N elements at once, so that the choice is made once. As numbered in src/backend/cuda/mod.rs; GEGLU looks at two elements
// and is not among them.
template <int N> static __device__ __forceinline__ void activate_each(unsigned activation, float (&x)[N]) {
    if (activation == 2) {
#pragma unroll
        for (int j = 0; j < N; j++)
            x[j] = gelu(x[j]);
    } else if (activation == RELU) {
#pragma unroll
        for (int j = 0; j < N; j++)
            x[j] = x[j] < 0.0f ? 0.0f : x[j];
    } else if (activation != 0) {
        // SiLU, or quick GELU.
        float scale = activation == 1 ? 1.0f : 1.702f;
#pragma unroll
        for (int j = 0; j < N; j++)
            x[j] *= sigmoid(scale * x[j]);
    }
}

// Sums and maxima over aligned groups of WIDTH lanes; every lane has the result. A fixed tree.
template <int WIDTH> static __device__ __forceinline__ float group_sum(float x) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}
template <int WIDTH> static __device__ __forceinline__ float group_max(float x) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, step));
    return x;
}

// The number of this thread in a grid of one dimension. A tensor has fewer than 2^31 elements, so 32 bits will do.
static __device__ __forceinline__ unsigned thread_number() {
    return blockIdx.x * blockDim.x + threadIdx.x;
}
