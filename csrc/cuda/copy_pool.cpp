#include "copy_pool.h"

#include <algorithm>
#include <cstring>

namespace fct::cuda {
namespace {

constexpr std::size_t kLeastShare = std::size_t{1} << 20;  // bytes that are worth waking a thread
constexpr std::size_t kPage = 4096;

}  // namespace

CopyPool::~CopyPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    started_.notify_all();
  }
  for (std::thread& helper : helpers_) helper.join();
}

void CopyPool::copy(void* to, const void* from, std::size_t bytes, int threads) {
  std::unique_lock lock(mutex_);
  to_ = static_cast<char*>(to);
  from_ = static_cast<const char*>(from);
  bytes_ = bytes;
  shares_ = std::clamp<std::size_t>(bytes / kLeastShare, 1, static_cast<std::size_t>(threads));
  while (helpers_.size() + 1 < shares_)
    helpers_.emplace_back([this, number = helpers_.size()] { work(number); });
  running_ = shares_ - 1;
  ++generation_;
  if (running_ > 0) started_.notify_all();
  lock.unlock();
  copy_share(shares_ - 1);
  lock.lock();
  ended_.wait(lock, [&] { return running_ == 0; });
}

void CopyPool::work(std::size_t helper) {
  std::unique_lock lock(mutex_);
  for (std::size_t seen = 0;;) {
    started_.wait(lock, [&] { return stopping_ || (generation_ != seen && helper + 1 < shares_); });
    if (stopping_) return;
    seen = generation_;
    lock.unlock();
    copy_share(helper);
    lock.lock();
    if (--running_ == 0) ended_.notify_all();
  }
}

void CopyPool::copy_share(std::size_t share) const {
  const std::size_t length = (bytes_ / shares_ + kPage - 1) / kPage * kPage;
  const std::size_t first = std::min(bytes_, share * length);
  const std::size_t last = share + 1 == shares_ ? bytes_ : std::min(bytes_, first + length);
  std::memcpy(to_ + first, from_ + first, last - first);
}

}  // namespace fct::cuda
