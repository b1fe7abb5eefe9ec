// conv2d: out [batch, out_height, out_width, out] = x [batch, height, width, channels] * w [out, kernel, kernel,
// channels], then what product.cuh says. A matrix product whose rows are windows, never written down.
// Parameters: struct Conv2d in src/backend/params.rs, then what linear.cu has behind its own.
// Grid and names as in linear.cu; any: channels that are no multiple of 8 (f32: of 4).
#include "product.cuh"

struct Conv2d {
    unsigned batch, height, width, channels, out, kernel, stride, padding, out_height, out_width;
    unsigned first, count, rows_per_add, activation;
};

template <typename T, int BM, int BN, bool WHOLE>
static __device__ __forceinline__ void conv2d(const T *x, const T *w, const float *bias, const T *add,
                                              const T *residual, T *out, float *parts, const Conv2d &p) {
    unsigned rows = p.batch * p.out_height * p.out_width;
    Window<T> source = {x, rows, p.channels, p.kernel, p.height, p.width, p.out_height, p.out_width, p.stride, p.padding};
    Tail<T> tail = {bias,    add,   residual,     out,            parts,       p.first,
                    p.count, p.out, pitch(p.out), p.rows_per_add, p.activation};
    product<T, BM, BN, WHOLE>(source, w, tail);
}

#define KERNEL(T, name, tile, SIZE, THREADS, BLOCKS, WHOLE)                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                      \
        conv2d_##tile##_##name(const T *x, const T *w, const float *bias, const T *add, const T *residual, T *out,     \
                               float *parts, Conv2d p) {                                                               \
        conv2d<T, SIZE, SIZE, WHOLE>(x, w, bias, add, residual, out, parts, p);                                        \
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
