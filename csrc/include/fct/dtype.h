#pragma once

#include <cstddef>

namespace fct {

// The last three exist only between layers; arrays at the border are float32 or float16. kFloat8 is E4M3;
// kTf32 is a float32 whose mantissa is rounded to 10 bits.
enum class DType { kFloat32, kFloat16, kBFloat16, kFloat8, kTf32 };

// What linear layers multiply; sums are always float32.
enum class Precision { kFp32, kTf32, kFp16, kBf16, kFp8 };

constexpr std::size_t size_of(DType dtype) {
  if (dtype == DType::kFloat32 || dtype == DType::kTf32) return 4;
  return dtype == DType::kFloat8 ? 1 : 2;
}

// How the values that linear layers read are stored.
constexpr DType storage_of(Precision precision) {
  constexpr DType kTypes[] = {DType::kFloat32, DType::kTf32, DType::kFloat16, DType::kBFloat16,
                              DType::kFloat8};
  return kTypes[static_cast<int>(precision)];
}

constexpr const char* name_of(Precision precision) {
  constexpr const char* kNames[] = {"fp32", "tf32", "fp16", "bf16", "fp8"};
  return kNames[static_cast<int>(precision)];
}

}  // namespace fct
