#pragma once

#include <cstddef>

namespace fct {

// kBFloat16 and kFloat8 (E4M3) exist only between layers; arrays at the border are float32 or float16.
enum class DType { kFloat32, kFloat16, kBFloat16, kFloat8 };

// What linear layers multiply; sums are always float32. kTf32: float32 storage, products of 10-bit mantissas.
enum class Precision { kFp32, kTf32, kFp16, kBf16, kFp8 };

constexpr std::size_t size_of(DType dtype) {
  if (dtype == DType::kFloat32) return 4;
  return dtype == DType::kFloat8 ? 1 : 2;
}

// How the values that linear layers read are stored.
constexpr DType storage_of(Precision precision) {
  if (precision == Precision::kFp16) return DType::kFloat16;
  if (precision == Precision::kBf16) return DType::kBFloat16;
  return precision == Precision::kFp8 ? DType::kFloat8 : DType::kFloat32;
}

constexpr const char* name_of(Precision precision) {
  constexpr const char* kNames[] = {"fp32", "tf32", "fp16", "bf16", "fp8"};
  return kNames[static_cast<int>(precision)];
}

}  // namespace fct
