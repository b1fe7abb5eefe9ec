// Tests of the rig through the driver's interface, linked against it: prints a line for each, ends with 1 at the first
// that fails. SDSHARD_RIG_KERNELS: the folder of the rig's small kernels, compiled for the host.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "driver.h"

namespace {

const char *running = "";

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            std::printf("FAILED %s: %s:%d: %s\n", running, __FILE__, __LINE__, #condition);                            \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)
#define OK(call) CHECK((call) == CUDA_SUCCESS)

// What a compiler would make of kernels/selftest.cu, as far as a driver's loader reads it.
std::string ptx(const char *architecture) {
    std::string text = std::string(".version 8.0\n.target ") + architecture + "\n.address_size 64\n";
    auto entry = [&](const char *name, std::vector<const char *> parameters) {
        text += std::string(".visible .entry ") + name + "(\n";
        for (std::size_t i = 0; i < parameters.size(); i++)
            text += std::string(i ? ",\n" : "") + "  .param " + parameters[i];
        text += "\n)\n.maxntid 256, 1, 1\n{\n  .shared .align 16 .b8 tile[1024];\n  ret;\n}\n";
    };
    const char *at = ".u64 .ptr .align 1 p", *word = ".u32 n", *scaled = ".align 4 .b8 s[8]";
    for (const char *name : {"scale", "scale_all_but_one", "scale_too_much"}) entry(name, {at, at, scaled});
    entry("softmax", {at, at, word});
    entry("swap", {at, at, word});
    for (const char *name : {"matmul_f16", "matmul_bf16", "matmul_without_wait", "matmul_without_barrier"})
        entry(name, {at, at, at, word, word});
    for (const char *name :
         {"votes", "divergent_barrier", "two_barriers", "divergent_shuffle", "shared_too_far", "bottomless"})
        entry(name, {at});
    for (const char *name : {"misaligned", "spin"}) entry(name, {at, at});
    entry("not_there", {at});
    return text;
}

struct Scaled {
    unsigned count;
    float factor;
};

// A device in use: its context is current from here on.
struct Gpu {
    explicit Gpu(int number, const char *architecture = "sm_80") {
        OK(cuDeviceGet(&device, number));
        OK(cuDevicePrimaryCtxRetain(&context, device));
        OK(cuCtxSetCurrent(context));
        OK(cuModuleLoadData(&module, ptx(architecture).c_str()));
        OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    }

    CUresult launch(const char *kernel, unsigned grid_x, unsigned grid_y, unsigned block, unsigned shared,
                    std::vector<void *> arguments, CUstream in = nullptr) const {
        CUfunction function;
        OK(cuModuleGetFunction(&function, module, kernel));
        return cuLaunchKernel(function, grid_x, grid_y, 1, block, 1, 1, shared, in ? in : stream, arguments.data(),
                              nullptr);
    }

    CUdevice device = 0;
    CUcontext context = nullptr;
    CUmodule module = nullptr;
    CUstream stream = nullptr;
};

template <typename T> CUdeviceptr upload(const Gpu &gpu, const std::vector<T> &values) {
    CUdeviceptr at;
    OK(cuMemAlloc_v2(&at, values.size() * sizeof(T)));
    OK(cuMemcpyHtoDAsync_v2(at, values.data(), values.size() * sizeof(T), gpu.stream));
    return at;
}

CUdeviceptr room(std::size_t bytes) {
    CUdeviceptr at;
    OK(cuMemAlloc_v2(&at, bytes));
    return at;
}

template <typename T> std::vector<T> download(const Gpu &gpu, CUdeviceptr at, std::size_t count) {
    std::vector<T> values(count);
    OK(cuMemcpyDtoHAsync_v2(values.data(), at, count * sizeof(T), gpu.stream));
    return values;
}

std::vector<float> numbers(std::size_t count, unsigned seed) {
    std::mt19937 chance(seed);
    std::vector<float> values(count);
    for (float &value : values) value = static_cast<float>(static_cast<int>(chance() % 65) - 32) / 32;
    return values;
}

void set(const char *key, const char *value) {
    sdshard_rig_set(key, value);
}

// ---- right kernels

void a_tail_is_left_alone_and_unwritten_memory_is_no_number() {
    Gpu gpu(0);
    std::vector<float> x = numbers(1000, 1);
    CUdeviceptr in = upload(gpu, x), out = room(1000 * 4);
    Scaled p = {1000, 3.0f};
    OK(gpu.launch("scale", 4, 1, 256, 0, {&in, &out, &p}));
    p = {0, 0.0f}; // arguments are copied at the launch
    std::vector<float> y = download<float>(gpu, out, 1000);
    for (std::size_t i = 0; i < 1000; i++) CHECK(y[i] == x[i] * 3.0f);
    CUdeviceptr fresh = room(1000 * 4);
    p = {1000, 3.0f};
    OK(gpu.launch("scale_all_but_one", 4, 1, 256, 0, {&in, &fresh, &p}));
    y = download<float>(gpu, fresh, 1000);
    CHECK(y[998] == x[998] * 3.0f && std::isnan(y[999]));
}

void shuffles_and_shared_memory_make_a_softmax() {
    Gpu gpu(0);
    unsigned rows = 37, columns = 123;
    std::vector<float> x = numbers(rows * columns, 2);
    CUdeviceptr in = upload(gpu, x), out = room(rows * columns * 4);
    OK(gpu.launch("softmax", rows, 1, 96, 3 * 4, {&in, &out, &columns}));
    std::vector<float> y = download<float>(gpu, out, rows * columns);
    for (unsigned row = 0; row < rows; row++) {
        double sum = 0;
        for (unsigned c = 0; c < columns; c++) sum += std::exp(double(x[row * columns + c]));
        for (unsigned c = 0; c < columns; c++)
            CHECK(std::fabs(y[row * columns + c] - std::exp(double(x[row * columns + c])) / sum) < 1e-7);
    }
    CUdeviceptr voted = room(2 * 4);
    OK(gpu.launch("votes", 1, 1, 48, 0, {&voted}));
    std::vector<unsigned> v = download<unsigned>(gpu, voted, 2);
    CHECK(v[0] == 0x49249249u); // every third of 32, from the first
    CHECK(v[1] == 0x2492u);     // and of the 16 lanes that there are, from thread 33
}

template <typename T> std::uint16_t bits_of(float value);
struct Half {};
struct Brain {};
template <> std::uint16_t bits_of<Half>(float value) {
    auto half = static_cast<_Float16>(value);
    std::uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
template <> std::uint16_t bits_of<Brain>(float value) { // of numbers that fit
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<std::uint16_t>(bits >> 16);
}

// The greatest distance from the product in f64; not a number if any element is none.
template <typename T> double matmul_error(const Gpu &gpu, const char *kernel) {
    unsigned m = 48, n = 128, k = 112;
    std::vector<float> a = numbers(m * k, 3), b = numbers(k * n, 4);
    std::vector<std::uint16_t> a16, b16;
    for (float value : a) a16.push_back(bits_of<T>(value));
    for (float value : b) b16.push_back(bits_of<T>(value));
    CUdeviceptr at_a = upload(gpu, a16), at_b = upload(gpu, b16), out = room(m * n * 4);
    OK(gpu.launch(kernel, n / 64, m / 16, 128, 0, {&at_a, &at_b, &out, &n, &k}));
    std::vector<float> y = download<float>(gpu, out, m * n);
    double worst = 0;
    for (unsigned i = 0; i < m; i++)
        for (unsigned j = 0; j < n; j++) {
            double want = 0;
            for (unsigned l = 0; l < k; l++) want += double(a[i * k + l]) * double(b[l * n + j]);
            double error = std::fabs(double(y[i * n + j]) - want);
            if (!(error <= worst)) worst = error;
        }
    return worst;
}

void tensor_cores_make_a_matrix_product_for_every_architecture() {
    // Sums of multiples of 2^-10 below 2^7: exact in f32.
    CHECK(matmul_error<Half>(Gpu(0), "matmul_f16") == 0);
    CHECK(matmul_error<Brain>(Gpu(0), "matmul_bf16") == 0);
    CHECK(matmul_error<Half>(Gpu(1, "sm_75"), "matmul_f16") == 0);
    for (const char *seed : {"1", "2", "3"}) {
        set("DELAYS", seed);
        CHECK(matmul_error<Half>(Gpu(0), "matmul_f16") == 0);
    }
}

// ---- wrong kernels

void a_missing_wait_or_barrier_is_seen() {
    CHECK(!(matmul_error<Half>(Gpu(0), "matmul_without_wait") == 0));
    CHECK(!(matmul_error<Half>(Gpu(0), "matmul_without_barrier") == 0));
    Gpu gpu(0);
    std::vector<float> x = numbers(256, 5);
    CUdeviceptr in = upload(gpu, x), out = room(256 * 4);
    unsigned missing = 0;
    OK(gpu.launch("swap", 1, 1, 256, 0, {&in, &out, &missing}));
    std::vector<float> y = download<float>(gpu, out, 256);
    for (unsigned i = 0; i < 256; i++) CHECK(y[i] == x[i ^ 1]);
    missing = 1;
    OK(gpu.launch("swap", 1, 1, 256, 0, {&in, &out, &missing}));
    y = download<float>(gpu, out, 256);
    bool seen = false;
    for (float value : y) seen |= std::isnan(value);
    CHECK(seen);
}

// The device's error after a launch, which everything on the device must answer and nothing on another.
CUresult error_of(const char *kernel, unsigned block, unsigned shared) {
    Gpu other(1), gpu(0);
    CUdeviceptr out = room(256 * 4);
    OK(gpu.launch(kernel, 1, 1, block, shared, {&out, &out}));
    CUresult error = cuStreamSynchronize(gpu.stream);
    std::size_t free, total;
    if (error != CUDA_SUCCESS) {
        CHECK(cuMemGetInfo_v2(&free, &total) == error && cuCtxSynchronize() == error);
        CHECK(cuMemAlloc_v2(&out, 16) == error);
    }
    OK(cuCtxSetCurrent(other.context));
    OK(cuMemGetInfo_v2(&free, &total));
    sdshard_rig_reset();
    return error;
}

void bad_launches_are_errors_of_their_device_that_stay() {
    CHECK(error_of("divergent_barrier", 64, 0) == CUDA_ERROR_LAUNCH_FAILED);
    CHECK(error_of("two_barriers", 64, 0) == CUDA_ERROR_LAUNCH_FAILED);
    CHECK(error_of("divergent_shuffle", 64, 0) == CUDA_ERROR_LAUNCH_FAILED);
    CHECK(error_of("misaligned", 1, 0) == CUDA_ERROR_MISALIGNED_ADDRESS);
    CHECK(error_of("shared_too_far", 64, 256) == CUDA_ERROR_ILLEGAL_ADDRESS);
    CHECK(error_of("bottomless", 1, 0) == CUDA_ERROR_ILLEGAL_ADDRESS);
}

void one_element_too_far_is_an_illegal_address() {
    for (std::size_t count : {std::size_t(4), std::size_t(1000), std::size_t(1024), std::size_t(100000)}) {
        Gpu gpu(0);
        std::vector<float> x = numbers(count, 6);
        CUdeviceptr in = upload(gpu, x), out = room(count * 4);
        Scaled p = {static_cast<unsigned>(count), 1.0f};
        OK(gpu.launch("scale_too_much", static_cast<unsigned>(count / 256 + 1), 1, 256, 0, {&in, &out, &p}));
        CHECK(cuStreamSynchronize(gpu.stream) == CUDA_ERROR_ILLEGAL_ADDRESS);
        sdshard_rig_reset();
    }
}

void freed_memory_is_nobodys() {
    Gpu gpu(0);
    CUdeviceptr in = upload(gpu, numbers(256, 7)), out = room(256 * 4);
    OK(cuMemFree_v2(in));
    Scaled p = {256, 1.0f};
    OK(gpu.launch("scale", 1, 1, 256, 0, {&in, &out, &p}));
    CHECK(cuStreamSynchronize(gpu.stream) == CUDA_ERROR_ILLEGAL_ADDRESS);
    sdshard_rig_reset();
    CHECK(cuMemFree_v2(in) == CUDA_ERROR_INVALID_VALUE);
}

void what_cannot_be_launched_is_refused() {
    Gpu gpu(0);
    CUdeviceptr out = room(16);
    CHECK(gpu.launch("votes", 1, 1, 512, 0, {&out}) == CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    CHECK(gpu.launch("votes", 0, 1, 32, 0, {&out}) == CUDA_ERROR_INVALID_VALUE);
    CHECK(gpu.launch("votes", 1, 65536, 32, 0, {&out}) == CUDA_ERROR_INVALID_VALUE);
    CHECK(gpu.launch("votes", 1, 1, 32, 49 * 1024, {&out}) == CUDA_ERROR_INVALID_VALUE);
    CUfunction function;
    CHECK(cuModuleGetFunction(&function, gpu.module, "nowhere") == CUDA_ERROR_NOT_FOUND);
    CHECK(cuModuleGetFunction(&function, gpu.module, "not_there") == CUDA_ERROR_NOT_FOUND);
    CUmodule module;
    CHECK(cuModuleLoadData(&module, ptx("sm_90").c_str()) == CUDA_ERROR_INVALID_PTX);
    CHECK(cuModuleLoadData(&module, "no kernels") == CUDA_ERROR_INVALID_PTX);
    // More dynamic shared memory, once it is asked for: 163 KiB less the 1 KiB that the kernel has.
    OK(cuModuleGetFunction(&function, gpu.module, "softmax"));
    int value;
    OK(cuFuncGetAttribute(&value, 1, function));
    CHECK(value == 1024);
    CHECK(cuFuncSetAttribute(function, 8, 163 * 1024) == CUDA_ERROR_INVALID_VALUE);
    OK(cuFuncSetAttribute(function, 8, 162 * 1024));
    unsigned columns = 32;
    CUdeviceptr x = upload(gpu, numbers(32, 8)), y = room(32 * 4);
    OK(gpu.launch("softmax", 1, 1, 32, 162 * 1024, {&x, &y, &columns}));
    OK(cuStreamSynchronize(gpu.stream));
}

// ---- streams, events, copies

void nothing_is_done_before_it_must_and_events_order_streams() {
    Gpu gpu(0);
    CUstream second;
    OK(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
    CUdeviceptr flag = upload(gpu, std::vector<unsigned>{0}), out = upload(gpu, std::vector<unsigned>{0});
    OK(cuStreamSynchronize(gpu.stream));
    CUevent spun;
    OK(cuEventCreate(&spun, 0));
    OK(cuEventQuery(spun)); // nothing recorded: nothing to wait for
    OK(gpu.launch("spin", 1, 1, 1, 0, {&flag, &out}));
    OK(cuEventRecord(spun, gpu.stream));
    CHECK(cuEventQuery(spun) == CUDA_ERROR_NOT_READY);
    void *memory;
    OK(cuMemHostAlloc(&memory, 4, 0));
    auto *seen = static_cast<unsigned *>(memory);
    OK(cuStreamWaitEvent(second, spun, 0));
    OK(cuMemcpyDtoHAsync_v2(seen, out, 4, second));
    CHECK(*seen == 0xffffffffu);
    CHECK(cuStreamQuery(second) == CUDA_ERROR_NOT_READY);
    CUstream third;
    OK(cuStreamCreate(&third, CU_STREAM_NON_BLOCKING));
    unsigned one = 1;
    OK(cuMemcpyHtoDAsync_v2(flag, &one, 4, third));
    one = 2; // pageable memory is read at once
    OK(cuStreamSynchronize(second));
    CHECK(*seen == 7);
    OK(cuEventSynchronize(spun));
    CUevent later;
    OK(cuEventCreate(&later, 0));
    OK(cuEventRecord(later, gpu.stream));
    OK(cuEventSynchronize(later));
    float milliseconds = -1;
    OK(cuEventElapsedTime(&milliseconds, spun, later));
    CHECK(milliseconds >= 0);
    // Pinned memory is read when its turn comes.
    OK(cuMemcpyHtoDAsync_v2(flag, std::vector<unsigned>{0}.data(), 4, gpu.stream));
    OK(cuStreamSynchronize(gpu.stream));
    OK(gpu.launch("spin", 1, 1, 1, 0, {&flag, &out}));
    *seen = 3;
    OK(cuMemcpyHtoDAsync_v2(out, seen, 4, gpu.stream));
    *seen = 4;
    OK(cuMemcpyHtoDAsync_v2(flag, std::vector<unsigned>{1}.data(), 4, third));
    CHECK(download<unsigned>(gpu, out, 1)[0] == 4);
    OK(cuMemFreeHost(memory));
    OK(cuStreamDestroy_v2(second));
    CHECK(cuStreamSynchronize(second) == CUDA_ERROR_INVALID_HANDLE);
}

void devices_copy_to_each_other_and_a_bad_link_shows() {
    Gpu one(1), zero(0);
    std::vector<float> x = numbers(1 << 18, 9);
    CUdeviceptr from = upload(zero, x);
    CUevent written;
    OK(cuEventCreate(&written, CU_EVENT_DISABLE_TIMING));
    OK(cuEventRecord(written, zero.stream));
    OK(cuCtxSetCurrent(one.context));
    auto copied = [&] {
        CUdeviceptr to = room(x.size() * 4);
        OK(cuStreamWaitEvent(one.stream, written, 0));
        OK(cuMemcpyPeerAsync(to, one.context, from, zero.context, x.size() * 4, one.stream));
        std::vector<float> y = download<float>(one, to, x.size());
        OK(cuMemFree_v2(to));
        return y;
    };
    int can;
    OK(cuDeviceCanAccessPeer(&can, 1, 0));
    CHECK(can == 1 && copied() == x);
    OK(cuCtxEnablePeerAccess(zero.context, 0));
    CHECK(cuCtxEnablePeerAccess(zero.context, 0) == CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
    CHECK(copied() == x);
    set("PEERS", "corrupt");
    CHECK(copied() != x);
    OK(cuCtxDisablePeerAccess(zero.context));
    CHECK(copied() == x); // through the host
    set("PEERS", "none");
    OK(cuDeviceCanAccessPeer(&can, 1, 0));
    CHECK(can == 0 && cuCtxEnablePeerAccess(zero.context, 0) == CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
    CHECK(copied() == x);
}

void graphs_repeat_what_was_captured() {
    Gpu gpu(0);
    CUdeviceptr x = upload(gpu, std::vector<float>{1.0f});
    OK(cuStreamSynchronize(gpu.stream));
    OK(cuStreamBeginCapture_v2(gpu.stream, 1));
    Scaled p = {1, 2.0f};
    OK(gpu.launch("scale", 1, 1, 32, 0, {&x, &x, &p}));
    CHECK(cuStreamSynchronize(gpu.stream) == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    CUdeviceptr no;
    CHECK(cuMemAlloc_v2(&no, 16) == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    CUgraph graph;
    OK(cuStreamEndCapture(gpu.stream, &graph));
    CHECK(download<float>(gpu, x, 1)[0] == 1.0f);
    CUgraphExec executable;
    OK(cuGraphInstantiateWithFlags(&executable, graph, 0));
    OK(cuGraphDestroy(graph));
    for (int i = 0; i < 3; i++) OK(cuGraphLaunch(executable, gpu.stream));
    CHECK(download<float>(gpu, x, 1)[0] == 8.0f);
    OK(cuGraphExecDestroy(executable));
}

void graphs_are_made_from_lists_of_kernels() {
    Gpu gpu(0);
    CUdeviceptr x = upload(gpu, std::vector<float>{1.0f});
    CUfunction function;
    OK(cuModuleGetFunction(&function, gpu.module, "scale"));
    Scaled p = {1, 2.0f};
    void *arguments[] = {&x, &x, &p};
    KernelNode kernel = {function, 1, 1, 1, 32, 1, 1, 0, arguments, nullptr, nullptr, nullptr};
    CUgraph graph;
    OK(cuGraphCreate(&graph, 0));
    CUgraphNode first, second;
    OK(cuGraphAddKernelNode_v2(&first, graph, nullptr, 0, &kernel));
    p.factor = 3.0f; // arguments are copied
    CHECK(cuGraphAddKernelNode_v2(&second, graph, nullptr, 0, &kernel) == CUDA_ERROR_NOT_SUPPORTED);
    OK(cuGraphAddKernelNode_v2(&second, graph, &first, 1, &kernel));
    CHECK(cuGraphAddKernelNode_v2(&second, graph, &first, 1, &kernel) == CUDA_ERROR_NOT_SUPPORTED);
    CUgraphExec executable;
    set("FAULTS", "graph:1");
    CHECK(cuGraphInstantiateWithFlags(&executable, graph, 0) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuGraphInstantiateWithFlags(&executable, graph, 0));
    OK(cuGraphDestroy(graph));
    std::uint64_t launches = sdshard_rig_calls("cuLaunchKernel", 0), graphs = sdshard_rig_calls("cuGraphLaunch", 0);
    for (int i = 0; i < 2; i++) OK(cuGraphLaunch(executable, gpu.stream));
    CHECK(download<float>(gpu, x, 1)[0] == 36.0f);
    CHECK(sdshard_rig_calls("cuLaunchKernel", 0) == launches && sdshard_rig_calls("cuGraphLaunch", 0) == graphs + 2);
    // Its kernels are launches, of which the second one of the second time fails.
    float left = 36.0f;
    for (const char *fault : {"launch:4", "node:4"}) {
        set("FAULTS", fault);
        OK(cuGraphLaunch(executable, gpu.stream));
        cuGraphLaunch(executable, gpu.stream);
        CHECK(cuStreamSynchronize(gpu.stream) == CUDA_ERROR_LAUNCH_FAILED);
        CHECK(cuGraphLaunch(executable, gpu.stream) == CUDA_ERROR_LAUNCH_FAILED);
        sdshard_rig_reset();
        left *= 2.0f * 3.0f * 2.0f;
        CHECK(download<float>(gpu, x, 1)[0] == left);
    }
    OK(cuGraphExecDestroy(executable));
}

// ---- limits and faults

void memory_has_an_end() {
    set("DEVICES", "4"); // the last has not been used so far
    set("MEMORY", "1000000,1000000,1000000,5000");
    Gpu gpu(3);
    std::size_t free, total;
    OK(cuMemGetInfo_v2(&free, &total));
    CHECK(total == 5000 && free == 5000);
    CUdeviceptr at, more;
    OK(cuMemAlloc_v2(&at, 4096));
    OK(cuMemGetInfo_v2(&free, &total));
    CHECK(free == 5000 - 4096);
    CHECK(cuMemAlloc_v2(&more, free + 1) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAlloc_v2(&more, free));
    OK(cuMemFreeAsync(at, gpu.stream));
    OK(cuMemAllocAsync(&at, 4096, gpu.stream)); // waits for the memory that comes back
    OK(cuMemFree_v2(at));
    OK(cuMemFree_v2(more));
    CHECK(cuMemcpyDtoH_v2(&total, at, 8) == CUDA_ERROR_INVALID_VALUE);
}

void faults_come_at_their_turn() {
    Gpu gpu(0);
    CUdeviceptr at, out = room(16);
    set("FAULTS", "alloc:2,launch:2");
    OK(cuMemAlloc_v2(&at, 16));
    CHECK(cuMemAlloc_v2(&at, 16) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAlloc_v2(&at, 16));
    OK(gpu.launch("votes", 1, 1, 32, 0, {&out}));
    OK(cuStreamSynchronize(gpu.stream));
    OK(gpu.launch("votes", 1, 1, 32, 0, {&out}));
    CHECK(cuStreamSynchronize(gpu.stream) == CUDA_ERROR_LAUNCH_FAILED);
    sdshard_rig_reset();
    OK(cuStreamSynchronize(gpu.stream));
    Gpu other(1);
    set("FAULTS", "lost:1:3");
    OK(cuCtxSynchronize());
    OK(cuCtxSynchronize());
    CHECK(cuCtxSynchronize() == CUDA_ERROR_UNKNOWN);
    CHECK(cuStreamSynchronize(other.stream) == CUDA_ERROR_UNKNOWN);
    OK(cuCtxSetCurrent(gpu.context));
    OK(cuCtxSynchronize());
}

void devices_are_as_many_and_as_old_as_told() {
    set("DEVICES", "5");
    set("CAPABILITY", "9.0,7.5");
    int count, major;
    OK(cuDeviceGetCount(&count));
    OK(cuDeviceGetAttribute(&major, 75, 0));
    CHECK(count == 5 && major == 9);
    OK(cuDeviceGetAttribute(&major, 75, 4));
    CHECK(major == 7);
    CUdevice device;
    CHECK(cuDeviceGet(&device, 5) == CUDA_ERROR_INVALID_DEVICE);
    CUuuid one, other;
    OK(cuDeviceGetUuid(&one, 0));
    OK(cuDeviceGetUuid(&other, 1));
    CHECK(std::memcmp(&one, &other, sizeof one) != 0);
    const char *name;
    OK(cuGetErrorName(CUDA_ERROR_OUT_OF_MEMORY, &name));
    CHECK(std::string(name) == "CUDA_ERROR_OUT_OF_MEMORY");
    set("DEVICES", "0");
    CHECK(cuInit(0) == CUDA_ERROR_NO_DEVICE);
}

} // namespace

int main() {
    OK(cuInit(0));
#define TEST(name) {#name, name}
    const std::pair<const char *, void (*)()> tests[] = {
        TEST(a_tail_is_left_alone_and_unwritten_memory_is_no_number),
        TEST(shuffles_and_shared_memory_make_a_softmax),
        TEST(tensor_cores_make_a_matrix_product_for_every_architecture),
        TEST(a_missing_wait_or_barrier_is_seen),
        TEST(bad_launches_are_errors_of_their_device_that_stay),
        TEST(one_element_too_far_is_an_illegal_address),
        TEST(freed_memory_is_nobodys),
        TEST(what_cannot_be_launched_is_refused),
        TEST(nothing_is_done_before_it_must_and_events_order_streams),
        TEST(devices_copy_to_each_other_and_a_bad_link_shows),
        TEST(graphs_repeat_what_was_captured),
        TEST(graphs_are_made_from_lists_of_kernels),
        TEST(memory_has_an_end),
        TEST(faults_come_at_their_turn),
        TEST(devices_are_as_many_and_as_old_as_told),
    };
    for (auto [name, test] : tests) {
        running = name;
        test();
        std::printf("ok %s\n", name);
        std::fflush(stdout);
        sdshard_rig_reset();
    }
}
