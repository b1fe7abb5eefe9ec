// What the kernels' own headers give to kernels, as far as the rig's small kernels need it.
#pragma once
struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};
#include "ptx_host.h"
#define HAS_CP_ASYNC (__CUDA_ARCH__ >= 800)
