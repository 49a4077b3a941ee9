// What the tests of csrc/cuda share.
#pragma once

#include "check.h"
#include "cuda/cuda_executable.h"
#include "cuda/layout.h"
#include "fake_device.h"

namespace fct::testing {

inline Ranges all_ranges(const Program& program, float range) {
  Ranges ranges;
  for (ValueId value = 0; value < static_cast<ValueId>(program.widths.size()); ++value) ranges[value] = range;
  return ranges;
}

// The device memory that blocks of so many rows take, in lanes of as many or of `lane_rows`.
inline std::size_t memory_for(std::int64_t rows, const Program& program, Precision precision,
                              std::int64_t lane_rows = 0) {
  const auto layout = cuda::make_layout(program, precision, all_ranges(program, 1));
  const int side_dim = program.has_side() ? program.width(program.side) : 0;
  const auto count = static_cast<std::size_t>(rows);
  const auto lane_count = static_cast<std::size_t>(lane_rows > 0 ? lane_rows : rows);
  return cuda::DeviceProgram::fixed_bytes(program, layout) +
         count * cuda::DeviceProgram::bytes_per_row(program, layout) +
         lane_count *
             cuda::Ring::bytes_per_row(program.width(program.old), side_dim, program.width(program.output));
}

// A small transformation, rows for it, and room for what it makes of them.
struct SmallCase {
  static constexpr int kOldDim = 5, kSideDim = 4, kNewDim = 3;

  SmallCase(unsigned seed, int rows)
      : random(seed),
        program(paper_program(random, kOldDim, kSideDim, kNewDim, 8)),
        old(Rows::normal(random, DType::kFloat32, rows, kOldDim)),
        side(Rows::normal(random, DType::kFloat16, rows, kSideDim)),
        expected(DType::kFloat32, rows, kNewDim) {}

  Random random;
  Program program;
  Rows old, side, expected;
};

// `spare`: bytes of device memory that are left, not so many that a larger block fits.
inline std::unique_ptr<Executable> with_blocks_of(std::int64_t rows, cuda::SharedDevice device,
                                                  const Program& program, Precision precision,
                                                  const Ranges& ranges = {}, std::size_t spare = 0) {
  return std::make_unique<cuda::CudaExecutable>(std::move(device), program, precision, ranges,
                                                memory_for(rows, program, precision) + spare);
}

inline void check_all_freed(FakeDevice& device) {
  CHECK(device.violations().empty(), device.violations());
  CHECK(device.allocated() == 0, std::to_string(device.allocated()) + " bytes are left");
  CHECK(device.live_handles() == 0, std::to_string(device.live_handles()) + " handles are left");
}

}  // namespace fct::testing
