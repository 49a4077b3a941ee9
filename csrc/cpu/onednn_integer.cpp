// Note [Exact sums of 8-bit products]
// CPUs with VNNI add four products into 32 bits at once. Older ones add two into 16 bits first, which
// saturates: 255 * 127 * 2 does not fit. oneDNN uses them all the same, and says nothing. With weights of at
// most 64 nothing saturates (255 * 64 * 2 does fit; rows of signed integers are shifted into unsigned ones),
// for one bit of the weights. Which CPU sums how is not looked up but tried out, once, with the worst rows
// and weights there are: a kernel that nobody thought of is found out as well. Sums being exact integers,
// their order does not matter.
#include "onednn_integer.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "convert.h"
#include "fct/error.h"
#include "one_thread.h"
#include "onednn.h"
#include "onednn_product.h"

namespace fct::cpu {
namespace {

using dnnl::memory;
using onednn::cpu;
using onednn::Tag;

constexpr std::size_t kAlignment = 64;

memory::data_type type_of(DType dtype) {
  if (dtype == DType::kInt8) return memory::data_type::s8;
  return dtype == DType::kUint8 ? memory::data_type::u8 : memory::data_type::f32;
}

bool is_integer(DType dtype) { return size_of(dtype) == 1; }

// Weights as integers; in `units` what one of each row is worth.
std::vector<std::int8_t> rounded(const std::vector<float>& weight, std::size_t d_in, int largest,
                                 std::vector<float>& units) {
  std::vector<std::int8_t> integers(weight.size());
  for (std::size_t row = 0; row < units.size(); ++row) {
    const float* values = weight.data() + row * d_in;
    float range = 0;
    for (std::size_t i = 0; i < d_in; ++i) range = std::max(range, std::abs(values[i]));
    units[row] = range > 0 ? range / static_cast<float>(largest) : 1;
    for (std::size_t i = 0; i < d_in; ++i)
      integers[row * d_in + i] = static_cast<std::int8_t>(std::lround(values[i] / units[row]));
  }
  return integers;
}

dnnl::primitive_attr attributes(Activation activation, const Operand& output) {
  auto attributes = onednn::attributes(activation);
  attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 1);
  if (is_integer(output.stored)) attributes.set_scales_mask(DNNL_ARG_DST, 0);
  return attributes;
}

class IntegerLinear : public LinearOp {
 public:
  IntegerLinear(const Linear& layer, const Operand& input, const Operand& output,
                const std::vector<int>& tile_rows, int largest_weight)
      : input_(input),
        largest_weight_(largest_weight),
        tile_rows_(tile_rows),
        products_({input.width, type_of(input.multiplied)}, {output.width, type_of(output.stored)},
                  memory::data_type::s8, attributes(layer.activation, output), tile_rows) {
    if (!is_integer(input.stored)) rounded_bytes_ = aligned(at(tile_rows.front()) * at(input.width));
    bind_weights(layer);
    products_.bind(DNNL_ARG_BIAS, onednn::floats(layer.bias));
    if (is_integer(output.stored))  // what 1 is worth in it
      products_.bind(DNNL_ARG_ATTR_SCALES | DNNL_ARG_DST, onednn::floats({output.scale}));
  }

  void run(std::size_t tile, const void* input, void* output, void* scratch) const override {
    if (rounded_bytes_ > 0) {
      const std::size_t count = at(tile_rows_[tile]) * at(input_.width);
      convert(input, input_.stored, scratch, input_.multiplied, count, input_.scale);
      input = scratch;
    }
    void* own = static_cast<char*>(scratch) + rounded_bytes_;
    onednn::translated(ErrorKind::kResource, "run", [&] { products_.run(tile, input, output, own); });
  }

  std::size_t scratch_bytes() const override { return rounded_bytes_ + products_.scratch_bytes(); }
  std::string kernel() const override {
    return products_.kernel() + std::string(largest_weight_ < 127 ? " (weights of 7 bits)" : "");
  }

