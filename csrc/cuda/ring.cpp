#include "ring.h"

#include <algorithm>

namespace fct::cuda {
namespace {

constexpr const char* kArrays[] = {"old", "side", "result"};
constexpr std::size_t kCounters = 3;  // first bad row of each array
constexpr std::size_t kCounterBytes = kCounters * sizeof(std::int64_t);

std::size_t bytes_of(std::int64_t rows, int dim, DType dtype) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(dim) * size_of(dtype);
}

}  // namespace

std::size_t choose_block(const std::vector<std::int64_t>& blocks, const std::vector<std::size_t>& sizes,
                         std::int64_t rows) {
  for (std::size_t size : sizes)
    if (blocks[size] < 2 * rows) return size;
  return sizes.back();
}

Ring::Ring(SharedDevice device, std::shared_ptr<DeviceProgram> program, int old_dim, int side_dim,
           int new_dim)
    : device_(std::move(device)),
      program_(std::move(program)),
      in_(make_stream(device_)),
      compute_(make_stream(device_)),
      out_(make_stream(device_)) {
  const std::int64_t rows = program_->blocks().front();
  for (Lane& lane : lanes_) {
    for (auto [channel, dim] :
         {std::pair{&lane.old, old_dim}, {&lane.side, side_dim}, {&lane.out, new_dim}}) {
      channel->dim = dim;
      channel->device = device_buffer(device_, bytes_of(rows, dim, DType::kFloat32));
    }
    lane.first_bad = device_buffer(device_, kCounterBytes);
    lane.first_bad_host = pinned_buffer(device_, kCounterBytes);
    lane.copied_in = make_event(device_);
    lane.computed = make_event(device_);
    lane.copied_out = make_event(device_);
  }
}

Ring::~Ring() { drain_streams(); }

std::size_t Ring::bytes_per_row(int old_dim, int side_dim, int new_dim) {
  return kLanes * bytes_of(1, old_dim + side_dim + new_dim, DType::kFloat32);
}

void Ring::start(Job& job, const std::vector<std::size_t>& sizes) {
  const std::lock_guard lock(mutex_);
  try {
    for (std::int64_t first = 0, rows = 0; first < job.rows; first += rows) {
      const std::size_t size = choose_block(program_->blocks(), sizes, job.rows - first);
      rows = std::min(program_->blocks()[size], job.rows - first);
      if (lanes_[next_lane_].job != nullptr) retire(lanes_[next_lane_]);
      if (job.bad_row != kNoBadRow) break;  // blocks end in order: no later one can hold an earlier row
      start_block(job, first, rows, size);
    }
  } catch (...) {
    fail(std::current_exception());
    throw;
  }
}

void Ring::finish(Job& job) {
  const std::lock_guard lock(mutex_);
  try {
    for (std::size_t i = 0; i < kLanes && job.lanes > 0; ++i) {
      Lane& lane = lanes_[(next_lane_ + i) % kLanes];
      if (lane.job == &job) retire(lane);
    }
  } catch (...) {
    fail(std::current_exception());
  }
  if (job.error) std::rethrow_exception(job.error);
  if (job.bad_row != kNoBadRow) throw NonFiniteRow(job.bad_array, job.bad_row);
}

void Ring::start_block(Job& job, std::int64_t first_row, std::int64_t rows, std::size_t size) {
  Lane& lane = lanes_[next_lane_];
  BlockRows block;
  block.rows = rows;
  block.first_bad = lane.first_bad.as<std::int64_t>();
  copy_in(job, lane, first_row, block);
  block.out = {lane.out.device.get(), job.out.dtype};
  device_->record(lane.copied_in.get(), in_.get());

  device_->wait(compute_.get(), lane.copied_in.get());
  // Not before the copies: a fill is a kernel, and may have to wait for one that takes the whole card.
  device_->fill(block.first_bad, kNoBadRowByte, kCounterBytes, compute_.get());
  program_->enqueue(size, block, compute_.get());
  if (job.kept.data != nullptr) keep(job, lane, first_row, rows);
  device_->record(lane.computed.get(), compute_.get());

  const std::size_t bytes = bytes_of(rows, lane.out.dim, job.out.dtype);
  void* target = static_cast<char*>(job.out.data) + bytes_of(first_row, lane.out.dim, job.out.dtype);
  lane.out_is_staged = !device_->is_pinned(target, bytes);
  if (lane.out_is_staged) {
    if (!lane.out.staging)
      lane.out.staging =
          pinned_buffer(device_, bytes_of(program_->blocks().front(), lane.out.dim, DType::kFloat32));
    target = lane.out.staging.get();
  }
  device_->wait(out_.get(), lane.computed.get());
  device_->copy_out(target, lane.out.device.get(), bytes, out_.get());
  device_->copy_out(lane.first_bad_host.get(), lane.first_bad.get(), kCounterBytes, out_.get());
  device_->record(lane.copied_out.get(), out_.get());

  lane.job = &job;
  lane.first_row = first_row;
  lane.rows = rows;
  ++job.lanes;
  next_lane_ = (next_lane_ + 1) % kLanes;
}

