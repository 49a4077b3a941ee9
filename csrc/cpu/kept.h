#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>

namespace fct::cpu {

// Objects that are costly to make and serve one caller at a time, kept between calls.
//
// Without a mutex: a child that was forked while another thread held it would wait for that for ever. What
// others used at that moment the child never sees again, and makes anew.
template <typename T>
class Kept {
 public:
  Kept() = default;
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;
  ~Kept() {
    for (auto& place : places_) delete place.load();
  }

  // Calls use(T&) with one that nobody else uses meanwhile, made by make() if there is none.
  // One whose user throws is not kept.
  template <typename Make, typename Use>
  void with(const Make& make, const Use& use) {
    std::unique_ptr<T> one = take();
    if (one == nullptr) one = make();
    use(*one);
    put(std::move(one));
  }

 private:
  static constexpr std::size_t kMost = 256;  // threads beyond that make theirs in each call

  std::unique_ptr<T> take() {
    for (auto& place : places_)
      if (place.load(std::memory_order_relaxed) != nullptr)
        if (T* one = place.exchange(nullptr)) return std::unique_ptr<T>(one);
    return nullptr;
  }

  void put(std::unique_ptr<T> one) {
    for (auto& place : places_) {
      T* empty = nullptr;
      if (place.load(std::memory_order_relaxed) == nullptr &&
          place.compare_exchange_strong(empty, one.get())) {
        static_cast<void>(one.release());
        return;
      }
    }
  }

  std::array<std::atomic<T*>, kMost> places_{};
};

}  // namespace fct::cpu
