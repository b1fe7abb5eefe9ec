// The matrix product behind linear and conv2d:
// out = activation(sum over taps and channels of x * w + bias + add) + residual.
// x in rows of `channels` elements, one row per output row and tap of the window; w [columns, taps, channels]; bias
// [columns] in f32; add [images or 1, width]; residual, out [rows, width]. Bias, add and residual may be null. With GEGLU
// width is half of the columns: a block takes hidden channels and their gates side by side.
//
// Two cores of the same tiles. Tensor cores (f16, bf16 from sm_80): 32 channels at a time travel through shared memory in
// three stages of cp.async (two through registers before sm_80), swizzled so that ldmatrix meets no bank twice; a warp has
// MF x 8 tiles of 16 x 8 in registers (sm_70: rows apart by an odd number of chunks for wmma, MF x 4 tiles of 16 x 16). Else plain arithmetic: 16 channels at a time, converted to f32
// on the way in, 8 x 8 or 8 x 4 sums per thread.
//
// Split k: the chain of a long sum is cut into as many runs as the grid is high (gpu_cost.rs: by k alone), each with
// blocks of its own; the partial sums of `count` rows from row `first` on go to `parts` [runs, count, pitch] in f32, and
// split_k.cu does the rest. With GEGLU, gates begin at pitch / 2.
//
// Order: a sum begins at zero and takes taps in order, within a tap blocks of channels in ascending order, the last one
// filled up with zeros; of runs, each begins at zero, and they are added in order. An mma takes 16 (sm_75: 8, sm_70: 4) channels in
// the hardware's order, which is the same for each of its elements; plain arithmetic takes one at a time, fused. Neither
// depends on the tile, so all tiles give the same bits.
#pragma once
#include "common.cuh"

// Which types have tensor cores here.
template <typename T> struct Cores {
    static constexpr bool HERE = false;
};
template <> struct Cores<f16> {
    static constexpr bool HERE = true;
};
#if __CUDA_ARCH__ >= 800
template <> struct Cores<bf16> {
    static constexpr bool HERE = true;
};
#endif

#if __CUDA_ARCH__ >= 750
// d += a b over 16 of k.
template <typename T>
static __device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    const unsigned b[2] = {b0, b1};
    mma_m16n8k16(d, a, b, T{});
#else
    const unsigned low[2] = {a[0], a[1]}, high[2] = {a[2], a[3]}, first[1] = {b0}, second[1] = {b1};
    mma_m16n8k8(d, low, first, T{});
    mma_m16n8k8(d, high, second, T{});
#endif
}
#endif

// What follows the sums of `count` rows from row `first` on. Parts are null unless k is split.
template <typename T> struct Tail {
    const float *bias;
    const T *add, *residual;
    T *out;
    float *parts;
    unsigned first, count, width, pitch, rows_per_add, activation;
};

// How far the rows of parts are apart, so that both halves of GEGLU begin at 16 bytes.
static __device__ __forceinline__ unsigned pitch(unsigned columns) {
    return (columns + 15) / 16 * 16;
}

// The blocks of channels that a run takes.
struct Run {
    unsigned first, count;
    __device__ __forceinline__ explicit Run(unsigned blocks) {
        unsigned most = (blocks + gridDim.y - 1) / gridDim.y;
        first = blockIdx.y * most;
        count = min(most, blocks - first);
    }
};

// Where no element is; all elements of a tensor are below it.
#define OUTSIDE 0xffffffffu

// The rows of a linear layer.
template <typename T> struct Line {
    const T *x;
    unsigned rows, channels;
    static constexpr unsigned kernel = 1;

    struct Site {
        unsigned row;
    };
    __device__ __forceinline__ Site site(unsigned row) const { return Site{row < rows ? row * channels : OUTSIDE}; }
    // The element at which a row begins.
    __device__ __forceinline__ unsigned at(const Site &site, unsigned, unsigned) const { return site.row; }
};

