// oneDNN's inner product, output = activation(input @ weights.T + bias), for a few fixed row counts.
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

  // How weights lie: all row counts share what the first, largest one wants.
  const dnnl::memory::desc& weights_desc() const { return weights_desc_; }

  // Sets what is the same in every call, before the first: weights and bias at least.
  void bind(int argument, const dnnl::memory& values) { bound_.emplace_back(argument, values); }

  // As LinearOp::run.
  void run(std::size_t tile, const void* input, void* output, void* scratch) const;
  std::size_t scratch_bytes() const { return scratch_bytes_; }
  std::string kernel() const { return descs_.front().impl_info_str(); }

 private:
  struct Arguments;

  std::unique_ptr<Arguments> make_arguments(std::size_t tile) const;

  std::vector<dnnl::inner_product_forward::primitive_desc> descs_;
  std::vector<dnnl::inner_product_forward> primitives_;
  dnnl::memory::desc weights_desc_;
  std::vector<std::pair<int, dnnl::memory>> bound_;
  std::size_t scratch_bytes_ = 0;
  mutable std::vector<Kept<Arguments>> arguments_;  // by tile
};

}  // namespace fct::cpu::onednn
