// cuStream*, cuEvent*, cuGraph*, cuLaunchHostFunc.
#include <map>
#include <mutex>
#include <string>

#include "api.h"
#include "settings.h"

using namespace rig;

namespace {

// Objects by the handles that are given out. Used where nothing else holds them.
template <typename Handle, typename Object> class Handles {
  public:
    Handle add(std::shared_ptr<Object> object) {
        std::lock_guard lock(mutex_);
        auto handle = reinterpret_cast<Handle>(object.get());
        objects_[handle] = std::move(object);
        return handle;
    }
    std::shared_ptr<Object> find(Handle handle) {
        std::lock_guard lock(mutex_);
        auto found = objects_.find(handle);
        return found == objects_.end() ? nullptr : found->second;
    }
    bool remove(Handle handle) {
        std::lock_guard lock(mutex_);
        return objects_.erase(handle) == 1;
    }

  private:
    std::mutex mutex_;
    std::map<Handle, std::shared_ptr<Object>> objects_;
};

auto &events = *new Handles<CUevent, Event>;
auto &graphs = *new Handles<CUgraph, Graph>;
auto &executables = *new Handles<CUgraphExec, Graph>;

std::mutex captures_mutex;
std::map<int, int> captures; // under way on each device

} // namespace

namespace rig {

CUresult enter(Device *&device, CUstream handle, std::shared_ptr<Stream> &stream, const char *function) {
    RIG_TRY(enter(device, function));
    stream = device->stream(handle);
    return stream ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult put(Device &device, const std::shared_ptr<Stream> &stream, Work work) {
    if (stream->capture)
        stream->capture->push_back([work] { return work; });
    else
        device.enqueue(stream, std::move(work));
    return CUDA_SUCCESS;
}

std::shared_ptr<Graph> graph_of(CUgraph handle) {
    return graphs.find(handle);
}

bool is_capturing(Device &device) {
    std::lock_guard lock(captures_mutex);
    return captures[device.number] > 0;
}

} // namespace rig

RIG_API CUresult cuStreamCreate(CUstream *handle, unsigned flags) {
    Device *device;
    RIG_TRY(enter(device));
    if (flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    *handle = reinterpret_cast<CUstream>(device->new_stream(flags != CU_STREAM_NON_BLOCKING).get());
    return CUDA_SUCCESS;
}

RIG_API CUresult cuStreamCreateWithPriority(CUstream *handle, unsigned flags, int) {
    return cuStreamCreate(handle, flags);
}

RIG_API CUresult cuStreamDestroy_v2(CUstream handle) {
    Device *device;
    RIG_TRY(enter(device));
    return device->destroy_stream(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

RIG_API CUresult cuStreamSynchronize(CUstream handle) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    if (stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    stream->mark().wait();
    return device->error();
}

RIG_API CUresult cuStreamQuery(CUstream handle) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    return stream->mark().is_passed() ? device->error() : CUDA_ERROR_NOT_READY;
}

RIG_API CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    std::shared_ptr<Event> event = events.find(event_handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    // A graph is a list here: nothing outside it can be waited for.
    if (stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    std::lock_guard lock(event->mutex);
    if (!event->recorded) return CUDA_SUCCESS;
    return put(*device, stream, [mark = event->mark] { mark.wait(); });
}

RIG_API CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void *argument) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    return put(*device, stream, [=] { function(argument); });
}

RIG_API CUresult cuEventCreate(CUevent *handle, unsigned flags) {
    Device *device;
    RIG_TRY(enter(device));
    *handle = events.add(std::make_shared<Event>(!(flags & CU_EVENT_DISABLE_TIMING)));
    return CUDA_SUCCESS;
}

RIG_API CUresult cuEventDestroy_v2(CUevent handle) {
    Device *device;
    RIG_TRY(enter(device));
    return events.remove(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

RIG_API CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, stream_handle, stream));
    std::shared_ptr<Event> event = events.find(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    std::lock_guard lock(event->mutex);
    event->time = std::make_shared<Event::Time>();
    event->mark = device->enqueue(stream, [time = event->time] { *time = std::chrono::steady_clock::now(); });
    event->recorded = true;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuEventQuery(CUevent handle) {
    Device *device;
    RIG_TRY(enter(device));
    std::shared_ptr<Event> event = events.find(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    std::lock_guard lock(event->mutex);
    return event->mark.is_passed() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

RIG_API CUresult cuEventSynchronize(CUevent handle) {
    Device *device;
    RIG_TRY(enter(device));
    std::shared_ptr<Event> event = events.find(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    Mark mark;
    {
        std::lock_guard lock(event->mutex);
        mark = event->mark;
    }
    mark.wait();
    return mark.stream ? mark.stream->device().error() : CUDA_SUCCESS;
}

RIG_API CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    Device *device;
    RIG_TRY(enter(device));
    Event::Time times[2];
    int i = 0;
    for (CUevent handle : {start, end}) {
        std::shared_ptr<Event> event = events.find(handle);
        if (!event || !event->takes_time || !event->recorded) return CUDA_ERROR_INVALID_HANDLE;
        std::lock_guard lock(event->mutex);
        if (!event->mark.is_passed()) return CUDA_ERROR_NOT_READY;
        times[i++] = *event->time;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(times[1] - times[0]).count();
    return CUDA_SUCCESS;
}

RIG_API CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
    return cuEventElapsedTime(milliseconds, start, end);
}

RIG_API CUresult cuStreamBeginCapture_v2(CUstream handle, int) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    if (!handle || stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    stream->capture = std::make_shared<Graph>();
    std::lock_guard lock(captures_mutex);
    captures[device->number]++;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    Device *device;
    std::shared_ptr<Stream> stream;
    *graph = nullptr;
    RIG_TRY(enter(device, handle, stream));
    if (!stream->capture) return CUDA_ERROR_INVALID_VALUE;
    *graph = graphs.add(std::move(stream->capture));
    stream->capture = nullptr;
    std::lock_guard lock(captures_mutex);
    captures[device->number]--;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuStreamIsCapturing(CUstream handle, int *status) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    *status = stream->capture ? 1 : 0;
    return CUDA_SUCCESS;
}

RIG_API CUresult cuGraphCreate(CUgraph *graph, unsigned flags) {
    Device *device;
    RIG_TRY(enter(device));
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    *graph = graphs.add(std::make_shared<Graph>());
    return CUDA_SUCCESS;
}

RIG_API CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long) {
    Device *device;
    RIG_TRY(enter(device));
    std::shared_ptr<Graph> nodes = graphs.find(graph);
    if (!nodes) return CUDA_ERROR_INVALID_HANDLE;
    if (this_graph_fails()) {
        say("no memory for a graph on device " + std::to_string(device->number) + ", as SDSHARD_RIG_FAULTS wants it");
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *executable = executables.add(std::make_shared<Graph>(*nodes));
    return CUDA_SUCCESS;
}

RIG_API CUresult cuGraphUpload(CUgraphExec executable, CUstream handle) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    return executables.find(executable) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

RIG_API CUresult cuGraphLaunch(CUgraphExec executable, CUstream handle) {
    Device *device;
    std::shared_ptr<Stream> stream;
    RIG_TRY(enter(device, handle, stream));
    std::shared_ptr<Graph> nodes = executables.find(executable);
    if (!nodes) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; // a graph inside another is not imitated
    Work fails = [device] {
        device->fail(CUDA_ERROR_LAUNCH_FAILED, "a kernel of a graph, as SDSHARD_RIG_FAULTS wants it");
    };
    for (auto &node : *nodes) device->enqueue(stream, this_node_fails() ? fails : node());
    return CUDA_SUCCESS;
}

RIG_API CUresult cuGraphDestroy(CUgraph graph) {
    return graphs.remove(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

RIG_API CUresult cuGraphExecDestroy(CUgraphExec executable) {
    return executables.remove(executable) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
