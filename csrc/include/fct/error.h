// Errors the core raises on purpose. Each kind has one Python class in fct_infer/errors.py.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace fct {

enum class ErrorKind {
  kArray,         // an argument has the wrong dtype, layout, shape or content
  kArtifact,      // a program is malformed
  kUnsupported,   // this machine or build cannot do what was asked
  kResource,      // a device failed
  kDeviceMemory,  // it has too little memory
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

// A row that is not finite, or whose sums may overflow unseen. `row` counts from the start of the arrays
// handed to Executable::run.
class NonFiniteRow : public Error {
 public:
  NonFiniteRow(const std::string& array, std::int64_t row)
      : Error(ErrorKind::kArray, array + ": row " + std::to_string(row) + " holds NaN or infinity"),
        array_(array),
        row_(row) {}
  const std::string& array() const noexcept { return array_; }
  std::int64_t row() const noexcept { return row_; }

 private:
  std::string array_;
  std::int64_t row_;
};

}  // namespace fct
