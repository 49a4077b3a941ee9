#pragma once

#include <cstddef>

namespace fct {

// kBFloat16 exists only between layers; arrays at the border are float32 or float16.
enum class DType { kFloat32, kFloat16, kBFloat16 };

enum class Precision { kFp32, kBf16 };

constexpr std::size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace fct
