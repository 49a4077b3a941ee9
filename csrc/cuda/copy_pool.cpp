#include "copy_pool.h"

#include <algorithm>
#include <cstring>

namespace fct::cuda {
namespace {

constexpr std::size_t kLeastShare = std::size_t{1} << 18;  // bytes that are worth waking a thread
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

void CopyPool::copy(std::span<const Copy> copies, int threads) {
  std::unique_lock lock(mutex_);
  copies_ = copies;
  bytes_ = 0;
  for (const Copy& each : copies) bytes_ += each.bytes;
  shares_ = std::clamp<std::size_t>(bytes_ / kLeastShare, 1, static_cast<std::size_t>(threads));
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

// A share is a stretch of all copies laid end to end.
void CopyPool::copy_share(std::size_t share) const {
  const std::size_t length = (bytes_ / shares_ + kPage - 1) / kPage * kPage;
  const std::size_t first = std::min(bytes_, share * length);
  const std::size_t last = share + 1 == shares_ ? bytes_ : std::min(bytes_, first + length);
  std::size_t begin = 0;  // of a copy
  for (const Copy& each : copies_) {
    const std::size_t from = std::clamp(first, begin, begin + each.bytes) - begin;
    const std::size_t to = std::clamp(last, begin, begin + each.bytes) - begin;
    if (from < to)
      std::memcpy(static_cast<char*>(each.to) + from, static_cast<const char*>(each.from) + from, to - from);
    begin += each.bytes;
  }
}

}  // namespace fct::cuda
