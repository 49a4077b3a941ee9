// Note [Same bytes], on a card
// As on the CPU (cpu_executable.cpp), rows are computed in blocks of a few fixed sizes, the last one padded
// with zeros. Matrix kernels may sum in another order in another block or at another place within one. So the
// kernel of a layer is chosen for one fixed number of rows and used for every block size that it can do, and
// random rows are run through each size when a program is compiled: a size is kept only if it gives each row
// the same bytes wherever the row lies, and the bytes that the largest such size gives. If no size does, the
// next best kernels are tried. What is promised holds for one model of card and one version of the libraries.
#include "cuda_executable.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <sstream>

namespace fct::cuda {
namespace {

constexpr std::int64_t kLargestBlock = 32768;  // rows; more gain nothing: every kernel fills the card
constexpr std::int64_t kSmallestBlock = 128;
constexpr std::int64_t kBlockStep = 2;     // from one size to the next
constexpr std::int64_t kProbeRows = 1000;  // of different content; no divisor of any block
constexpr float kSmallestProbe = 1e-6f;    // largest value of such rows
constexpr int kChoices = 8;                // of kernels for each layer, until one gives equal bytes
constexpr double kShareOfFree = 0.9;       // the rest is for the libraries and for graphs

// `start` of a job that begins and ends with this object.
class RingRun : public PendingRun {
 public:
  RingRun(Ring& ring, const Job& job, const std::vector<std::size_t>& sizes) : ring_(ring), job_(job) {
    ring_.start(job_, sizes);
  }
  ~RingRun() override {
    try {
      wait();
    } catch (const std::exception&) {  // nobody asked
    }
  }
  void wait() override {
    if (std::exchange(is_waited_, true)) return;
    ring_.finish(job_);
  }