 private:
  static std::size_t at(int value) { return static_cast<std::size_t>(value); }
  static std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

  void bind_weights(const Linear& layer) {
    std::vector<float> units(layer.bias.size());  // value of the sum 1 in each column
    auto integers = rounded(layer.weight, at(input_.width), largest_weight_, units);
    for (float& unit : units) unit *= input_.scale;
    products_.bind_weights(memory::data_type::s8, integers.data());
    products_.bind(DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, onednn::floats(units));
  }

  Operand input_;
  int largest_weight_;
  std::vector<int> tile_rows_;
  onednn::Products products_;
  std::size_t rounded_bytes_ = 0;
};

// Rows and weights whose products are all as large as can be, of one sign over long stretches, so that
// whatever saturates on the way does.
bool sums_are_exact(DType rows_type, int largest_weight, int rows, int d_in, int d_out) {
  const auto width = static_cast<std::size_t>(d_in);
  Linear layer{0, 1, {}, std::vector<float>(static_cast<std::size_t>(d_out), 0), Activation::kNone};
  std::vector<std::int16_t> input;
  const bool is_signed = rows_type == DType::kInt8;
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < d_in; ++i) input.push_back(!is_signed ? 255 : (row + i / 8) % 2 == 0 ? 127 : -127);
  for (int unit = 0; unit < d_out; ++unit)
    for (int i = 0; i < d_in; ++i)
      layer.weight.push_back(static_cast<float>((unit + i / 8) % 3 == 0 ? -largest_weight : largest_weight));
  const IntegerLinear linear(layer, {d_in, rows_type, rows_type, 1}, {d_out, DType::kFloat32}, {rows},
                             largest_weight);
  std::vector<char> bytes(input.begin(), input.end());
  std::vector<char> scratch(linear.scratch_bytes() + kAlignment);
  void* start = scratch.data();
  std::size_t space = scratch.size();
  std::vector<float> found(static_cast<std::size_t>(rows) * static_cast<std::size_t>(d_out));
  linear.run(0, bytes.data(), found.data(), std::align(kAlignment, linear.scratch_bytes(), start, space));
  for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row)
    for (std::size_t unit = 0; unit < static_cast<std::size_t>(d_out); ++unit) {
      std::int64_t sum = 0;  // at most 2^24: a float holds it
      for (std::size_t i = 0; i < width; ++i)
        sum += input[row * width + i] * static_cast<std::int64_t>(layer.weight[unit * width + i]);
      if (found[row * static_cast<std::size_t>(d_out) + unit] != static_cast<float>(sum)) return false;
    }
  return true;
}

bool all_are_exact(int largest_weight) {
  for (DType rows_type : {DType::kUint8, DType::kInt8})
    for (int rows : {8, 128})
      for (const auto& [d_in, d_out] : {std::pair{256, 96}, {100, 33}, {7, 5}})
        if (!sums_are_exact(rows_type, largest_weight, rows, d_in, d_out)) return false;
  return true;
}

}  // namespace

int largest_exact_weight() {
  static const int largest = [] {
    const OneThreadPerCaller guard;
    try {
      for (int weight : {127, 64})
        if (all_are_exact(weight)) return weight;
    } catch (const dnnl::error&) {  // it has no such product
    }
    return 0;
  }();
  return largest;
}

std::unique_ptr<LinearOp> make_integer_linear(const Linear& layer, const Operand& input,
                                              const Operand& output, const std::vector<int>& tile_rows,
                                              int largest_weight) {
  if (largest_weight == 0) throw Error(ErrorKind::kUnsupported, "this CPU has no exact 8-bit products");
  constexpr int kWidest = std::numeric_limits<std::int32_t>::max() / (255 * 127);
  if (input.width > kWidest)
    throw Error(ErrorKind::kUnsupported, "int8: a layer is " + std::to_string(input.width) +
                                             " wide, 32 bits hold sums of " + std::to_string(kWidest));
  return std::make_unique<IntegerLinear>(layer, input, output, tile_rows, largest_weight);
}

}  // namespace fct::cpu
