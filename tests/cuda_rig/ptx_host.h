// The functions of kernels/ptx.cuh, written from what the PTX ISA says of their instructions. Fragments: "Matrix
// Fragments for mma.m16n8k16" and "mma.m16n8k8", for 16-bit elements; ldmatrix: "Warp-level matrix load instruction"; wmma:
// "Warp Level Matrix Multiply-Accumulate Instructions".
// Included by ptx.cuh, after its f16 and bf16. A warp's instruction is computed once, by the last lane to arrive.
#pragma once

static inline float f16_to_f32(unsigned short x) {
    return static_cast<float>(__builtin_bit_cast(_Float16, x));
}
static inline unsigned short f32_to_f16(float x) {
    return __builtin_bit_cast(unsigned short, static_cast<_Float16>(x));
}

#if __CUDA_ARCH__ >= 800
static inline void cp_async16(void *shared, const void *global, bool valid) {
    rig_copy_async(shared, global, valid);
}
static inline void cp_async_commit() {
    rig_copy_commit();
}
template <int N> static inline void cp_async_wait() {
    rig_copy_wait(N);
}
#endif

#if __CUDA_ARCH__ < 750
// Which lane holds what is not documented: here element (row, column) is in lane 2 row + column / 8, register column % 8.
struct RigFragment {
    const void *at;
    unsigned stride;
};

template <unsigned SIZE> static void rig_wmma_check(void *const *operands, unsigned present) {
    if (present != 0xffffffffu) rig_trap("wmma without all lanes of the warp");
    auto *first = static_cast<RigFragment *>(operands[0]);
    for (unsigned lane = 0; lane < 32; lane++) {
        auto *mine = static_cast<RigFragment *>(operands[lane]);
        if (mine->at != first->at || mine->stride != first->stride) rig_trap("wmma at different addresses in one warp");
    }
    const char *at = static_cast<const char *>(first->at);
    if (reinterpret_cast<size_t>(at) % 32 != 0 || first->stride * SIZE % 16 != 0) rig_misaligned("wmma", at);
    if (!rig_is_shared(at, (15 * first->stride + 16) * SIZE)) rig_misaligned("wmma outside shared memory", at);
}

static inline void rig_wmma_load(unsigned (&r)[8], const f16 *from, unsigned stride) {
    RigFragment operand = {from, stride};
    rig_warp(0xffffffffu, rig_wmma_check<2>, &operand, "wmma_load");
    const f16 *mine = from + rig_lane->lane / 2 * stride + rig_lane->lane % 2 * 8;
    for (unsigned e = 0; e < 8; e++) r[e] = mine[e].bits;
}
static inline void wmma_load_a(unsigned (&r)[8], const f16 *from, unsigned stride) {
    rig_wmma_load(r, from, stride);
}
static inline void wmma_load_b(unsigned (&r)[8], const f16 *from, unsigned stride) {
    rig_wmma_load(r, from, stride);
}
static inline void wmma_store(float *to, const float (&d)[8], unsigned stride) {
    RigFragment operand = {to, stride};
    rig_warp(0xffffffffu, rig_wmma_check<4>, &operand, "wmma_store");
    float *mine = to + rig_lane->lane / 2 * stride + rig_lane->lane % 2 * 8;
    for (unsigned e = 0; e < 8; e++) mine[e] = d[e];
}

struct RigWmma {
    float *d;
    const unsigned *a, *b;
};

// d [16, 16] += a [16, 16] b [16, 16], each element one chain along k in f32. Lane l has columns of b as rows.
static void rig_wmma_all(void *const *operands, unsigned present) {
    if (present != 0xffffffffu) rig_trap("wmma without all lanes of the warp");
    float a[16][16], b[16][16];
    for (unsigned lane = 0; lane < 32; lane++) {
        auto *mine = static_cast<RigWmma *>(operands[lane]);
        for (unsigned e = 0; e < 8; e++) {
            a[lane / 2][lane % 2 * 8 + e] = f16_to_f32(static_cast<unsigned short>(mine->a[e]));
            b[lane % 2 * 8 + e][lane / 2] = f16_to_f32(static_cast<unsigned short>(mine->b[e]));
        }
    }
    for (unsigned lane = 0; lane < 32; lane++) {
        float *d = static_cast<RigWmma *>(operands[lane])->d;
        for (unsigned k = 0; k < 16; k++)
            for (unsigned e = 0; e < 8; e++) d[e] += a[lane / 2][k] * b[k][lane % 2 * 8 + e];
    }
}

static inline void wmma_m16n16k16(float (&d)[8], const unsigned (&a)[8], const unsigned (&b)[8]) {
    RigWmma operand = {d, a, b};
    rig_warp(0xffffffffu, rig_wmma_all, &operand, "wmma_m16n16k16");
}
#endif

