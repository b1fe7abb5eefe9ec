// activate, add_channels, scale_add, cast: one pass over memory.
// A thread has 16 bytes of the output where addresses and widths allow it, else one element; either way each element is
// the same chain of operations. Blocks of 256 threads in one dimension; the grid covers elements / 1 or / Wide<T>::N.
// H100 to T4: bound by memory; 16 bytes per thread, 32 registers at most, full occupancy.
#include "common.cuh"

// Parameters: struct Activate in src/backend/params.rs, then the number of the activation.
struct Activate {
    unsigned rows, channels, activation;
};

// out [rows, channels] = activation(x); GEGLU: x [rows, 2 channels], out = hidden * gelu(gate).
template <typename T, int N>
static __device__ __forceinline__ void activate_at(const T *x, T *out, Activate p, unsigned i) {
    typedef Pack<T, N> P;
    bool geglu = p.activation == GEGLU;
    unsigned from = geglu ? i / p.channels * 2 * p.channels + i % p.channels : i;
    P value = *(const P *)(x + from), y;
    float z[N];
#pragma unroll
    for (int j = 0; j < N; j++)
        z[j] = to_f32(value.at[j]);
    if (geglu) {
        P gate = *(const P *)(x + from + p.channels);
#pragma unroll
        for (int j = 0; j < N; j++)
            z[j] *= gelu(to_f32(gate.at[j]));
    } else {
        activate_each<N>(p.activation, z);
    }
#pragma unroll
    for (int j = 0; j < N; j++)
        y.at[j] = rounded<T>(z[j]);
    *(P *)(out + i) = y;
}

template <typename T> static __device__ __forceinline__ void activate_all(const T *x, T *out, Activate p) {
    constexpr int N = Wide<T>::N;
    unsigned i = thread_number(), count = p.rows * p.channels;
    if (p.channels % N == 0 && wide(x, out)) {
        if (i * N < count)
            activate_at<T, N>(x, out, p, i * N);
    } else {
        for (unsigned at = i * N; at < count && at < (i + 1) * N; at++)
            activate_at<T, 1>(x, out, p, at);
    }
}

// Parameters: struct AddChannels in src/backend/params.rs, same order.
struct AddChannels {
    unsigned batch, pixels, channels, per_channel_rows;
};

// out [batch, pixels, channels] = x + add [batch or 1, channels]
template <typename T, int N>
static __device__ __forceinline__ void add_channels_at(const T *x, const T *add, T *out, AddChannels p, unsigned i) {
    typedef Pack<T, N> P;
    unsigned row = p.per_channel_rows == 1 ? 0 : i / (p.pixels * p.channels);
    P a = *(const P *)(x + i), b = *(const P *)(add + row * p.channels + i % p.channels), y;
#pragma unroll
    for (int j = 0; j < N; j++)
        y.at[j] = rounded<T>(to_f32(a.at[j]) + to_f32(b.at[j]));
    *(P *)(out + i) = y;
}

template <typename T>
static __device__ __forceinline__ void add_channels_all(const T *x, const T *add, T *out, AddChannels p) {
    constexpr int N = Wide<T>::N;
    unsigned i = thread_number(), count = p.batch * p.pixels * p.channels;
    if (p.channels % N == 0 && wide(x, add, out)) {
        if (i * N < count)
            add_channels_at<T, N>(x, add, out, p, i * N);
    } else {
        for (unsigned at = i * N; at < count && at < (i + 1) * N; at++)
            add_channels_at<T, 1>(x, add, out, p, at);
    }
}

// Parameters: struct ScaleAdd in src/backend/params.rs, then the number of terms, then their factors.
struct ScaleAdd {
    unsigned elements, terms;
    float scale[6];
};

// out [elements] = scale[0] * x0 + scale[1] * x1 + .., all f32: a product, then fused multiply-adds in the order of the
// terms. What goes on between steps: guidance and solvers.
template <int N>
static __device__ __forceinline__ void scale_add_at(const float *const (&x)[6], float *out, const ScaleAdd &p, unsigned i) {
    typedef Pack<float, N> P;
    P sum = {};
#pragma unroll
    for (int t = 0; t < 6; t++) {
        if (t < (int)p.terms) {
            P term = *(const P *)(x[t] + i);
#pragma unroll
            for (int j = 0; j < N; j++)
                sum.at[j] = t == 0 ? p.scale[0] * term.at[j] : fmaf(p.scale[t], term.at[j], sum.at[j]);
        }
    }
    *(P *)(out + i) = sum;
}

// out [elements] = x, to nearest even. Four elements for each thread.
template <typename FROM, typename TO>
static __device__ __forceinline__ void cast_all(const FROM *x, TO *out, unsigned elements) {
    unsigned first = thread_number() * 4;
    if (first + 4 <= elements) {
        Pack<FROM, 4> from = *(const Pack<FROM, 4> *)(x + first);
        Pack<TO, 4> to;
#pragma unroll
        for (int j = 0; j < 4; j++)
            to.at[j] = rounded<TO>(to_f32(from.at[j]));
        *(Pack<TO, 4> *)(out + first) = to;
    } else {
        for (unsigned i = first; i < elements; i++)
            out[i] = rounded<TO>(to_f32(x[i]));
    }
}

#define KERNEL extern "C" __global__ void __launch_bounds__(256)
#define OF_TYPE(T, name)                                                                                               \
    KERNEL activate_##name(const T *x, T *out, Activate p) { activate_all<T>(x, out, p); }                             \
    KERNEL add_channels_##name(const T *x, const T *add, T *out, AddChannels p) { add_channels_all<T>(x, add, out, p); }
OF_TYPE(float, f32)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)

KERNEL scale_add_f32(const float *x0, const float *x1, const float *x2, const float *x3, const float *x4, const float *x5,
                     float *out, ScaleAdd p) {
    const float *const x[6] = {x0, x1, x2, x3, x4, x5};
    unsigned first = thread_number() * 4;
    if (wide(x0, x1, x2) && wide(x3, x4, x5) && wide(out) && first + 4 <= p.elements) {
        scale_add_at<4>(x, out, p, first);
    } else {
        for (unsigned i = first; i < p.elements && i < first + 4; i++)
            scale_add_at<1>(x, out, p, i);
    }
}

#define CAST(FROM, from, TO, to)                                                                                       \
    KERNEL cast_##from##_##to(const FROM *x, TO *out, unsigned elements) { cast_all<FROM, TO>(x, out, elements); }
CAST(float, f32, f16, f16)
CAST(float, f32, bf16, bf16)
CAST(f16, f16, float, f32)
CAST(f16, f16, bf16, bf16)
CAST(bf16, bf16, float, f32)
CAST(bf16, bf16, f16, f16)
