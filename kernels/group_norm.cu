// group_norm: y = (x - mean) / sqrt(var + eps) * weight + bias, then SiLU; mean and var per (image, group). Wu and He
// 2018. x, out [batch, pixels, channels]; weight, bias [channels] in f32, bias may be null.
// Scratch in f32: mean and sum of squares [batch, chunks, groups, 2], then factor and offset [batch, channels, 2].
// Three kernels: a warp gives 64 pixels of a group a mean and a sum of squared deviations; a warp joins the chunks of a
// group (Chan et al. 1979), lane i chunks i, i + 32, .., then a fixed tree; each element is one multiply-add. Values are
// taken less the group's first, so that no digits are lost where |mean| >> std.
// Parameters: struct GroupNorm in src/backend/params.rs, same order.
// H100 to T4: bound by memory: x once from it and once from the cache for the statistics, once more for the result.
#include "common.cuh"

struct GroupNorm {
    unsigned batch, pixels, channels, groups;
    float eps;
    unsigned silu;
};

#define CHUNK 64u

static __device__ __forceinline__ unsigned chunk_count(const GroupNorm &p) {
    return (p.pixels + CHUNK - 1) / CHUNK;
}

// The first value of a group of an image, from which all others are measured.
template <typename T>
static __device__ __forceinline__ float origin(const T *x, const GroupNorm &p, unsigned image, unsigned group) {
    return to_f32(x[image * p.pixels * p.channels + group * (p.channels / p.groups)]);
}

// Elements of a group in a chunk, those of one lane: pixel by pixel, `size` channels each.
struct Walk {
    unsigned pixel, c, pixel_step, c_step, size;
    __device__ __forceinline__ Walk(unsigned lane, unsigned size)
        : pixel(lane / size), c(lane % size), pixel_step(32 / size), c_step(32 % size), size(size) {}
    __device__ __forceinline__ void next() {
        pixel += pixel_step;
        c += c_step;
        if (c >= size) {
            c -= size;
            pixel++;
        }
    }
};

// Blocks of 8 warps: (chunk, 8 groups, image).
template <typename T> static __device__ __forceinline__ void statistics(const T *x, float *scratch, GroupNorm p) {
    unsigned chunk = blockIdx.x, group = blockIdx.y * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    unsigned image = blockIdx.z;
    if (group >= p.groups)
        return;
    unsigned size = p.channels / p.groups, pixels = min(CHUNK, p.pixels - chunk * CHUNK);
    float base = origin(x, p, image, group), count = (float)(pixels * size), sum = 0.0f, squares = 0.0f;
    x += (image * p.pixels + chunk * CHUNK) * p.channels + group * size;
    for (Walk at(lane, size); at.pixel < pixels; at.next())
        sum += to_f32(x[at.pixel * p.channels + at.c]) - base;
    float mean = group_sum<32>(sum) / count;
    for (Walk at(lane, size); at.pixel < pixels; at.next()) {
        float deviation = (to_f32(x[at.pixel * p.channels + at.c]) - base) - mean;
        squares = fmaf(deviation, deviation, squares);
    }
    squares = group_sum<32>(squares);
    if (lane == 0) {
        float *to = scratch + ((image * chunk_count(p) + chunk) * p.groups + group) * 2;
        to[0] = mean;
        to[1] = squares;
    }
}

// What is known of some elements.
struct Part {
    float count, mean, squares;
};

// Two parts into one; either may be empty.
static __device__ __forceinline__ Part join(Part a, Part b) {
    if (b.count == 0.0f)
        return a;
    if (a.count == 0.0f)
        return b;
    float count = a.count + b.count, delta = b.mean - a.mean, share = b.count / count;
    return Part{count, fmaf(delta, share, a.mean), a.squares + b.squares + delta * delta * a.count * share};
}

// Blocks of 8 warps: (8 groups, image). The weights of a group's channels become a factor and an offset.
static __device__ __forceinline__ void combine(const float *weight, const float *bias, float *scratch, GroupNorm p) {
    unsigned group = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    unsigned image = blockIdx.y;
    if (group >= p.groups)
        return;
    unsigned size = p.channels / p.groups, chunks = chunk_count(p);
    Part all = {0.0f, 0.0f, 0.0f};
    for (unsigned chunk = lane; chunk < chunks; chunk += 32) {
        const float *from = scratch + ((image * chunks + chunk) * p.groups + group) * 2;
        all = join(all, Part{(float)(min(CHUNK, p.pixels - chunk * CHUNK) * size), from[0], from[1]});
    }
    // Downwards, so that the first lane's tree is the same for any number of chunks.
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        Part other = {__shfl_down_sync(FULL_WARP, all.count, step), __shfl_down_sync(FULL_WARP, all.mean, step),
                      __shfl_down_sync(FULL_WARP, all.squares, step)};
        if (lane < (unsigned)step)
            all = join(all, other);
    }
    float count = __shfl_sync(FULL_WARP, all.count, 0), mean = __shfl_sync(FULL_WARP, all.mean, 0);
    float factor = 1.0f / sqrtf(__shfl_sync(FULL_WARP, all.squares, 0) / count + p.eps);
    float *affine = scratch + p.batch * chunks * p.groups * 2 + image * p.channels * 2;
    for (unsigned c = group * size + lane; c < (group + 1) * size; c += 32) {
        float scale = factor * weight[c];
        affine[2 * c] = scale;
        affine[2 * c + 1] = fmaf(-mean, scale, bias ? bias[c] : 0.0f);
    }
}

template <typename T, int N>
static __device__ __forceinline__ void scale_at(const T *x, const float *affine, T *out, GroupNorm p, unsigned i) {
    typedef Pack<T, N> P;
    unsigned image = i / (p.pixels * p.channels);
    unsigned channel = i % p.channels, size = p.channels / p.groups;
    affine += (image * p.channels + channel) * 2;
    P value = *(const P *)(x + i), y;
#pragma unroll
    for (int j = 0; j < N; j++) {
        float from = origin(x, p, image, (channel + j) / size);
        float z = fmaf(to_f32(value.at[j]) - from, affine[2 * j], affine[2 * j + 1]);
        y.at[j] = rounded<T>(p.silu ? z * sigmoid(z) : z);
    }
    *(P *)(out + i) = y;
}

// Blocks of 256 threads over the elements, Wide<T>::N for each thread.
template <typename T>
static __device__ __forceinline__ void scale(const T *x, const float *scratch, T *out, GroupNorm p) {
    constexpr int N = Wide<T>::N;
    const float *affine = scratch + p.batch * chunk_count(p) * p.groups * 2;
    unsigned first = thread_number() * N, count = p.batch * p.pixels * p.channels;
    if (p.channels % N == 0 && wide(x, out)) {
        if (first < count)
            scale_at<T, N>(x, affine, out, p, first);
    } else {
        for (unsigned i = first; i < count && i < first + N; i++)
            scale_at<T, 1>(x, affine, out, p, i);
    }
}

#define KERNEL extern "C" __global__ void __launch_bounds__(256)
#define OF_TYPE(T, name)                                                                                               \
    KERNEL group_norm_statistics_##name(const T *x, float *scratch, GroupNorm p) { statistics<T>(x, scratch, p); }     \
    KERNEL group_norm_scale_##name(const T *x, const float *scratch, T *out, GroupNorm p) { scale<T>(x, scratch, out, p); }
OF_TYPE(float, f32)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)

KERNEL group_norm_combine(const float *weight, const float *bias, float *scratch, GroupNorm p) {
    combine(weight, bias, scratch, p);
}
