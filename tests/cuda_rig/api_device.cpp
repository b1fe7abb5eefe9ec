// cuInit, cuDevice*, cuCtx*, cuDevicePrimaryCtx*, cuGetError*.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

#include "api.h"
#include "memory.h"
#include "settings.h"

using namespace rig;

namespace {

std::atomic<bool> initialised{false};
thread_local CUcontext current = nullptr;

// A context is its device: there are primary ones only.
CUcontext context_of(int number) {
    return reinterpret_cast<CUcontext>(&device(number));
}

Device *device_of(CUcontext context) {
    for (int i = 0; i < MOST_DEVICES; i++)
        if (context_of(i) == context) return &device(i);
    return nullptr;
}

CUresult check(CUdevice number) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    return number >= 0 && number < settings().devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

struct Name {
    CUresult code;
    const char *name, *text;
};

#define RIG_ERROR(name, text) {name, #name, text}
constexpr Name NAMES[] = {
    RIG_ERROR(CUDA_SUCCESS, "no error"),
    RIG_ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    RIG_ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    RIG_ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    RIG_ERROR(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    RIG_ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    RIG_ERROR(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    RIG_ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    RIG_ERROR(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    RIG_ERROR(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, "peer access is not supported between these two devices"),
    RIG_ERROR(CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed"),
    RIG_ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    RIG_ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    RIG_ERROR(CUDA_ERROR_NOT_READY, "device not ready"),
    RIG_ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    RIG_ERROR(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    RIG_ERROR(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "peer access is already enabled"),
    RIG_ERROR(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, "peer access has not been enabled"),
    RIG_ERROR(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part or all of the requested memory range is already mapped"),
    RIG_ERROR(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "pointer does not correspond to a registered memory region"),
    RIG_ERROR(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"),
    RIG_ERROR(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    RIG_ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    RIG_ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    RIG_ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    RIG_ERROR(CUDA_ERROR_UNKNOWN, "unknown error"),
};

// Shared memory that a block may have if it asks for it, in KiB, and that a multiprocessor has. CUDA C++ Programming
// Guide, "Technical Specifications per Compute Capability".
int shared_kib(int capability, bool of_block) {
    switch (capability) {
    case 70: return 96;
    case 75: return 64;
    case 80:
    case 87: return of_block ? 163 : 164;
    case 86:
    case 89:
    case 120: return of_block ? 99 : 100;
    default: return of_block ? 227 : 228;
    }
}

int threads_of_multiprocessor(int capability) {
    switch (capability) {
    case 75: return 1024;
    case 86:
    case 87:
    case 89:
    case 120: return 1536;
    default: return 2048;
    }
}

} // namespace

namespace rig {

CUresult enter(Device *&device, const char *function) {
    device = device_of(current);
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (!device) return CUDA_ERROR_INVALID_CONTEXT;
    count(function, device->number);
    if (is_lost(device->number)) device->fail(CUDA_ERROR_UNKNOWN, "it is lost, as SDSHARD_RIG_FAULTS wants it");
    return device->error();
}

} // namespace rig

RIG_API CUresult cuInit(unsigned flags) {
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (settings().devices == 0) return CUDA_ERROR_NO_DEVICE;
    initialised = true;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuDriverGetVersion(int *version) {
    *version = 12090;
    return CUDA_SUCCESS;
}

// NVRTC asks a driver that is loaded for a table of its inner functions, and fails badly where this function is
// missing.
RIG_API CUresult cuGetExportTable(const void **table, const CUuuid *) {
    *table = nullptr;
    return CUDA_ERROR_NOT_FOUND;
}

RIG_API CUresult cuDeviceGetCount(int *count) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    *count = settings().devices;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuDeviceGet(CUdevice *number, int ordinal) {
    RIG_TRY(check(ordinal));
    *number = ordinal;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuDeviceGetName(char *name, int bytes, CUdevice number) {
    RIG_TRY(check(number));
    int capability = capability_of(number);
    std::snprintf(name, std::size_t(bytes), "Rig GPU of %d.%d", capability / 10, capability % 10);
    return CUDA_SUCCESS;
}

RIG_API CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice number) {
    RIG_TRY(check(number));
    std::memcpy(uuid->bytes, "sdshard rig GPU", 16);
    uuid->bytes[15] = static_cast<unsigned char>(number);
    return CUDA_SUCCESS;
}

RIG_API CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice number) {
    return cuDeviceGetUuid_v2(uuid, number);
}

RIG_API CUresult cuDeviceTotalMem_v2(std::size_t *bytes, CUdevice number) {
    RIG_TRY(check(number));
    *bytes = memory_of(number);
    return CUDA_SUCCESS;
}

RIG_API CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice number) {
    RIG_TRY(check(number));
    int capability = capability_of(number);
    // By the numbers of CUdevice_attribute.
    const std::map<int, int> values = {
        {1, 1024},
        {2, 1024},
        {3, 1024},
        {4, 64}, // threads of a block, and in each direction
        {5, 0x7fffffff},
        {6, 65535},
        {7, 65535}, // blocks of a grid in each direction
        {8, 48 * 1024},
        {97, shared_kib(capability, true) * 1024},
        {81, shared_kib(capability, false) * 1024},
        {10, 32},
        {12, 65536},
        {82, 65536}, // lanes of a warp; registers of a block, of a multiprocessor
        {13, 1410000},
        {16, 4},
        {36, 1215000},
        {37, 5120}, // kHz, multiprocessors, kHz of memory, bits of its bus
        {31, 0},
        {35, 0},
        {20, 0},
        {41, 1},
        {83, 1},
        {115, 1}, // ECC, TCC, mode; unified addresses, managed memory, pools
        {33, number + 1},
        {34, 0},
        {50, 0}, // PCI bus, device and domain
        {38, 4 << 20},
        {39, threads_of_multiprocessor(capability)},
        {40, 2},
        {106, 16}, // cache, threads, copies, blocks
        {75, capability / 10},
        {76, capability % 10},
    };
    auto found = values.find(attribute);
    if (found == values.end()) {
        say("no device has the attribute " + std::to_string(attribute) + ": cuDeviceGetAttribute in api_device.cpp");
        return CUDA_ERROR_INVALID_VALUE;
    }
    *value = found->second;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuDeviceCanAccessPeer(int *can, CUdevice number, CUdevice peer) {
    RIG_TRY(check(number));
    RIG_TRY(check(peer));
    *can = number != peer && settings().peers != Peers::None;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice number) {
    RIG_TRY(check(number));
    std::lock_guard lock(device(number).mutex);
    device(number).retained++;
    *context = context_of(number);
    return CUDA_SUCCESS;
}

RIG_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice number) {
    RIG_TRY(check(number));
    std::lock_guard lock(device(number).mutex);
    if (device(number).retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
    device(number).retained--;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuCtxSetCurrent(CUcontext context) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    Device *device = device_of(context);
    if (context && (!device || device->retained == 0)) return CUDA_ERROR_INVALID_CONTEXT;
    current = context;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuCtxGetCurrent(CUcontext *context) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    *context = current;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuCtxGetDevice(CUdevice *number) {
    Device *device = device_of(current);
    if (!device) return CUDA_ERROR_INVALID_CONTEXT;
    *number = device->number;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuCtxSynchronize() {
    Device *device;
    RIG_TRY(enter(device));
    if (is_capturing(*device)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    device->wait();
    return device->error();
}

RIG_API CUresult cuCtxSetFlags(unsigned) {
    Device *device;
    return enter(device);
}

RIG_API CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuCtxEnablePeerAccess(CUcontext context, unsigned flags) {
    Device *device, *peer = device_of(context);
    RIG_TRY(enter(device));
    if (!peer || peer == device) return CUDA_ERROR_INVALID_CONTEXT;
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (settings().peers == Peers::None) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    std::lock_guard lock(device->mutex);
    return device->peers.insert(peer->number).second ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
}

RIG_API CUresult cuCtxDisablePeerAccess(CUcontext context) {
    Device *device, *peer = device_of(context);
    RIG_TRY(enter(device));
    if (!peer) return CUDA_ERROR_INVALID_CONTEXT;
    std::lock_guard lock(device->mutex);
    return device->peers.erase(peer->number) == 1 ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
}

RIG_API CUresult cuGetErrorName(CUresult code, const char **name) {
    for (const Name &entry : NAMES)
        if (entry.code == code) return *name = entry.name, CUDA_SUCCESS;
    *name = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

RIG_API CUresult cuGetErrorString(CUresult code, const char **text) {
    for (const Name &entry : NAMES)
        if (entry.code == code) return *text = entry.text, CUDA_SUCCESS;
    *text = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}
