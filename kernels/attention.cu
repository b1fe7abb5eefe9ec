// attention: out = softmax(scale * q k^T) v for each image and head, with an online softmax: the scores never exist.
// Milakov and Gimelshein 2018; Dao et al. 2022. q, out [batch, queries, heads * head_dim]; k, v [batch, keys, heads *
// head_dim]. Keys are taken KEYS at a time in ascending order: 64, or 32 for tensor cores on heads wider than 80, whose
// results leave fewer registers. A causal query skips blocks that it does not see, which would change nothing. Maximum,
// sum and result are f32.
//
// attention_mma_D: tensor cores, head widths up to D that are multiples of 8. A warp has 16 queries: their fragments,
// scores and results stay in registers, the weights of a block become f16 or bf16 as they are multiplied with v. While
// scores are computed the values travel (cp.async), while results are, the next keys.
// attention_mma_512: tensor cores for the widths above, multiples of 8. A block has 32 queries, its eight warps 16 of them
// and an eighth of the keys or channels each. 64 channels of queries and keys, then of values, travel through three stages;
// scores meet in shared memory, results stay in registers.
// attention_D: plain arithmetic for any type and width up to D, 32 channels at a time; two queries and four channels of
// 32 for each thread. The widths of the models: 40, 64, 80, 160, and 512 in the VAE.
// Grid: blocks of queries (64; plain and mma_512 32), times heads, times images; 128 threads (mma_512 256).
// Parameters: struct Attention in src/backend/params.rs, same order.
#include "product.cuh"

struct Attention {
    unsigned batch, queries, keys, heads, head_dim, causal;
    float scale;
};

// Where a block works: the first query, and the element at which its image and head begin.
struct Place {
    unsigned query, q, k, row;
    // Blocks of keys that any of its queries sees.
    unsigned blocks;
    __device__ __forceinline__ Place(const Attention &p, unsigned queries, unsigned at_once) {
        unsigned per_head = (p.queries + queries - 1) / queries, head = blockIdx.x / per_head;
        query = blockIdx.x % per_head * queries;
        row = p.heads * p.head_dim;
        q = head / p.heads * p.queries * row + head % p.heads * p.head_dim;
        k = head / p.heads * p.keys * row + head % p.heads * p.head_dim;
        unsigned seen = p.causal ? min(p.keys, query + queries) : p.keys;
        blocks = (seen + at_once - 1) / at_once;
    }
};

// ROWS x 32 channels from channel c on, converted; zeros beyond the tensor. All 128 threads.
template <typename T, int ROWS>
static __device__ __forceinline__ void bring(float (*to)[36], const T *from, unsigned row, unsigned first, unsigned rows,
                                             unsigned c, unsigned head_dim) {
    bool whole = head_dim % 4 == 0;
#pragma unroll
    for (int i = 0; i < ROWS / 16; i++) {
        unsigned r = i * 16 + threadIdx.x / 8, d = c + threadIdx.x % 8 * 4;
        Pack<T, 4> value = {};
        if (first + r < rows && d < head_dim) {
            const T *at = from + (first + r) * row + d;
            if (whole) {
                value = *(const Pack<T, 4> *)at;
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (d + e < head_dim)
                        value.at[e] = at[e];
            }
        }
        Pack<float, 4> wide;
#pragma unroll
        for (int e = 0; e < 4; e++)
            wide.at[e] = to_f32(value.at[e]);
        *(Pack<float, 4> *)&to[r][threadIdx.x % 8 * 4] = wide;
    }
}

