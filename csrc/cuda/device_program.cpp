#include "device_program.h"

#include <algorithm>
#include <sstream>
#include <type_traits>
#include <utility>

#include "bounds.h"

namespace fct::cuda {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// Columns of bare sums that some linear layer may leave to be activated and cast.
std::int64_t widest_linear(const Program& program) {
  std::int64_t widest = 0;
  for (const Step& step : program.steps)
    if (std::holds_alternative<Linear>(step))
      widest = std::max(widest, padded_width(program.width(output_of(step))));
  return widest;
}

// Weight and bias with zeros where the values are padded. See Note [Gathered concat].
void pad_weights(const Linear& linear, const Layout::Value& input, LinearSpec& spec) {
  spec.weight.assign(at(spec.d_out * spec.d_in), 0);
  spec.bias.assign(at(spec.d_out), 0);
  std::copy(linear.bias.begin(), linear.bias.end(), spec.bias.begin());
  const float* from = linear.weight.data();
  for (std::size_t row = 0; row < linear.bias.size(); ++row) {
    float* to = spec.weight.data() + row * at(spec.d_in);
    for (int part : input.parts) {
      std::copy(from, from + part, to);
      from += part;
      to += padded_width(part);
    }
  }
}

template <typename Array>
Array from_row(Array array, std::int64_t row, int width) {
  using Byte = std::conditional_t<std::is_same_v<Array, InputRows>, const char, char>;
  if (array.data != nullptr)
    array.data = static_cast<Byte*>(array.data) + at(row * width) * size_of(array.dtype);
  return array;
}

}  // namespace

std::size_t choose_block(const std::vector<std::int64_t>& blocks, const std::vector<std::size_t>& sizes,
                         std::int64_t rows) {
  for (std::size_t size : sizes)
    if (blocks[size] < 2 * rows) return size;
  return sizes.back();
}

DeviceProgram::DeviceProgram(SharedDevice device, const Program& program, Precision precision,
                             const Layout& layout, const std::vector<std::int64_t>& sizes,
                             std::int64_t largest_block, int choice)
    : device_(std::move(device)),
      program_(program),
      largest_input_(largest_safe_input(program)),
      precision_(precision),
      layout_(layout),
      blocks_(std::find(sizes.begin(), sizes.end(), largest_block), sizes.end()),
      dropped_sizes_(sizes.size() - blocks_.size()) {
  const std::size_t rows = at(blocks_.front());
  for (std::size_t bytes : layout_.slot_bytes) slots_.push_back(device_buffer(device_, bytes * rows));
  sums_ = device_buffer(device_, at(widest_linear(program_)) * sizeof(float) * rows);
  workspace_ = device_buffer(device_, kLinearWorkspace);
  flags_ = device_buffer(device_, rows);
  last_use_ = make_event(device_);
  for (Step& step : program_.steps) {
    auto* linear = std::get_if<Linear>(&step);
    linears_.push_back(linear == nullptr ? LinearStep{} : prepare(*linear, sizes, choice));
    if (linear != nullptr) linear->weight = linear->bias = {};
  }
  capture_graphs();
}

void DeviceProgram::capture_graphs() {
  const OwnedStream stream = make_stream(device_);
  const DrainOnExit guard(*device_, stream.get());
  for (std::size_t slot = 0; slot < slots_.size(); ++slot)
    device_->fill(slots_[slot].get(), 0, layout_.slot_bytes[slot] * at(blocks_.front()), stream.get());
  for (std::size_t size = 0; size < blocks_.size(); ++size) {
    auto all_steps = [&] {
      for (std::size_t index = 0; index < program_.steps.size(); ++index)
        enqueue_step(index, size, stream.get());
    };
    all_steps();  // loads the kernels, which is not possible during a capture
    device_->synchronize_stream(stream.get());
    graphs_.emplace_back(device_, device_->capture(stream.get(), all_steps));
  }
}

DeviceProgram::~DeviceProgram() {
  try {
    device_->synchronize_event(last_use_.get());
  } catch (const Error&) {  // the device is lost, and with it the work
  }
}

