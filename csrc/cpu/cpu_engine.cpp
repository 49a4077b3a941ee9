#include "cpu_executable.h"
#include "fct/error.h"
#include "linear_op.h"

namespace fct {
namespace {

class CpuEngine : public Engine {
 public:
  std::vector<Precision> precisions() const override {
    std::vector<Precision> native{Precision::kFp32};
    if (cpu::onednn_instruction_set().has_bf16) native.push_back(Precision::kBf16);
    if (cpu::largest_exact_weight() > 0) native.push_back(Precision::kInt8);
    return native;
  }

  std::unique_ptr<Executable> compile(const Program& program, Precision precision,
                                      const Ranges& ranges) const override {
    validate(program);
    if (precision != Precision::kFp32 && precision != Precision::kBf16 && precision != Precision::kInt8)
      throw Error(ErrorKind::kUnsupported,
                  std::string("a CPU computes in fp32, bf16 or int8, not in ") + name_of(precision));
    // Emulated, bfloat16 would be slower than fp32.
    const auto instructions = cpu::onednn_instruction_set();
    if (precision == Precision::kBf16 && !instructions.has_bf16)
      throw Error(ErrorKind::kUnsupported,
                  "precision bf16 needs a CPU with AVX512_BF16; this one computes with " + instructions.name +
                      "; use fp32");
    return std::make_unique<cpu::CpuExecutable>(program, precision, *cpu::make_onednn_library(), ranges);
  }
};

}  // namespace

std::unique_ptr<Engine> make_cpu_engine() { return std::make_unique<CpuEngine>(); }

int cpu_int8_weight_bits() {
  const int largest = cpu::largest_exact_weight();
  return largest == 127 ? 8 : largest > 0 ? 7 : 0;
}

std::string cpu_instruction_set() { return cpu::onednn_instruction_set().name; }

}  // namespace fct