template <typename T, int CHUNKS>
static __device__ __forceinline__ void attention_fma(const T *q, const T *k, const T *v, T *out, const Attention &p) {
    constexpr unsigned QUERIES = 32, KEYS = 64;
    __shared__ __align__(16) float q_tile[QUERIES][36], tile[KEYS][36], weights[QUERIES][KEYS + 4];
    Place place(p, QUERIES, KEYS);
    // Eight lanes share two queries: lane i has keys i, i + 8, .. and channels 4 i to 4 i + 3 of each chunk.
    unsigned mine = threadIdx.x / 8 * 2, lane = threadIdx.x % 8;
    float result[2][CHUNKS][4] = {}, highest[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f};
    for (unsigned block = 0; block < place.blocks; block++) {
        float score[2][8] = {};
#pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            __syncthreads();
            bring<T, QUERIES>(q_tile, q + place.q, place.row, place.query, p.queries, chunk * 32, p.head_dim);
            bring<T, KEYS>(tile, k + place.k, place.row, block * KEYS, p.keys, chunk * 32, p.head_dim);
            __syncthreads();
#pragma unroll 1
            for (int d = 0; d < 32; d += 4) {
                Pack<float, 4> a[2];
#pragma unroll
                for (int i = 0; i < 2; i++)
                    a[i] = *(const Pack<float, 4> *)&q_tile[mine + i][d];
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    Pack<float, 4> b = *(const Pack<float, 4> *)&tile[lane + 8 * j][d];
#pragma unroll
                    for (int i = 0; i < 2; i++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            score[i][j] = fmaf(a[i].at[e], b.at[e], score[i][j]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float most = highest[i], sum = 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                unsigned key = block * KEYS + lane + 8 * j;
                bool seen = key < p.keys && !(p.causal && key > place.query + mine + i);
                score[i][j] = seen ? score[i][j] * p.scale : LOWEST;
                most = fmaxf(most, score[i][j]);
            }
            most = group_max<8>(most);
            float factor = expf(highest[i] - most);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float weight = expf(score[i][j] - most);
                weights[mine + i][lane + 8 * j] = weight;
                sum += weight;
            }
            total[i] = fmaf(total[i], factor, group_sum<8>(sum));
            highest[i] = most;
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    result[i][chunk][e] *= factor;
        }
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            __syncthreads();
            bring<T, KEYS>(tile, v + place.k, place.row, block * KEYS, p.keys, chunk * 32, p.head_dim);
            __syncthreads();
#pragma unroll 2
            for (int key = 0; key < KEYS; key++) {
                Pack<float, 4> b = *(const Pack<float, 4> *)&tile[key][lane * 4];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float weight = weights[mine + i][key];
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        result[i][chunk][e] = fmaf(weight, b.at[e], result[i][chunk][e]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        unsigned query = place.query + mine + i;
        if (query >= p.queries)
            continue;
        float share = 1.0f / total[i];
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                unsigned d = chunk * 32 + lane * 4 + e;
                // Plus zero: a skipped block may not show in a zero's sign.
                if (d < p.head_dim)
                    out[place.q + query * place.row + d] = rounded<T>(fmaf(result[i][chunk][e], share, 0.0f));
            }
    }
}

#if __CUDA_ARCH__ >= 750
// 16 bytes to shared memory; without cp.async at once.
template <typename T> static __device__ __forceinline__ void copy16(T *to, const T *from, bool valid) {
#if __CUDA_ARCH__ >= 800
    cp_async16(to, from, valid);
#else
    Pack<T, 8> value = {};
    if (valid)
        value = *(const Pack<T, 8> *)from;
    *(Pack<T, 8> *)to = value;
#endif
}

static __device__ __forceinline__ void copies_end() {
#if __CUDA_ARCH__ >= 800
    cp_async_commit();
#endif
}

// All copies but those of the last `N` ends have arrived, for this thread.
template <int N> static __device__ __forceinline__ void copies_wait() {
#if __CUDA_ARCH__ >= 800
    cp_async_wait<N>();
#endif
}

// ROWS rows of up to D channels, the rest zeros. All 128 threads.
template <typename T, int ROWS, int D, int STRIDE>
static __device__ __forceinline__ void copy_rows(T *to, const T *from, unsigned row, unsigned first, unsigned rows,
                                               unsigned head_dim) {
    for (unsigned i = threadIdx.x; i < ROWS * D / 8; i += 128) {
        unsigned r = i / (D / 8), d = i % (D / 8) * 8;
        bool valid = first + r < rows && d < head_dim;
        copy16(to + r * STRIDE + d, valid ? from + (first + r) * row + d : from, valid);
    }
}

template <typename T, int D, int KEYS>
static __device__ __forceinline__ void attention_mma(const T *q, const T *k, const T *v, T *out, const Attention &p) {
    // Eight rows of a chunk of 16 bytes meet no bank twice: a row is an odd number of chunks.
    constexpr int STRIDE = D + 8;
    __shared__ __align__(16) T k_tile[64 * STRIDE], v_tile[KEYS * STRIDE];
    Place place(p, 64, KEYS);
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    q += place.q;
    k += place.k;
    v += place.k;

    unsigned a[D / 16][4];
    copy_rows<T, 64, D, STRIDE>(k_tile, q, place.row, place.query, p.queries, p.head_dim);
    copies_end();
    copies_wait<0>();
    __syncthreads();
#pragma unroll
    for (int d = 0; d < D / 16; d++)
        ldmatrix_x4(a[d], k_tile + (warp * 16 + lane % 16) * STRIDE + d * 16 + lane / 16 * 8);
    __syncthreads();

    float result[D / 8][4] = {}, highest[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f};
    copy_rows<T, KEYS, D, STRIDE>(k_tile, k, place.row, 0, p.keys, p.head_dim);
    copies_end();
    for (unsigned block = 0; block < place.blocks; block++) {
        copy_rows<T, KEYS, D, STRIDE>(v_tile, v, place.row, block * KEYS, p.keys, p.head_dim);
        copies_end();
        copies_wait<1>();
        __syncthreads();

        float score[KEYS / 8][4] = {};
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 2) {
                unsigned b[4];
                ldmatrix_x4(b, k_tile + (n * 8 + lane / 16 * 8 + lane % 8) * STRIDE + d * 16 + lane / 8 % 2 * 8);
                mma<T>(score[n], a[d], b[0], b[1]);
                mma<T>(score[n + 1], a[d], b[2], b[3]);
            }
        }
        __syncthreads();
        if (block + 1 < place.blocks)
            copy_rows<T, KEYS, D, STRIDE>(k_tile, k, place.row, (block + 1) * KEYS, p.keys, p.head_dim);
        copies_end();

        // A lane has columns 2 (lane % 4) and the next of each tile, of rows lane / 4 and lane / 4 + 8.
#pragma unroll
        for (int i = 0; i < 2; i++) {
            unsigned query = place.query + warp * 16 + lane / 4 + i * 8;
            float most = highest[i], sum = 0.0f;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    unsigned key = block * KEYS + n * 8 + lane % 4 * 2 + e;
                    bool seen = key < p.keys && !(p.causal && key > query);
                    float s = seen ? score[n][2 * i + e] * p.scale : LOWEST;
                    score[n][2 * i + e] = s;
                    most = fmaxf(most, s);
                }
            most = group_max<4>(most);
            float factor = __expf(highest[i] - most);
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float weight = __expf(score[n][2 * i + e] - most);
                    score[n][2 * i + e] = weight;
                    sum += weight;
                }
            total[i] = fmaf(total[i], factor, group_sum<4>(sum));
            highest[i] = most;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                result[n][2 * i] *= factor;
                result[n][2 * i + 1] *= factor;
            }
        }

        copies_wait<1>();
        __syncthreads();
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            // Two tiles of scores are a fragment of 16 keys as they lie.
            const float(&low)[4] = score[2 * j], (&high)[4] = score[2 * j + 1];
            unsigned w[4] = {pair<T>(low[0], low[1]), pair<T>(low[2], low[3]), pair<T>(high[0], high[1]),
                             pair<T>(high[2], high[3])};
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                unsigned b[4];
                ldmatrix_x4_trans(b, v_tile + (j * 16 + lane % 16) * STRIDE + n * 8 + lane / 16 * 8);
                mma<T>(result[n], w, b[0], b[1]);
                mma<T>(result[n + 1], w, b[2], b[3]);
            }
        }
        __syncthreads();
    }

    // Through shared memory, each warp its own rows, so that memory is written 16 bytes at a time. No copy is under way:
    // the last block brought no keys, and its values were waited for.
    T *own = k_tile + warp * 16 * STRIDE;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float share = 1.0f / total[i];
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            // Plus zero: a skipped block may not show in a zero's sign.
            float first = fmaf(result[n][2 * i], share, 0.0f), second = fmaf(result[n][2 * i + 1], share, 0.0f);
            *(unsigned *)(own + (lane / 4 + i * 8) * STRIDE + n * 8 + lane % 4 * 2) = pair<T>(first, second);
        }
    }
    __syncwarp();
    for (unsigned i = lane; i < 16 * D / 8; i += 32) {
        unsigned r = i / (D / 8), d = i % (D / 8) * 8, query = place.query + warp * 16 + r;
        if (query < p.queries && d < p.head_dim)
            *(Pack<T, 8> *)(out + place.q + query * place.row + d) = *(const Pack<T, 8> *)(own + r * STRIDE + d);
    }
}
#endif

