// Linear layers by oneDNN's products: bias and activation as post-ops, weights packed for the CPU once.
#include <omp.h>

#include <dnnl.hpp>
#include <utility>

#include "fct/error.h"
#include "linear_op.h"
#include "onednn.h"
#include "onednn_integer.h"
#include "onednn_product.h"

namespace fct::cpu {
namespace {

using onednn::translated;

// In the order in which each holds all that the CPUs with those before it have, as far as they are
// comparable.
constexpr std::pair<int, const char*> kInstructionSets[] = {
    {dnnl_cpu_isa_sse41, "SSE41"},
    {dnnl_cpu_isa_avx, "AVX"},
    {dnnl_cpu_isa_avx2, "AVX2"},
    {dnnl_cpu_isa_avx2_vnni, "AVX2_VNNI"},
    {dnnl_cpu_isa_avx2_vnni_2, "AVX2_VNNI_2"},
    {dnnl_cpu_isa_avx512_core, "AVX512_CORE"},
    {dnnl_cpu_isa_avx512_core_vnni, "AVX512_CORE_VNNI"},
    {dnnl_cpu_isa_avx512_core_bf16, "AVX512_CORE_BF16"},
    {dnnl_cpu_isa_avx512_core_fp16, "AVX512_CORE_FP16"},
    {dnnl_cpu_isa_avx512_core_amx, "AVX512_CORE_AMX"},
    {dnnl_cpu_isa_avx512_core_amx_fp16, "AVX512_CORE_AMX_FP16"},
};

dnnl::memory::data_type type_of(DType dtype) {
  return dtype == DType::kBFloat16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

class OnednnLinear : public LinearOp {
 public:
  OnednnLinear(const Linear& layer, const Operand& input, const Operand& output,
               const std::vector<int>& tile_rows)
      : products_({input.width, type_of(input.stored)}, {output.width, type_of(output.stored)},
                  type_of(input.stored), onednn::attributes(layer.activation), tile_rows) {
    products_.bind_weights(dnnl::memory::data_type::f32, layer.weight.data());
    products_.bind(DNNL_ARG_BIAS, onednn::floats(layer.bias));
  }

  void run(std::size_t tile, const void* input, void* output, void* scratch) const override {
    translated(ErrorKind::kResource, "run", [&] { products_.run(tile, input, output, scratch); });
  }

  std::size_t scratch_bytes() const override { return products_.scratch_bytes(); }
  std::string kernel() const override { return products_.kernel(); }

 private:
  onednn::Products products_;
};

class OnednnLibrary : public LinearLibrary {
 public:
  std::unique_ptr<LinearOp> make(const Linear& layer, const Operand& input, const Operand& output,
                                 const std::vector<int>& tile_rows) const override {
    return translated(ErrorKind::kUnsupported, "prepare", [&]() -> std::unique_ptr<LinearOp> {
      if (size_of(input.multiplied) == 1)
        return make_integer_linear(layer, input, output, tile_rows, largest_exact_weight());
      return std::make_unique<OnednnLinear>(layer, input, output, tile_rows);
    });
  }
};

}  // namespace

std::unique_ptr<LinearLibrary> make_onednn_library() { return std::make_unique<OnednnLibrary>(); }

InstructionSet onednn_instruction_set() {
  const int isa = static_cast<int>(dnnl::get_effective_cpu_isa());
  const auto has = [isa](int bits) { return (isa & bits) == bits; };
  const int float_lanes = has(dnnl_cpu_isa_avx512_core) ? 16 : has(dnnl_cpu_isa_avx2) ? 8 : 4;
  InstructionSet found{"SSE41", float_lanes, has(dnnl_cpu_isa_avx512_core_bf16)};
  for (const auto& [bits, name] : kInstructionSets)
    if (has(bits)) found.name = name;
  return found;
}

}  // namespace fct::cpu
