#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>

namespace fct {

// A queue between two stages. Its length is bounded by the number of blocks in circulation.
template <typename T>
class Channel {
 public:
  void push(T item) {
    const std::lock_guard lock(mutex_);
    items_.push_back(std::move(item));
    changed_.notify_one();
  }

  // Blocks until there is an item; nothing once the channel is finished and empty, or aborted.
  std::optional<T> pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return aborted_ || finished_ || !items_.empty(); });
    if (aborted_ || items_.empty()) return std::nullopt;
    T item = std::move(items_.front());
    items_.pop_front();
    return item;
  }

  bool is_empty() {
    const std::lock_guard lock(mutex_);
    return items_.empty();
  }

  void finish() { set(finished_); }
  void abort() { set(aborted_); }

 private:
  void set(bool& flag) {
    const std::lock_guard lock(mutex_);
    flag = true;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> items_;
  bool finished_ = false, aborted_ = false;
};

}  // namespace fct
