// Scores by products of bfloat16, for CPUs that multiply them fast.
#include <algorithm>
#include <cstdlib>
#include <new>

#include "cpu/convert.h"
#include "distances.h"
#include "list_search.h"
#include "shifted_centroids.h"

namespace fct::assign {
namespace {

constexpr int kTileRows = 128;
constexpr int kChunk = 1024;                       // lists scored at once: no more scores than a cache holds
constexpr std::size_t kBlock = 64;                 // scores whose candidates are looked for at once
constexpr float kTwoBfloatRoundings = 0x1.02p-7f;  // each is off by up to 2^-8 of its value

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

struct Free {
  void operator()(char* pointer) const { std::free(pointer); }
};

struct Buffers : ListSearch::Workspace {
  Buffers(int dim, int lists, std::size_t scratch_bytes)
      : shifted(at(kTileRows) * at(dim)),
        scores(at(kTileRows) * at(std::min(kChunk, lists))),
        lengths(at(kTileRows)),
        errors(at(kTileRows)),
        rounded(shifted.size()),
        scratch(static_cast<char*>(std::aligned_alloc(64, (scratch_bytes + 63) / 64 * 64))) {
    if (!scratch) throw std::bad_alloc();
  }
  std::vector<float> shifted, scores, lengths, errors;  // the last two of rows
  std::vector<std::uint16_t> rounded;
  std::unique_ptr<char, Free> scratch;
};

class BfloatSearch : public ListSearch {
 public:
  BfloatSearch(const Centroids& centroids, const cpu::LinearLibrary& library)
      : centroids_(centroids, kTwoBfloatRoundings) {
    for (int first = 0; first < centroids_.count; first += kChunk) {
      const int lists = chunk_size(products_.size());
      const auto begin = centroids_.values.begin() + static_cast<std::ptrdiff_t>(at(first) * at(dim()));
      const auto bias = centroids_.biases.begin() + first;
      const Linear layer{0,
                         1,
                         {begin, begin + static_cast<std::ptrdiff_t>(at(lists) * at(dim()))},
                         {bias, bias + lists},
                         Activation::kNone};
      products_.push_back(
          library.make(layer, {dim(), DType::kBFloat16}, {lists, DType::kFloat32}, {kTileRows}));
      scratch_bytes_ = std::max(scratch_bytes_, products_.back()->scratch_bytes());
    }
  }

  int tile_rows() const override { return kTileRows; }

  std::unique_ptr<Workspace> make_workspace() const override {
    return std::make_unique<Buffers>(dim(), centroids_.count, scratch_bytes_);
  }

  void search(const float* rows, std::int64_t count, Found* found, Workspace& workspace) const override {
    auto& buffers = static_cast<Buffers&>(workspace);
    for (std::int64_t row = 0; row < count; ++row) {
      const float length =
          centroids_.shift(rows + at(row) * at(dim()), buffers.shifted.data() + at(row) * at(dim()));
      buffers.lengths[at(row)] = length;
      buffers.errors[at(row)] = centroids_.error_for(length);
      found[row].clear();
    }
    std::fill(buffers.shifted.begin() + static_cast<std::ptrdiff_t>(at(count) * at(dim())),
              buffers.shifted.end(), 0.f);
    cpu::convert(buffers.shifted.data(), DType::kFloat32, buffers.rounded.data(), DType::kBFloat16,
                 buffers.shifted.size());
    for (std::size_t chunk = 0; chunk < products_.size(); ++chunk) score(chunk, count, found, buffers);
  }

 private:
  int dim() const { return centroids_.dim; }
  int chunk_size(std::size_t chunk) const {
    return std::min(kChunk, centroids_.count - static_cast<int>(chunk) * kChunk);
  }

  // The lists of one chunk that may be the nearest ones, as far as is known by now.
  void score(std::size_t chunk, std::int64_t count, Found* found, Buffers& buffers) const {
    products_[chunk]->run(0, buffers.rounded.data(), buffers.scores.data(), buffers.scratch.get());
    const std::size_t lists = at(chunk_size(chunk)), first = chunk * kChunk;
    const float* lengths = centroids_.lengths.data() + first;
    float highs[kChunk / kBlock];
    for (std::int64_t index = 0; index < count; ++index) {
      Found& row = found[index];
      const float error = buffers.errors[at(index)];
      const float* scores = buffers.scores.data() + at(index) * lists;
      float low = row.floor;
      for (std::size_t start = 0; start < lists; start += kBlock)
        highs[start / kBlock] = bounds_of(scores + start, lengths + start, error, centroids_.own_rounding,
                                          std::min(kBlock, lists - start), low);
      row.floor = std::max(row.floor, low - centroids_.settling_error(buffers.lengths[at(index)], low));
      for (std::size_t start = 0; start < lists; start += kBlock) {
        if (highs[start / kBlock] < row.floor) continue;
        for (std::size_t list = start; list < std::min(start + kBlock, lists); ++list) {
          const float high = scores[list] + lengths[list] * error + centroids_.own_error(lengths[list]);
          if (!(high < row.floor)) row.candidates.push_back({static_cast<std::int64_t>(first + list), high});
        }
      }
    }
  }

  ShiftedCentroids centroids_;
  std::vector<std::unique_ptr<cpu::LinearOp>> products_;  // one for each chunk of lists
  std::size_t scratch_bytes_ = 64;
};

}  // namespace

std::unique_ptr<ListSearch> make_bfloat_search(const Centroids& centroids,
                                               const cpu::LinearLibrary& library) {
  return std::make_unique<BfloatSearch>(centroids, library);
}

}  // namespace fct::assign
