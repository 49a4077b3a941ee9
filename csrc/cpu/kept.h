#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace fct::cpu {

// Objects that are costly to make and serve one caller at a time, kept between calls.
template <typename T>
class Kept {
 public:
  // Calls use(T&) with one that nobody else uses meanwhile, made by make() if there is none.
  // One whose user throws is not kept.
  template <typename Make, typename Use>
  void with(const Make& make, const Use& use) {
    std::unique_ptr<T> one = take();
    if (one == nullptr) one = make();
    use(*one);
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(one));
  }

 private:
  std::unique_ptr<T> take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) return nullptr;
    auto one = std::move(idle_.back());
    idle_.pop_back();
    return one;
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> idle_;
};

}  // namespace fct::cpu
