// A test registry in one header: TEST(name) { CHECK(...); }. A test ends at its first failed check.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace fct::testing {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& registry() {
  static std::vector<Test> tests;
  return tests;
}

struct Registration {
  Registration(const char* name, void (*body)()) { registry().push_back({name, body}); }
};

class Failure : public std::runtime_error {
 public:
  Failure(const char* file, int line, const char* what, const std::string& details = "")
      : runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + what + "  " + details) {}
};

}  // namespace fct::testing

#define TEST(name)                                                        \
  static void name();                                                     \
  static const fct::testing::Registration registered_##name(#name, name); \
  static void name()

// CHECK(condition[, details]): the details say which case of a loop failed.
#define CHECK(condition, ...)                                                                 \
  do {                                                                                        \
    if (!(condition))                                                                         \
      throw fct::testing::Failure(__FILE__, __LINE__, #condition __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)