// The windows of a convolution.
template <typename T> struct Window {
    const T *x;
    unsigned rows, channels, kernel, height, width, out_height, out_width, stride, padding;

    // Where the window begins, padding included, and the element at which its image begins.
    struct Site {
        unsigned image;
        int y, x;
    };
    __device__ __forceinline__ Site site(unsigned row) const {
        // Beyond the last row, no tap is inside.
        unsigned column = row % out_width, line = row / out_width, image = line / out_height * height * width * channels;
        int y = row < rows ? (int)(line % out_height * stride) - (int)padding : (int)height;
        return Site{image, y, (int)(column * stride) - (int)padding};
    }
    __device__ __forceinline__ unsigned at(const Site &site, unsigned ky, unsigned kx) const {
        unsigned y = (unsigned)site.y + ky, x = (unsigned)site.x + kx; // wraps around outside of the picture
        return y < height && x < width ? site.image + (y * width + x) * channels : OUTSIDE;
    }
};

// Brings tiles of x and w, four chunks of V channels of each row: of every thread one chunk of PARTS rows. WHOLE: chunks
// are entirely inside or outside of the channels, and aligned.
template <typename T, int V, int BM, int BN, int THREADS, bool WHOLE, typename Source> struct Loader {
    static constexpr int STEP = THREADS / 4, A = BM / STEP, B = BN / STEP;
    const Source &source;
    const T *weights;
    typename Source::Site site[A];
    unsigned row[A], w[B]; // where a row begins, or OUTSIDE
    unsigned first, ky, kx, c, tap_start;
    Pack<T, V> a[A], b[B];

    // Begins with block `block` of channels.
    __device__ __forceinline__ Loader(const Source &source, const T *weights, unsigned block, unsigned m0, unsigned n0,
                                      unsigned width, bool geglu)
        : source(source), weights(weights), first(threadIdx.x % 4 * V) {
        unsigned k = source.kernel * source.kernel * source.channels, per_tap = (source.channels + 4 * V - 1) / (4 * V);
        unsigned tap = block / per_tap;
        c = block % per_tap * 4 * V;
        ky = tap / source.kernel;
        kx = tap % source.kernel;
        tap_start = tap * source.channels;
#pragma unroll
        for (int i = 0; i < A; i++) {
            site[i] = source.site(m0 + threadIdx.x / 4 + i * STEP);
            row[i] = source.at(site[i], ky, kx);
        }
#pragma unroll
        for (int i = 0; i < B; i++) {
            // With GEGLU the second half of a tile is the gates of the first.
            unsigned n = threadIdx.x / 4 + i * STEP;
            bool gate = geglu && n >= BN / 2;
            unsigned column = n0 + n - (gate ? BN / 2 : 0);
            w[i] = column < width ? (column + (gate ? width : 0)) * k : OUTSIDE;
        }
    }

    // To the next block of channels.
    __device__ __forceinline__ void next() {
        c += 4 * V;
        if (c < source.channels)
            return;
        c = 0;
        tap_start += source.channels;
        if (++kx == source.kernel) {
            kx = 0;
            ky++;
        }
#pragma unroll
        for (int i = 0; i < A; i++)
            row[i] = source.at(site[i], ky, kx);
    }

    __device__ __forceinline__ void load(Pack<T, V> &to, const T *from, unsigned row) {
        Pack<T, V> value = {};
        if (WHOLE) {
            if (row != OUTSIDE && c + first < source.channels)
                value = *(const Pack<T, V> *)(from + row + c + first);
        } else if (row != OUTSIDE) {
#pragma unroll
            for (int e = 0; e < V; e++)
                if (c + first + e < source.channels)
                    value.at[e] = from[row + c + first + e];
        }
        to = value;
    }

    // Into registers.
    __device__ __forceinline__ void fetch() {
#pragma unroll
        for (int i = 0; i < A; i++)
            load(a[i], source.x, row[i]);
#pragma unroll
        for (int i = 0; i < B; i++)
            load(b[i], weights + tap_start, w[i]);
    }
};

// N sums, 16 bytes at a time.
template <int N> static __device__ __forceinline__ void get(float (&z)[N], const float *from) {
#pragma unroll
    for (int j = 0; j < N; j += 4)
        *(Pack<float, 4> *)(z + j) = *(const Pack<float, 4> *)(from + j);
}
template <int N> static __device__ __forceinline__ void put(float *to, const float (&z)[N]) {
#pragma unroll
    for (int j = 0; j < N; j += 4)
        *(Pack<float, 4> *)(to + j) = *(const Pack<float, 4> *)(z + j);
}

