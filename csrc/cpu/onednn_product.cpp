#include "onednn_product.h"

#include <algorithm>
#include <string_view>

#include "onednn.h"

namespace fct::cpu::onednn {
namespace {

using Desc = dnnl::memory::desc;

Desc rows_of(int rows, const Columns& columns) { return {{rows, columns.width}, columns.type, Tag::ab}; }

// oneDNN has two primitives for the same product. `matmul` is the faster one in float32, by a tenth with
// 2,048 columns, if it has a kernel of blocks, as it has with AVX-512; its other kernels are slower by a
// third. In 16 and 8 bits both are alike. Returned is one for each row count, all with weights as the first
// one wants them; none if oneDNN has no kernel of blocks for one of them.
std::vector<dnnl::primitive_desc> blocked_matmuls(const Columns& input, const Columns& output,
                                                  const dnnl::primitive_attr& attributes,
                                                  const std::vector<int>& tile_rows) {
  const Desc bias({1, output.width}, dnnl::memory::data_type::f32, Tag::ab);
  Desc weights({input.width, output.width}, dnnl::memory::data_type::f32, Tag::any);
  std::vector<dnnl::primitive_desc> found;
  for (int rows : tile_rows) {
    const dnnl::matmul::primitive_desc desc(cpu(), rows_of(rows, input), weights, bias, rows_of(rows, output),
                                            attributes, true);
    if (!desc || !std::string_view(desc.impl_info_str()).starts_with("brg")) return {};
    weights = desc.weights_desc();
    found.push_back(desc);
  }
  return found;
}

std::vector<dnnl::primitive_desc> inner_products(const Columns& input, const Columns& output,
                                                 dnnl::memory::data_type weights_type,
                                                 const dnnl::primitive_attr& attributes,
                                                 const std::vector<int>& tile_rows) {
  const Desc bias({output.width}, dnnl::memory::data_type::f32, Tag::a);
  Desc weights({output.width, input.width}, weights_type, Tag::any);
  std::vector<dnnl::primitive_desc> found;
  for (int rows : tile_rows) {
    const dnnl::inner_product_forward::primitive_desc desc(cpu(), dnnl::prop_kind::forward_inference,
                                                           rows_of(rows, input), weights, bias,
                                                           rows_of(rows, output), attributes);
    weights = desc.weights_desc();
    found.push_back(desc);
  }
  return found;
}

}  // namespace

// Of one call. They are kept between calls, and only told where rows lie: made anew for each tile, with all
// that oneDNN allocates for them, calls of 512 rows by two hidden layers of 256 took 11 to 17 % longer.
struct Products::Arguments {
  dnnl::stream stream;
  dnnl::memory source, target, scratch;
  std::vector<dnnl_exec_arg_t> all;
};

Products::Products(const Columns& input, const Columns& output, dnnl::memory::data_type weights_type,
                   const dnnl::primitive_attr& attributes, const std::vector<int>& tile_rows)
    : arguments_(tile_rows.size()) {
  if (weights_type == dnnl::memory::data_type::f32)
    descs_ = blocked_matmuls(input, output, attributes, tile_rows);
  is_matmul_ = !descs_.empty();
  if (!is_matmul_) descs_ = inner_products(input, output, weights_type, attributes, tile_rows);
  for (const auto& desc : descs_) {
    primitives_.emplace_back(desc);
    scratch_bytes_ = std::max(scratch_bytes_, desc.scratchpad_desc().get_size());
  }
}

void Products::bind_weights(dnnl::memory::data_type type, const void* plain) {
  const Desc packed = descs_.front().query_md(dnnl::query::weights_md);
  const Desc given(packed.get_dims(), type, is_matmul_ ? Tag::ba : Tag::ab);
  dnnl::stream stream(cpu());
  dnnl::memory source(given, cpu(), const_cast<void*>(plain)), weights(packed, cpu());
  dnnl::reorder(source, weights).execute(stream, source, weights);
  stream.wait();
  bind(DNNL_ARG_WEIGHTS, weights);
}

Products::~Products() = default;

void Products::run(std::size_t tile, const void* input, void* output, void* scratch) const {
  const auto execute = [&](Arguments& arguments) {
    arguments.source.set_data_handle(const_cast<void*>(input));
    arguments.target.set_data_handle(output);
    arguments.scratch.set_data_handle(scratch);
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(primitives_[tile].get(), arguments.stream.get(),
                               static_cast<int>(arguments.all.size()), arguments.all.data()),
        "could not execute a product");
    arguments.stream.wait();
  };
  arguments_[tile].with([&] { return make_arguments(tile); }, execute);
}

std::unique_ptr<Products::Arguments> Products::make_arguments(std::size_t tile) const {
  const auto& desc = descs_[tile];
  const auto placeless = [](const dnnl::memory::desc& values) {
    return dnnl::memory(values, cpu(), nullptr);
  };
  auto made = std::make_unique<Arguments>(Arguments{dnnl::stream(cpu()),
                                                    placeless(desc.query_md(dnnl::query::src_md)),
                                                    placeless(desc.query_md(dnnl::query::dst_md)),
                                                    placeless(desc.scratchpad_desc()),
                                                    {}});
  made->all = {{DNNL_ARG_SRC, made->source.get()},
               {DNNL_ARG_DST, made->target.get()},
               {DNNL_ARG_SCRATCHPAD, made->scratch.get()}};
  for (const auto& [argument, values] : bound_) made->all.push_back({argument, values.get()});
  return made;
}

}  // namespace fct::cpu::onednn
