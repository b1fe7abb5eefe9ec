#include "grid.h"

#include <algorithm>
#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>

namespace rig {
namespace {

struct Job {
    const Launch *launch;
    std::size_t blocks, next = 0, under_way = 0;
    Failure failure;
};

class Pool {
  public:
    Pool() {
        catch_faults();
        // At least two, so that blocks of one grid meet.
        for (unsigned i = 0; i < std::max(2u, std::thread::hardware_concurrency()); i++)
            std::thread([this] { work(); }).detach();
    }

    Failure run(const Launch &launch) {
        std::unique_lock lock(mutex_);
        Job job = {&launch, std::size_t(launch.grid.x) * launch.grid.y * launch.grid.z, 0, 0, {}};
        auto place = jobs_.insert(jobs_.end(), &job);
        changed_.notify_all();
        changed_.wait(lock, [&] { return job.next == job.blocks && job.under_way == 0; });
        jobs_.erase(place);
        return job.failure;
    }

  private:
    // A job of which blocks are left; they go to its end of the list, so that grids share the threads.
    Job *next_job() {
        for (auto i = jobs_.begin(); i != jobs_.end(); ++i)
            if ((*i)->next < (*i)->blocks) {
                jobs_.splice(jobs_.end(), jobs_, i);
                return jobs_.back();
            }
        return nullptr;
    }

    void work() {
        std::unique_lock lock(mutex_);
        for (;;) {
            Job *job = next_job();
            if (!job) {
                changed_.wait(lock);
                continue;
            }
            // Blocks have no order: by chance, those from the middle or the end come first.
            std::size_t number = job->next++;
            if (job->launch->seed != 0) number = (number + job->launch->seed) % job->blocks;
            job->under_way++;
            lock.unlock();
            Failure failure = run_block(*job->launch, number);
            lock.lock();
            job->under_way--;
            if (failure.code != CUDA_SUCCESS) {
                if (job->failure.code == CUDA_SUCCESS) job->failure = failure;
                job->next = job->blocks;
            }
            if (job->next == job->blocks && job->under_way == 0) changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::list<Job *> jobs_;
};

} // namespace

Failure run_grid(const Launch &launch) {
    static Pool &pool = *new Pool;
    return pool.run(launch);
}

} // namespace rig