 private:
  Ring& ring_;
  Job job_;
  bool is_waited_ = false;
};

std::vector<std::int64_t> ladder(std::int64_t largest) {
  std::vector<std::int64_t> blocks;
  for (std::int64_t rows = largest; rows >= kSmallestBlock; rows /= kBlockStep) blocks.push_back(rows);
  return blocks;
}

std::string mebibytes(std::size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

std::vector<float> random_rows(std::minstd_rand& random, std::int64_t rows, int width, float range) {
  std::uniform_real_distribution<float> uniform(-range, range);
  std::vector<float> values(static_cast<std::size_t>(rows * width));
  for (float& value : values) value = uniform(random);
  return values;
}

std::vector<float> repeated(const std::vector<float>& rows, std::int64_t count, int width) {
  std::vector<float> result(static_cast<std::size_t>(count * width));
  for (std::size_t i = 0; i < result.size(); ++i) result[i] = rows[i % rows.size()];
  return result;
}

}  // namespace

CudaExecutable::CudaExecutable(SharedDevice device, const Program& program, Precision precision,
                               const Ranges& ranges, std::size_t device_memory)
    : device_(std::move(device)),
      precision_(precision),
      old_dim_(program.width(program.old)),
      side_dim_(program.has_side() ? program.width(program.side) : 0),
      new_dim_(program.width(program.output)) {
  const Layout layout = make_layout(program, precision, ranges);
  const std::size_t fixed = DeviceProgram::fixed_bytes(program, layout);
  const std::size_t per_row =
      DeviceProgram::bytes_per_row(program, layout) + Ring::bytes_per_row(old_dim_, side_dim_, new_dim_);
  const std::size_t free = device_->info().free_bytes.value();
  const auto most = static_cast<std::size_t>(static_cast<double>(free) * kShareOfFree);
  const std::size_t limit = device_memory > 0 ? device_memory : most;
  auto needed = [&](std::int64_t rows) { return fixed + per_row * static_cast<std::size_t>(rows); };
  std::int64_t block = kLargestBlock;
  while (block > kSmallestBlock && needed(block) > limit) block /= 2;
  if (needed(block) > limit)
    throw Error(ErrorKind::kResource, "this transformation needs " + mebibytes(needed(block)) + " on " +
                                          device_->label() + ", at hand are " + mebibytes(limit));
  if (block < kLargestBlock) shrunk_ = " (to stay within " + mebibytes(limit) + " of device memory)";
  for (int choice = 0; choice < kChoices && usable_sizes_.empty(); ++choice) {
    build_what_fits(program, layout, block, choice);
    keep_equal_blocks();
  }
  if (usable_sizes_.empty())
    throw Error(ErrorKind::kUnsupported, device_->label() + " gives a row other bytes at another place");
}

void CudaExecutable::build_what_fits(const Program& program, const Layout& layout, std::int64_t largest_block,
                                     int choice) {
  for (std::int64_t block = largest_block;; block /= 2) {
    try {
      return build(program, layout, block, choice);
    } catch (const OutOfDeviceMemory&) {
      if (block == kSmallestBlock) throw;
      shrunk_ = " (halved: " + device_->label() + " ran out of memory)";
    }
  }
}

void CudaExecutable::build(const Program& program, const Layout& layout, std::int64_t largest_block,
                           int choice) {
  ring_.reset();
  program_.reset();
  program_ =
      std::make_shared<DeviceProgram>(device_, program, precision_, layout, ladder(largest_block), choice);
  ring_ = std::make_unique<Ring>(device_, program_, old_dim_, side_dim_, new_dim_);
}

void CudaExecutable::run(InputRows old, InputRows side, OutputRows out, std::int64_t rows,
                         int threads) const {
  start(old, side, out, rows, threads)->wait();
}

std::unique_ptr<PendingRun> CudaExecutable::start(InputRows old, InputRows side, OutputRows out,
                                                  std::int64_t rows, int threads) const {
  Job job;
  job.old = old;
  job.side = side;
  job.out = out;
  job.rows = rows;
  job.threads = threads;
  return std::make_unique<RingRun>(*ring_, job, usable_sizes_);
}

HostMemory CudaExecutable::allocate_host(std::size_t bytes) const {
  auto owner = std::make_shared<PinnedBuffer>(pinned_buffer(device_, std::max(bytes, std::size_t{1})));
  return {owner, owner->as<char>()};
}

void CudaExecutable::run_on_device(InputRows old, InputRows side, OutputRows out, std::int64_t rows,
                                   void* stream) const {
  if (device_->is_capturing(stream))
    throw Error(
        ErrorKind::kUnsupported,
        "rows on " + device_->label() + " cannot be transformed while their stream is captured into a graph");
  auto row = [](auto array, std::int64_t index, int width) {
    using Byte =
        std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(array.data)>>, const char, char>;
    array.data =
        static_cast<Byte*>(array.data) + static_cast<std::size_t>(index * width) * size_of(array.dtype);
    return array;
  };
  for (std::int64_t first = 0, count = 0; first < rows; first += count) {
    const std::size_t size = choose_block(program_->blocks(), usable_sizes_, rows - first);
    count = std::min(program_->blocks()[size], rows - first);
    BlockRows block;
    block.old = row(old, first, old_dim_);
    if (side.data != nullptr) block.side = row(side, first, side_dim_);
    block.out = row(out, first, new_dim_);
    block.rows = count;
    program_->enqueue(size, block, stream);
  }
}

std::string CudaExecutable::description() const {
  std::ostringstream text;
  text << device_->info().name << ", blocks";
  for (std::size_t size : usable_sizes_) text << ' ' << program_->blocks()[size];
  text << shrunk_ << program_->kernels();
  return text.str();
}

// See Note [Same bytes]. Rows that overflow on their way say nothing: then smaller ones are taken.
void CudaExecutable::keep_equal_blocks() {
  for (float range = 1; range >= kSmallestProbe; range /= 16) {
    try {
      return keep_equal_blocks(range);
    } catch (const NonFiniteRow&) {
      usable_sizes_.clear();
    }
  }
  throw Error(ErrorKind::kUnsupported, std::string("this transformation overflows in ") +
                                           name_of(precision_) + ", however small its input");
}

// The same few rows again and again, so that each lies at many places of a block.
void CudaExecutable::keep_equal_blocks(float range) {
  std::minstd_rand random(1);
  const auto old = random_rows(random, kProbeRows, old_dim_, range);
  const auto side = random_rows(random, kProbeRows, side_dim_, range);
  std::vector<char> expected;
  for (std::size_t size = 0; size < program_->blocks().size(); ++size) {
    const auto got = probe(size, old, side);
    const std::size_t once = static_cast<std::size_t>(kProbeRows * new_dim_) * sizeof(float);
    if (expected.empty()) expected.assign(got.begin(), got.begin() + static_cast<std::ptrdiff_t>(once));
    bool equal = true;
    for (std::size_t first = 0; first < got.size(); first += once)
      equal &= std::memcmp(got.data() + first, expected.data(), std::min(once, got.size() - first)) == 0;
    if (equal)
      usable_sizes_.push_back(size);
    else if (usable_sizes_.empty())
      expected.clear();
  }
}

std::vector<char> CudaExecutable::probe(std::size_t size, const std::vector<float>& old,
                                        const std::vector<float>& side) const {
  const std::int64_t rows = std::max(program_->blocks()[size], 2 * kProbeRows);
  const auto all_old = repeated(old, rows, old_dim_);
  const auto all_side = repeated(side, rows, side_dim_);
  std::vector<char> out(static_cast<std::size_t>(rows * new_dim_) * sizeof(float));
  Job job;
  job.old = {all_old.data()};
  if (side_dim_ > 0) job.side = {all_side.data()};
  job.out = {out.data()};
  job.rows = rows;
  RingRun(*ring_, job, {size}).wait();
  return out;
}

}  // namespace fct::cuda
