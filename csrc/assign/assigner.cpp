#include <algorithm>
#include <atomic>
#include <string>

#include "checks.h"
#include "cpu/one_thread.h"
#include "cpu/thread_pool.h"
#include "fct/assign.h"
#include "nearest_list.h"
#include "product_encoder.h"

namespace fct {
namespace {

using assign::fail;
using assign::ListSearch;
using assign::NearestList;
using assign::ProductEncoder;

constexpr std::int64_t kEncodedRows = 128;  // at once: they stay in cache

struct Call {
  const float* rows;
  std::int64_t count;
  std::int64_t* lists;
  std::uint8_t* codes;
  std::int64_t tile;  // rows
  std::atomic<std::int64_t> next_row{0};
  std::atomic<std::int64_t> bad_row{cpu::kNoRow};  // the lowest: tiles are handed out in order
};

class CpuAssigner : public Assigner {
 public:
  CpuAssigner(std::optional<Centroids> centroids, std::unique_ptr<ListSearch> search,
              std::optional<Codebooks> codebooks) {
    if (centroids) lists_.emplace(std::move(*centroids), std::move(search));
    if (codebooks) encoder_.emplace(std::move(*codebooks));
  }

  void assign(const float* rows, std::int64_t count, int threads, std::int64_t* lists,
              std::uint8_t* codes) const override {
    // Smaller ones where there would be none for some threads.
    const std::int64_t share = std::max((count + threads - 1) / threads, kEncodedRows);
    Call call{rows, count, lists, codes, std::min(share, most_rows())};
    const std::int64_t tiles = (count + call.tile - 1) / call.tile;
    cpu::on_threads(std::min<std::int64_t>(threads, tiles), [&] { work(call); });
    if (call.bad_row != cpu::kNoRow) throw NonFiniteRow("rows", call.bad_row);
  }

  int dim() const override { return lists_ ? lists_->dim() : encoder_->dim(); }
  int parts() const override { return encoder_ ? encoder_->parts() : 0; }
  bool has_centroids() const override { return lists_.has_value(); }

 private:
  std::int64_t most_rows() const { return lists_ ? lists_->tile_rows() : kEncodedRows; }

  void work(Call& call) const {
    const cpu::OneThreadPerCaller guard;
    std::optional<NearestList::Workspace> workspace;
    if (lists_) workspace.emplace(*lists_);
    std::vector<float> scratch;
    for (;;) {
      const std::int64_t first = call.next_row.fetch_add(call.tile);
      if (first >= call.count || first > call.bad_row) break;
      run_tile(call, first, workspace, scratch);
    }
  }

  void run_tile(Call& call, std::int64_t first, std::optional<NearestList::Workspace>& workspace,
                std::vector<float>& scratch) const {
    const std::int64_t count = std::min(call.tile, call.count - first);
    const float* rows = call.rows + first * dim();
    const std::int64_t bad = cpu::first_bad_row(rows, DType::kFloat32, count, dim());
    if (bad != cpu::kNoRow) {
      std::int64_t lowest = call.bad_row;
      while (first + bad < lowest && !call.bad_row.compare_exchange_weak(lowest, first + bad)) {
      }
      return;
    }
    std::int64_t* lists = lists_ ? call.lists + first : nullptr;
    if (lists_) lists_->assign(rows, count, lists, *workspace);
    if (!encoder_) return;
    const float* centroids = encoder_->by_residual() ? lists_->centroids() : nullptr;
    for (std::int64_t start = 0; start < count; start += kEncodedRows)
      encoder_->encode(rows + start * dim(), std::min(kEncodedRows, count - start), centroids,
                       lists_ ? lists + start : nullptr, call.codes + (first + start) * encoder_->parts(),
                       scratch);
  }

  std::optional<NearestList> lists_;
  std::optional<ProductEncoder> encoder_;
};

std::unique_ptr<ListSearch> search_of(const Centroids& centroids, bool reduced,
                                      const std::optional<Groups>& groups,
                                      const std::optional<Directions>& directions) {
  if (groups) return assign::make_two_level_search(centroids, *groups);
  if (!reduced || directions) return assign::make_integer_search(centroids, directions);
  const cpu::OneThreadPerCaller guard;
  return assign::make_bfloat_search(centroids, *cpu::make_onednn_library());
}

}  // namespace

std::unique_ptr<Assigner> make_assigner(std::optional<Centroids> centroids,
                                        std::optional<Codebooks> codebooks, bool reduced,
                                        const std::optional<Groups>& groups,
                                        const std::optional<Directions>& directions) {
  assign::check_parts(centroids, codebooks);
  if ((groups || directions) && !centroids) fail("groups or directions are of centroids, and none are given");
  if (groups && directions) fail("groups and directions are given, wanted one of them");
  if (groups) assign::check_groups(*groups, centroids->dim);
  if (directions) assign::check_directions(*directions, centroids->dim);
  std::unique_ptr<ListSearch> search;
  if (centroids) search = search_of(*centroids, reduced, groups, directions);
  return std::make_unique<CpuAssigner>(std::move(centroids), std::move(search), std::move(codebooks));
}

bool prefers_reduced_assignment() { return cpu::onednn_instruction_set().has_bf16; }

}  // namespace fct
