// embedding, upsample2x, concat_channels: values moved, 16 bytes at a time where widths allow it.
// A thread has N elements of the output: Wide<T>::N if all widths are multiples of it, else one after the other.
// H100 to T4: bound by memory; full occupancy.
#include "common.cuh"

// Parameters: struct Embedding in src/backend/params.rs, same order.
struct Embedding {
    unsigned batch, tokens, channels, vocab;
};

// out [batch, tokens, channels] = table [vocab, channels] at ids [batch, tokens] + positions [.., channels]
template <typename T, int N>
static __device__ __forceinline__ void embedding_at(const unsigned *ids, const T *table, const T *positions, T *out,
                                                    Embedding p, unsigned i) {
    typedef Pack<T, N> P;
    unsigned token = i / p.channels, c = i % p.channels;
    P a = *(const P *)(table + ids[token] * p.channels + c);
    P b = *(const P *)(positions + token % p.tokens * p.channels + c), y;
#pragma unroll
    for (int j = 0; j < N; j++)
        y.at[j] = rounded<T>(to_f32(a.at[j]) + to_f32(b.at[j]));
    *(P *)(out + i) = y;
}

// Parameters: struct Upsample in src/backend/params.rs, same order.
struct Upsample {
    unsigned batch, height, width, channels, out_height, out_width;
};

// x [batch, height, width, channels]; out [batch, out_height, out_width, channels]: the pixel at floor(y * height /
// out_height), likewise for x, as PyTorch's nearest.
template <typename T, int N>
static __device__ __forceinline__ void upsample2x_at(const T *x, T *out, Upsample p, unsigned i) {
    typedef Pack<T, N> P;
    unsigned pixel = i / p.channels, c = i % p.channels;
    unsigned image = pixel / (p.out_height * p.out_width);
    unsigned row = pixel / p.out_width % p.out_height * p.height / p.out_height;
    unsigned column = pixel % p.out_width * p.width / p.out_width;
    *(P *)(out + i) = *(const P *)(x + ((image * p.height + row) * p.width + column) * p.channels + c);
}

// Parameters: struct Concat in src/backend/params.rs, same order.
struct Concat {
    unsigned rows, left, right;
};

// out [rows, left + right] = [a [rows, left], b [rows, right]]
template <typename T, int N>
static __device__ __forceinline__ void concat_channels_at(const T *a, const T *b, T *out, Concat p, unsigned i) {
    typedef Pack<T, N> P;
    unsigned row = i / (p.left + p.right), c = i % (p.left + p.right);
    *(P *)(out + i) = *(const P *)(c < p.left ? a + row * p.left + c : b + row * p.right + (c - p.left));
}

// Calls AT<T, Wide<T>::N>(.., i) once or AT<T, 1>(.., i) for each of as many elements.
#define EACH(AT, WHOLE, COUNT, ...)                                                                                    \
    constexpr int N = Wide<T>::N;                                                                                      \
    unsigned first = thread_number() * N, count = (COUNT);                                                               \
    if (WHOLE) {                                                                                                       \
        if (first < count)                                                                                             \
            AT<T, N>(__VA_ARGS__, first);                                                                              \
    } else {                                                                                                           \
        for (unsigned i = first; i < count && i < first + N; i++)                                                        \
            AT<T, 1>(__VA_ARGS__, i);                                                                                  \
    }

template <typename T>
static __device__ __forceinline__ void embedding_all(const unsigned *ids, const T *table, const T *positions, T *out,
                                                     Embedding p) {
    EACH(embedding_at, p.channels % N == 0 && wide(table, positions, out), p.batch * p.tokens * p.channels, ids,
         table, positions, out, p)
}

template <typename T> static __device__ __forceinline__ void upsample2x_all(const T *x, T *out, Upsample p) {
    EACH(upsample2x_at, p.channels % N == 0 && wide(x, out),
         p.batch * p.out_height * p.out_width * p.channels, x, out, p)
}

template <typename T>
static __device__ __forceinline__ void concat_channels_all(const T *a, const T *b, T *out, Concat p) {
    EACH(concat_channels_at, p.left % N == 0 && p.right % N == 0 && wide(a, b, out),
         p.rows * (p.left + p.right), a, b, out, p)
}

#define KERNEL extern "C" __global__ void __launch_bounds__(256)
#define OF_TYPE(T, name)                                                                                               \
    KERNEL embedding_##name(const unsigned *ids, const T *table, const T *positions, T *out, Embedding p) {            \
        embedding_all<T>(ids, table, positions, out, p);                                                               \
    }                                                                                                                  \
    KERNEL upsample2x_##name(const T *x, T *out, Upsample p) { upsample2x_all<T>(x, out, p); }                         \
    KERNEL concat_channels_##name(const T *a, const T *b, T *out, Concat p) { concat_channels_all<T>(a, b, out, p); }
OF_TYPE(float, f32)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)