// Adds the bias, if there is one. Beyond the width there is none; what is computed there is not written.
template <int N>
static __device__ __forceinline__ void add_bias(float (&z)[N], const float *bias, unsigned n, unsigned width, bool whole) {
    if (!bias)
        return;
#pragma unroll
    for (int j = 0; j < N; j += 4) {
        Pack<float, 4> plus;
        if (whole) {
            plus = *(const Pack<float, 4> *)(bias + n + j);
        } else {
#pragma unroll
            for (int e = 0; e < 4; e++)
                plus.at[e] = bias[n + j + e < width ? n + j + e : n];
        }
#pragma unroll
        for (int e = 0; e < 4; e++)
            z[j + e] += plus.at[e];
    }
}

// From N sums z, of row `row` and from column n on, to the output. Their gates are looked at with GEGLU only.
template <typename T, int N>
static __device__ __forceinline__ void write_out(float (&z)[N], float (&gate)[N], unsigned row, unsigned n,
                                                 const Tail<T> &tail) {
    bool whole = tail.width % N == 0;
    size_t add_at = tail.add ? (size_t)(row / tail.rows_per_add) * tail.width + n : 0;
    size_t at = (size_t)row * tail.width + n;
    Pack<T, N> add = {}, residual = {}, y;
    if (whole) {
        if (tail.add)
            add = *(const Pack<T, N> *)(tail.add + add_at);
        if (tail.residual)
            residual = *(const Pack<T, N> *)(tail.residual + at);
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (n + j < tail.width) {
                if (tail.add)
                    add.at[j] = tail.add[add_at + j];
                if (tail.residual)
                    residual.at[j] = tail.residual[at + j];
            }
        }
    }
    add_bias<N>(z, tail.bias, n, tail.width, whole);
    if (tail.activation == GEGLU) {
        add_bias<N>(gate, tail.bias ? tail.bias + tail.width : nullptr, n, tail.width, whole);
#pragma unroll
        for (int j = 0; j < N; j++)
            z[j] *= gelu(gate[j]);
    } else {
        if (tail.add) {
#pragma unroll
            for (int j = 0; j < N; j++)
                z[j] += to_f32(add.at[j]);
        }
        activate_each<N>(tail.activation, z);
    }
#pragma unroll
    for (int j = 0; j < N; j++)
        y.at[j] = rounded<T>(tail.residual ? z[j] + to_f32(residual.at[j]) : z[j]);
    if (whole) {
        *(Pack<T, N> *)(tail.out + at) = y;
    } else {
#pragma unroll
        for (int j = 0; j < N; j++)
            if (n + j < tail.width)
                tail.out[at + j] = y.at[j];
    }
}

// Sums in shared memory to the output or, of a run, to its part: staged row s of `staged_rows` is row m0 + s / RUN * STEP
// + s % RUN. All threads of the block call this.
template <typename T, int BN, int THREADS, int RUN, int STEP>
static __device__ __forceinline__ void finish(const float *staged, int stride, int staged_rows, unsigned m0, unsigned n0,
                                              const Tail<T> &tail) {
    constexpr int N = Wide<T>::N;
    bool geglu = tail.activation == GEGLU;
    int groups = (geglu ? BN / 2 : BN) / N;
#pragma unroll 1
    for (int item = threadIdx.x; item < staged_rows * groups; item += THREADS) {
        int s = item / groups, column = item % groups * N;
        unsigned row = m0 + s / RUN * STEP + s % RUN, n = n0 + column;
        if (row >= tail.first + tail.count || n >= tail.width)
            continue;
        float z[N], gate[N] = {};
        get<N>(z, staged + s * stride + column);
        if (geglu)
            get<N>(gate, staged + s * stride + BN / 2 + column);
        if (tail.parts) {
            float *to = tail.parts + (size_t)(blockIdx.y * tail.count + row - tail.first) * tail.pitch + n;
            put<N>(to, z);
            if (geglu)
                put<N>(to + tail.pitch / 2, gate);
        } else {
            write_out<T, N>(z, gate, row, n, tail);
        }
    }
}

