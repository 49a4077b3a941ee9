// Note [Same bytes]
// A row's result must not depend on the other rows, on how many there are, or on the number of threads. Rows
// are therefore always computed in tiles of a few fixed sizes (the last one padded with zeros), and a tile
// size is kept only if it gives the bytes the largest one gives: matrix libraries may split the inner
// dimension differently for few rows. What is promised holds for one machine and one build: another CPU may
// sum in another order.
#include "cpu_executable.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <random>
#include <sstream>

#include "bounds.h"
#include "convert.h"
#include "fct/error.h"
#include "one_thread.h"
#include "thread_pool.h"

namespace fct::cpu {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::int64_t kFewRows = 256;       // a tile of as many is nearly as fast as larger ones
constexpr std::size_t kTileBytes = 8 << 20;  // activations of one tile: about one core's share of cache

std::size_t at(int index) { return static_cast<std::size_t>(index); }

std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::vector<int> candidate_tiles(std::size_t bytes_per_row) {
  int largest = 512;
  while (largest > 64 && bytes_per_row * at(largest) > kTileBytes) largest /= 2;
  std::vector<int> tiles{largest};
  for (int rows : {256, 128, 64, 32, 16, 8})
    if (rows < largest) tiles.push_back(rows);
  return tiles;
}

struct Matrix {
  void* data;
  DType dtype;
  std::size_t width;
  float scale;

  char* row(std::size_t index) const { return static_cast<char*>(data) + index * width * size_of(dtype); }
};

void copy_columns(const Matrix& from, const Matrix& to, std::size_t column, std::size_t rows) {
  for (std::size_t row = 0; row < rows; ++row)
    convert(from.row(row), from.dtype, to.row(row) + column * size_of(to.dtype), to.dtype, from.width,
            from.scale * to.scale);  // of two that are integers both are the same, and nothing is scaled
}

}  // namespace

Workspace::Workspace(const Plan& plan, int rows, std::size_t scratch_bytes) {
  std::size_t total = 0;
  for (std::size_t bytes : plan.slot_bytes) {
    offsets_.push_back(total);
    total += aligned(bytes * at(rows));
  }
  offsets_.push_back(total);
  total += aligned(std::max(scratch_bytes, std::size_t{1}));
  base_ = static_cast<char*>(std::aligned_alloc(kAlignment, total));
  if (base_ == nullptr) throw std::bad_alloc();
  memory_.reset(base_);
}

void Workspace::Free::operator()(char* pointer) const { std::free(pointer); }

// Rows are handed out in order, to whichever thread asks next, in tiles that get smaller towards the end: the
// threads end together though one was delayed, and large tiles, which are faster, do most of the work. There
// are as many tiles of each size as threads, or several times as many: what others are still busy with is not
// left. The lowest row that was not finite wins, whichever thread met it, as tiles before a bad one are
// always finished.
struct CpuExecutable::Call {
  InputRows old, side;
  OutputRows out;
  std::int64_t rows;
  std::vector<Stretch> stretches;
  std::atomic<std::int64_t> next_row{0};
  std::atomic<bool> failed{false};
  std::atomic<std::int64_t> bad_row{kNoRow};
  std::mutex mutex{};
  const char* bad_array = nullptr;
  std::exception_ptr error{};

  std::size_t tile_at(std::int64_t row) const {
    const auto begins_here = [row](const Stretch& stretch) { return stretch.first_row <= row; };
    return std::find_if(stretches.rbegin(), stretches.rend(), begins_here)->tile;
  }

  void report_bad_row(const char* array, std::int64_t row) {
    const std::lock_guard lock(mutex);
    if (row < bad_row) {
      bad_row = row;
      bad_array = array;
    }
  }
};

CpuExecutable::CpuExecutable(const Program& program, Precision precision, const LinearLibrary& library,
                             const Ranges& ranges)
    : program_(program),
      precision_(precision),
      plan_(make_plan(program, precision, ranges)),
      largest_input_(largest_safe_input(program, precision == Precision::kInt8)) {
  const OneThreadPerCaller guard;
  tile_rows_ = candidate_tiles(plan_.bytes_per_row());
  for (Step& step : program_.steps) {
    auto* linear = std::get_if<Linear>(&step);
    linears_.push_back(nullptr);
    if (linear == nullptr) continue;
    linears_.back() = library.make(*linear, operand(linear->input), operand(linear->output), tile_rows_);
    scratch_bytes_ = std::max(scratch_bytes_, linears_.back()->scratch_bytes());
    linear->weight = {};
    linear->bias = {};
  }
  keep_equal_tiles();
}

