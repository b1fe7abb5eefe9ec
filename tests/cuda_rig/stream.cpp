#include "stream.h"

#include <thread>

#include "device.h"
#include "settings.h"

namespace rig {

bool Mark::is_passed() const {
    if (!stream) return true;
    std::lock_guard lock(stream->mutex_);
    return stream->done_ >= number;
}

void Mark::wait() const {
    if (!stream) return;
    std::unique_lock lock(stream->mutex_);
    stream->changed_.wait(lock, [&] { return stream->done_ >= number; });
}

std::shared_ptr<Stream> Stream::start(Device &device, bool blocks) {
    std::shared_ptr<Stream> stream(new Stream(device, blocks));
    std::thread([stream] { stream->run(); }).detach();
    return stream;
}

Mark Stream::enqueue(Work work) {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
    enqueued_++;
    changed_.notify_all();
    return {shared_from_this(), enqueued_};
}

Mark Stream::mark() {
    std::lock_guard lock(mutex_);
    return {shared_from_this(), enqueued_};
}

void Stream::close() {
    std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
}

void Stream::run() {
    std::mt19937_64 chance;
    std::uint64_t seeded = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
        changed_.wait(lock, [&] { return !queue_.empty() || closed_; });
        if (queue_.empty()) return;
        Work work = std::move(queue_.front());
        queue_.pop_front();
        lock.unlock();
        if (std::uint64_t seed = settings().delays; seed != 0) {
            if (seed != seeded) chance.seed(seeded = seed);
            if (chance() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(chance() % 500));
        }
        // A device that has failed does nothing more, and its streams come to their ends.
        if (device_.error() == CUDA_SUCCESS) work();
        work = nullptr; // what it holds may need this stream
        lock.lock();
        done_++;
        changed_.notify_all();
    }
}

} // namespace rig
