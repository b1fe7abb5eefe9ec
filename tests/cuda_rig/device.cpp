#include "device.h"

#include <array>

#include "settings.h"

namespace rig {
namespace {

auto &all_devices() {
    static auto &all = *[] {
        auto *fresh = new std::array<std::unique_ptr<Device>, MOST_DEVICES>;
        for (int i = 0; i < MOST_DEVICES; i++) (*fresh)[std::size_t(i)] = std::make_unique<Device>(i);
        return fresh;
    }();
    return all;
}

} // namespace

Device &device(int number) {
    return *all_devices()[std::size_t(number)];
}

void heal_devices() {
    for (int i = 0; i < MOST_DEVICES; i++) device(i).heal();
}

Device::Device(int number) : number(number) {}

void Device::fail(CUresult code, const std::string &what) {
    int none = CUDA_SUCCESS;
    if (error_.compare_exchange_strong(none, code)) say("device " + std::to_string(number) + " has failed: " + what);
}

std::shared_ptr<Stream> Device::new_stream(bool blocks) {
    auto stream = Stream::start(*this, blocks);
    std::lock_guard lock(streams_mutex_);
    streams_[reinterpret_cast<CUstream>(stream.get())] = stream;
    return stream;
}

std::shared_ptr<Stream> Device::stream(CUstream handle) {
    std::lock_guard lock(streams_mutex_);
    auto value = reinterpret_cast<std::uintptr_t>(handle);
    if (value == 0 || value == CU_STREAM_LEGACY || value == CU_STREAM_PER_THREAD) {
        if (!null_) null_ = Stream::start(*this, true);
        return null_;
    }
    auto found = streams_.find(handle);
    return found == streams_.end() ? nullptr : found->second;
}

bool Device::destroy_stream(CUstream handle) {
    std::lock_guard lock(streams_mutex_);
    auto found = streams_.find(handle);
    if (found == streams_.end()) return false;
    found->second->close();
    streams_.erase(found);
    return true;
}

std::vector<Mark> Device::marks() {
    std::lock_guard lock(streams_mutex_);
    std::vector<Mark> marks;
    if (null_) marks.push_back(null_->mark());
    for (auto &[handle, stream] : streams_) marks.push_back(stream->mark());
    return marks;
}

void Device::wait() {
    for (const Mark &mark : marks()) mark.wait();
}

Mark Device::enqueue(const std::shared_ptr<Stream> &stream, Work work) {
    std::vector<Mark> first;
    if (stream->blocks()) {
        std::lock_guard lock(streams_mutex_);
        if (stream != null_) {
            if (null_) first.push_back(null_->mark());
        } else {
            for (auto &[handle, other] : streams_)
                if (other->blocks()) first.push_back(other->mark());
        }
    }
    for (Mark &mark : first)
        if (!mark.is_passed()) stream->enqueue([mark] { mark.wait(); });
    return stream->enqueue(std::move(work));
}

} // namespace rig