std::size_t DeviceProgram::fixed_bytes(const Program& program, const Layout& layout) {
  std::size_t bytes = kLinearWorkspace;
  for (const Step& step : program.steps)
    if (const auto* linear = std::get_if<Linear>(&step)) {
      const auto& input = layout.values[at(linear->input)];
      const std::size_t d_out = at(padded_width(program.width(linear->output)));
      bytes += (at(input.padded()) * size_of(input.dtype) + sizeof(float)) * d_out + 4 * kAlignment;
    }
  return bytes;
}

std::size_t DeviceProgram::bytes_per_row(const Program& program, const Layout& layout) {
  return layout.bytes_per_row() + at(widest_linear(program)) * sizeof(float) + 1;
}

Matrix DeviceProgram::matrix(ValueId value) const {
  const auto& placed = layout_.values[at(value)];
  char* data = slots_[at(placed.slot)].as<char>() + at(placed.column) * size_of(placed.dtype);
  return {data, placed.dtype, placed.stride, placed.scale};
}

Extent DeviceProgram::extent(ValueId value, std::int64_t rows) const {
  const int width = program_.width(value);
  return {rows, width, padded_width(width)};
}

// One operation if the device has it; else a result in what the device has, and what is left to be done to
// it. Bfloat16 holds what is then rounded to float8; other types wait for their activation in float32, if
// they can.
DeviceProgram::LinearStep DeviceProgram::prepare(const Linear& linear, const std::vector<std::int64_t>& sizes,
                                                 int choice) {
  LinearSpec spec;
  spec.d_in = layout_.values[at(linear.input)].padded();
  spec.d_out = padded_width(program_.width(linear.output));
  spec.activation = linear.activation;
  spec.precision = precision_;
  spec.input = matrix(linear.input);
  spec.output = matrix(linear.output);
  spec.rows = sizes;
  spec.choice = choice;
  pad_weights(linear, layout_.values[at(linear.input)], spec);
  if (auto layer = device_->prepare(spec)) return {std::move(layer), {}, {}};
  std::vector<std::pair<Activation, DType>> others{{Activation::kNone, DType::kFloat32},
                                                   {Activation::kNone, DType::kBFloat16}};
  if (spec.output.dtype == DType::kFloat8) others.insert(others.begin(), {spec.activation, DType::kBFloat16});
  for (auto [activation, dtype] : others) {
    spec.activation = activation;
    spec.output = {sums_.get(), dtype, spec.d_out, 1};
    if (auto layer = device_->prepare(spec))
      return {std::move(layer), spec.output,
              activation == linear.activation ? Activation::kNone : linear.activation};
  }
  throw Error(ErrorKind::kUnsupported, device_->label() + " has no kernel for a linear layer " +
                                           std::to_string(spec.d_in) + " to " + std::to_string(spec.d_out) +
                                           " in " + name_of(precision_));
}

void DeviceProgram::enqueue(std::size_t size, const BlockRows& block, Stream stream) {
  const std::lock_guard lock(mutex_);
  auto* flags = flags_.as<std::uint8_t>();
  auto checks = [&](int array) {
    return RowChecks{flags, block.first_bad == nullptr ? nullptr : block.first_bad + array, largest_input_};
  };
  auto load = [&](InputRows rows, ValueId value, int array) {
    const int width = program_.width(value);
    device_->load({const_cast<void*>(rows.data), rows.dtype, width, 1}, matrix(value),
                  extent(value, block.rows), blocks_[size], checks(array), stream);
  };
  try {
    device_->wait(stream, last_use_.get());
    device_->fill(flags, 0, at(block.rows), stream);
    load(block.old, program_.old, 0);
    if (program_.has_side()) load(block.side, program_.side, 1);
    device_->launch(graphs_[size].get(), stream);
    device_->store(matrix(program_.output),
                   {block.out.data, block.out.dtype, program_.width(program_.output), 1},
                   extent(program_.output, block.rows), checks(2), stream);
    device_->record(last_use_.get(), stream);
  } catch (...) {
    drain(*device_, stream);  // what is on it already uses the buffers, and no event says until when
    throw;
  }
}

