#include "ring.h"

#include <algorithm>
#include <bit>

namespace fct::cuda {
namespace {

constexpr const char* kArrays[kCheckedArrays] = {"old", "side", "result"};
constexpr std::size_t kCounterBytes = kCheckedArrays * sizeof(std::int64_t);  // of a block
constexpr std::size_t kLeastStaging = std::size_t{1} << 20;                   // bytes; less is not got sooner

std::size_t bytes_of(std::int64_t rows, int dim, DType dtype) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(dim) * size_of(dtype);
}

}  // namespace

Ring::Ring(SharedDevice device, std::shared_ptr<DeviceProgram> program, std::int64_t rows, int old_dim,
           int side_dim, int new_dim)
    : device_(std::move(device)),
      program_(std::move(program)),
      rows_(rows),
      in_(make_stream(device_)),
      compute_(make_stream(device_)),
      out_(make_stream(device_)) {
  for (Lane& lane : lanes_) {
    for (auto [channel, dim] :
         {std::pair{&lane.old, old_dim}, {&lane.side, side_dim}, {&lane.out, new_dim}}) {
      channel->dim = dim;
      channel->device = device_buffer(device_, bytes_of(rows_, dim, DType::kFloat32));
    }
    lane.first_bad = device_buffer(device_, counter_bytes());
    lane.first_bad_host = pinned_buffer(device_, counter_bytes());
    lane.copied_in = make_event(device_);
    lane.computed = make_event(device_);
    lane.copied_out = make_event(device_);
  }
}

Ring::~Ring() { drain_streams(); }

// Of as many blocks as a lane may hold.
std::size_t Ring::counter_bytes() const {
  const std::int64_t smallest = program_->blocks().back();
  return kCounterBytes * static_cast<std::size_t>((rows_ + smallest - 1) / smallest);
}

std::size_t Ring::bytes_per_row(int old_dim, int side_dim, int new_dim) {
  constexpr std::size_t kCounterShare = 1;  // at most: no block has as few rows as its counters have bytes
  return kLanes * (bytes_of(1, old_dim + side_dim + new_dim, DType::kFloat32) + kCounterShare);
}

void Ring::start(Job& job, const std::vector<std::size_t>& sizes) {
  const std::lock_guard lock(mutex_);
  try {
    for (std::int64_t first = 0; first < job.rows; first += rows_) {
      if (lanes_[next_lane_].job != nullptr) retire(lanes_[next_lane_]);
      if (job.bad_row != kNoBadRow) break;  // lanes end in order: no later one can hold an earlier row
      start_lane(job, first, sizes);
    }
  } catch (...) {
    fail(std::current_exception());
    throw;
  }
}

// Waits for a lane without the lock, so that others start and finish their jobs meanwhile. They may also
// retire the lane, or fail, and give it to a job of theirs: then it is no longer this job's, which never gets
// a new one, and nothing is left to do. If the event was recorded anew by then, the wait was longer than it
// had to be.
void Ring::finish(Job& job) {
  std::unique_lock lock(mutex_);
  try {
    for (std::size_t i = 0, oldest = next_lane_; i < kLanes && job.lanes > 0; ++i) {
      Lane& lane = lanes_[(oldest + i) % kLanes];
      if (lane.job != &job) continue;
      lock.unlock();
      device_->synchronize_event(lane.copied_out.get());
      lock.lock();
      if (lane.job == &job) retire(lane);
    }
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    fail(std::current_exception());
  }
  if (job.error) std::rethrow_exception(job.error);
  if (job.bad_row != kNoBadRow) throw NonFiniteRow(job.bad_array, job.bad_row);
}

void Ring::start_lane(Job& job, std::int64_t first_row, const std::vector<std::size_t>& sizes) {
  Lane& lane = lanes_[next_lane_];
  lane.first_row = first_row;
  lane.rows = std::min(rows_, job.rows - first_row);
  const BlockRows rows = copy_in(job, lane);
  device_->record(lane.copied_in.get(), in_.get());

  device_->wait(compute_.get(), lane.copied_in.get());
  // Not before the copies: a fill is a kernel, and may have to wait for one that takes the whole device.
  device_->fill(rows.first_bad, kNoBadRowByte, counter_bytes(), compute_.get());
  lane.blocks = program_->enqueue_blocks(sizes, rows, compute_.get());
  if (job.kept.data != nullptr) keep(job, lane);
  device_->record(lane.computed.get(), compute_.get());

  device_->wait(out_.get(), lane.computed.get());
  copy_out(job, lane);
  device_->record(lane.copied_out.get(), out_.get());

  lane.job = &job;
  ++job.lanes;
  next_lane_ = (next_lane_ + 1) % kLanes;
}

