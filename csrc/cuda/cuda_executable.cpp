// Note [Same bytes], on a device
// As on the CPU (cpu_executable.cpp), rows are computed in blocks of a few fixed sizes, the last one padded
// with zeros. Matrix kernels may sum in another order in another block or at another place within one. So the
// kernel of a layer is chosen for one fixed number of rows and used for every block size that it can do, and
// random rows are run through each size when a program is compiled: a size is kept only if it gives each row
// the same bytes wherever the row lies, and the bytes that the largest such size gives. If no size does, the
// next best kernels are tried. What is promised holds for one model of device and one version of the
// libraries.
//
// Note [Block size]
// Which block is fastest depends on the device's cache and the program's widths: a small one's rows stay in
// the cache from layer to layer, a large one fills the device. So sizes that may be the largest are timed
// when a program is compiled. A stopwatch may choose differently the next time: all of them give the same
// bytes.
//
// Note [Lane size]
// A lane of the ring holds as many rows as the largest block that memory allows, whatever block is the
// fastest: what the host does for a lane costs as much for few rows. Both are sized together, and halved
// together until they fit; the stopwatch can only make blocks smaller.
#include "cuda_executable.h"

#include <algorithm>
#include <iomanip>
#include <optional>
#include <sstream>

namespace fct::cuda {
namespace {

constexpr std::int64_t kLargestBlock = 32768;  // rows, a lane's too; more gain nothing
constexpr std::int64_t kSmallestTimed = 4096;  // fewer rows do not fill a device
constexpr std::int64_t kSmallestBlock = 128;
constexpr std::int64_t kBlockStep = 2;  // from one size to the next
constexpr double kAsFast = 0.97;        // of the fastest block's speed; the larger one needs fewer launches
constexpr int kChoices = 8;             // of kernels for each layer, until one gives equal bytes
constexpr double kShareOfFree = 0.9;    // the rest is for the libraries and for graphs

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

std::vector<std::int64_t> block_sizes() {
  std::vector<std::int64_t> sizes;
  for (std::int64_t rows = kLargestBlock; rows >= kSmallestBlock; rows /= kBlockStep) sizes.push_back(rows);
  return sizes;
}

std::string mebibytes(std::size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

}  // namespace

CudaExecutable::CudaExecutable(SharedDevice device, const Program& program, Precision precision,
                               const Ranges& ranges, std::size_t device_memory, const Clock& clock)
    : device_(std::move(device)),
      precision_(precision),
      old_dim_(program.width(program.old)),
      side_dim_(program.has_side() ? program.width(program.side) : 0),
      new_dim_(program.width(program.output)) {
  const Layout layout = make_layout(program, precision, ranges);
  const std::size_t fixed = DeviceProgram::fixed_bytes(program, layout);
  const std::size_t per_row = DeviceProgram::bytes_per_row(program, layout);
  const std::size_t per_lane_row = Ring::bytes_per_row(old_dim_, side_dim_, new_dim_);
  const std::size_t free = device_->info().free_bytes.value();
  const auto most = static_cast<std::size_t>(static_cast<double>(free) * kShareOfFree);
  const std::size_t limit = device_memory > 0 ? device_memory : most;
  auto with_lanes_of = [&](std::int64_t lane, std::int64_t block) {
    return fixed + per_lane_row * static_cast<std::size_t>(lane) + per_row * static_cast<std::size_t>(block);
  };
  auto needed = [&](std::int64_t rows) { return with_lanes_of(rows, rows); };  // see Note [Lane size]
  std::int64_t block = kLargestBlock;
  while (block > kSmallestBlock && needed(block) > limit) block /= kBlockStep;
  if (needed(block) > limit)
    throw OutOfDeviceMemory("this transformation needs " + mebibytes(needed(block)) + " on " +
                            device_->label() + ", at hand are " + mebibytes(limit));
  if (block < kLargestBlock) shrunk_ = " (to stay within " + mebibytes(limit) + " of device memory)";
  build_what_fits(program, layout, block, clock);
  device_bytes_ = with_lanes_of(ring_->rows(), program_->blocks().front());
  spare_memory_ = limit - device_bytes_;
}

void CudaExecutable::build_what_fits(const Program& program, const Layout& layout, std::int64_t largest_block,
                                     const Clock& clock) {
  for (std::int64_t block = largest_block;; block /= kBlockStep) {
    try {
      return build(program, layout, block, clock);
    } catch (const OutOfDeviceMemory&) {
      if (block == kSmallestBlock) throw;
      shrunk_ = " (halved: " + device_->label() + " ran out of memory)";
    }
  }
}

void CudaExecutable::build(const Program& program, const Layout& layout, std::int64_t largest_block,
                           const Clock& clock) {
  usable_sizes_.clear();
  for (int choice = 0; choice < kChoices && usable_sizes_.empty(); ++choice) {
    std::optional<BlockTrial> trial = load(program, layout, largest_block, choice);
    if (usable_sizes_.empty()) continue;
    const std::int64_t fastest = fastest_block(*trial, clock);
    trial.reset();
    if (fastest < program_->blocks().front()) load(program, layout, fastest, choice);
  }
  if (usable_sizes_.empty())
    throw Error(ErrorKind::kUnsupported, device_->label() + " gives a row other bytes at another place");
  ring_ = std::make_unique<Ring>(device_, program_, largest_block, old_dim_, side_dim_, new_dim_);
}

// Puts the program on the device, with memory for blocks of so many rows, and finds the sizes that can be
// used.
BlockTrial CudaExecutable::load(const Program& program, const Layout& layout, std::int64_t largest_block,
                                int choice) {
  program_.reset();
  program_ = std::make_shared<DeviceProgram>(device_, program, precision_, layout, block_sizes(),
                                             largest_block, choice);
  BlockTrial trial(device_, program_, old_dim_, side_dim_, new_dim_);
  usable_sizes_ = trial.equal_sizes();
  return trial;
}

// See Note [Block size].
std::int64_t CudaExecutable::fastest_block(BlockTrial& trial, const Clock& clock) {
  speeds_.clear();
  const auto& blocks = program_->blocks();
  std::vector<std::size_t> sizes;
  for (std::size_t size : usable_sizes_)
    if (blocks[size] >= kSmallestTimed) sizes.push_back(size);
  if (sizes.size() < 2) return blocks[usable_sizes_.front()];
  const auto speeds = trial.speeds(sizes, clock);
  std::ostringstream text;
  text << std::setprecision(3);
  for (std::size_t i = 0; i < sizes.size(); ++i)
    text << (i == 0 ? "; M rows/s by block: " : ", ") << blocks[sizes[i]] << ' ' << 1e-6 * speeds[i];
  speeds_ = text.str();
  const double enough = kAsFast * *std::max_element(speeds.begin(), speeds.end());
  const auto first =
      std::find_if(speeds.begin(), speeds.end(), [&](double speed) { return speed >= enough; });
  return blocks[sizes[static_cast<std::size_t>(first - speeds.begin())]];
}

void CudaExecutable::run(InputRows old, InputRows side, OutputRows out, std::int64_t rows,
                         int threads) const {
  start(old, side, out, rows, threads, {})->wait();
}

std::unique_ptr<PendingRun> CudaExecutable::start(InputRows old, InputRows side, OutputRows out,
                                                  std::int64_t rows, int threads, KeptRows kept) const {
  Job job;
  job.old = old;
  job.side = side;
  job.out = out;
  job.kept = kept;
  job.rows = rows;
  job.threads = threads;
  return std::make_unique<RingRun>(*ring_, job, usable_sizes_);
}

HostMemory CudaExecutable::allocate_host(std::size_t bytes) const {
  auto owner = std::make_shared<PinnedBuffer>(pinned_buffer(device_, std::max(bytes, std::size_t{1})));
  return {owner, owner->as<char>()};
}

DeviceAllocation CudaExecutable::allocate_device(std::size_t bytes) const {
  if (bytes > spare_memory_) return nullptr;
  try {
    auto owner = std::make_shared<DeviceBuffer>(device_buffer(device_, bytes));
    return {owner, owner->get()};
  } catch (const OutOfDeviceMemory&) {
    return nullptr;
  }
}

void CudaExecutable::run_on_device(InputRows old, InputRows side, OutputRows out, std::int64_t rows,
                                   void* stream) const {
  if (device_->is_capturing(stream))
    throw Error(
        ErrorKind::kUnsupported,
        "rows on " + device_->label() + " cannot be transformed while their stream is captured into a graph");
  BlockRows all;
  all.old = old;
  all.side = side;
  all.out = out;
  all.rows = rows;
  program_->enqueue_blocks(usable_sizes_, all, stream);
}

std::string CudaExecutable::description() const {
  std::ostringstream text;
  text << device_->info().name << ", blocks";
  for (std::size_t size : usable_sizes_) text << ' ' << program_->blocks()[size];
  text << shrunk_ << speeds_ << program_->kernels();
  return text.str();
}

}  // namespace fct::cuda