std::vector<std::int64_t> DeviceProgram::enqueue_blocks(const std::vector<std::size_t>& sizes,
                                                        const BlockRows& rows, Stream stream) {
  std::vector<std::int64_t> first_rows;
  for (std::int64_t first = 0, count = 0; first < rows.rows; first += count) {
    const std::size_t size = choose_block(blocks_, sizes, rows.rows - first);
    count = std::min(blocks_[size], rows.rows - first);
    BlockRows block;
    block.old = from_row(rows.old, first, program_.width(program_.old));
    if (program_.has_side()) block.side = from_row(rows.side, first, program_.width(program_.side));
    block.out = from_row(rows.out, first, program_.width(program_.output));
    block.rows = count;
    if (rows.first_bad != nullptr) block.first_bad = rows.first_bad + first_rows.size() * kCheckedArrays;
    enqueue(size, block, stream);
    first_rows.push_back(first);
  }
  return first_rows;
}

void DeviceProgram::enqueue_step(std::size_t index, std::size_t size, Stream stream) {
  const Step& step = program_.steps[index];
  const std::int64_t rows = blocks_[size];
  const ValueId output = output_of(step);
  if (std::holds_alternative<Linear>(step)) {
    const LinearStep& linear = linears_[index];
    linear.layer->enqueue(dropped_sizes_ + size, workspace_.get(), stream);
    if (linear.result.data != nullptr)
      device_->convert(linear.result, matrix(output), extent(output, rows), linear.activation, stream);
  } else if (const auto* concat = std::get_if<Concat>(&step)) {
    enqueue_concat(*concat, rows, stream);
    return;  // its parts were looked at
  } else if (const auto* sum = std::get_if<Add>(&step)) {
    device_->add(matrix(sum->left), matrix(sum->right), matrix(output), extent(output, rows), stream);
  } else {
    device_->normalize(matrix(std::get<Normalize>(step).input), matrix(output), extent(output, rows), stream);
  }
  flag_overflow(output, rows, stream);
}

// Float16 ends at 65504. What overflows has to be noticed where it lies: the next layer may make NaN of it,
// and its ReLU a harmless 0 (cuBLASLt's does so to NaN, any does so to -infinity).
void DeviceProgram::flag_overflow(ValueId value, std::int64_t rows, Stream stream) {
  if (layout_.values[at(value)].dtype != DType::kFloat16) return;
  device_->flag(matrix(value), extent(value, rows), flags_.as<std::uint8_t>(), stream);
}

// See Note [Gathered concat].
void DeviceProgram::enqueue_concat(const Concat& concat, std::int64_t rows, Stream stream) {
  const auto& whole = layout_.values[at(concat.output)];
  const bool is_gathered = whole.parts.size() == concat.inputs.size();
  std::int64_t column = 0;
  for (std::size_t index = 0; index < concat.inputs.size(); ++index) {
    const ValueId input = concat.inputs[index];
    const auto& part = layout_.values[at(input)];
    const int width = program_.width(input);
    const bool is_last = index + 1 == concat.inputs.size();
    std::int64_t padded = is_gathered ? padded_width(width) : width;
    if (is_last) padded = whole.padded() - column;
    if (part.owner != concat.output || part.column != column) {
      Matrix to = matrix(concat.output);
      to.data = static_cast<char*>(to.data) + at(column) * size_of(to.dtype);
      device_->convert(matrix(input), to, {rows, width, padded}, Activation::kNone, stream);
    }
    column += padded;
  }
}

std::string DeviceProgram::kernels() const {
  std::ostringstream text;
  for (std::size_t index = 0; index < linears_.size(); ++index)
    if (linears_[index].layer)
      text << "; step " << index << ' ' << linears_[index].layer->kernel()
           << (linears_[index].result.data == nullptr ? "" : " + cast");
  return text.str();
}

}  // namespace fct::cuda