BlockRows Ring::copy_in(const Job& job, Lane& lane) {
  std::vector<Copy> staged, copies;
  auto add = [&](InputRows from, Channel& channel) -> InputRows {
    const std::size_t bytes = bytes_of(lane.rows, channel.dim, from.dtype);
    const void* source =
        static_cast<const char*>(from.data) + bytes_of(lane.first_row, channel.dim, from.dtype);
    if (!device_->is_pinned(source, bytes)) {
      staged.push_back({staging_for(channel, bytes), source, bytes});
      source = channel.staging.get();
    }
    copies.push_back({channel.device.get(), source, bytes});
    return {channel.device.get(), from.dtype};
  };
  BlockRows rows;
  rows.rows = lane.rows;
  rows.first_bad = lane.first_bad.as<std::int64_t>();
  rows.out = {lane.out.device.get(), job.out.dtype};
  rows.old = add(job.old, lane.old);
  const bool side_is_old =
      job.side.data == job.old.data && job.side.dtype == job.old.dtype && lane.side.dim == lane.old.dim;
  if (side_is_old)
    rows.side = rows.old;
  else if (job.side.data != nullptr)
    rows.side = add(job.side, lane.side);
  if (!staged.empty()) pool_.copy(staged, job.threads);
  for (const Copy& copy : copies) device_->copy_in(copy.to, copy.from, copy.bytes, in_.get());
  return rows;
}

// From the output, not from what was rounded to it: an index holds the values that are published.
void Ring::keep(const Job& job, const Lane& lane) {
  const int dim = lane.out.dim;
  const Matrix from{lane.out.device.get(), job.out.dtype, dim, 1};
  const Matrix to{job.kept.data + lane.first_row * dim, DType::kFloat32, dim, 1};
  const Extent extent{lane.rows, dim, dim};
  if (job.kept.normalize)
    device_->normalize(from, to, extent, compute_.get());
  else
    device_->convert(from, to, extent, Activation::kNone, compute_.get());
}

void Ring::copy_out(const Job& job, Lane& lane) {
  const std::size_t bytes = bytes_of(lane.rows, lane.out.dim, job.out.dtype);
  void* target = static_cast<char*>(job.out.data) + bytes_of(lane.first_row, lane.out.dim, job.out.dtype);
  lane.out_is_staged = !device_->is_pinned(target, bytes);
  if (lane.out_is_staged) target = staging_for(lane.out, bytes);
  device_->copy_out(target, lane.out.device.get(), bytes, out_.get());
  device_->copy_out(lane.first_bad_host.get(), lane.first_bad.get(), lane.blocks.size() * kCounterBytes,
                    out_.get());
}

// At least so many bytes of pinned memory. It takes long to get: what grows does so seldom.
void* Ring::staging_for(Channel& channel, std::size_t bytes) {
  if (channel.staging_bytes < bytes) {
    const std::size_t most = bytes_of(rows_, channel.dim, DType::kFloat32);
    const std::size_t more = std::min(most, std::max(kLeastStaging, std::bit_ceil(bytes)));
    channel.staging = pinned_buffer(device_, more);
    channel.staging_bytes = more;
  }
  return channel.staging.get();
}

void Ring::retire(Lane& lane) {
  Job& job = *lane.job;
  device_->synchronize_event(lane.copied_out.get());
  const auto* first_bad = lane.first_bad_host.as<std::int64_t>();
  for (std::int64_t block : lane.blocks)
    for (const char* array : kArrays) {
      const std::int64_t bad_row = *first_bad++;
      if (bad_row == kNoBadRow || lane.first_row + block + bad_row >= job.bad_row) continue;
      job.bad_row = lane.first_row + block + bad_row;
      job.bad_array = array;
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
