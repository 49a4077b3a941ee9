// Loops that compilers vectorise. No NVIDIA header converts numbers here: a second opinion on those that do.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "matmul.h"
#include "simulated_device.h"

namespace simulated {
namespace {

// The widest is for large blocks only; the next one is not good for equal bytes: it adds the rows in the
// second half of each of its tiles in another order, as kernels do that share out the last of their work
// differently.
constexpr int kLarge = 66, kUneven = 31, kPlain = 21, kSmall = 6;
constexpr Kernel kKernels[] = {
    {kLarge, 256, 256, 1024, 0},
    {kUneven, 128, 16, 128, std::uint64_t{4} << 20},
    {kPlain, 64, 16, 1, 0},
    {kSmall, 32, 4, 1, std::uint64_t{1} << 20},
};
constexpr std::int64_t kUnevenFrom = 160;  // rows of D

float from_bfloat16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

std::uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// E4M3: no infinity, NaN is all ones, the largest number 448.
float from_float8(std::uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::nanf("");
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                   : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (bits & 0x80) != 0 ? -size : size;
}

// To nearest, ties to even; saturates.
std::uint8_t to_float8(float value) {
  const std::uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return sign | 0x7f;
  const float size = std::min(std::abs(value), 448.f);
  const int exponent = size == 0 ? -6 : std::max(std::ilogb(size), -6);
  const auto units =
      static_cast<int>(std::nearbyint(std::ldexp(size, 3 - exponent)));  // 8 to 16; less: subnormal
  return static_cast<std::uint8_t>(sign | std::min((exponent + 6) * 8 + units, 0x7e));
}

// The input of tensor cores: ten bits of mantissa. Which way devices round is not documented.
float to_tf32(float value) {
  static const bool rounds = setting("FCT_SIMULATED_TF32_ROUNDS", 0) != 0;
  if (!std::isfinite(value)) return value;
  return std::bit_cast<float>((std::bit_cast<std::uint32_t>(value) + (rounds ? 0x1000u : 0u)) & 0xffffe000u);
}

template <typename T>
T at(const void* data, std::int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * static_cast<std::int64_t>(sizeof value),
              sizeof value);
  return value;
}
template <typename T>
void put(void* data, std::int64_t index, T value) {
  std::memcpy(static_cast<char*>(data) + index * static_cast<std::int64_t>(sizeof value), &value,
              sizeof value);
}

// A column of numbers as the multipliers get them.
void read_column(const void* data, const MatrixLayout& layout, std::int64_t column, bool is_tf32, float* to) {
  for (std::int64_t row = 0; row < layout.rows; ++row)
    to[row] = load(data, layout.type, column * layout.stride + row);
  if (is_tf32) std::transform(to, to + layout.rows, to, to_tf32);
}

// So many sums side by side, which are then added to one another.
template <int kSums>
float dot(const float* a, const float* b, std::int64_t count) {
  float sums[kSums] = {};
  std::int64_t k = 0;
  for (; k + kSums <= count; k += kSums)
    for (int i = 0; i < kSums; ++i) sums[i] += a[k + i] * b[k + i];
  for (; k < count; ++k) sums[k % kSums] += a[k] * b[k];
  float total = 0;
  for (float sum : sums) total += sum;
  return total;
}

float dot_by(const Kernel& kernel, std::int64_t column, std::int64_t m, const float* a, const float* b,
             std::int64_t count) {
  const bool is_second_half = column % kernel.tile >= kernel.tile / 2;
  if (kernel.id == kLarge) return dot<32>(a, b, count);
  if (kernel.id == kSmall || (kernel.id == kUneven && m >= kUnevenFrom && is_second_half))
    return dot<8>(a, b, count);
  return dot<16>(a, b, count);
}

}  // namespace

std::size_t bytes_of(cudaDataType_t type) {
  switch (type) {
    case CUDA_R_32F:
      return 4;
    case CUDA_R_16F:
    case CUDA_R_16BF:
      return 2;
    case CUDA_R_8F_E4M3:
      return 1;
    default:
      return 0;
  }
}

