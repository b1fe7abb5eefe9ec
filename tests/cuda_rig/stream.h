// Streams: queues with a thread each, so that nothing is done before it must be; and the places in them that events
// are.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "driver_types.h"

namespace rig {

class Device;
class Stream;

// What is done in a stream. It says by itself what went wrong, to its device.
using Work = std::function<void()>;

// What a graph does: for each node, what makes its work anew whenever the graph is launched. A graph is a list here.
using Graph = std::vector<std::function<Work()>>;

// A place in a stream: the work of this number and all before it.
struct Mark {
    std::shared_ptr<Stream> stream;
    std::uint64_t number = 0;

    bool is_passed() const;
    void wait() const;
};

class Stream : public std::enable_shared_from_this<Stream> {
  public:
    // With its thread. A null stream waits for those that block, and those for it.
    static std::shared_ptr<Stream> start(Device &device, bool blocks);

    Mark enqueue(Work work);
    Mark mark();
    // The thread ends once it has nothing to do.
    void close();

    Device &device() const {
        return device_;
    }
    bool blocks() const {
        return blocks_;
    }

    // A graph that takes what would be enqueued. Null: none.
    std::shared_ptr<Graph> capture;

  private:
    friend struct Mark;
    Stream(Device &device, bool blocks) : device_(device), blocks_(blocks) {}
    void run();

    Device &device_;
    const bool blocks_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Work> queue_;
    std::uint64_t enqueued_ = 0, done_ = 0;
    bool closed_ = false;
};

struct Event {
    explicit Event(bool takes_time) : takes_time(takes_time), time(std::make_shared<Time>()) {}

    using Time = std::chrono::steady_clock::time_point;
    const bool takes_time;
    std::mutex mutex;
    bool recorded = false;
    Mark mark;
    std::shared_ptr<Time> time; // of the latest record; written by the stream
};

} // namespace rig