CpuExecutable::~CpuExecutable() = default;

Operand CpuExecutable::operand(ValueId value) const {
  const Plan::Value& planned = plan_.values[at(value)];
  return {program_.width(value), planned.dtype, planned.multiplied, planned.scale};
}

void CpuExecutable::run(InputRows old, InputRows side, OutputRows out, std::int64_t rows, int threads) const {
  const std::int64_t least = tile_rows_[usable_tiles_.back()];
  const std::int64_t useful = std::clamp<std::int64_t>((rows + least - 1) / least, 1, threads);
  Call call{old, side, out, rows, stretches(rows, useful)};
  on_threads(useful, [&] { work(call); });
  if (call.error) std::rethrow_exception(call.error);
  if (call.bad_row != kNoRow) throw NonFiniteRow(call.bad_array, call.bad_row);
}

std::string CpuExecutable::description() const {
  std::ostringstream text;
  text << "tiles";
  for (std::size_t tile : usable_tiles_) text << ' ' << tile_rows_[tile];
  for (std::size_t index = 0; index < linears_.size(); ++index)
    if (linears_[index]) text << "; step " << index << ' ' << linears_[index]->kernel();
  return text.str();
}

// See Note [Same bytes]: runs random rows through every tile size and keeps those that agree to the last bit.
void CpuExecutable::keep_equal_tiles() {
  const int rows = tile_rows_.front();
  std::minstd_rand random(1);
  std::uniform_real_distribution<float> uniform(-1.f, 1.f);
  std::vector<float> old(at(rows) * at(old_dim())), side(at(rows) * at(side_dim()));
  for (float& value : old) value = uniform(random);
  for (float& value : side) value = uniform(random);
  auto result = [&](std::size_t tile) {
    std::vector<float> out(at(rows) * at(new_dim()));
    const void* side_data = program_.has_side() ? side.data() : nullptr;
    Call call{{old.data()}, {side_data}, {out.data()}, rows, {{0, tile}}};
    work(call);
    if (call.error) std::rethrow_exception(call.error);
    return out;
  };
  const auto expected = result(0);
  usable_tiles_ = {0};
  for (std::size_t tile = 1; tile < tile_rows_.size(); ++tile) {
    const auto got = result(tile);
    if (std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0)
      usable_tiles_.push_back(tile);
  }
}

// The largest tile that is at most half of each thread's share of what is left; near the end, as smaller
// tiles are slower, the largest that such a share fills but for a fifth.
std::size_t CpuExecutable::next_tile(std::int64_t rows_left, std::int64_t threads) const {
  const std::int64_t share = (rows_left + threads - 1) / threads;
  const std::int64_t most = share <= kFewRows ? share + share / 4 : std::max(share / 2, kFewRows);
  const auto fits = [&](std::size_t tile) { return tile_rows_[tile] <= most; };
  return *std::find_if(usable_tiles_.begin(), std::prev(usable_tiles_.end()), fits);
}

std::vector<CpuExecutable::Stretch> CpuExecutable::stretches(std::int64_t rows, std::int64_t threads) const {
  std::vector<Stretch> found;
  for (std::int64_t first = 0; first < rows;) {
    const std::size_t tile = next_tile(rows - first, threads);
    if (found.empty() || found.back().tile != tile) found.push_back({first, tile});
    first += threads * tile_rows_[tile];
  }
  return found;
}

void CpuExecutable::work(Call& call) const {
  try {
    const OneThreadPerCaller guard;
    const auto run_tiles = [&](Workspace& workspace) {
      std::int64_t first = call.next_row;
      while (first < call.rows && !call.failed && first <= call.bad_row) {
        const std::size_t tile = call.tile_at(first);
        if (!call.next_row.compare_exchange_weak(first, first + tile_rows_[tile])) continue;
        run_tile(call, workspace, first, tile);
        first = call.next_row;
      }
    };
    const auto make = [this] {
      return std::make_unique<Workspace>(plan_, tile_rows_.front(), scratch_bytes_);
    };
    workspaces_.with(make, run_tiles);
  } catch (...) {
    const std::lock_guard lock(call.mutex);
    if (!call.error) call.error = std::current_exception();
    call.failed = true;
  }
}

