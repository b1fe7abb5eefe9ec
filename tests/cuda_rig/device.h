// The fake devices: each with its one context, its streams, and the error that it has once it has failed.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "driver_types.h"
#include "stream.h"

namespace rig {

class Device {
  public:
    explicit Device(int number);

    const int number;

    // Sticky: what everything on this device answers. Only the first is kept.
    CUresult error() const { return static_cast<CUresult>(error_.load()); }
    void fail(CUresult code, const std::string &what);
    void heal() { error_ = CUDA_SUCCESS; }

    std::shared_ptr<Stream> new_stream(bool blocks);
    // Of a handle; null for the null stream. Nothing if it is none of this device's.
    std::shared_ptr<Stream> stream(CUstream handle);
    bool destroy_stream(CUstream handle);
    // Until all that was enqueued so far is done.
    void wait();
    // Puts work in a stream, behind what the null stream's rules want done first.
    Mark enqueue(const std::shared_ptr<Stream> &stream, Work work);
    std::vector<Mark> marks();

    std::mutex mutex; // of what follows
    int retained = 0; // of the primary context
    std::set<int> peers;

  private:
    std::atomic<int> error_{CUDA_SUCCESS};
    std::mutex streams_mutex_;
    std::shared_ptr<Stream> null_;
    std::map<CUstream, std::shared_ptr<Stream>> streams_;
};

// Of any number below MOST_DEVICES.
Device &device(int number);
void heal_devices();

} // namespace rig
