// split_k: out = activation(the sum of parts + bias + add) + residual, for products whose k is split; see product.cuh.
// Each sum takes its runs in order.
// Parameters: columns of the parts, which GEGLU halves; runs; then what linear.cu has behind its own.
// Grid: one thread for 16 bytes of the output; 256 threads.
#include "product.cuh"

struct SplitK {
    unsigned columns, runs, first, count, rows_per_add, activation;
};

template <typename T>
static __device__ __forceinline__ void split_k(const float *parts, const float *bias, const T *add, const T *residual,
                                               T *out, const SplitK &p) {
    constexpr int N = Wide<T>::N;
    bool geglu = p.activation == GEGLU;
    unsigned width = geglu ? p.columns / 2 : p.columns, groups = (width + N - 1) / N, apart = pitch(p.columns);
    unsigned item = thread_number(), row = item / groups, n = item % groups * N;
    if (row >= p.count)
        return;
    const float *from = parts + (size_t)row * apart + n;
    size_t size = (size_t)p.count * apart;
    float z[N], gate[N] = {};
    get<N>(z, from);
    if (geglu)
        get<N>(gate, from + apart / 2);
    for (unsigned run = 1; run < p.runs; run++) {
        float more[N];
        get<N>(more, from + run * size);
#pragma unroll
        for (int j = 0; j < N; j++)
            z[j] += more[j];
        if (geglu) {
            get<N>(more, from + run * size + apart / 2);
#pragma unroll
            for (int j = 0; j < N; j++)
                gate[j] += more[j];
        }
    }
    Tail<T> tail = {bias, add, residual, out, nullptr, p.first, p.count, width, apart, p.rows_per_add, p.activation};
    write_out<T, N>(z, gate, p.first + row, n, tail);
}

#define KERNEL(T, name)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        split_k_##name(const float *parts, const float *bias, const T *add, const T *residual, T *out, SplitK p) {     \
        split_k<T>(parts, bias, add, residual, out, p);                                                                \
    }
KERNEL(float, f32)
KERNEL(f16, f16)
KERNEL(bf16, bf16)
