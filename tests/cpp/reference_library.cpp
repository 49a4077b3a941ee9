#include "reference_library.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"
#include "rounding.h"

namespace fct::testing {
namespace {

float load(const void* from, const cpu::Operand& operand, std::size_t index) {
  if (operand.stored == DType::kInt8) return operand.scale * static_cast<const std::int8_t*>(from)[index];
  if (operand.stored == DType::kUint8) return operand.scale * static_cast<const std::uint8_t*>(from)[index];
  if (operand.stored == DType::kBFloat16)
    return value_of_bfloat(static_cast<const std::uint16_t*>(from)[index]);
  const float value = static_cast<const float*>(from)[index];
  if (size_of(operand.multiplied) > 1) return value;
  const float most = operand.multiplied == DType::kInt8 ? 127 : 255, least = most == 127 ? -127 : 0;
  return operand.scale * std::clamp(std::nearbyint(value / operand.scale), least, most);
}

void store(void* to, const cpu::Operand& operand, std::size_t index, float value) {
  if (operand.stored == DType::kFloat32)
    static_cast<float*>(to)[index] = value;
  else if (operand.stored == DType::kBFloat16)
    static_cast<std::uint16_t*>(to)[index] = bfloat_of(rounded_to_bfloat(value));
  else if (operand.stored == DType::kInt8)
    static_cast<std::int8_t*>(to)[index] =
        static_cast<std::int8_t>(std::clamp(std::nearbyint(value / operand.scale), -127.f, 127.f));
  else
    static_cast<std::uint8_t*>(to)[index] =
        static_cast<std::uint8_t>(std::clamp(std::nearbyint(value / operand.scale), 0.f, 255.f));
}

class ReferenceLinear : public cpu::LinearOp {
 public:
  ReferenceLinear(const Linear& layer, const cpu::Operand& input, const cpu::Operand& output,
                  std::vector<int> tile_rows, ReferenceOptions options)
      : layer_(layer),
        d_in_(static_cast<std::size_t>(input.width)),
        d_out_(static_cast<std::size_t>(output.width)),
        input_(input),
        output_(output),
        tile_rows_(std::move(tile_rows)),
        options_(options) {
    CHECK(std::is_sorted(tile_rows_.rbegin(), tile_rows_.rend()));
    CHECK(input.stored != DType::kFloat16 && output.stored != DType::kFloat16);
    if (input.stored == DType::kBFloat16)
      for (float& weight : layer_.weight) weight = static_cast<float>(rounded_to_bfloat(weight));
  }

  void run(std::size_t tile, const void* input, void* output, void* scratch) const override {
    CHECK(reinterpret_cast<std::uintptr_t>(scratch) % 64 == 0);
    options_.before_run();
    const int rows = tile_rows_.at(tile);
    auto* row = static_cast<float*>(scratch);
    for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
      for (std::size_t i = 0; i < d_in_; ++i) row[i] = load(input, input_, r * d_in_ + i);
      for (std::size_t o = 0; o < d_out_; ++o)
        store(output, output_, r * d_out_ + o, activated(sum(row, o, rows < options_.backwards_below)));
    }
  }

  std::size_t scratch_bytes() const override { return d_in_ * sizeof(float); }
  std::string kernel() const override { return "reference"; }

 private:
  float sum(const float* row, std::size_t o, bool backwards) const {
    const float* weights = layer_.weight.data() + o * d_in_;
    float total = 0;
    for (std::size_t i = 0; i < d_in_; ++i) {
      const std::size_t k = backwards ? d_in_ - 1 - i : i;
      total += row[k] * weights[k];
    }
    return total + layer_.bias[o];
  }

  float activated(float value) const {
    if (layer_.activation == Activation::kRelu) return std::max(value, 0.f);
    if (layer_.activation == Activation::kGelu) return 0.5f * value * (1 + std::erf(value / std::sqrt(2.f)));
    return value;
  }

  Linear layer_;
  std::size_t d_in_, d_out_;
  cpu::Operand input_, output_;
  std::vector<int> tile_rows_;
  ReferenceOptions options_;
};

}  // namespace

std::unique_ptr<cpu::LinearOp> ReferenceLibrary::make(const Linear& layer, const cpu::Operand& input,
                                                      const cpu::Operand& output,
                                                      const std::vector<int>& tile_rows) const {
  return std::make_unique<ReferenceLinear>(layer, input, output, tile_rows, options_);
}

}  // namespace fct::testing