#if __CUDA_ARCH__ >= 750
template <typename T>
static __device__ __forceinline__ void attention_mma_wide(const T *q, const T *k, const T *v, T *out, const Attention &p) {
    constexpr unsigned QUERIES = 32, KEYS = 64, CHUNK = 64, CHUNKS = 512 / CHUNK, STAGES = 3;
    constexpr unsigned STAGE = (KEYS + QUERIES) * CHUNK, W_STRIDE = KEYS + 8, OUT_STRIDE = 512 + 8, QUARTERS = 4;
    static_assert(QUERIES * OUT_STRIDE <= STAGES * STAGE, "results fit where the stages were");
    __shared__ __align__(16) T stages[STAGES * STAGE], weights[QUERIES * W_STRIDE];
    __shared__ float maxima[QUARTERS][QUERIES], sums[QUARTERS][QUERIES];
    Place place(p, QUERIES, KEYS);
    // This warp's queries, and its keys in a block or channels in a chunk.
    unsigned lane = threadIdx.x % 32, rows = threadIdx.x / 32 % 2 * 16, quarter = threadIdx.x / 64, columns = quarter * 16;
    q += place.q;
    k += place.k;
    v += place.k;

    // Rows of a stage are eight chunks of 16 bytes, rotated so that eight rows of one chunk share no bank.
    auto at = [](unsigned row, unsigned chunk) { return row * CHUNK + (chunk ^ row % 8) * 8; };
    // For each block of keys: chunks of keys and queries, then of values.
    unsigned steps = place.blocks * 2 * CHUNKS, step = 0;
    auto issue = [&](unsigned step) {
        if (step < steps) {
            T *to = stages + step % STAGES * STAGE;
            unsigned first = step / (2 * CHUNKS) * KEYS, row = threadIdx.x / 8, chunk = threadIdx.x % 8;
            unsigned d = step % CHUNKS * CHUNK + chunk * 8;
            bool is_key = step % (2 * CHUNKS) < CHUNKS;
            const T *from = is_key ? k : v;
#pragma unroll
            for (unsigned r = row; r < row + KEYS; r += 32) {
                bool valid = first + r < p.keys && d < p.head_dim;
                copy16(to + at(r, chunk), valid ? from + (first + r) * place.row + d : from, valid);
            }
            if (is_key) {
                bool valid = place.query + row < p.queries && d < p.head_dim;
                copy16(to + at(KEYS + row, chunk), valid ? q + (place.query + row) * place.row + d : q, valid);
            }
        }
        copies_end();
    };
    auto next = [&]() {
        copies_wait<STAGES - 2>();
        __syncthreads();
        issue(step + STAGES - 1);
        return stages + step++ % STAGES * STAGE;
    };
    for (unsigned i = 0; i + 1 < STAGES; i++)
        issue(i);

    float result[CHUNKS][2][4] = {}, highest[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f};
    while (step < steps) {
        unsigned first_key = step / (2 * CHUNKS) * KEYS;
        float score[2][4] = {};
#pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const T *tile = next();
#pragma unroll
            for (unsigned d = 0; d < CHUNK / 8; d += 2) {
                unsigned a[4], b[4];
                ldmatrix_x4(a, tile + at(KEYS + rows + lane % 16, d + lane / 16));
                ldmatrix_x4(b, tile + at(columns + lane / 16 * 8 + lane % 8, d + lane / 8 % 2));
                mma<T>(score[0], a, b[0], b[1]);
                mma<T>(score[1], a, b[2], b[3]);
            }
        }

        // A lane has columns 2 (lane % 4) and the next of each tile, of rows lane / 4 and lane / 4 + 8. Four warps have
        // the same rows: their maxima and sums are taken in order.
#pragma unroll
        for (int i = 0; i < 2; i++) {
            unsigned row = rows + lane / 4 + i * 8;
            float most = LOWEST;
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    unsigned key = first_key + columns + n * 8 + lane % 4 * 2 + e;
                    bool seen = key < p.keys && !(p.causal && key > place.query + row);
                    float s = seen ? score[n][2 * i + e] * p.scale : LOWEST;
                    score[n][2 * i + e] = s;
                    most = fmaxf(most, s);
                }
            most = group_max<4>(most);
            if (lane % 4 == 0)
                maxima[quarter][row] = most;
        }
        __syncthreads();
        float factor[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            unsigned row = rows + lane / 4 + i * 8;
            float most = highest[i], sum = 0.0f;
#pragma unroll
            for (unsigned w = 0; w < QUARTERS; w++)
                most = fmaxf(most, maxima[w][row]);
            factor[i] = __expf(highest[i] - most);
            highest[i] = most;
#pragma unroll
            for (int n = 0; n < 2; n++) {
                float first = __expf(score[n][2 * i] - most), second = __expf(score[n][2 * i + 1] - most);
                *(unsigned *)(weights + row * W_STRIDE + columns + n * 8 + lane % 4 * 2) = pair<T>(first, second);
                sum += first;
                sum += second;
            }
            sum = group_sum<4>(sum);
            if (lane % 4 == 0)
                sums[quarter][row] = sum;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            unsigned row = rows + lane / 4 + i * 8;
            float sum = sums[0][row];
#pragma unroll
            for (unsigned w = 1; w < QUARTERS; w++)
                sum += sums[w][row];
            total[i] = fmaf(total[i], factor[i], sum);
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    result[chunk][n][2 * i] *= factor[i];
                    result[chunk][n][2 * i + 1] *= factor[i];
                }
        }
        unsigned w[KEYS / 16][4];
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++)
            ldmatrix_x4(w[j], weights + (rows + lane % 16) * W_STRIDE + j * 16 + lane / 16 * 8);
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const T *tile = next();
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                unsigned b[4];
                ldmatrix_x4_trans(b, tile + at(j * 16 + lane % 16, columns / 8 + lane / 16));
                mma<T>(result[chunk][0], w[j], b[0], b[1]);
                mma<T>(result[chunk][1], w[j], b[2], b[3]);
            }
        }
    }

    // Through shared memory, so that memory is written 16 bytes at a time. All copies were waited for.
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float share = 1.0f / total[i];
        T *own = stages + (rows + lane / 4 + i * 8) * OUT_STRIDE + columns + lane % 4 * 2;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const float(&sum)[4] = result[chunk][n];
                // Plus zero: a skipped block may not show in a zero's sign.
                float first = fmaf(sum[2 * i], share, 0.0f), second = fmaf(sum[2 * i + 1], share, 0.0f);
                *(unsigned *)(own + chunk * CHUNK + n * 8) = pair<T>(first, second);
            }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < QUERIES * 512 / 8; i += 256) {
        unsigned r = i / 64, d = i % 64 * 8, query = place.query + r;
        if (query < p.queries && d < p.head_dim)
            *(Pack<T, 8> *)(out + place.q + query * place.row + d) = *(const Pack<T, 8> *)(stages + r * OUT_STRIDE + d);
    }
}
#endif

