// What an image of kernels says of itself: PTX text or a cubin, as a driver gets it, without its length.
#pragma once
#include <map>
#include <string>
#include <vector>

namespace rig {

// What is known of a kernel without compiling it.
struct ImageKernel {
    std::vector<unsigned> parameters; // bytes of each
    unsigned static_shared = 0;
    unsigned most_threads = 1024;
    unsigned registers = 0; // of each thread; 0: the image does not say
};

struct Image {
    int architecture = 0; // 80 for sm_80; 0: this is no image
    bool is_ptx = false;
    std::map<std::string, ImageKernel> kernels;
};

Image read_image(const void *image);

} // namespace rig
