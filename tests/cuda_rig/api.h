// What every function of the driver's interface begins with.
#pragma once
#include <memory>

#include "device.h"
#include "driver_types.h"

namespace rig {

// Counts a call of a function, the caller's, on the device of this thread's context, and answers what it must: that there
// is no context, or that the device has failed. Else CUDA_SUCCESS, and the device.
CUresult enter(Device *&device, const char *function = __builtin_FUNCTION());

// The same, and the stream of a handle.
CUresult enter(Device *&device, CUstream handle, std::shared_ptr<Stream> &stream,
               const char *function = __builtin_FUNCTION());

// Puts work in a stream, or in the graph that it is capturing.
CUresult put(Device &device, const std::shared_ptr<Stream> &stream, Work work);

// A graph under construction, by its handle; null if it is none.
std::shared_ptr<Graph> graph_of(CUgraph handle);

// Whether a stream of this device captures, during which nothing may wait or allocate.
bool is_capturing(Device &device);

} // namespace rig

// Returns from the calling function unless this is CUDA_SUCCESS.
#define RIG_TRY(call)                                                                                                  \
    if (CUresult result = (call); result != CUDA_SUCCESS) return result