#define KERNEL(T, name, D)                                                                                             \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        attention_##D##_##name(const T *q, const T *k, const T *v, T *out, Attention p) {                              \
        attention_fma<T, D / 32>(q, k, v, out, p);                                                                     \
    }
#define OF_TYPE(T, name)                                                                                               \
    KERNEL(T, name, 32) KERNEL(T, name, 64) KERNEL(T, name, 96) KERNEL(T, name, 160) KERNEL(T, name, 512)
OF_TYPE(float, f32)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)

#define MMA(T, name, D)                                                                                                \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        attention_mma_##D##_##name(const T *q, const T *k, const T *v, T *out, Attention p) {                          \
        attention_mma<T, D, D <= 80 ? 64 : 32>(q, k, v, out, p);                                                       \
    }
#define MMA_WIDE(T, name)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                               \
        attention_mma_512_##name(const T *q, const T *k, const T *v, T *out, Attention p) {                            \
        attention_mma_wide<T>(q, k, v, out, p);                                                                        \
    }
#define MMA_OF_TYPE(T, name) MMA(T, name, 48) MMA(T, name, 64) MMA(T, name, 80) MMA(T, name, 160) MMA_WIDE(T, name)
#if __CUDA_ARCH__ >= 750
MMA_OF_TYPE(f16, f16)
#endif
#if __CUDA_ARCH__ >= 800
MMA_OF_TYPE(bf16, bf16)
#endif
