// Small kernels with which the rig is tested: right ones, whose results are known, and wrong ones, which it must catch.
#include "ptx_here.cuh"

#define KERNEL extern "C" __global__ void __launch_bounds__(256)

struct Scaled {
    unsigned count;
    float factor;
};

KERNEL scale(const float *x, float *out, Scaled p) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) out[i] = x[i] * p.factor;
}

// One element too few is written.
KERNEL scale_all_but_one(const float *x, float *out, Scaled p) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i + 1 < p.count) out[i] = x[i] * p.factor;
}

// Reads one element more than there is.
KERNEL scale_too_much(const float *x, float *out, Scaled p) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= p.count) {
        float value = *(const volatile float *)(x + i);
        if (i < p.count) out[i] = value * p.factor;
    }
}

// Each row of 32 k elements: a block of up to 8 warps.
KERNEL softmax(const float *x, float *out, unsigned columns) {
    DYN_SHARED(float, of_warp);
    x += blockIdx.x * columns;
    out += blockIdx.x * columns;
    unsigned warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float most = -3e38f, sum = 0.0f;
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) most = fmaxf(most, x[i]);
    for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    if (threadIdx.x % 32 == 0) of_warp[warp] = most;
    __syncthreads();
    for (unsigned i = 0; i < warps; i++) most = fmaxf(most, of_warp[i]);
    __syncthreads();
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) sum += expf(x[i] - most);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
    sum = __shfl_sync(0xffffffffu, sum, 0);
    if (threadIdx.x % 32 == 0) of_warp[warp] = sum;
    __syncthreads();
    sum = 0.0f;
    for (unsigned i = 0; i < warps; i++) sum += of_warp[i];
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) out[i] = expf(x[i] - most) / sum;
}

// Each warp votes.
KERNEL votes(unsigned *out) {
    unsigned voted = __ballot_sync(0xffffffffu, (threadIdx.x % 3) == 0);
    if (threadIdx.x % 32 == 0) out[threadIdx.x / 32] = voted;
}

enum Slip { NONE, NO_WAIT, NO_BARRIER };

#if __CUDA_ARCH__ >= 750
// out [m, n] = a [m, k] b [k, n], sums in f32: 16 x 16 for each warp, 4 warps beside each other, k in steps of 16 through
// two buffers. As tensor cores are meant to be fed: cp.async, ldmatrix, mma.
template <typename T, Slip SLIP>
static __device__ void matmul_of(const T *a, const T *b, float *out, unsigned n, unsigned k) {
    __shared__ __align__(16) T a_tile[2][16][16];
    __shared__ __align__(16) T b_tile[2][16][64];
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, row0 = blockIdx.y * 16, column0 = blockIdx.x * 64;
    float d[2][4] = {};
    auto load = [&](unsigned stage, unsigned k0) {
        for (unsigned i = threadIdx.x; i < 32 + 128; i += blockDim.x) {
            unsigned j = i - 32;
            void *to = i < 32 ? &a_tile[stage][i / 2][i % 2 * 8] : &b_tile[stage][j / 8][j % 8 * 8];
            const T *x = &a[(row0 + i / 2) * k + k0 + i % 2 * 8], *y = &b[(k0 + j / 8) * n + column0 + j % 8 * 8];
            const void *from = i < 32 ? x : y;
#if HAS_CP_ASYNC
            cp_async16(to, from, true);
#else
            *(uint4 *)to = *(const uint4 *)from;
#endif
        }
#if HAS_CP_ASYNC
        cp_async_commit();
#endif
    };
    load(0, 0);
    for (unsigned step = 0; step < k / 16; step++) {
        unsigned stage = step % 2;
#if HAS_CP_ASYNC
        if (SLIP != NO_WAIT) cp_async_wait<0>();
#endif
        if (SLIP != NO_BARRIER) __syncthreads();
        if (step + 1 < k / 16) load(1 - stage, step * 16 + 16);
        unsigned fa[4], fb[4];
        ldmatrix_x4(fa, &a_tile[stage][lane % 16][lane / 16 * 8]);
        ldmatrix_x4_trans(fb, &b_tile[stage][lane % 16][warp * 16 + lane / 16 * 8]);
        for (unsigned half = 0; half < 2; half++) {
#if __CUDA_ARCH__ >= 800
            mma_m16n8k16(d[half], fa, {fb[2 * half], fb[2 * half + 1]}, T());
#else
            mma_m16n8k8(d[half], {fa[0], fa[1]}, {fb[2 * half]}, T());
            mma_m16n8k8(d[half], {fa[2], fa[3]}, {fb[2 * half + 1]}, T());
#endif
        }
        __syncthreads();
    }
    for (unsigned half = 0; half < 2; half++)
        for (unsigned e = 0; e < 4; e++)
            out[(row0 + lane / 4 + e / 2 * 8) * n + column0 + warp * 16 + half * 8 + lane % 4 * 2 + e % 2] = d[half][e];
}

#define MATMUL(name, T, slip)                                                                                          \
    KERNEL name(const T *a, const T *b, float *out, unsigned n, unsigned k) { matmul_of<T, slip>(a, b, out, n, k); }
MATMUL(matmul_f16, f16, NONE)
MATMUL(matmul_without_wait, f16, NO_WAIT)
MATMUL(matmul_without_barrier, f16, NO_BARRIER)
#if __CUDA_ARCH__ >= 800
MATMUL(matmul_bf16, bf16, NONE)
#endif
#endif

// Half of the block does not come to the barrier.
KERNEL divergent_barrier(float *out) {
    if (threadIdx.x < blockDim.x / 2) __syncthreads();
    out[threadIdx.x] = 1.0f;
}

// Two barriers in the two branches of one condition.
KERNEL two_barriers(float *out) {
    if (threadIdx.x % 2)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1.0f;
}

// A lane is left out.
KERNEL divergent_shuffle(float *out) {
    float value = 1.0f;
    if (threadIdx.x != 5) value = __shfl_xor_sync(0xffffffffu, value, 16);
    __syncthreads();
    out[threadIdx.x] = value;
}

// Neighbours change places through shared memory; without a barrier for `missing` = 1, so that some read too early.
KERNEL swap(const float *x, float *out, unsigned missing) {
    __shared__ float tile[256];
    tile[threadIdx.x] = x[threadIdx.x];
    if (!missing) __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x ^ 1];
}

KERNEL misaligned(const float *x, float4 *out) {
    *out = *(const float4 *)(x + 1);
}

KERNEL shared_too_far(float *out) {
    DYN_SHARED(float, tile);
    tile[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x + 8];
}

static __device__ __noinline__ unsigned deep(volatile unsigned *n) {
    volatile unsigned here[64];
    here[*n % 64] = *n;
    *n += 1;
    return *n == 0 ? 0 : deep(n) + here[0];
}
// More stack than there is.
KERNEL bottomless(unsigned *out) {
    unsigned n = 1;
    out[0] = deep(&n);
}

// Spins until `flag` is set: by a copy, in another stream.
KERNEL spin(volatile const unsigned *flag, unsigned *out) {
    while (*flag != 1) {
    }
    *out = 7;
}
