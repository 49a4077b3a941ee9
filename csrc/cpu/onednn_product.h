// oneDNN's product, output = activation(input @ weights.T + bias), for a few fixed row counts.
#pragma once

#include <dnnl.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kept.h"

namespace fct::cpu::onednn {

// One side of a product.
struct Columns {
  int width;
  dnnl::memory::data_type type;
};

class Products {
 public:
  // Row counts are given largest first.
  Products(const Columns& input, const Columns& output, dnnl::memory::data_type weights_type,
           const dnnl::primitive_attr& attributes, const std::vector<int>& tile_rows);
  ~Products();

  // Sets what is the same in every call, before the first: weights and bias at least.
  void bind(int argument, const dnnl::memory& values) { bound_.emplace_back(argument, values); }
  // Weights (output, input), C-contiguous, are packed: all row counts share what the first, largest one
  // wants.
  void bind_weights(dnnl::memory::data_type type, const void* plain);

  // As LinearOp::run.
  void run(std::size_t tile, const void* input, void* output, void* scratch) const;
  std::size_t scratch_bytes() const { return scratch_bytes_; }
  std::string kernel() const { return descs_.front().impl_info_str(); }

 private:
  struct Arguments;

  std::unique_ptr<Arguments> make_arguments(std::size_t tile) const;

  bool is_matmul_ = false;
  std::vector<dnnl::primitive_desc> descs_;  // by tile
  std::vector<dnnl::primitive> primitives_;
  std::vector<std::pair<int, dnnl::memory>> bound_;
  std::size_t scratch_bytes_ = 0;
  mutable std::vector<Kept<Arguments>> arguments_;  // by tile
};

}  // namespace fct::cpu::onednn
