// Included behind a kernel source, for RIG_ENTRY(kernel): how a launch calls it.
#pragma once
#include "kernel_abi.h"

template <unsigned... I> struct RigIndices {};
template <unsigned N, unsigned... I> struct RigCount : RigCount<N - 1, N - 1, I...> {};
template <unsigned... I> struct RigCount<0, I...> { using Type = RigIndices<I...>; };

template <auto kernel> struct RigCaller;
template <typename... P, void (*kernel)(P...)> struct RigCaller<kernel> {
    template <unsigned... I> static void call_with(void *const *values, RigIndices<I...>) {
        kernel(*static_cast<P *>(values[I])...);
    }
    static void call(void *const *values) { call_with(values, typename RigCount<sizeof...(P)>::Type()); }
    static constexpr unsigned short sizes[sizeof...(P)] = {sizeof(P)...};
    static constexpr RigEntry entry = {call, sizeof...(P), sizes};
};

#define RIG_ENTRY(kernel)                                                                                              \
    extern "C" __attribute__((visibility("default"))) const RigEntry rig_entry_##kernel = RigCaller<kernel>::entry;
