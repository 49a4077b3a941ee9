#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace fct::assign {

constexpr std::int64_t kMostThreads = 1024;  // of a call: more than any machine has cores

// Calls work() on this thread and on others, `threads` in all or as many as the machine allows; waits for
// them and rethrows their first error. What is left to do, they are to find out among themselves.
template <typename Work>
void on_threads(std::int64_t threads, const Work& work) {
  std::mutex mutex;
  std::exception_ptr error;
  auto guarded = [&] {
    try {
      work();
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    try {
      for (std::int64_t i = 1; i < std::min(threads, kMostThreads); ++i) helpers.emplace_back(guarded);
    } catch (const std::system_error&) {  // no more threads: those there are do the work
    }
    guarded();
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace fct::assign
