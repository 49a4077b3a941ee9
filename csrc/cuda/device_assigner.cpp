#include "device_assigner.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <thread>

#include "assign/checks.h"
#include "device_engine.h"

namespace fct::cuda {
namespace {

constexpr std::int64_t kLargestBlock = 32768, kSmallestBlock = 128;  // rows
constexpr std::int64_t kBlockStep = 2;                               // from one size to the next
constexpr std::size_t kMostBlockBytes = std::size_t{64} << 20;       // of scores, about, and of rows in lanes
constexpr double kShareOfFree = 0.9;                                 // the rest is for the libraries

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

std::string mebibytes(std::size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

std::vector<std::int64_t> blocks_from(std::int64_t largest) {
  std::vector<std::int64_t> blocks;
  for (std::int64_t rows = largest; rows >= kSmallestBlock; rows /= kBlockStep) blocks.push_back(rows);
  return blocks;
}

std::size_t lane_bytes_per_row(const Assignment& assignment) {
  return at(assignment.dim()) * sizeof(float) + sizeof(std::int64_t) + at(assignment.parts());
}

}  // namespace

OneDeviceAssigner::OneDeviceAssigner(SharedDevice device, const std::optional<Centroids>& centroids,
                                     const std::optional<Codebooks>& codebooks, std::size_t device_memory)
    : device_(std::move(device)), has_centroids_(centroids.has_value()) {
  assign::check_parts(centroids, codebooks);
  const Assignment assignment{centroids, codebooks};
  dim_ = static_cast<int>(assignment.dim());
  parts_ = static_cast<int>(assignment.parts());
  std::size_t limit = device_memory;
  if (limit == 0)
    limit = static_cast<std::size_t>(static_cast<double>(device_->info().free_bytes.value()) * kShareOfFree);
  in_ = make_stream(device_);
  compute_ = make_stream(device_);
  out_ = make_stream(device_);
  build(assignment, limit);
}

OneDeviceAssigner::~OneDeviceAssigner() {
  for (const OwnedStream* stream : {&in_, &compute_, &out_}) drain(*device_, stream->get());
}

// With the largest block that fits, halved where the device is fuller than it said.
void OneDeviceAssigner::build(const Assignment& assignment, std::size_t limit) {
  const std::size_t per_row =
      std::max(AssignProgram::bytes_per_row(assignment), kLanes * lane_bytes_per_row(assignment));
  auto needed = [&](std::int64_t rows) { return bytes_for(assignment, rows); };
  std::int64_t rows = kLargestBlock;
  while (rows > kSmallestBlock && per_row * at(rows) > kMostBlockBytes) rows /= kBlockStep;
  const std::int64_t wanted = rows;
  while (rows > kSmallestBlock && needed(rows) > limit) rows /= kBlockStep;
  if (needed(rows) > limit)
    throw OutOfDeviceMemory("finding lists and codes needs " + mebibytes(needed(rows)) + " on " +
                            device_->label() + ", at hand are " + mebibytes(limit));
  if (rows < wanted) shrunk_ = " (to stay within " + mebibytes(limit) + " of device memory)";
  std::optional<ListScores> scores;
  if (assignment.centroids) scores.emplace(*assignment.centroids);
  for (;; rows /= kBlockStep) {
    try {
      program_ = std::make_unique<AssignProgram>(device_, assignment, scores, blocks_from(rows));
      make_lanes(rows);
      break;
    } catch (const OutOfDeviceMemory&) {
      lanes_ = {};
      program_.reset();
      if (rows == kSmallestBlock) throw;
      shrunk_ = " (halved: " + device_->label() + " ran out of memory)";
    }
  }
  device_bytes_ = needed(rows);
}

std::size_t OneDeviceAssigner::bytes_for(const Assignment& assignment, std::int64_t rows) {
  const std::size_t per_row =
      AssignProgram::bytes_per_row(assignment) + kLanes * lane_bytes_per_row(assignment);
  return AssignProgram::fixed_bytes(assignment) + per_row * at(rows);
}

void OneDeviceAssigner::make_lanes(std::int64_t rows) {
  for (Lane& lane : lanes_) {
    auto both = [&](DeviceBuffer& device, PinnedBuffer& host, std::size_t bytes) {
      device = device_buffer(device_, bytes);
      host = pinned_buffer(device_, bytes);
    };
    both(lane.rows, lane.rows_host, values(rows) * sizeof(float));
    both(lane.lists, lane.lists_host, has_centroids_ ? at(rows) * sizeof(std::int64_t) : 0);
    both(lane.codes, lane.codes_host, at(rows * parts_));
    both(lane.first_bad, lane.first_bad_host, sizeof(std::int64_t));
    lane.copied_in = make_event(device_);
    lane.computed = make_event(device_);
    lane.copied_out = make_event(device_);
  }
}

std::size_t OneDeviceAssigner::values(std::int64_t rows) const { return at(rows) * at(dim_); }

void OneDeviceAssigner::assign(const float* rows, std::int64_t count, int threads, std::int64_t* lists,
                               std::uint8_t* codes) const {
  Call call{rows, count, threads, lists, codes, false};
  run(call);
}

void OneDeviceAssigner::assign_on_device(const float* rows, std::int64_t count, std::int64_t* lists,
                                         std::uint8_t* codes) const {
  Call call{rows, count, 1, lists, codes, true};
  run(call);
}

// The lanes end in order. After an error the device reads and writes nothing of the call any more.
void OneDeviceAssigner::run(Call& call) const {
  const std::lock_guard lock(mutex_);
  const std::int64_t block = program_->blocks().front();
  std::size_t next = 0;
  try {
    for (std::int64_t first = 0; first < call.count && call.bad_row == kNoBadRow; first += block) {
      retire(call, lanes_[next]);
      if (call.bad_row == kNoBadRow) start(call, first, lanes_[next]);
      next = (next + 1) % kLanes;
    }
    for (std::size_t i = 0; i < kLanes; ++i) retire(call, lanes_[(next + i) % kLanes]);
  } catch (...) {
    for (const OwnedStream* stream : {&in_, &compute_, &out_}) drain(*device_, stream->get());
    for (Lane& lane : lanes_) lane.count = 0;
    throw;
  }
  if (call.bad_row != kNoBadRow) throw NonFiniteRow("rows", call.bad_row);
}

void OneDeviceAssigner::start(const Call& call, std::int64_t first_row, Lane& lane) const {
  lane.first_row = first_row;
  lane.count = std::min(program_->blocks().front(), call.count - first_row);
  AssignedRows rows;
  rows.rows = copy_in(call, lane);
  rows.count = lane.count;
  rows.lists = lane.lists.as<std::int64_t>();
  rows.codes = lane.codes.as<std::uint8_t>();
  rows.first_bad = lane.first_bad.as<std::int64_t>();
  device_->fill(rows.first_bad, kNoBadRowByte, sizeof(std::int64_t), compute_.get());
  program_->enqueue(rows, compute_.get());
  device_->record(lane.computed.get(), compute_.get());
  device_->wait(out_.get(), lane.computed.get());
  copy_out(lane);
  device_->record(lane.copied_out.get(), out_.get());
}

const float* OneDeviceAssigner::copy_in(const Call& call, Lane& lane) const {
  const float* source = call.rows + values(lane.first_row);
  if (call.is_on_device) return source;
  const std::size_t bytes = values(lane.count) * sizeof(float);
  if (!device_->is_pinned(source, bytes)) {
    const Copy copy{lane.rows_host.get(), source, bytes};
    pool_.copy({&copy, 1}, call.threads);
    source = lane.rows_host.as<const float>();
  }
  device_->copy_in(lane.rows.get(), source, bytes, in_.get());
  device_->record(lane.copied_in.get(), in_.get());
  device_->wait(compute_.get(), lane.copied_in.get());
  return lane.rows.as<const float>();
}

void OneDeviceAssigner::copy_out(Lane& lane) const {
  auto copy = [&](const DeviceBuffer& device, const PinnedBuffer& host, std::size_t bytes) {
    if (bytes > 0) device_->copy_out(host.get(), device.get(), bytes, out_.get());
  };
  copy(lane.lists, lane.lists_host, has_centroids_ ? at(lane.count) * sizeof(std::int64_t) : 0);
  copy(lane.codes, lane.codes_host, at(lane.count * parts_));
  copy(lane.first_bad, lane.first_bad_host, sizeof(std::int64_t));
}

void OneDeviceAssigner::retire(Call& call, Lane& lane) const {
  if (lane.count == 0) return;
  device_->synchronize_event(lane.copied_out.get());
  const std::int64_t bad_row = *lane.first_bad_host.as<std::int64_t>();
  if (bad_row != kNoBadRow && call.bad_row == kNoBadRow) call.bad_row = lane.first_row + bad_row;
  if (has_centroids_)
    std::memcpy(call.lists + lane.first_row, lane.lists_host.get(), at(lane.count) * sizeof(std::int64_t));
  if (parts_ > 0)
    std::memcpy(call.codes + lane.first_row * parts_, lane.codes_host.get(), at(lane.count * parts_));
  lane.count = 0;
}

std::string OneDeviceAssigner::description() const {
  std::string text = device_->info().name + ", blocks";
  for (std::int64_t rows : program_->blocks()) text += " " + std::to_string(rows);
  return text + shrunk_ + program_->kernels();
}

// The error of the first share in row order wins, so that the first bad row is the one that is named.
void MultiAssigner::assign(const float* rows, std::int64_t count, int threads, std::int64_t* lists,
                           std::uint8_t* codes) const {
  const auto devices = static_cast<std::int64_t>(assigners_.size());
  const int threads_each = std::max(1, threads / static_cast<int>(devices));
  std::vector<std::exception_ptr> errors(assigners_.size());
  auto run_share = [&](std::int64_t i) {
    const std::int64_t first = count * i / devices, rows_here = count * (i + 1) / devices - first;
    try {
      assigners_[at(i)]->assign(rows + first * dim(), rows_here, threads_each,
                                has_centroids() ? lists + first : nullptr,
                                parts() > 0 ? codes + first * parts() : nullptr);
    } catch (const NonFiniteRow& error) {
      errors[at(i)] = std::make_exception_ptr(NonFiniteRow(error.array(), first + error.row()));
    } catch (...) {
      errors[at(i)] = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (std::int64_t i = 1; i < devices; ++i) others.emplace_back(run_share, i);
    run_share(0);
  }  // joins
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

std::unique_ptr<Assigner> make_device_assigner(std::vector<SharedDevice> devices,
                                               const std::optional<Centroids>& centroids,
                                               const std::optional<Codebooks>& codebooks,
                                               std::size_t device_memory) {
  if (devices.empty()) throw Error(ErrorKind::kUnsupported, "no CUDA device was named");
  std::vector<std::unique_ptr<Assigner>> assigners;
  for (SharedDevice& device : devices) {
    check_new_enough(device->info());
    assigners.push_back(
        std::make_unique<OneDeviceAssigner>(std::move(device), centroids, codebooks, device_memory));
  }
  if (assigners.size() == 1) return std::move(assigners.front());
  return std::make_unique<MultiAssigner>(std::move(assigners));
}

}  // namespace fct::cuda
