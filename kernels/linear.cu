// linear: out [rows, out] = x [rows, k] * w [out, k], then what product.cuh says.
// Parameters: struct Linear in src/backend/params.rs, then the rows of this launch (which is the first, how many), rows per
// row of the per-channel sum, and the activation. Parts are null unless k is split.
// Grid: tiles of rows times tiles of columns; runs of k. small: 64 x 64, 128 threads; any: the same for a k that is no multiple of 8
// (f32: of 4); large, where the type has tensor cores: 128 x 128, 256 threads.
#include "product.cuh"

struct Linear {
    unsigned rows, out, k, first, count, rows_per_add, activation;
};

template <typename T, int BM, int BN, bool WHOLE>
static __device__ __forceinline__ void linear(const T *x, const T *w, const float *bias, const T *add,
                                              const T *residual, T *out, float *parts, const Linear &p) {
    Line<T> source = {x, p.rows, p.k};
    unsigned width = p.activation == GEGLU ? p.out / 2 : p.out;
    Tail<T> tail = {bias,    add,   residual,     out,            parts,       p.first,
                    p.count, width, pitch(p.out), p.rows_per_add, p.activation};
    product<T, BM, BN, WHOLE>(source, w, tail);
}

#define KERNEL(T, name, tile, SIZE, THREADS, BLOCKS, WHOLE)                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                      \
        linear_##tile##_##name(const T *x, const T *w, const float *bias, const T *add, const T *residual, T *out,     \
                               float *parts, Linear p) {                                                               \
        linear<T, SIZE, SIZE, WHOLE>(x, w, bias, add, residual, out, parts, p);                                        \
    }
// Two blocks of the large tile on a multiprocessor, where tiles do not travel through registers.
#if __CUDA_ARCH__ >= 800
#define LARGE_BLOCKS 2
#else
#define LARGE_BLOCKS 1
#endif
#define LARGE(T, name) KERNEL(T, name, large, 128, 256, LARGE_BLOCKS, true)
#define OF_TYPE(T, name)                                                                                               \
    KERNEL(T, name, small, 64, 128, 4, true)                                                                           \
    KERNEL(T, name, any, 64, 128, 4, false)
OF_TYPE(float, f32)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)
LARGE(f16, f16)
#if __CUDA_ARCH__ >= 800
LARGE(bf16, bf16)
#endif
