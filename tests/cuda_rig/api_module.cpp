// cuModule*, cuFunc*, cuLaunchKernel: images of kernels, bound to the same kernels compiled for the host.
#include <dlfcn.h>
#include <link.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>

#include "api.h"
#include "grid.h"
#include "image.h"
#include "settings.h"

// By the numbers of CUfunction_attribute.
enum {
    MAX_THREADS_PER_BLOCK,
    SHARED_SIZE_BYTES,
    CONST_SIZE_BYTES,
    LOCAL_SIZE_BYTES,
    NUM_REGS,
    PTX_VERSION,
    BINARY_VERSION,
    CACHE_MODE_CA,
    MAX_DYNAMIC_SHARED_SIZE_BYTES,
    PREFERRED_SHARED_MEMORY_CARVEOUT
};

// A library of kernels compiled for the host.
struct Library {
    void *handle = nullptr;
    std::size_t tls_module = 0, tls_bytes = 0;
};

struct rig_function {
    std::string name;
    int device;
    rig::ImageKernel image;
    int architecture;
    Library library;
    const RigEntry *entry;
    std::size_t most_dynamic_shared = 48 * 1024;
};

struct rig_module {
    int device;
    rig::Image image;
    std::map<std::string, std::unique_ptr<rig_function>> functions;
};

using namespace rig;

namespace {

std::mutex mutex;
auto &modules = *new std::map<CUmodule, std::unique_ptr<rig_module>>;

// Where the libraries of kernels are: beside this one, unless told otherwise.
std::string folder() {
    if (std::string told = settings().kernels; !told.empty()) return told;
    Dl_info info;
    if (!dladdr(reinterpret_cast<void *>(&folder), &info)) return ".";
    std::string path = info.dli_fname;
    std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

struct Wanted {
    const link_map *map;
    Library *library;
};

int note_tls(dl_phdr_info *info, std::size_t, void *data) {
    auto *wanted = static_cast<Wanted *>(data);
    if (info->dlpi_addr != wanted->map->l_addr || std::strcmp(info->dlpi_name, wanted->map->l_name) != 0) return 0;
    wanted->library->tls_module = info->dlpi_tls_modid;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS) wanted->library->tls_bytes = info->dlpi_phdr[i].p_memsz;
    return 1;
}

Library load(const std::string &path) {
    Library library;
    library.handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library.handle) return library;
    Wanted wanted = {nullptr, &library};
    dlinfo(library.handle, RTLD_DI_LINKMAP, &wanted.map);
    dl_iterate_phdr(note_tls, &wanted);
    return library;
}

// The kernels compiled as if for this architecture, which is the image's and not the device's: older images take older
// paths.
Library library_for(int architecture) {
    for (int built : {80, 75, 70}) {
        if (built > architecture) continue;
        Library library = load(folder() + "/libkernels_" + std::to_string(built * 10) + ".so");
        if (library.handle) return library;
        say(std::string("no kernels: ") + dlerror());
        break;
    }
    return {};
}

CUresult load_image(CUmodule *module, const void *bytes) {
    Device *device;
    RIG_TRY(enter(device));
    Image image = read_image(bytes);
    if (image.architecture == 0) return image.is_ptx ? CUDA_ERROR_INVALID_PTX : CUDA_ERROR_INVALID_IMAGE;
    int capability = capability_of(device->number);
    // PTX runs on its architecture and all later ones, a cubin within its major version.
    bool runs = image.architecture <= capability && (image.is_ptx || image.architecture / 10 == capability / 10);
    if (!runs) {
        say("an image for sm_" + std::to_string(image.architecture) + " does not run on device " +
            std::to_string(device->number));
        return image.is_ptx ? CUDA_ERROR_INVALID_PTX : CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    auto made = std::make_unique<rig_module>();
    made->device = device->number;
    made->image = std::move(image);
    std::lock_guard lock(mutex);
    *module = made.get();
    modules[made.get()] = std::move(made);
    return CUDA_SUCCESS;
}

// Whether the image's kernel and the host's take the same parameters.
bool agree(const std::string &name, const ImageKernel &image, const RigEntry &entry) {
    bool same = image.parameters.size() == entry.count;
    for (unsigned i = 0; same && i < entry.count; i++) same = image.parameters[i] == entry.sizes[i];
    if (!same) say("kernel " + name + ": the image's parameters are not those of the host's build");
    return same;
}

bool is_function(CUfunction function) {
    std::lock_guard lock(mutex);
    for (auto &[handle, module] : modules)
        for (auto &[name, known] : module->functions)
            if (known.get() == function) return true;
    return false;
}

} // namespace

RIG_API CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice number);

RIG_API CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    return load_image(module, image);
}

