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
using assign::NearestList;
using assign::ProductEncoder;

struct Call {
  const float* rows;
  std::int64_t count;
  std::int64_t* lists;
  std::uint8_t* codes;
  std::atomic<std::int64_t> next_row{0};
  std::atomic<std::int64_t> bad_row{cpu::kNoRow};  // the lowest: tiles are handed out in order
};

class CpuAssigner : public Assigner {
 public:
  CpuAssigner(std::optional<Centroids> centroids, std::optional<Codebooks> codebooks, bool reduced) {
    const cpu::OneThreadPerCaller guard;
    if (centroids) lists_.emplace(std::move(*centroids), reduced, *cpu::make_onednn_library());
    if (codebooks) encoder_.emplace(std::move(*codebooks));
  }

  void assign(const float* rows, std::int64_t count, int threads, std::int64_t* lists,
              std::uint8_t* codes) const override {
    Call call{rows, count, lists, codes};
    const std::int64_t tiles = (count + NearestList::kTileRows - 1) / NearestList::kTileRows;
    cpu::on_threads(std::min<std::int64_t>(threads, tiles), [&] { work(call); });
    if (call.bad_row != cpu::kNoRow) throw NonFiniteRow("rows", call.bad_row);
  }

  int dim() const override { return lists_ ? lists_->dim() : encoder_->dim(); }
  int parts() const override { return encoder_ ? encoder_->parts() : 0; }
  bool has_centroids() const override { return lists_.has_value(); }

 private:
  void work(Call& call) const {
    const cpu::OneThreadPerCaller guard;
    std::optional<NearestList::Workspace> workspace;
    if (lists_) workspace.emplace(*lists_);
    std::vector<float> scratch;
    for (;;) {
      const std::int64_t first = call.next_row.fetch_add(NearestList::kTileRows);
      if (first >= call.count || first > call.bad_row) break;
      run_tile(call, first, workspace, scratch);
    }
  }

  void run_tile(Call& call, std::int64_t first, std::optional<NearestList::Workspace>& workspace,
                std::vector<float>& scratch) const {
    const std::int64_t count = std::min<std::int64_t>(NearestList::kTileRows, call.count - first);
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
    encoder_->encode(rows, count, centroids, lists, call.codes + first * encoder_->parts(), scratch);
  }

  std::optional<NearestList> lists_;
  std::optional<ProductEncoder> encoder_;
};

}  // namespace

std::unique_ptr<Assigner> make_assigner(std::optional<Centroids> centroids,
                                        std::optional<Codebooks> codebooks, bool reduced) {
  if (!centroids && !codebooks) fail("neither centroids nor codebooks are given");
  if (centroids) assign::check_centroids(*centroids);
  if (codebooks) assign::check_codebooks(*codebooks);
  if (codebooks && codebooks->by_residual && !centroids) fail("residuals need centroids");
  if (centroids && codebooks && codebooks->parts * codebooks->part_dim != centroids->dim)
    fail("codebooks are for rows of " + std::to_string(codebooks->parts * codebooks->part_dim) +
         " dims, centroids have " + std::to_string(centroids->dim));
  return std::make_unique<CpuAssigner>(std::move(centroids), std::move(codebooks), reduced);
}

bool prefers_reduced_assignment() { return cpu::onednn_instruction_set().has_bf16; }

}  // namespace fct
