// The only inline assembly. A build for the host includes functions of the same names in its place, written from their
// meaning: tests/cuda_rig/ptx_host.h.
// NVRTC needs no header for any of this: the 16-bit floats are plain bits here.
#pragma once

// IEEE half precision, and bfloat16: storage only, all arithmetic is f32.
struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};

#ifdef SDSHARD_HOST
#include "ptx_host.h"
#else

static __device__ __forceinline__ float f16_to_f32(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

// To nearest even.
static __device__ __forceinline__ unsigned short f32_to_f16(float x) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

#if __CUDA_ARCH__ >= 800
// 16 bytes from global to shared memory, both 16-byte aligned; zeros if not valid. Done once waited for.
static __device__ __forceinline__ void cp_async16(void *shared, const void *global, bool valid) {
    unsigned to = (unsigned)__cvta_generic_to_shared(shared);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}

// Closes a group of the copies issued so far.
static __device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most N of the latest groups of this thread are under way.
template <int N> static __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#endif

#if __CUDA_ARCH__ < 750
// Fragments of 16 x 16 matrices, of which lane holds what is the hardware's own business. The first: from shared memory, 32-byte
// aligned, rows `stride` elements apart, which are a multiple of 16 bytes.
static __device__ __forceinline__ void wmma_load_a(unsigned (&r)[8], const f16 *from, unsigned stride) {
    unsigned at = (unsigned)__cvta_generic_to_shared(from);
    asm volatile("wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]), "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7])
                 : "r"(at), "r"(stride)
                 : "memory");
}

// The second, whose columns are the rows in memory.
static __device__ __forceinline__ void wmma_load_b(unsigned (&r)[8], const f16 *from, unsigned stride) {
    unsigned at = (unsigned)__cvta_generic_to_shared(from);
    asm volatile("wmma.load.b.sync.aligned.col.m16n16k16.shared.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]), "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7])
                 : "r"(at), "r"(stride)
                 : "memory");
}

// d += a b, sums in f32.
static __device__ __forceinline__ void wmma_m16n16k16(float (&d)[8], const unsigned (&a)[8], const unsigned (&b)[8]) {
    asm volatile("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, "
                 "{%8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19, %20, %21, %22, %23}, "
                 "{%0, %1, %2, %3, %4, %5, %6, %7};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]), "r"(a[6]), "r"(a[7]), "r"(b[0]),
                   "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(b[4]), "r"(b[5]), "r"(b[6]), "r"(b[7]));
}

// To shared memory, 32-byte aligned, rows `stride` elements apart, which are a multiple of 16 bytes.
static __device__ __forceinline__ void wmma_store(float *to, const float (&d)[8], unsigned stride) {
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("wmma.store.d.sync.aligned.row.m16n16k16.shared.f32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8}, %9;" ::"r"(at),
                 "f"(d[0]), "f"(d[1]), "f"(d[2]), "f"(d[3]), "f"(d[4]), "f"(d[5]), "f"(d[6]), "f"(d[7]), "r"(stride)
                 : "memory");
}
#endif

#if __CUDA_ARCH__ >= 750
// Four 8x8 matrices of 16-bit elements from shared memory. Lane i gives the address of row i % 8 of matrix i / 8; it gets
// elements 2 (i % 4) and the next of row i / 4 of each.
static __device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void *row) {
    unsigned from = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

// The same of the transposed matrices.
static __device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void *row) {
    unsigned from = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

// d += a b for a [16, 8] and b [8, 8]: the first half of what mma_m16n8k16 does, on its a[0], a[1] and b[0].
static __device__ __forceinline__ void mma_m16n8k8(float (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1], f16) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
#endif

#if __CUDA_ARCH__ >= 800
// d += a b for a [16, 16] and b [16, 8], sums in f32. Lane i, with row g = i / 4 and pair q = i % 4, has
// d: (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1);
// a: pairs from (g, 2q), (g + 8, 2q), (g, 2q + 8), (g + 8, 2q + 8); b: pairs along k from (2q, g), (2q + 8, g).
static __device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                                    f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                                    bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

#endif
