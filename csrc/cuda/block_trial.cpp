#include "block_trial.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>

namespace fct::cuda {
namespace {

constexpr std::int64_t kProbeRows = 1000;  // of different content; no divisor of any block
constexpr float kSmallestProbe = 1e-6f;    // largest value of such rows
constexpr std::int64_t kTimedBlocks = 4;   // of the largest size, and as many rows of the others
constexpr int kRounds = 6;  // sizes take turns, so that a device waking up slows down each of them
constexpr double kTimingSeconds = 0.1;  // no round begins later

std::size_t count_of(std::int64_t rows, int width) { return static_cast<std::size_t>(rows * width); }

// The same few rows again and again, so that each lies at many places of a block.
std::vector<float> repeated_rows(std::minstd_rand& random, std::int64_t rows, int width, float range) {
  std::uniform_real_distribution<float> uniform(-range, range);
  std::vector<float> once(count_of(kProbeRows, width)), values(count_of(rows, width));
  for (float& value : once) value = uniform(random);
  for (std::size_t first = 0; first < values.size(); first += once.size())
    std::copy_n(once.begin(), std::min(once.size(), values.size() - first),
                values.begin() + static_cast<std::ptrdiff_t>(first));
  return values;
}

// Compares bytes: -0 and 0 are two results.
bool repeats(const std::vector<float>& values, const std::vector<float>& once) {
  for (std::size_t first = 0; first < values.size(); first += once.size())
    if (std::memcmp(values.data() + first, once.data(),
                    std::min(once.size(), values.size() - first) * sizeof(float)) != 0)
      return false;
  return true;
}

}  // namespace

double wall_clock() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

BlockTrial::BlockTrial(SharedDevice device, std::shared_ptr<DeviceProgram> program, int old_dim, int side_dim,
                       int new_dim)
    : device_(std::move(device)),
      program_(std::move(program)),
      old_dim_(old_dim),
      side_dim_(side_dim),
      new_dim_(new_dim),
      stream_(make_stream(device_)) {
  const std::int64_t rows = program_->blocks().front();
  old_ = device_buffer(device_, count_of(rows, old_dim_) * sizeof(float));
  side_ = device_buffer(device_, count_of(rows, side_dim_) * sizeof(float));
  out_ = device_buffer(device_, count_of(rows, new_dim_) * sizeof(float));
}

// Rows that overflow on their way say nothing: then smaller ones are taken.
std::vector<std::size_t> BlockTrial::equal_sizes() {
  for (float range = 1; range >= kSmallestProbe; range /= 16)
    if (auto sizes = equal_sizes(range)) return *sizes;
  throw Error(ErrorKind::kUnsupported, std::string("this transformation overflows in ") +
                                           name_of(program_->precision()) + ", however small its input");
}

std::optional<std::vector<std::size_t>> BlockTrial::equal_sizes(float range) {
  const auto& blocks = program_->blocks();
  const std::int64_t most = std::max(blocks.front(), 2 * kProbeRows);
  std::minstd_rand random(1);
  const HostRows rows{repeated_rows(random, most, old_dim_, range),
                      repeated_rows(random, most, side_dim_, range)};
  std::vector<std::size_t> sizes;
  std::vector<float> expected;
  for (std::size_t size = 0; size < blocks.size(); ++size) {
    const auto found = results(size, rows);
    if (!std::all_of(found.begin(), found.end(), [](float value) { return std::isfinite(value); })) return {};
    if (sizes.empty()) expected.assign(found.begin(), found.begin() + std::ptrdiff_t{kProbeRows} * new_dim_);
    if (repeats(found, expected)) sizes.push_back(size);
  }
  return sizes;
}

// Of one block's rows or more, in blocks of one size.
std::vector<float> BlockTrial::results(std::size_t size, const HostRows& rows) {
  const std::int64_t block = program_->blocks()[size], most = std::max(block, 2 * kProbeRows);
  std::vector<float> found(count_of(most, new_dim_));
  const DrainOnExit guard(*device_, stream_.get());
  for (std::int64_t first = 0; first < most; first += block) {
    const std::int64_t count = std::min(block, most - first);
    auto copy_in = [&](const DeviceBuffer& to, const std::vector<float>& from, int width) {
      if (width > 0)
        device_->copy_in(to.get(), from.data() + count_of(first, width),
                         count_of(count, width) * sizeof(float), stream_.get());
    };
    copy_in(old_, rows.old, old_dim_);
    copy_in(side_, rows.side, side_dim_);
    enqueue(size, 0, count);
    device_->copy_out(found.data() + count_of(first, new_dim_), out_.get(),
                      count_of(count, new_dim_) * sizeof(float), stream_.get());
  }
  device_->synchronize_stream(stream_.get());
  return found;
}

std::vector<double> BlockTrial::speeds(const std::vector<std::size_t>& sizes, const Clock& clock) {
  const DrainOnExit guard(*device_, stream_.get());
  const std::int64_t largest = program_->blocks().front();
  std::vector<double> best(sizes.size());
  const double begin = clock();
  for (int round = 0; round < kRounds && (round == 0 || clock() - begin < kTimingSeconds); ++round) {
    const std::int64_t rows = round == 0 ? largest : kTimedBlocks * largest;  // soon over where that is slow
    for (std::size_t i = 0; i < sizes.size(); ++i)
      best[i] = std::max(best[i], static_cast<double>(rows) / seconds(sizes[i], rows, clock));
  }
  return best;
}

double BlockTrial::seconds(std::size_t size, std::int64_t rows, const Clock& clock) {
  const std::int64_t block = program_->blocks()[size], largest = program_->blocks().front();
  const double start = clock();
  for (std::int64_t done = 0; done < rows; done += block) enqueue(size, done % largest, block);
  device_->synchronize_stream(stream_.get());
  return clock() - start;
}

// `rows` rows of the device, from `first_row` on, as one block.
void BlockTrial::enqueue(std::size_t size, std::int64_t first_row, std::int64_t rows) {
  BlockRows block;
  block.old.data = old_.as<float>() + count_of(first_row, old_dim_);
  if (side_dim_ > 0) block.side.data = side_.as<float>() + count_of(first_row, side_dim_);
  block.out.data = out_.as<float>() + count_of(first_row, new_dim_);
  block.rows = rows;
  program_->enqueue(size, block, stream_.get());
}

}  // namespace fct::cuda
