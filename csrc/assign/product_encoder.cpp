#include "product_encoder.h"

#include <algorithm>

#include "nearest_entry.h"

namespace fct::assign {

void ProductEncoder::encode(const float* rows, std::int64_t count, const float* centroids,
                            const std::int64_t* lists, std::uint8_t* codes,
                            std::vector<float>& scratch) const {
  const auto width = static_cast<std::size_t>(codebooks_.part_dim), dims = static_cast<std::size_t>(dim());
  const std::int64_t groups = groups_of(count);
  scratch.resize(static_cast<std::size_t>(groups) * kGroupRows * dims);
  make_groups(rows, count, dim(), centroids, lists, scratch.data());
  std::int32_t nearest[kGroupRows];
  // Parts outermost: one codebook fits into the nearest cache.
  for (int part = 0; part < codebooks_.parts; ++part) {
    const std::size_t begin = static_cast<std::size_t>(part) * width;
    const float* book = codebooks_.values.data() + begin * Codebooks::kEntries;
    for (std::int64_t group = 0; group < groups; ++group) {
      const float* group_rows =
          scratch.data() + (static_cast<std::size_t>(group) * dims + begin) * kGroupRows;
      nearest_entries(group_rows, book, codebooks_.part_dim, nearest);
      const std::int64_t first = group * kGroupRows;
      const std::int64_t rows_here = std::min<std::int64_t>(kGroupRows, count - first);
      for (std::int64_t lane = 0; lane < rows_here; ++lane)
        codes[(first + lane) * codebooks_.parts + part] = static_cast<std::uint8_t>(nearest[lane]);
    }
  }
}

}  // namespace fct::assign
