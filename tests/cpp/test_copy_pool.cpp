// Several copies by several threads at once: every byte arrives, and none beside them is touched.
#include <algorithm>

#include "check.h"
#include "cuda/copy_pool.h"
#include "random_programs.h"

namespace fct::testing {
namespace {

TEST(copies_by_many_threads_are_whole) {
  Random random(91);
  cuda::CopyPool pool;
  for (int repeat = 0; repeat < 60; ++repeat) {
    std::vector<std::vector<char>> sources, targets;
    std::vector<cuda::Copy> copies;
    for (int i = uniform(random, 1, 3); i > 0; --i) {
      const int bytes = uniform(random, 1, repeat % 2 == 0 ? 100 : 1 << 20);
      std::vector<char> source(static_cast<std::size_t>(bytes));
      for (std::size_t at = 0; at < source.size(); ++at)
        source[at] = static_cast<char>(at / 64 + at % 64 + 1);
      targets.emplace_back(source.size() + 1, 'x');
      sources.push_back(std::move(source));
    }
    for (std::size_t i = 0; i < sources.size(); ++i)
      copies.push_back({targets[i].data(), sources[i].data(), sources[i].size()});
    pool.copy(copies, uniform(random, 1, 6));
    for (std::size_t i = 0; i < sources.size(); ++i) {
      CHECK(std::equal(sources[i].begin(), sources[i].end(), targets[i].begin()));
      CHECK(targets[i].back() == 'x');
    }
  }
}

}  // namespace
}  // namespace fct::testing
