#pragma once

#include <cstddef>

namespace fct {

// All but the first two exist only between layers. kFloat8 is E4M3; kTf32 is a float32 whose mantissa is
// rounded to 10 bits; kUint8 is kInt8 for what is never negative.
enum class DType { kFloat32, kFloat16, kBFloat16, kFloat8, kTf32, kInt8, kUint8 };

// What linear layers multiply; sums are float32, of kInt8 exact integers.
enum class Precision { kFp32, kTf32, kFp16, kBf16, kFp8, kInt8 };

constexpr std::size_t size_of(DType dtype) {
  if (dtype == DType::kFloat32 || dtype == DType::kTf32) return 4;
  return dtype == DType::kFloat16 || dtype == DType::kBFloat16 ? 2 : 1;
}

// How the values that linear layers read are stored.
constexpr DType storage_of(Precision precision) {
  constexpr DType kTypes[] = {DType::kFloat32,  DType::kTf32,   DType::kFloat16,
                              DType::kBFloat16, DType::kFloat8, DType::kInt8};
  return kTypes[static_cast<int>(precision)];
}

constexpr const char* name_of(Precision precision) {
  constexpr const char* kNames[] = {"fp32", "tf32", "fp16", "bf16", "fp8", "int8"};
  return kNames[static_cast<int>(precision)];
}

// Whether values are scaled by ranges measured on rows before they are stored.
constexpr bool needs_ranges(Precision precision) {
  return precision == Precision::kFp8 || precision == Precision::kInt8;
}

}  // namespace fct