void CpuExecutable::run_tile(Call& call, Workspace& workspace, std::int64_t first_row,
                             std::size_t tile) const {
  const int tile_rows = tile_rows_[tile];
  const std::int64_t rows = std::min<std::int64_t>(tile_rows, call.rows - first_row);
  const bool is_full = rows == tile_rows;
  std::vector<void*> values(plan_.values.size());
  for (std::size_t value = 0; value < values.size(); ++value)
    if (plan_.values[value].slot >= 0) values[value] = workspace.slot(plan_.values[value].slot);

  std::int64_t unsafe = kNoRow;  // the first row whose sums may overflow where nobody would see it
  auto stage = [&](ValueId value, InputRows input, const char* name) {
    const int width = program_.width(value);
    const void* source = row_of(input.data, input.dtype, first_row, width);
    const std::int64_t large = first_row_beyond(source, input.dtype, rows, width, largest_input_);
    if (large != kNoRow) {
      unsafe = std::min(unsafe, large);
      const std::int64_t bad = first_bad_row(source, input.dtype, rows, width);
      // The tile is computed all the same: a row before the bad one may have a bad result.
      if (bad != kNoRow) call.report_bad_row(name, first_row + bad);
    }
    const auto& planned = plan_.values[at(value)];
    if (is_full && planned.dtype == input.dtype) {
      values[at(value)] = const_cast<void*>(source);  // read where it lies
      return;
    }
    const std::size_t count = static_cast<std::size_t>(rows) * at(width);
    convert(source, input.dtype, values[at(value)], planned.dtype, count, planned.scale);
    std::memset(static_cast<char*>(values[at(value)]) + count * size_of(planned.dtype), 0,
                (at(tile_rows) * at(width) - count) * size_of(planned.dtype));
  };
  stage(program_.old, call.old, "old");
  if (program_.has_side()) stage(program_.side, call.side, "side");
  if (unsafe != kNoRow) call.report_bad_row("result", first_row + unsafe);

  const int new_width = program_.width(program_.output);
  const std::size_t new_count = static_cast<std::size_t>(rows) * at(new_width);
  void* target = const_cast<void*>(row_of(call.out.data, call.out.dtype, first_row, new_width));
  const DType computed = plan_.values[at(program_.output)].dtype;
  const bool direct = is_full && call.out.dtype == computed;
  if (direct) values[at(program_.output)] = target;
  for (std::size_t index = 0; index < program_.steps.size(); ++index)
    run_step(index, tile, values, workspace.scratch());
  if (!direct) convert(values[at(program_.output)], computed, target, call.out.dtype, new_count);
  const std::int64_t bad = first_bad_row(target, call.out.dtype, rows, new_width);
  if (bad != kNoRow) call.report_bad_row("result", first_row + bad);
}

void CpuExecutable::run_step(std::size_t index, std::size_t tile, std::vector<void*>& values,
                             void* scratch) const {
  const Step& step = program_.steps[index];
  const std::size_t rows = at(tile_rows_[tile]);
  auto data = [&](ValueId value) { return values[at(value)]; };
  auto dtype = [&](ValueId value) { return plan_.values[at(value)].dtype; };
  auto width = [&](ValueId value) { return at(program_.width(value)); };
  auto scale = [&](ValueId value) {  // of an integer
    const Plan::Value& planned = plan_.values[at(value)];
    return size_of(planned.dtype) == 1 ? planned.scale : 1;
  };
  if (const auto* linear = std::get_if<Linear>(&step)) {
    linears_[index]->run(tile, data(linear->input), data(linear->output), scratch);
  } else if (const auto* concat = std::get_if<Concat>(&step)) {
    const Matrix out{data(concat->output), dtype(concat->output), width(concat->output),
                     scale(concat->output)};
    std::size_t column = 0;
    for (ValueId input : concat->inputs) {
      copy_columns({data(input), dtype(input), width(input), scale(input)}, out, column, rows);
      column += width(input);
    }
  } else if (const auto* sum = std::get_if<Add>(&step)) {
    add(data(sum->left), dtype(sum->left), data(sum->right), dtype(sum->right), data(sum->output),
        dtype(sum->output), rows * width(sum->output), scale(sum->output));
  } else {
    const auto& norm = std::get<Normalize>(step);
    normalize_rows(data(norm.input), dtype(norm.input), data(norm.output), dtype(norm.output), rows,
                   width(norm.output), scale(norm.output));
  }
}

}  // namespace fct::cpu