float load(const void* data, cudaDataType_t type, std::int64_t index) {
  static const auto float8 = [] {
    std::array<float, 256> values{};
    for (unsigned bits = 0; bits < 256; ++bits) values[bits] = from_float8(static_cast<std::uint8_t>(bits));
    return values;
  }();
  if (type == CUDA_R_32F) return at<float>(data, index);
  if (type == CUDA_R_16F) return static_cast<float>(at<_Float16>(data, index));
  if (type == CUDA_R_16BF) return from_bfloat16(at<std::uint16_t>(data, index));
  return float8[at<std::uint8_t>(data, index)];
}

void store(void* data, cudaDataType_t type, std::int64_t index, float value) {
  if (type == CUDA_R_32F) return put(data, index, value);
  if (type == CUDA_R_16F) return put(data, index, static_cast<_Float16>(value));
  if (type == CUDA_R_16BF) return put(data, index, to_bfloat16(value));
  put(data, index, to_float8(value));
}

bool Kernel::can_do(const Problem& problem) const {
  auto fits = [&](const MatrixLayout& layout) {
    return layout.stride * static_cast<std::int64_t>(bytes_of(layout.type)) % alignment == 0;
  };
  return problem.d.columns >= min_columns && fits(problem.a) && fits(problem.b) && fits(problem.c) &&
         fits(problem.d);
}

std::vector<const Kernel*> kernels_for(const Problem& problem, const Preference& preference) {
  const std::uint32_t aligned = *std::min_element(preference.alignment.begin(), preference.alignment.end());
  std::vector<const Kernel*> found;
  for (const Kernel& kernel : kKernels)
    if (kernel.can_do(problem) && kernel.alignment <= aligned && kernel.workspace <= preference.workspace)
      found.push_back(&kernel);
  return found;
}

const Kernel* find_kernel(int id) {
  const auto* found = std::find_if(std::begin(kKernels), std::end(kKernels),
                                   [&](const Kernel& each) { return each.id == id; });
  return found == std::end(kKernels) ? nullptr : found;
}

void multiply(const Kernel& kernel, const MatmulDesc& desc, const MatrixLayout& a, const MatrixLayout& b,
              const MatrixLayout& c, const MatrixLayout& d, const Matrices& matrices) {
  constexpr std::int64_t kTile = 32;  // columns of D at once, to read A less often
  const std::int64_t k = a.rows, m = a.columns;
  const bool is_tf32 = desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  auto scale = [&](cublasLtMatmulDescAttributes_t attribute) {
    const void* data = desc.pointer(attribute);
    return data == nullptr ? 1.f : at<float>(data, 0);
  };
  const float factor = matrices.alpha * scale(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER) *
                       scale(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
  const float out_factor = scale(CUBLASLT_MATMUL_DESC_D_SCALE_POINTER);
  std::vector<float> weights(static_cast<std::size_t>(m * k)), rows(static_cast<std::size_t>(kTile * k));
  for (std::int64_t column = 0; column < m; ++column)
    read_column(matrices.a, a, column, is_tf32, &weights[static_cast<std::size_t>(column * k)]);
  std::vector<float> bias(static_cast<std::size_t>(m));
  if (desc.has_bias())
    for (std::int64_t row = 0; row < m; ++row)
      bias[static_cast<std::size_t>(row)] =
          load(desc.pointer(CUBLASLT_MATMUL_DESC_BIAS_POINTER), desc.bias_type(d.type), row);
  for (std::int64_t first = 0; first < d.columns; first += kTile) {
    const std::int64_t count = std::min(kTile, d.columns - first);
    for (std::int64_t i = 0; i < count; ++i)
      read_column(matrices.b, b, first + i, is_tf32, &rows[static_cast<std::size_t>(i * k)]);
    for (std::int64_t row = 0; row < m; ++row)
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t column = first + i;
        float value = factor * dot_by(kernel, column, m, &weights[static_cast<std::size_t>(row * k)],
                                      &rows[static_cast<std::size_t>(i * k)], k);
        if (matrices.beta != 0) value += matrices.beta * load(matrices.c, c.type, column * c.stride + row);
        value += bias[static_cast<std::size_t>(row)];
        if (desc.has_relu()) value = value > 0 ? value : 0;  // NaN becomes 0 as well
        store(matrices.d, d.type, column * d.stride + row, value * out_factor);
      }
  }
}

}  // namespace simulated
