#include "cpu_executable.h"
#include "fct/error.h"

namespace fct {
namespace {

// bfloat16 that the CPU only emulates would be slower than fp32 and is refused.
bool has_native_bf16() { return __builtin_cpu_supports("avx512bf16"); }

class CpuEngine : public Engine {
 public:
  std::vector<Precision> precisions() const override {
    if (has_native_bf16()) return {Precision::kFp32, Precision::kBf16};
    return {Precision::kFp32};
  }

  std::unique_ptr<Executable> compile(const Program& program, Precision precision,
                                      const Ranges&) const override {
    validate(program);
    if (precision != Precision::kFp32 && precision != Precision::kBf16)
      throw Error(ErrorKind::kUnsupported,
                  std::string("a CPU computes in fp32 or bf16, not in ") + name_of(precision));
    if (precision == Precision::kBf16 && !has_native_bf16())
      throw Error(ErrorKind::kUnsupported,
                  "precision bf16 needs a CPU with AVX512_BF16, which this one lacks; use fp32 or auto");
    return std::make_unique<cpu::CpuExecutable>(program, precision, *cpu::make_onednn_library());
  }
};

}  // namespace

std::unique_ptr<Engine> make_cpu_engine() { return std::make_unique<CpuEngine>(); }

}  // namespace fct