#if __CUDA_ARCH__ >= 750
struct RigLoad {
    const void *row;
    unsigned *to;
};

// Matrix m has its rows at the addresses of lanes 8 m to 8 m + 7.
template <bool TRANSPOSED> static void rig_ldmatrix_all(void *const *operands, unsigned present) {
    if (present != 0xffffffffu) rig_trap("ldmatrix without all lanes of the warp");
    unsigned short matrices[4][8][8];
    for (unsigned lane = 0; lane < 32; lane++) {
        const void *row = static_cast<RigLoad *>(operands[lane])->row;
        if (reinterpret_cast<size_t>(row) % 16 != 0) rig_misaligned("ldmatrix", row);
        if (!rig_is_shared(row, 16)) rig_misaligned("ldmatrix from outside shared memory", row);
        __builtin_memcpy(matrices[lane / 8][lane % 8], row, 16);
    }
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned m = 0; m < 4; m++) {
            unsigned row = lane / 4, pair = lane % 4 * 2;
            unsigned low = TRANSPOSED ? matrices[m][pair][row] : matrices[m][row][pair];
            unsigned high = TRANSPOSED ? matrices[m][pair + 1][row] : matrices[m][row][pair + 1];
            static_cast<RigLoad *>(operands[lane])->to[m] = low | high << 16;
        }
}

static inline void ldmatrix_x4(unsigned (&r)[4], const void *row) {
    RigLoad operand = {row, r};
    rig_warp(0xffffffffu, rig_ldmatrix_all<false>, &operand, "ldmatrix_x4");
}

static inline void ldmatrix_x4_trans(unsigned (&r)[4], const void *row) {
    RigLoad operand = {row, r};
    rig_warp(0xffffffffu, rig_ldmatrix_all<true>, &operand, "ldmatrix_x4_trans");
}

struct RigMma {
    float *d;
    const unsigned *a, *b;
};

static inline float rig_value(unsigned bits, f16) {
    return f16_to_f32(static_cast<unsigned short>(bits));
}
static inline float rig_value(unsigned bits, bf16) {
    return __uint_as_float(bits << 16);
}

// d [16, 8] += a [16, K] b [K, 8], each element one chain along k in f32; the order inside tensor cores is not
// documented. With g = lane / 4 and q = 2 (lane % 4): register r of a holds row g + 8 (r % 2), columns q + 8 (r / 2)
// and the next; register r of b column g, rows q + 8 r and the next; element e of d row g + 8 (e / 2), column q + e
// % 2.
template <typename T, unsigned K> static void rig_mma_all(void *const *operands, unsigned present) {
    if (present != 0xffffffffu) rig_trap("mma without all lanes of the warp");
    typedef float Row __attribute__((vector_size(32)));
    float a[16][K];
    Row b[K], d[16];
    for (unsigned lane = 0; lane < 32; lane++) {
        auto *mine = static_cast<RigMma *>(operands[lane]);
        unsigned g = lane / 4, q = lane % 4 * 2;
        for (unsigned r = 0; r < K / 4; r++)
            for (unsigned half = 0; half < 2; half++)
                a[g + 8 * (r % 2)][q + 8 * (r / 2) + half] = rig_value(mine->a[r] >> 16 * half & 0xffff, T());
        for (unsigned r = 0; r < K / 8; r++)
            for (unsigned half = 0; half < 2; half++)
                b[q + 8 * r + half][g] = rig_value(mine->b[r] >> 16 * half & 0xffff, T());
        for (unsigned e = 0; e < 4; e++) d[g + 8 * (e / 2)][q + e % 2] = mine->d[e];
    }
    for (unsigned row = 0; row < 16; row++)
        for (unsigned k = 0; k < K; k++) d[row] += a[row][k] * b[k];
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned e = 0; e < 4; e++)
            static_cast<RigMma *>(operands[lane])->d[e] = d[lane / 4 + 8 * (e / 2)][lane % 4 * 2 + e % 2];
}

template <typename T, unsigned K> static inline void rig_mma(float *d, const unsigned *a, const unsigned *b) {
    RigMma operand = {d, a, b};
    rig_warp(0xffffffffu, rig_mma_all<T, K>, &operand, "mma");
}

static inline void mma_m16n8k8(float (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1], f16) {
    rig_mma<f16, 8>(d, a, b);
}
#endif

#if __CUDA_ARCH__ >= 800
static inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], f16) {
    rig_mma<f16, 16>(d, a, b);
}
static inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], bf16) {
    rig_mma<bf16, 16>(d, a, b);
}
#endif
