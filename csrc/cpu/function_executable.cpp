#include <algorithm>
#include <utility>

#include "convert.h"
#include "fct/engine.h"
#include "fct/error.h"

namespace fct {
namespace {

using cpu::kNoRow;

constexpr std::int64_t kMaxRows = 65536;

// `rows` rows as float32: where they lie if they are, else cast into `buffer`.
const float* as_float(const void* data, DType dtype, std::int64_t rows, int width,
                      std::vector<float>& buffer) {
  if (data == nullptr || dtype == DType::kFloat32) return static_cast<const float*>(data);
  buffer.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(width));
  cpu::convert(data, dtype, buffer.data(), DType::kFloat32, buffer.size());
  return buffer.data();
}

class FunctionExecutable : public Executable {
 public:
  FunctionExecutable(RowFunction function, RowFunctionTraits traits)
      : function_(std::move(function)), traits_(std::move(traits)) {}

  void run(InputRows old, InputRows side, OutputRows out, std::int64_t rows, int) const override {
    for (std::int64_t first = 0; first < rows; first += kMaxRows)
      run_some(old, side, out, first, std::min(kMaxRows, rows - first));
  }

  int old_dim() const override { return traits_.old_dim; }
  int side_dim() const override { return traits_.side_dim; }
  int new_dim() const override { return traits_.new_dim; }
  Precision precision() const override { return Precision::kFp32; }
  std::string description() const override { return traits_.description; }

 private:
  void run_some(InputRows old, InputRows side, OutputRows out, std::int64_t first, std::int64_t rows) const {
    const void* old_data = cpu::row_of(old.data, old.dtype, first, old_dim());
    const void* side_data =
        side.data == nullptr ? nullptr : cpu::row_of(side.data, side.dtype, first, side_dim());
    const std::int64_t bad_old = cpu::first_bad_row(old_data, old.dtype, rows, old_dim());
    const std::int64_t bad_side =
        side_data == nullptr ? kNoRow : cpu::first_bad_row(side_data, side.dtype, rows, side_dim());
    const std::int64_t bad = std::min(bad_old, bad_side);
    // A row before the bad one may have a bad result, which then comes first.
    compute(old_data, old.dtype, side_data, side.dtype, out, first, std::min(bad, rows));
    if (bad != kNoRow) throw NonFiniteRow(bad == bad_old ? "old" : "side", first + bad);
  }

  void compute(const void* old, DType old_dtype, const void* side, DType side_dtype, OutputRows out,
               std::int64_t first, std::int64_t rows) const {
    if (rows == 0) return;
    std::vector<float> old_buffer, side_buffer, out_buffer;
    void* target = const_cast<void*>(cpu::row_of(out.data, out.dtype, first, new_dim()));
    const auto width = static_cast<std::size_t>(new_dim());
    float* result = static_cast<float*>(target);
    if (out.dtype != DType::kFloat32) {
      out_buffer.resize(static_cast<std::size_t>(rows) * width);
      result = out_buffer.data();
    }
    function_(as_float(old, old_dtype, rows, old_dim(), old_buffer),
              as_float(side, side_dtype, rows, side_dim(), side_buffer), result, rows);
    if (traits_.normalize)
      cpu::normalize_rows(result, DType::kFloat32, result, DType::kFloat32, static_cast<std::size_t>(rows),
                          width);
    if (result != target)
      cpu::convert(result, DType::kFloat32, target, out.dtype, static_cast<std::size_t>(rows) * width);
    const std::int64_t bad = cpu::first_bad_row(target, out.dtype, rows, new_dim());
    if (bad != kNoRow) throw NonFiniteRow("result", first + bad);
  }

  RowFunction function_;
  RowFunctionTraits traits_;
};

}  // namespace

std::unique_ptr<Executable> make_function_executable(RowFunction function, RowFunctionTraits traits) {
  return std::make_unique<FunctionExecutable>(std::move(function), std::move(traits));
}

}  // namespace fct
