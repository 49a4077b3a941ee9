#include "multi_executable.h"

#include <algorithm>
#include <exception>
#include <thread>

#include "fct/error.h"

namespace fct::cuda {
namespace {

// A stretch of the rows on one device.
struct Share {
  std::int64_t first_row = 0, rows = 0;
  std::unique_ptr<PendingRun> run{};
  std::exception_ptr error{};
};

class MultiRun : public PendingRun {
 public:
  explicit MultiRun(std::vector<Share> shares) : shares_(std::move(shares)) {}

  // The error of the first share in row order wins, so that the first bad row is the one that is named. All
  // shares are waited for, because the rows may go as soon as this returns.
  void wait() override {
    for (Share& share : shares_) {
      if (!share.run) continue;
      try {
        share.run->wait();
      } catch (const NonFiniteRow& error) {
        share.error = std::make_exception_ptr(NonFiniteRow(error.array(), share.first_row + error.row()));
      } catch (...) {
        share.error = std::current_exception();
      }
    }
    for (const Share& share : shares_)
      if (share.error) std::rethrow_exception(share.error);
  }

 private:
  std::vector<Share> shares_;
};

template <typename Rows>
Rows from_row(Rows rows, std::int64_t first, int width) {
  using Byte = std::conditional_t<std::is_same_v<Rows, InputRows>, const char, char>;
  if (rows.data != nullptr)
    rows.data = static_cast<Byte*>(rows.data) + static_cast<std::size_t>(first * width) * size_of(rows.dtype);
  return rows;
}

}  // namespace

MultiExecutable::MultiExecutable(std::vector<std::unique_ptr<Executable>> executables)
    : executables_(std::move(executables)) {}

void MultiExecutable::run(InputRows old, InputRows side, OutputRows out, std::int64_t rows,
                          int threads) const {
  start(old, side, out, rows, threads, {})->wait();
}

std::unique_ptr<PendingRun> MultiExecutable::start(InputRows old, InputRows side, OutputRows out,
                                                   std::int64_t rows, int threads, KeptRows) const {
  const auto count = static_cast<std::int64_t>(executables_.size());
  const int threads_each = std::max(1, threads / static_cast<int>(count));
  std::vector<Share> shares;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t first = rows * i / count;
    shares.push_back({first, rows * (i + 1) / count - first});
  }
  // On threads of their own: starting waits for free lanes of the device.
  auto start_share = [&](std::size_t i) {
    Share& share = shares[i];
    try {
      share.run = executables_[i]->start(
          from_row(old, share.first_row, old_dim()), from_row(side, share.first_row, side_dim()),
          from_row(out, share.first_row, new_dim()), share.rows, threads_each, {});
    } catch (...) {
      share.error = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> starters;
    for (std::size_t i = 1; i < shares.size(); ++i) starters.emplace_back(start_share, i);
    start_share(0);
  }  // joins
  return std::make_unique<MultiRun>(std::move(shares));
}

std::string MultiExecutable::device() const {
  std::string names;
  for (const auto& executable : executables_) {
    if (!names.empty()) names += ',';
    names += executable->device();
  }
  return names;
}

std::size_t MultiExecutable::device_bytes() const {
  std::size_t most = 0;
  for (const auto& executable : executables_) most = std::max(most, executable->device_bytes());
  return most;
}

std::string MultiExecutable::description() const {
  std::string text = std::to_string(executables_.size()) + " devices";
  for (const auto& executable : executables_) text += "; " + executable->description();
  return text;
}

}  // namespace fct::cuda
