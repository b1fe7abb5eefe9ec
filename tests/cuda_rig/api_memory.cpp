// cuMem*: memory, and copies, which are as late as they may be: from and to pinned memory when their turn comes, from
// pageable memory at once, to pageable memory before the call returns.
#include <cstring>
#include <string>
#include <vector>

#include "api.h"
#include "memory.h"
#include "settings.h"

using namespace rig;

namespace {

CUresult allocate_on(Device &device, CUdeviceptr *at, std::size_t bytes) {
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (is_capturing(device)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (this_allocation_fails()) {
        say("no " + std::to_string(bytes) + " bytes on device " + std::to_string(device.number) +
            ", as SDSHARD_RIG_FAULTS wants it");
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    void *memory = allocate(device.number, bytes);
    if (!memory) {
        device.wait(); // memory that is freed in order may come back
        memory = allocate(device.number, bytes);
    }
    *at = reinterpret_cast<CUdeviceptr>(memory);
    return memory ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

void *pointer(CUdeviceptr at) {
    return reinterpret_cast<void *>(at);
}

// Of a device, and in bounds.
bool is_device_memory(CUdeviceptr at, std::size_t bytes) {
    auto range = range_of(pointer(at));
    return range && range->home != HOST && at + bytes <= range->start + range->bytes;
}

bool is_pinned(const void *at, std::size_t bytes) {
    auto range = range_of(at);
    return range && range->home == HOST && is_within(at, bytes);
}

CUresult device_to_device(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream handle,
                          const char *function = __builtin_FUNCTION()) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream, function));
    if (!is_device_memory(to, bytes) || !is_device_memory(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    int source = range_of(pointer(from))->home, target = range_of(pointer(to))->home;
    // A link that is not trusted copies through the host; one that is may be broken.
    bool direct = false;
    if (source != target)
        for (auto [one, other] : {std::pair(source, target), std::pair(target, source)}) {
            std::lock_guard lock(rig::device(one).mutex);
            direct |= rig::device(one).peers.count(other) > 0;
        }
    bool corrupts = direct && settings().peers == Peers::Corrupt;
    return put(*device, stream, [=] {
        std::memmove(pointer(to), pointer(from), bytes);
        if (corrupts && bytes > 0) static_cast<unsigned char *>(pointer(to))[bytes / 2] ^= 0x40;
    });
}

CUresult set_bytes(CUdeviceptr at, unsigned char value, std::size_t bytes, CUstream handle) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    if (!is_device_memory(at, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return put(*device, stream, [=] { std::memset(pointer(at), value, bytes); });
}

// Work that has been put in the null stream, waited for.
CUresult and_wait(CUresult put) {
    RIG_TRY(put);
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, nullptr, stream));
    stream->mark().wait();
    return device->error();
}

} // namespace

// What is allocated on a device.
RIG_API std::uint64_t sdshard_rig_used_bytes(int device) {
    return used_bytes(device);
}

RIG_API CUresult cuMemGetInfo_v2(std::size_t *free, std::size_t *total) {
    Device *device;
    RIG_TRY(enter(device));
    *total = memory_of(device->number);
    std::size_t used = used_bytes(device->number);
    *free = used < *total ? *total - used : 0;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuMemAlloc_v2(CUdeviceptr *at, std::size_t bytes) {
    Device *device;
    RIG_TRY(enter(device));
    return allocate_on(*device, at, bytes);
}

RIG_API CUresult cuMemAllocAsync(CUdeviceptr *at, std::size_t bytes, CUstream handle) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    return allocate_on(*device, at, bytes);
}

RIG_API CUresult cuMemFree_v2(CUdeviceptr at) {
    Device *device;
    RIG_TRY(enter(device));
    if (at == 0) return CUDA_SUCCESS;
    auto range = range_of(pointer(at));
    if (!range || range->home == HOST) return CUDA_ERROR_INVALID_VALUE;
    rig::device(range->home).wait();
    return release(range->home, pointer(at)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

RIG_API CUresult cuMemFreeAsync(CUdeviceptr at, CUstream handle) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    auto range = range_of(pointer(at));
    if (!range || range->home == HOST || range->start != at) return CUDA_ERROR_INVALID_VALUE;
    return put(*device, stream, [=] { release(range->home, pointer(at)); });
}

RIG_API CUresult cuMemHostAlloc(void **at, std::size_t bytes, unsigned) {
    Device *device;
    RIG_TRY(enter(device));
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    *at = allocate(HOST, bytes);
    return *at ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

RIG_API CUresult cuMemAllocHost_v2(void **at, std::size_t bytes) {
    return cuMemHostAlloc(at, bytes, 0);
}

RIG_API CUresult cuMemFreeHost(void *at) {
    Device *device;
    RIG_TRY(enter(device));
    for (int i = 0; i < MOST_DEVICES; i++) rig::device(i).wait();
    return release(HOST, at) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

RIG_API CUresult cuMemHostRegister_v2(void *at, std::size_t bytes, unsigned) {
    Device *device;
    RIG_TRY(enter(device));
    if (!at || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    return pin(at, bytes) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
}

RIG_API CUresult cuMemHostUnregister(void *at) {
    Device *device;
    RIG_TRY(enter(device));
    return unpin(at) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

RIG_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, std::size_t bytes, CUstream handle) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    if (!is_device_memory(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
    if (is_pinned(from, bytes)) return put(*device, stream, [=] { std::memcpy(pointer(to), from, bytes); });
    auto *first = static_cast<const unsigned char *>(from);
    std::vector<unsigned char> copy(first, first + bytes);
    return put(*device, stream, [to, copy] { std::memcpy(pointer(to), copy.data(), copy.size()); });
}

RIG_API CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, std::size_t bytes, CUstream handle) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    if (!is_device_memory(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    bool pinned = is_pinned(to, bytes);
    if (!pinned && stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    RIG_TRY(put(*device, stream, [=] { std::memcpy(to, pointer(from), bytes); }));
    if (pinned) return CUDA_SUCCESS;
    stream->mark().wait();
    return device->error();
}

RIG_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    return device_to_device(to, from, bytes, stream);
}

RIG_API CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                                   std::size_t bytes, CUstream stream) {
    for (auto [at, context] : {std::pair(to, to_context), std::pair(from, from_context)}) {
        auto range = range_of(pointer(at));
        if (!range || range->home == HOST) return CUDA_ERROR_INVALID_VALUE;
        if (reinterpret_cast<CUcontext>(&device(range->home)) != context) return CUDA_ERROR_INVALID_CONTEXT;
    }
    return device_to_device(to, from, bytes, stream);
}

RIG_API CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, std::size_t bytes, CUstream stream) {
    return set_bytes(at, value, bytes, stream);
}

RIG_API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, std::size_t bytes) {
    return and_wait(cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr));
}

RIG_API CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, std::size_t bytes) {
    return and_wait(cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr));
}

RIG_API CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {
    return and_wait(device_to_device(to, from, bytes, nullptr));
}

RIG_API CUresult cuMemsetD8_v2(CUdeviceptr at, unsigned char value, std::size_t bytes) {
    return and_wait(set_bytes(at, value, bytes, nullptr));
}
