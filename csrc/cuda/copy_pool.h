// Copies between ordinary and pinned memory by several threads: one alone is slower than the bus to the
// device.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace fct::cuda {

struct Copy {
  void* to = nullptr;
  const void* from = nullptr;
  std::size_t bytes = 0;
};

class CopyPool {
 public:
  CopyPool() = default;
  ~CopyPool();
  CopyPool(const CopyPool&) = delete;
  CopyPool& operator=(const CopyPool&) = delete;

  // Uses up to `threads` threads, this one included. One call at a time.
  void copy(std::span<const Copy> copies, int threads);

 private:
  void work(std::size_t helper);
  void copy_share(std::size_t share) const;

  std::mutex mutex_;
  std::condition_variable started_, ended_;
  std::vector<std::thread> helpers_;  // started when first needed, kept
  std::span<const Copy> copies_;
  std::size_t bytes_ = 0, shares_ = 0;  // of all of them together
  std::size_t generation_ = 0, running_ = 0;
  bool stopping_ = false;
};

}  // namespace fct::cuda
