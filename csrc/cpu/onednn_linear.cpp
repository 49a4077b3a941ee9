// Linear layers by oneDNN's inner product: bias and activation as post-ops, weights packed for the CPU once.
#include <omp.h>

#include <dnnl.hpp>
#include <unordered_map>
#include <utility>

#include "fct/error.h"
#include "linear_op.h"
#include "onednn.h"
#include "onednn_integer.h"

namespace fct::cpu {
namespace {

using onednn::cpu;
using onednn::Tag;
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
               const std::vector<int>& tile_rows) {
    using Desc = dnnl::memory::desc;
    const int d_in = input.width, d_out = output.width;
    const Desc bias_desc({d_out}, dnnl::memory::data_type::f32, Tag::a);
    Desc weights_desc({d_out, d_in}, type_of(input.stored), Tag::any);  // fixed by the first, largest tile
    for (int rows : tile_rows) {
      const Desc source({rows, d_in}, type_of(input.stored), Tag::ab),
          target({rows, d_out}, type_of(output.stored), Tag::ab);
      descs_.emplace_back(cpu(), dnnl::prop_kind::forward_inference, source, weights_desc, bias_desc, target,
                          onednn::attributes(layer.activation));
      primitives_.emplace_back(descs_.back());
      weights_desc = descs_.back().weights_desc();
      scratch_bytes_ = std::max(scratch_bytes_, descs_.back().scratchpad_desc().get_size());
    }
    dnnl::stream stream(cpu());
    dnnl::memory plain({{d_out, d_in}, dnnl::memory::data_type::f32, Tag::ab}, cpu(),
                       const_cast<float*>(layer.weight.data()));
    weights_ = dnnl::memory(weights_desc, cpu());
    dnnl::reorder(plain, weights_).execute(stream, plain, weights_);
    stream.wait();
    bias_ = dnnl::memory(bias_desc, cpu());
    std::copy(layer.bias.begin(), layer.bias.end(), static_cast<float*>(bias_.get_data_handle()));
  }

  void run(std::size_t tile, const void* input, void* output, void* scratch) const override {
    translated(ErrorKind::kResource, "run", [&] { execute(tile, input, output, scratch); });
  }

  std::size_t scratch_bytes() const override { return scratch_bytes_; }
  std::string kernel() const override { return descs_.front().impl_info_str(); }

 private:
  void execute(std::size_t tile, const void* input, void* output, void* scratch) const {
    const auto& desc = descs_[tile];
    dnnl::stream stream(cpu());
    primitives_[tile].execute(stream,
                              {{DNNL_ARG_SRC, dnnl::memory(desc.src_desc(), cpu(), const_cast<void*>(input))},
                               {DNNL_ARG_WEIGHTS, weights_},
                               {DNNL_ARG_BIAS, bias_},
                               {DNNL_ARG_DST, dnnl::memory(desc.dst_desc(), cpu(), output)},
                               {DNNL_ARG_SCRATCHPAD, dnnl::memory(desc.scratchpad_desc(), cpu(), scratch)}});
    stream.wait();
  }

  std::vector<dnnl::inner_product_forward::primitive_desc> descs_;
  std::vector<dnnl::inner_product_forward> primitives_;
  dnnl::memory weights_, bias_;
  std::size_t scratch_bytes_ = 0;
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