void Ring::copy_in(const Job& job, Lane& lane, std::int64_t first_row, BlockRows& block) {
  std::vector<Copy> staged, copies;
  auto add = [&](InputRows from, Channel& channel) -> InputRows {
    const std::size_t bytes = bytes_of(block.rows, channel.dim, from.dtype);
    const void* source = static_cast<const char*>(from.data) + bytes_of(first_row, channel.dim, from.dtype);
    if (!device_->is_pinned(source, bytes)) {
      if (!channel.staging)
        channel.staging =
            pinned_buffer(device_, bytes_of(program_->blocks().front(), channel.dim, DType::kFloat32));
      staged.push_back({channel.staging.get(), source, bytes});
      source = channel.staging.get();
    }
    copies.push_back({channel.device.get(), source, bytes});
    return {channel.device.get(), from.dtype};
  };
  block.old = add(job.old, lane.old);
  const bool side_is_old =
      job.side.data == job.old.data && job.side.dtype == job.old.dtype && lane.side.dim == lane.old.dim;
  if (side_is_old)
    block.side = block.old;
  else if (job.side.data != nullptr)
    block.side = add(job.side, lane.side);
  if (!staged.empty()) pool_.copy(staged, job.threads);
  for (const Copy& copy : copies) device_->copy_in(copy.to, copy.from, copy.bytes, in_.get());
}

// From the output, not from what was rounded to it: an index holds the values that are published.
void Ring::keep(const Job& job, const Lane& lane, std::int64_t first_row, std::int64_t rows) {
  const int dim = lane.out.dim;
  const Matrix from{lane.out.device.get(), job.out.dtype, dim, 1};
  const Matrix to{job.kept.data + first_row * dim, DType::kFloat32, dim, 1};
  const Extent extent{rows, dim, dim};
  if (job.kept.normalize)
    device_->normalize(from, to, extent, compute_.get());
  else
    device_->convert(from, to, extent, Activation::kNone, compute_.get());
}

void Ring::retire(Lane& lane) {
  Job& job = *lane.job;
  device_->synchronize_event(lane.copied_out.get());
  const auto* first_bad = lane.first_bad_host.as<std::int64_t>();
  for (std::size_t array = 0; array < kCounters; ++array)
    if (first_bad[array] != kNoBadRow && lane.first_row + first_bad[array] < job.bad_row) {
      job.bad_row = lane.first_row + first_bad[array];
      job.bad_array = kArrays[array];
    }
  if (lane.out_is_staged) {
    void* target = static_cast<char*>(job.out.data) + bytes_of(lane.first_row, lane.out.dim, job.out.dtype);
    const Copy copy{target, lane.out.staging.get(), bytes_of(lane.rows, lane.out.dim, job.out.dtype)};
    pool_.copy({&copy, 1}, job.threads);
  }
  --job.lanes;
  lane.job = nullptr;
}

// The device failed: whatever is in flight is lost, and no buffer may be touched by it any more.
void Ring::fail(std::exception_ptr error) {
  drain_streams();
  for (Lane& lane : lanes_) {
    if (lane.job == nullptr) continue;
    --lane.job->lanes;
    if (!lane.job->error) lane.job->error = error;
    lane.job = nullptr;
  }
}

void Ring::drain_streams() noexcept {
  for (const OwnedStream* stream : {&in_, &compute_, &out_}) drain(*device_, stream->get());
}

}  // namespace fct::cuda
