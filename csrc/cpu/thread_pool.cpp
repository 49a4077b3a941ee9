// Note [Kept threads]
// There is one pool in a process, and it is never destroyed: at exit its threads sleep, and whoever waits for
// nothing cannot hang. A thread without work for ten seconds ends. Nobody waits for a thread that has not
// begun: the caller works itself, and takes back what no other has begun to help with by the time it is done.
// A fork copies the caller only, so the child forgets the pool, whose mutex may be held by a thread that it
// does not have, and makes another.
#include "thread_pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace fct::cpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kMostThreads = 1024;  // of a process: more than any machine has cores
constexpr std::chrono::seconds kIdle(10);
constexpr std::chrono::microseconds kSpin(30);  // about what it takes to wake a thread that sleeps

// Waits a little for what comes at once, as a call that follows another; false: it did not come.
template <typename Condition>
bool spin_until(const Condition& condition) {
  const auto end = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (condition()) return true;
      _mm_pause();
    }
  } while (Clock::now() < end);
  return false;
}

struct Job {
  const std::function<void()>& work;
  std::int64_t wanted;  // helpers that have not begun
  cpu_set_t cpus{};
  bool has_cpus = false;
  std::exception_ptr error{};  // the first
  std::atomic<std::int64_t> running{0};
};

// Signals are for the threads of those who handle them.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

class Pool {
 public:
  void run(std::int64_t threads, const std::function<void()>& work) {
    Job job{work, std::min(threads, kMostThreads) - 1};
    job.has_cpus = sched_getaffinity(0, sizeof job.cpus, &job.cpus) == 0;
    start(post(job));
    guarded(job);
    std::unique_lock lock(mutex_);
    withdraw(job);
    if (job.running > 0) {
      lock.unlock();
      spin_until([&] { return job.running == 0; });
      lock.lock();
    }
    ended_.wait(lock, [&] { return job.running == 0; });
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  // Returns how many threads are missing.
  std::int64_t post(Job& job) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(&job);
    wanted_ += job.wanted;
    const std::int64_t missing = std::clamp<std::int64_t>(wanted_ - idle_, 0, kMostThreads - threads_);
    threads_ += missing;
    idle_ += missing;  // those to be started count at once, so that nobody starts them twice
    if (job.wanted > 1)
      posted_.notify_all();
    else
      posted_.notify_one();
    return missing;
  }

  void start(std::int64_t count) {
    const SignalsBlocked guard;
    try {
      for (; count > 0; --count) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {  // the machine allows no more: those there are do the work
      const std::lock_guard lock(mutex_);
      threads_ -= count;
      idle_ -= count;
    }
  }

  // What nobody has begun by now is nobody's.
  void withdraw(Job& job) {
    wanted_ -= job.wanted;
    job.wanted = 0;
    const auto place = std::find(jobs_.begin(), jobs_.end(), &job);
    if (place != jobs_.end()) jobs_.erase(place);
  }

  void guarded(Job& job) {
    try {
      job.work();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!job.error) job.error = std::current_exception();
    }
  }

  void serve() {
    pthread_setname_np(pthread_self(), "fct-kept");  // for who looks at a process's threads
    cpu_set_t own;
    bool has_own = sched_getaffinity(0, sizeof own, &own) == 0;
    std::unique_lock lock(mutex_);
    while (Job* job = next(lock)) {
      lock.unlock();
      if (job->has_cpus && !(has_own && CPU_EQUAL(&own, &job->cpus))) {
        has_own = sched_setaffinity(0, sizeof own, &job->cpus) == 0;
        own = job->cpus;
      }
      guarded(*job);
      lock.lock();
      if (--job->running == 0) ended_.notify_all();
      ++idle_;
    }
  }

  // The job to help with next, begun; null when there has been none for long and the thread is to end.
  Job* next(std::unique_lock<std::mutex>& lock) {
    const auto has_job = [this] { return wanted_ > 0; };
    if (!has_job()) {
      lock.unlock();
      spin_until(has_job);
      lock.lock();
    }
    const bool found = posted_.wait_for(lock, kIdle, has_job);
    --idle_;
    if (!found) {
      --threads_;
      return nullptr;
    }
    Job* job = jobs_.front();
    ++job->running;
    --wanted_;
    if (--job->wanted == 0) jobs_.pop_front();
    return job;
  }

  std::mutex mutex_;
  std::condition_variable posted_, ended_;
  std::deque<Job*> jobs_;                // that want more helpers, in the order they came
  std::atomic<std::int64_t> wanted_{0};  // by all of them
  std::int64_t idle_ = 0, threads_ = 0;
};

std::atomic<Pool*> current{nullptr};

Pool& pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { current = nullptr; });
  static_cast<void>(registered);
  Pool* found = current;
  if (found != nullptr) return *found;
  auto* made = new Pool;
  if (current.compare_exchange_strong(found, made)) return *made;
  delete made;  // another thread was first
  return *found;
}

}  // namespace

void on_threads(std::int64_t threads, const std::function<void()>& work) {
  if (threads > 1)
    pool().run(threads, work);
  else
    work();
}

}  // namespace fct::cpu
