#include "assign_program.h"

#include <algorithm>

#include "device_program.h"
#include "layout.h"

namespace fct::cuda {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

std::int64_t chunk_width(const Centroids& centroids) {
  return padded_width(std::min<std::int64_t>(kMostChunk, centroids.count));
}

// Entries of one dimension side by side, so that threads which compare neighbours read neighbours.
std::vector<float> transposed(const Codebooks& codebooks) {
  constexpr std::size_t kEntries = Codebooks::kEntries;
  const std::size_t width = at(codebooks.part_dim);
  std::vector<float> values(codebooks.values.size());
  for (std::size_t part = 0; part < at(codebooks.parts); ++part) {
    const std::size_t begin = part * kEntries * width;
    for (std::size_t entry = 0; entry < kEntries; ++entry)
      for (std::size_t k = 0; k < width; ++k)
        values[begin + k * kEntries + entry] = codebooks.values[begin + entry * width + k];
  }
  return values;
}

}  // namespace

AssignProgram::AssignProgram(SharedDevice device, const Assignment& assignment,
                             const std::optional<ListScores>& scores, std::vector<std::int64_t> blocks)
    : device_(std::move(device)), blocks_(std::move(blocks)) {
  centroids_.dim = assignment.dim();
  if (assignment.centroids) place_centroids(*assignment.centroids, *scores);
  if (assignment.codebooks) place_codebooks(*assignment.codebooks);
}

std::size_t AssignProgram::fixed_bytes(const Assignment& assignment) {
  const std::int64_t encoded = assignment.codebooks ? assignment.dim() : 0;
  std::size_t bytes = at(encoded) * Codebooks::kEntries * sizeof(float);
  if (assignment.centroids) {
    const std::size_t lists = at(padded_width(assignment.centroids->count));
    const std::size_t widths = at(assignment.dim() + padded_width(assignment.dim()) + 3);
    bytes += kLinearWorkspace + lists * widths * sizeof(float);
  }
  return bytes + 16 * kAlignment;
}

std::size_t AssignProgram::bytes_per_row(const Assignment& assignment) {
  if (!assignment.centroids) return 0;
  const std::int64_t floats = chunk_width(*assignment.centroids) + padded_width(assignment.dim());
  return at(floats) * sizeof(float) + sizeof(ListSearch);
}

const float* AssignProgram::upload(const std::vector<float>& values) {
  const std::size_t bytes = values.size() * sizeof(float);
  constants_.push_back(device_buffer(device_, bytes));
  const OwnedStream stream = make_stream(device_);
  const DrainOnExit guard(*device_, stream.get());
  device_->copy_in(constants_.back().get(), values.data(), bytes, stream.get());
  device_->synchronize_stream(stream.get());
  return constants_.back().as<const float>();
}

void AssignProgram::place_centroids(const Centroids& centroids, const ListScores& scores) {
  const std::size_t rows = at(blocks_.front());
  centroids_.values = upload(centroids.values);
  centroids_.mean = upload(scores.mean);
  centroids_.lengths = upload(scores.lengths);
  centroids_.count = centroids.count;
  centroids_.metric = centroids.metric;
  centroids_.errors = scores.errors;
  const std::int64_t padded = padded_width(centroids.dim);
  shifted_ = device_buffer(device_, rows * at(padded) * sizeof(float));
  scores_ = device_buffer(device_, rows * at(chunk_width(centroids)) * sizeof(float));
  searches_ = device_buffer(device_, rows * sizeof(ListSearch));
  workspace_ = device_buffer(device_, kLinearWorkspace);
  for (LinearSpec layer : scores.layers) {
    const std::int64_t first = static_cast<std::int64_t>(chunks_.size()) * kMostChunk;
    layer.input = {shifted_.get(), DType::kTf32, padded, 1};
    layer.output = {scores_.get(), DType::kFloat32, layer.d_out, 1};
    layer.rows = blocks_;
    chunks_.push_back({first, std::min<std::int64_t>(kMostChunk, centroids.count - first), layer.output,
                       device_->prepare(layer)});
    if (!chunks_.back().layer)
      throw Error(ErrorKind::kUnsupported, device_->label() + " has no kernel for the scores of " +
                                               std::to_string(layer.d_out) + " lists of " +
                                               std::to_string(layer.d_in) + " dims in tf32");
  }
}

void AssignProgram::place_codebooks(const Codebooks& codebooks) {
  codebooks_ = {upload(transposed(codebooks)), codebooks.parts, codebooks.part_dim};
  by_residual_ = codebooks.by_residual;
}

void AssignProgram::enqueue(const AssignedRows& rows, Stream stream) const {
  std::vector<std::size_t> sizes;
  for (std::size_t size = 0; size < blocks_.size(); ++size) sizes.push_back(size);
  const std::size_t size = choose_block(blocks_, sizes, rows.count);
  const Matrix shifted{shifted_.get(), DType::kTf32, padded_width(centroids_.dim), 1};
  auto* searches = searches_.as<ListSearch>();
  const bool has_lists = !chunks_.empty();
  device_->shift(rows, centroids_, shifted, has_lists ? shifted.stride : centroids_.dim, blocks_[size],
                 searches, stream);
  for (const Chunk& chunk : chunks_) {
    chunk.layer->enqueue(size, workspace_.get(), stream);
    device_->search(rows, centroids_, chunk.scores, chunk.first_list, chunk.lists, searches, stream);
  }
  if (codebooks_.values == nullptr) return;
  DeviceCentroids subtracted = centroids_;
  if (!by_residual_) subtracted.values = nullptr;
  device_->encode(rows, subtracted, codebooks_, stream);
}

std::string AssignProgram::kernels() const {
  std::string text;
  for (const Chunk& chunk : chunks_)
    text += "; lists " + std::to_string(chunk.first_list) + "+: " + chunk.layer->kernel();
  return text;
}

}  // namespace fct::cuda
