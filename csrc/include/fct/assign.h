// Which inverted list a row belongs to, and its code there: what filling an index consists of.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace fct {

enum class Metric { kL2, kInnerProduct };

// Of the inverted lists.
struct Centroids {
  int count, dim;
  Metric metric;
  std::vector<float> values;  // (count, dim)
};

// A first level above centroids: each belongs to the nearest of so many centers.
struct Groups {
  static constexpr int kMost = 1024;
  int count, probes;           // how many groups of a row are searched
  std::vector<float> centers;  // (count, dim)
};

// Along which centroids differ most: orthonormal, the first ones most. They change the time of a search only.
struct Directions {
  int count, dim;
  std::vector<float> values;  // (count, dim)
};

// Of a product quantizer with one byte for each part of a row.
struct Codebooks {
  static constexpr int kEntries = 256;
  int parts, part_dim;
  bool by_residual;           // what is encoded is the row less the centroid of its list
  std::vector<float> values;  // (parts, kEntries, part_dim)
};

// Immutable; any number of threads may call it at once.
class Assigner {
 public:
  virtual ~Assigner() = default;

  // rows is (count, dim). Fills lists (count), the nearest centroid of each row, the lowest number among
  // equals, if there are centroids; and codes (count, parts), the nearest entry of each part, if there are
  // codebooks. A row's result depends on nothing but the row.
  //
  // Throws NonFiniteRow naming the first row that holds NaN or infinity; lists and codes are then undefined.
  virtual void assign(const float* rows, std::int64_t count, int threads, std::int64_t* lists,
                      std::uint8_t* codes) const = 0;
  virtual int dim() const = 0;
  virtual int parts() const = 0;  // 0: without codebooks
  virtual bool has_centroids() const = 0;
};

// `reduced`: look for the nearest centroids in bfloat16 first, where products of them are fast; the lists are
// the same. `groups`: look for them on two levels (Note [Two levels], two_level_search.cpp), not in bfloat16;
// a row's list may then be another one than the nearest. `directions`: bound scores by what lies along them
// (Note [Leading directions], projection.cpp), not in bfloat16 either; the lists are the same. Throws
// Error(kArray) if sizes do not fit together, a value is not finite, or both groups and directions are given.
std::unique_ptr<Assigner> make_assigner(std::optional<Centroids> centroids,
                                        std::optional<Codebooks> codebooks, bool reduced,
                                        const std::optional<Groups>& groups = std::nullopt,
                                        const std::optional<Directions>& directions = std::nullopt);

// k-means by the same searches, from the centroids given (Note [k-means], kmeans.cpp): so many iterations, or
// fewer if nothing moves any more. rows is (count, dim). The same rows give the same result whatever the
// threads. Throw NonFiniteRow, or Error(kArray) as above.
//
// `spherical`: centroids are normalised, as for inner products.
Centroids refine_centroids(const float* rows, std::int64_t count, Centroids centroids, bool spherical,
                           int iterations, int threads, const std::optional<Groups>& groups = std::nullopt,
                           const std::optional<Directions>& directions = std::nullopt);
Codebooks refine_codebooks(const float* rows, std::int64_t count, Codebooks codebooks, int iterations,
                           int threads);

// Whether this CPU multiplies bfloat16 faster than float32.
bool prefers_reduced_assignment();

}  // namespace fct