#if __CUDA_ARCH__ >= 750
// MF x 16 rows and 64 columns of sums, of which a warp has 32 in each half of BN columns. In tiles, the chunks of eight
// rows' pairs are rotated, so that neither eight rows of one chunk nor two rows' four chunks share a bank. Rows that are a
// multiple of 8 apart are rotated alike.
template <typename T, int MF, int BN> struct Sums {
    static constexpr int V = 8, BK = 32, ROW = BK, NF = 8;
    float acc[MF][NF][4] = {};

    // Where a chunk of a tile is.
    static __device__ __forceinline__ unsigned place(unsigned row, unsigned chunk) {
        return row * ROW + (chunk ^ row / 2 % 4) * V;
    }

    __device__ __forceinline__ void multiply(const T *x_tile, const T *w_tile, unsigned warp_m, unsigned warp_n) {
        // Rows and chunks that this lane names to ldmatrix: of x, matrices are (rows, chunk), (rows + 8, chunk), (rows,
        // chunk + 1), (rows + 8, chunk + 1); of w (columns, chunk), (columns, chunk + 1), then eight columns further.
        unsigned lane = threadIdx.x % 32, x_row = warp_m * MF * 16 + lane % 16, x_chunk = lane / 16;
        unsigned w_row = warp_n * 32 + lane / 16 * 8 + lane % 8, w_chunk = lane / 8 % 2;
#pragma unroll
        for (int k = 0; k < BK / 16; k++) {
            unsigned a[MF][4];
#pragma unroll
            for (int m = 0; m < MF; m++)
                ldmatrix_x4(a[m], x_tile + (x_row + m * 16) * ROW + ((2 * k + x_chunk) ^ x_row / 2 % 4) * V);
#pragma unroll
            for (int n = 0; n < NF; n += 2) {
                unsigned b[4];
                unsigned row = w_row + n / 4 * (BN / 2) + n % 4 * 8;
                ldmatrix_x4(b, w_tile + row * ROW + ((2 * k + w_chunk) ^ w_row / 2 % 4) * V);
#pragma unroll
                for (int m = 0; m < MF; m++) {
                    mma<T>(acc[m][n], a[m], b[0], b[1]);
                    mma<T>(acc[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    // 16 rows to shared memory.
    template <int STRIDE>
    __device__ __forceinline__ void stage(float *staged, int part, unsigned warp_m, unsigned warp_n) const {
        unsigned lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < MF; m++) {
            if (m == part) {
#pragma unroll
                for (int n = 0; n < NF; n++) {
                    float *to = staged + (warp_m * 16 + lane / 4) * STRIDE + n / 4 * (BN / 2) + warp_n * 32 +
                                n % 4 * 8 + lane % 4 * 2;
                    *(Pack<float, 2> *)to = Pack<float, 2>{{acc[m][n][0], acc[m][n][1]}};
                    *(Pack<float, 2> *)(to + 8 * STRIDE) = Pack<float, 2>{{acc[m][n][2], acc[m][n][3]}};
                }
            }
        }
    }
};
#else
// The same by wmma, which wants its tiles' rows at 32 bytes: they are five chunks apart.
template <typename T, int MF, int BN> struct Sums {
    static constexpr int V = 8, BK = 32, ROW = BK + V, NF = 4;
    float acc[MF][NF][8] = {};

    static __device__ __forceinline__ unsigned place(unsigned row, unsigned chunk) {
        return row * ROW + chunk * V;
    }

    static __device__ __forceinline__ unsigned column(int n, unsigned warp_n) {
        return n / 2 * (BN / 2) + warp_n * 32 + n % 2 * 16;
    }

    __device__ __forceinline__ void multiply(const T *x_tile, const T *w_tile, unsigned warp_m, unsigned warp_n) {
#pragma unroll
        for (int k = 0; k < BK; k += 16) {
            unsigned a[MF][8];
#pragma unroll
            for (int m = 0; m < MF; m++)
                wmma_load_a(a[m], x_tile + (warp_m * MF + m) * 16 * ROW + k, ROW);
#pragma unroll
            for (int n = 0; n < NF; n++) {
                unsigned b[8];
                wmma_load_b(b, w_tile + column(n, warp_n) * ROW + k, ROW);
#pragma unroll
                for (int m = 0; m < MF; m++)
                    wmma_m16n16k16(acc[m][n], a[m], b);
            }
        }
    }

    template <int STRIDE>
    __device__ __forceinline__ void stage(float *staged, int part, unsigned warp_m, unsigned warp_n) const {
#pragma unroll
        for (int m = 0; m < MF; m++)
            if (m == part)
#pragma unroll
                for (int n = 0; n < NF; n++)
                    wmma_store(staged + warp_m * 16 * STRIDE + column(n, warp_n), acc[m][n], STRIDE);
    }
};
#endif

// With tensor cores.
template <typename T, int BM, int BN, bool WHOLE, typename Source>
static __device__ __forceinline__ void product_cores(const Source &source, const T *w, const Tail<T> &tail) {
    constexpr int WARPS_N = BN / 64, WARPS_M = 4, THREADS = 32 * WARPS_M * WARPS_N;
    constexpr int WM = BM / WARPS_M, MF = WM / 16, STRIDE = BN + 8;
    typedef Sums<T, MF, BN> S;
    constexpr int V = S::V, BK = S::BK;
    // Without cp.async tiles travel through registers.
    constexpr bool ASYNC = __CUDA_ARCH__ >= 800 && WHOLE;
    constexpr int STAGES = ASYNC ? 3 : 2, TILE = (BM + BN) * S::ROW, STAGED = WARPS_M * 16 * STRIDE;
    constexpr int TILES_BYTES = STAGES * TILE * 2, STAGED_BYTES = STAGED * 4;
    __shared__ __align__(32) unsigned char memory[TILES_BYTES > STAGED_BYTES ? TILES_BYTES : STAGED_BYTES];
    T *tiles = (T *)memory;

    bool geglu = tail.activation == GEGLU;
    unsigned columns = geglu ? BN / 2 : BN, tiles_n = (tail.width + columns - 1) / columns;
    unsigned m0 = tail.first + blockIdx.x / tiles_n * BM, n0 = blockIdx.x % tiles_n * columns;
    Run run(source.kernel * source.kernel * ((source.channels + BK - 1) / BK));
    unsigned blocks = run.count;
    unsigned warp_m = threadIdx.x / 32 % WARPS_M, warp_n = threadIdx.x / 32 / WARPS_M;

    typedef Loader<T, V, BM, BN, THREADS, WHOLE, Source> L;
    L loader(source, w, run.first, m0, n0, tail.width, geglu);
    unsigned own = S::place(threadIdx.x / 4, threadIdx.x % 4);
    auto issue = [&](unsigned block) {
#if __CUDA_ARCH__ >= 800
        if constexpr (ASYNC) {
            if (block < blocks) {
                T *to = tiles + block % STAGES * TILE + own;
                bool inside = loader.c + loader.first < source.channels;
#pragma unroll
                for (int i = 0; i < L::A; i++) {
                    bool valid = inside && loader.row[i] != OUTSIDE;
                    const T *from = source.x + (valid ? loader.row[i] + loader.c + loader.first : 0);
                    cp_async16(to + i * L::STEP * S::ROW, from, valid);
                }
#pragma unroll
                for (int i = 0; i < L::B; i++) {
                    bool valid = inside && loader.w[i] != OUTSIDE;
                    const T *from = w + (valid ? loader.w[i] + loader.tap_start + loader.c + loader.first : 0);
                    cp_async16(to + (BM + i * L::STEP) * S::ROW, from, valid);
                }
                loader.next();
            }
            cp_async_commit();
            return;
        }
#endif
        if (block < blocks) {
            loader.fetch();
            loader.next();
        }
    };
    // What came through registers goes to shared memory.
    auto settle = [&](unsigned block) {
        if (!ASYNC && block < blocks) {
            T *to = tiles + block % STAGES * TILE + own;
#pragma unroll
            for (int i = 0; i < L::A; i++)
                *(Pack<T, V> *)(to + i * L::STEP * S::ROW) = loader.a[i];
#pragma unroll
            for (int i = 0; i < L::B; i++)
                *(Pack<T, V> *)(to + (BM + i * L::STEP) * S::ROW) = loader.b[i];
        }
    };

    S sums;
    for (unsigned block = 0; block + 1 < STAGES; block++) {
        issue(block);
        settle(block);
    }
    for (unsigned block = 0; block < blocks; block++) {
#if __CUDA_ARCH__ >= 800
        if constexpr (ASYNC)
            cp_async_wait<STAGES - 2>();
#endif
        __syncthreads();
        issue(block + STAGES - 1);
        const T *x_tile = tiles + block % STAGES * TILE;
        sums.multiply(x_tile, x_tile + BM * S::ROW, warp_m, warp_n);
        settle(block + STAGES - 1);
    }
#if __CUDA_ARCH__ >= 800
    if constexpr (ASYNC)
        cp_async_wait<0>();
#endif

    // 16 rows of each warp at a time, so that memory is written in whole lines.
    float *staged = (float *)memory;
#pragma unroll 1
    for (int part = 0; part < MF; part++) {
        __syncthreads();
        sums.template stage<STRIDE>(staged, part, warp_m, warp_n);
        __syncthreads();
        finish<T, BN, THREADS, 16, WM>(staged, STRIDE, WARPS_M * 16, m0 + part * 16, n0, tail);
    }
}

// With plain arithmetic.
template <typename T, int BM, int BN, bool WHOLE, typename Source>
static __device__ __forceinline__ void product_fma(const Source &source, const T *w, const Tail<T> &tail) {
    constexpr int V = 4, BK = 16, THREADS = BM * 2, TM = 8, TN = BM * BN / THREADS / TM, HALF = TN / 2;
    constexpr int ACROSS = BN / TN, X_STRIDE = BM + 4, W_STRIDE = BN + 4, TILE = BK * (X_STRIDE + W_STRIDE);
    constexpr int PART = 2, ROWS = BM / TM * PART, STAGED = ROWS * W_STRIDE;
    static_assert(STAGED <= 2 * TILE, "results fit where the tiles were");
    __shared__ __align__(16) float tiles[2 * TILE];

    bool geglu = tail.activation == GEGLU;
    unsigned columns = geglu ? BN / 2 : BN, tiles_n = (tail.width + columns - 1) / columns;
    unsigned m0 = tail.first + blockIdx.x / tiles_n * BM, n0 = blockIdx.x % tiles_n * columns;
    Run run(source.kernel * source.kernel * ((source.channels + BK - 1) / BK));
    unsigned blocks = run.count;
    unsigned tx = threadIdx.x % ACROSS, ty = threadIdx.x / ACROSS;

    typedef Loader<T, V, BM, BN, THREADS, WHOLE, Source> L;
    L loader(source, w, run.first, m0, n0, tail.width, geglu);
    // Transposed on the way in: [channel, row].
    auto settle = [&](unsigned block) {
        float *to = tiles + block % 2 * TILE;
#pragma unroll
        for (int e = 0; e < V; e++) {
#pragma unroll
            for (int i = 0; i < L::A; i++)
                to[(loader.first + e) * X_STRIDE + threadIdx.x / 4 + i * L::STEP] = to_f32(loader.a[i].at[e]);
#pragma unroll
            for (int i = 0; i < L::B; i++)
                to[BK * X_STRIDE + (loader.first + e) * W_STRIDE + threadIdx.x / 4 + i * L::STEP] =
                    to_f32(loader.b[i].at[e]);
        }
    };

    float acc[TM][TN] = {};
    loader.fetch();
    settle(0);
    for (unsigned block = 0; block < blocks; block++) {
        __syncthreads();
        if (block + 1 < blocks) {
            loader.next();
            loader.fetch();
        }
        const float *x_tile = tiles + block % 2 * TILE + ty * TM, *w_tile = tiles + block % 2 * TILE + BK * X_STRIDE;
#pragma unroll 4
        for (int k = 0; k < BK; k++) {
            float a[TM], b[TN];
#pragma unroll
            for (int i = 0; i < TM; i += 4)
                *(Pack<float, 4> *)(a + i) = *(const Pack<float, 4> *)(x_tile + k * X_STRIDE + i);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float *from = w_tile + k * W_STRIDE + h * (BN / 2) + tx * HALF;
                *(Pack<float, HALF> *)(b + h * HALF) = *(const Pack<float, HALF> *)from;
            }
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++)
                    acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
        }
        if (block + 1 < blocks)
            settle(block + 1);
    }

    // Two rows of each thread at a time.
#pragma unroll 1
    for (int part = 0; part < TM / PART; part++) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < TM; i++) {
            if (i / PART == part) {
#pragma unroll
                for (int j = 0; j < TN; j++)
                    tiles[(ty * PART + i % PART) * W_STRIDE + j / HALF * (BN / 2) + tx * HALF + j % HALF] = acc[i][j];
            }
        }
        __syncthreads();
        finish<T, BN, THREADS, PART, TM>(tiles, W_STRIDE, ROWS, m0 + part * PART, n0, tail);
    }
}

template <typename T, int BM, int BN, bool WHOLE, typename Source>
static __device__ __forceinline__ void product(const Source &source, const T *w, const Tail<T> &tail) {
    if constexpr (Cores<T>::HERE)
        product_cores<T, BM, BN, WHOLE>(source, w, tail);
    else
        product_fma<T, BM, BN, WHOLE>(source, w, tail);
}