RIG_API CUresult cuModuleLoad(CUmodule *module, const char *path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return CUDA_ERROR_NOT_FOUND;
    std::string image((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    return load_image(module, image.c_str());
}

RIG_API CUresult cuModuleUnload(CUmodule module) {
    Device *device;
    RIG_TRY(enter(device));
    device->wait(); // what is queued holds pointers to its kernels
    std::lock_guard lock(mutex);
    return modules.erase(module) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

RIG_API CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    Device *device;
    RIG_TRY(enter(device));
    std::lock_guard lock(mutex);
    auto found = modules.find(module);
    if (found == modules.end()) return CUDA_ERROR_INVALID_HANDLE;
    rig_module &m = *found->second;
    auto kernel = m.image.kernels.find(name);
    if (kernel == m.image.kernels.end()) return CUDA_ERROR_NOT_FOUND;
    std::unique_ptr<rig_function> &known = m.functions[name];
    if (!known) {
        Library library = library_for(m.image.architecture);
        std::string symbol = std::string("rig_entry_") + name;
        auto *entry = library.handle ? static_cast<const RigEntry *>(dlsym(library.handle, symbol.c_str())) : nullptr;
        if (!entry) say(std::string("kernel ") + name + " is in the image and not among those built for the host");
        if (!entry || !agree(name, kernel->second, *entry)) {
            m.functions.erase(name);
            return CUDA_ERROR_NOT_FOUND;
        }
        known = std::make_unique<rig_function>(
            rig_function{name, m.device, kernel->second, m.image.architecture, library, entry});
    }
    *function = known.get();
    return CUDA_SUCCESS;
}

RIG_API CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction function) {
    if (!is_function(function)) return CUDA_ERROR_INVALID_HANDLE;
    switch (attribute) {
    case MAX_THREADS_PER_BLOCK: *value = static_cast<int>(function->image.most_threads); break;
    case SHARED_SIZE_BYTES: *value = static_cast<int>(function->image.static_shared); break;
    case NUM_REGS: *value = static_cast<int>(function->image.registers); break;
    case PTX_VERSION:
    case BINARY_VERSION: *value = function->architecture; break;
    case MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = static_cast<int>(function->most_dynamic_shared); break;
    case CONST_SIZE_BYTES:
    case LOCAL_SIZE_BYTES:
    case CACHE_MODE_CA: *value = 0; break;
    case PREFERRED_SHARED_MEMORY_CARVEOUT: *value = -1; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

RIG_API CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    Device *device;
    RIG_TRY(enter(device));
    if (!is_function(function)) return CUDA_ERROR_INVALID_HANDLE;
    if (attribute == PREFERRED_SHARED_MEMORY_CARVEOUT) return CUDA_SUCCESS;
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
    int most = 0;
    RIG_TRY(cuDeviceGetAttribute(&most, 97, function->device));
    if (value < 0 || value + static_cast<int>(function->image.static_shared) > most) return CUDA_ERROR_INVALID_VALUE;
    function->most_dynamic_shared = static_cast<std::size_t>(value);
    return CUDA_SUCCESS;
}

namespace {

// What makes the work of a kernel, if it may run on the device as it is asked to: arguments are copied now.
CUresult prepare(Device &device, const KernelNode &node, std::function<Work()> &made) {
    CUfunction function = node.function;
    if (!is_function(function) || function->device != device.number) return CUDA_ERROR_INVALID_HANDLE;
    std::size_t threads = std::size_t(node.block_x) * node.block_y * node.block_z;
    if (node.extra || threads == 0 || threads > 1024 || node.block_x > 1024 || node.block_y > 1024 || node.block_z > 64)
        return CUDA_ERROR_INVALID_VALUE;
    if (node.grid_x == 0 || node.grid_y == 0 || node.grid_z == 0) return CUDA_ERROR_INVALID_VALUE;
    if (node.grid_x > 0x7fffffff || node.grid_y > 65535 || node.grid_z > 65535) return CUDA_ERROR_INVALID_VALUE;
    if (node.shared_bytes > function->most_dynamic_shared) return CUDA_ERROR_INVALID_VALUE;
    if (threads > function->image.most_threads) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    auto launch = std::make_shared<Launch>();
    launch->kernel = function->name;
    launch->entry = function->entry;
    for (unsigned i = 0; i < function->entry->count; i++) {
        auto *from = static_cast<const unsigned char *>(node.parameters[i]);
        launch->values.emplace_back(from, from + function->entry->sizes[i]);
    }
    launch->grid = {node.grid_x, node.grid_y, node.grid_z};
    launch->block = {node.block_x, node.block_y, node.block_z};
    launch->shared_bytes = node.shared_bytes;
    launch->tls_module = function->library.tls_module;
    launch->tls_bytes = function->library.tls_bytes;
    launch->seed = settings().delays;
    made = [&device, launch]() -> Work {
        bool fails = this_launch_fails();
        return [&device, launch, fails] {
            Failure failure = fails ? Failure{CUDA_ERROR_LAUNCH_FAILED,
                                              "kernel " + launch->kernel + ", as SDSHARD_RIG_FAULTS wants it"}
                                    : run_grid(*launch);
            if (failure.code != CUDA_SUCCESS) device.fail(failure.code, failure.what);
        };
    };
    return CUDA_SUCCESS;
}

} // namespace

RIG_API CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                CUstream handle, void **parameters, void **extra) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    std::function<Work()> made;
    RIG_TRY(prepare(*device,
                    {function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, parameters, extra,
                     nullptr, nullptr},
                    made));
    if (stream->capture)
        stream->capture->push_back(std::move(made));
    else
        device->enqueue(stream, made());
    return CUDA_SUCCESS;
}

RIG_API CUresult cuGraphAddKernelNode_v2(CUgraphNode *added, CUgraph handle, const CUgraphNode *before,
                                         std::size_t count, const KernelNode *node) {
    Device *device;
    RIG_TRY(enter(device));
    std::shared_ptr<Graph> graph = graph_of(handle);
    if (!graph) return CUDA_ERROR_INVALID_HANDLE;
    if (node->kernel || node->context) return CUDA_ERROR_NOT_SUPPORTED;
    // Nodes are numbered from 1. A node that does not wait for the one before could run beside it, which a list cannot.
    auto last = reinterpret_cast<CUgraphNode>(graph->size());
    if (graph->empty() ? count != 0 : count != 1 || before[0] != last) {
        say("a graph whose kernels are no list");
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    std::function<Work()> made;
    RIG_TRY(prepare(*device, *node, made));
    graph->push_back(std::move(made));
    *added = reinterpret_cast<CUgraphNode>(graph->size());
    return CUDA_SUCCESS;
}
