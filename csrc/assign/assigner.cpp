#include <algorithm>
#include <atomic>
#include <cfloat>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "cpu/convert.h"
#include "cpu/one_thread.h"
#include "fct/assign.h"
#include "fct/error.h"
#include "nearest_list.h"
#include "product_encoder.h"

namespace fct {
namespace {

using assign::NearestList;
using assign::ProductEncoder;
constexpr int kMostThreads = 1024;  // of a call: more than any machine has cores

struct Call {
  const float* rows;
  std::int64_t count;
  std::int64_t* lists;
  std::uint8_t* codes;
  std::atomic<std::int64_t> next_row{0};
  std::atomic<std::int64_t> bad_row{cpu::kNoRow};  // the lowest: tiles are handed out in order
  std::atomic<bool> failed{false};
  std::mutex mutex{};
  std::exception_ptr error{};
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
    std::vector<std::jthread> helpers;
    try {
      for (std::int64_t i = 1; i < std::min<std::int64_t>(std::min(threads, kMostThreads), tiles); ++i)
        helpers.emplace_back([&] { work(call); });
    } catch (const std::system_error&) {  // the machine allows no more: those there are do the work
    }
    work(call);
    helpers.clear();  // joins
    if (call.error) std::rethrow_exception(call.error);
    if (call.bad_row != cpu::kNoRow) throw NonFiniteRow("rows", call.bad_row);
  }

  int dim() const override { return lists_ ? lists_->dim() : encoder_->dim(); }
  int parts() const override { return encoder_ ? encoder_->parts() : 0; }
  bool has_centroids() const override { return lists_.has_value(); }

 private:
  void work(Call& call) const {
    try {
      const cpu::OneThreadPerCaller guard;
      std::optional<NearestList::Workspace> workspace;
      if (lists_) workspace.emplace(*lists_);
      std::vector<float> scratch;
      for (;;) {
        const std::int64_t first = call.next_row.fetch_add(NearestList::kTileRows);
        if (first >= call.count || call.failed || first > call.bad_row) break;
        run_tile(call, first, workspace, scratch);
      }
    } catch (...) {
      const std::lock_guard lock(call.mutex);
      if (!call.error) call.error = std::current_exception();
      call.failed = true;
    }
  }

  void run_tile(Call& call, std::int64_t first, std::optional<NearestList::Workspace>& workspace,
                std::vector<float>& scratch) const {
    const std::int64_t count = std::min<std::int64_t>(NearestList::kTileRows, call.count - first);
    const float* rows = call.rows + first * dim();
    const std::int64_t bad = cpu::first_bad_row(rows, DType::kFloat32, count, dim());
    if (bad != cpu::kNoRow) {
      const std::lock_guard lock(call.mutex);
      call.bad_row = std::min<std::int64_t>(call.bad_row, first + bad);
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

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorKind::kArray, message); }

void check_values(const std::vector<float>& values, const char* name,
                  std::initializer_list<std::size_t> shape) {
  std::size_t count = 1;
  for (std::size_t size : shape) count *= size;
  if (count == 0 || values.size() != count)
    fail(std::string(name) + " holds " + std::to_string(values.size()) + " values, wanted " +
         std::to_string(count) + ", and at least one");
  if (!cpu::all_within(values.data(), DType::kFloat32, count, FLT_MAX))
    fail(std::string(name) + " holds NaN or infinity");
}

}  // namespace

std::unique_ptr<Assigner> make_assigner(std::optional<Centroids> centroids,
                                        std::optional<Codebooks> codebooks, bool reduced) {
  auto size = [](int value) { return static_cast<std::size_t>(std::max(value, 0)); };
  if (!centroids && !codebooks) fail("neither centroids nor codebooks are given");
  if (centroids) check_values(centroids->values, "centroids", {size(centroids->count), size(centroids->dim)});
  if (codebooks)
    check_values(codebooks->values, "codebooks",
                 {size(codebooks->parts), std::size_t{Codebooks::kEntries}, size(codebooks->part_dim)});
  if (codebooks && codebooks->by_residual && !centroids) fail("residuals need centroids");
  if (centroids && codebooks && codebooks->parts * codebooks->part_dim != centroids->dim)
    fail("codebooks are for rows of " + std::to_string(codebooks->parts * codebooks->part_dim) +
         " dims, centroids have " + std::to_string(centroids->dim));
  return std::make_unique<CpuAssigner>(std::move(centroids), std::move(codebooks), reduced);
}

bool prefers_reduced_assignment() { return cpu::onednn_instruction_set().has_bf16; }

}  // namespace fct
