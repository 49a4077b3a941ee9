// Runs all tests, or those whose name contains the argument. The closing line is "N passed, N failed".
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <string_view>

#include "check.h"

int main(int argc, char** argv) {
  alarm(600);  // a deadlock must end the run
  int passed = 0, failed = 0;
  for (const auto& test : fct::testing::registry()) {
    if (argc > 1 && std::string_view(test.name).find(argv[1]) == std::string_view::npos) continue;
    const auto start = std::chrono::steady_clock::now();
    std::string error;
    try {
      test.body();
    } catch (const std::exception& caught) {
      error = caught.what();
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s %-48s %6.2f s  %s\n", error.empty() ? "ok  " : "FAIL", test.name, seconds, error.c_str());
    std::fflush(stdout);
    error.empty() ? ++passed : ++failed;
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
