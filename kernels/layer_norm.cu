// layer_norm: y = (x - mean) / sqrt(var + eps) * weight + bias, mean and var of each row. Ba et al. 2016.
// x, out [rows, channels]; weight, bias [channels] in f32, bias may be null.
// A warp for each row, 8 rows per block of 256 threads. Lane i sums elements i, i + 32, ..; a fixed tree joins the lanes.
// Two passes for the statistics, since one loses digits where |mean| >> std: values are taken less the row's first.
// Parameters: struct LayerNorm in src/backend/params.rs, same order.
// H100 to T4: bound by memory: x once from it and twice from the cache, out once.
#include "common.cuh"

struct LayerNorm {
    unsigned rows, channels;
    float eps;
};

template <typename T>
static __device__ __forceinline__ void layer_norm(const T *x, const float *weight, const float *bias, T *out,
                                                  LayerNorm p) {
    unsigned row = blockIdx.x * 8 + threadIdx.x / 32;
    unsigned lane = threadIdx.x % 32;
    if (row >= p.rows)
        return;
    x += row * p.channels;
    out += row * p.channels;
    float origin = to_f32(x[0]), count = (float)p.channels, sum = 0.0f, squares = 0.0f;
    for (unsigned c = lane; c < p.channels; c += 32)
        sum += to_f32(x[c]) - origin;
    float mean = group_sum<32>(sum) / count;
    for (unsigned c = lane; c < p.channels; c += 32) {
        float deviation = (to_f32(x[c]) - origin) - mean;
        squares = fmaf(deviation, deviation, squares);
    }
    float factor = 1.0f / sqrtf(group_sum<32>(squares) / count + p.eps);
    for (unsigned c = lane; c < p.channels; c += 32) {
        float y = ((to_f32(x[c]) - origin) - mean) * factor;
        out[c] = rounded<T>(fmaf(y, weight[c], bias ? bias[c] : 0.0f));
    }
}

#define KERNEL(T, name)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        layer_norm_##name(const T *x, const float *weight, const float *bias, T *out, LayerNorm p) {                   \
        layer_norm<T>(x, weight, bias, out, p);                                                                        \
    }
KERNEL(float, f32)
KERNEL(f16, f16)
KERNEL(bf16, bf16)
