#include "fake_device.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "fake_assign.h"
#include "fake_rows.h"

namespace fct::testing {
namespace {

using cuda::AssignedRows;
using cuda::DeviceCentroids;
using cuda::DeviceCodebooks;
using cuda::Event;
using cuda::Extent;
using cuda::Graph;
using cuda::LinearSpec;
using cuda::ListSearch;
using cuda::Matrix;
using cuda::RowChecks;
using cuda::Stream;

constexpr int kPoison = 0xff;                 // NaN in every storage type
constexpr std::size_t kMostPoison = 1 << 20;  // bytes; the rest of a large buffer is not looked at
constexpr int kMostAtOnce = 4;                // operations that run when something is enqueued

class FakeLinear : public cuda::PreparedLinear {
 public:
  FakeLinear(FakeDevice& device, const LinearSpec& spec) : device_(device), spec_(spec) {}

  void enqueue(std::size_t size, void* workspace, Stream stream) override {
    device_.enqueue("linear", stream, {spec_.input.data, spec_.output.data, workspace},
                    [this, rows = spec_.rows.at(size), workspace] {
                      std::memset(workspace, kPoison, 64);
                      for (std::int64_t row = 0; row < rows; ++row) run_row(row, rows);
                      const auto& costs = device_.options().seconds_per_row;
                      if (costs.contains(rows)) device_.pass(static_cast<double>(rows) * costs.at(rows));
                    });
  }
  std::string kernel() const override {
    constexpr const char* kNames[] = {"fp32", "fp16", "bf16", "fp8", "tf32"};
    return std::string("fake ") + kNames[static_cast<int>(spec_.output.dtype)] +
           (spec_.activation == Activation::kRelu ? " relu" : "");
  }

 private:
  void run_row(std::int64_t row, std::int64_t rows) const {
    const auto& options = device_.options();
    const bool is_uneven = rows >= options.uneven_from && spec_.choice < options.uneven_choices;
    const bool backwards = rows < options.backwards_below || (is_uneven && row >= rows / 2);
    std::vector<float> input(static_cast<std::size_t>(spec_.d_in));
    for (std::int64_t i = 0; i < spec_.d_in; ++i)
      input[static_cast<std::size_t>(i)] = load_element(spec_.input, row, i);
    for (std::int64_t o = 0; o < spec_.d_out; ++o) {
      const float* weight = spec_.weight.data() + o * spec_.d_in;
      float sum = 0;
      for (std::int64_t i = 0; i < spec_.d_in; ++i) {
        const std::int64_t k = backwards ? spec_.d_in - 1 - i : i;
        sum += weight[k] * input[static_cast<std::size_t>(k)];
      }
      sum += spec_.bias[static_cast<std::size_t>(o)];
      if (spec_.activation == Activation::kRelu) sum = sum > 0 ? sum : 0;  // of NaN too, as cuBLASLt's
      store_element(spec_.output, row, o, sum);
    }
  }

  FakeDevice& device_;
  LinearSpec spec_;
};

}  // namespace

FakeDevice::FakeDevice(FakeOptions options, int index)
    : options_(std::move(options)), index_(index), random_(options_.seed) {}

FakeDevice::~FakeDevice() = default;

void FakeDevice::fail_at(int call, Failure failure) {
  const std::lock_guard lock(mutex_);
  calls_ = 0;
  fail_at_ = call;
  failure_ = failure;
  is_lost_ = false;
  failed_call_.clear();
}

std::string FakeDevice::violations() {
  const std::lock_guard lock(mutex_);
  return violations_;
}

void FakeDevice::fallible(const char* what) {
  const bool takes_memory = std::string_view(what) == "allocate" || std::string_view(what) == "prepare";
  if (failure_ != Failure::kOutOfMemory || takes_memory) ++calls_;
  if (calls_ == fail_at_ && failed_call_.empty()) {
    failed_call_ = what;
    if (failure_ == Failure::kOutOfMemory)
      throw cuda::OutOfDeviceMemory(std::string(what) + ": out of memory");
    if (failure_ == Failure::kLost) {
      is_lost_ = true;
      abandon_all();
    }
    throw Error(ErrorKind::kResource, std::string(what) + " failed");
  }
  if (is_lost_) throw Error(ErrorKind::kResource, std::string(what) + ": the device is lost");
}

// --- streams and events ---

// Nobody has to wait any more for what will never run.
void FakeDevice::abandon_all() {
  for (StreamState* stream : streams_) {
    for (const Operation& operation : stream->queue)
      if (operation.is_record)
        operation.event->completed = std::max(operation.event->completed, operation.version);
    stream->queue.clear();
  }
}

void FakeDevice::push(Stream stream, Operation operation) {
  auto* state = static_cast<StreamState*>(stream);
  if (state->captured != nullptr) {
    state->captured->push_back(std::move(operation));
    return;
  }
  state->queue.push_back(std::move(operation));
  run_some();
}

void FakeDevice::enqueue(const char* what, Stream stream, std::vector<const void*> touched,
                         std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  fallible(what);
  push(stream, {std::move(work), std::move(touched)});
}

bool FakeDevice::step() {
  std::vector<StreamState*> ready;
  for (StreamState* stream : streams_) {
    if (stream->queue.empty()) continue;
    const Operation& head = stream->queue.front();
    if (head.event == nullptr || head.is_record || head.event->completed >= head.version)
      ready.push_back(stream);
  }
  if (ready.empty()) return false;
  auto& queue =
      ready[static_cast<std::size_t>(uniform(random_, 0, static_cast<int>(ready.size()) - 1))]->queue;
  const Operation operation = std::move(queue.front());
  queue.pop_front();
  if (operation.work) operation.work();
  if (operation.is_record)
    operation.event->completed = std::max(operation.event->completed, operation.version);
  return true;
}

void FakeDevice::run_some() {
  // Seldom, so that most work waits until somebody asks for its result.
  if (uniform(random_, 0, 7) != 0) return;
  for (int i = uniform(random_, 1, kMostAtOnce); i > 0 && step();) --i;
}

template <typename Done>
void FakeDevice::run_until(const Done& done) {
  while (!done())
    if (!step()) {
      violations_ += "deadlock; ";
      throw Error(ErrorKind::kResource, "nothing can run, but somebody waits");
    }
}

Stream FakeDevice::create_stream() {
  const std::lock_guard lock(mutex_);
  fallible("create_stream");
  ++live_handles_;
  streams_.push_back(new StreamState);
  return streams_.back();
}

void FakeDevice::destroy_stream(Stream stream) noexcept {
  const std::lock_guard lock(mutex_);
  auto* state = static_cast<StreamState*>(stream);
  if (!state->queue.empty()) violations_ += "a stream was destroyed while it had work; ";
  std::erase(streams_, state);
  delete state;
  --live_handles_;
}

// Work that failed is reported when it is waited for, and is over then.
void FakeDevice::synchronize_stream(Stream stream) {
  const std::lock_guard lock(mutex_);
  if (!is_lost_) run_until([&] { return static_cast<StreamState*>(stream)->queue.empty(); });
  fallible("synchronize_stream");
}

bool FakeDevice::is_capturing(Stream stream) {
  const std::lock_guard lock(mutex_);
  fallible("is_capturing");
  return static_cast<StreamState*>(stream)->captured != nullptr;
}

Event FakeDevice::create_event() {
  const std::lock_guard lock(mutex_);
  fallible("create_event");
  ++live_handles_;
  return new EventState;
}

void FakeDevice::destroy_event(Event event) noexcept {
  const std::lock_guard lock(mutex_);
  for (const StreamState* stream : streams_)
    for (const Operation& operation : stream->queue)
      if (operation.event == event) violations_ += "an event was destroyed while a stream used it; ";
  delete static_cast<EventState*>(event);
  --live_handles_;
}

void FakeDevice::record(Event event, Stream stream) {
  const std::lock_guard lock(mutex_);
  fallible("record");
  auto* state = static_cast<EventState*>(event);
  push(stream, {.event = state, .version = ++state->recorded, .is_record = true});
}

void FakeDevice::wait(Stream stream, Event event) {
  const std::lock_guard lock(mutex_);
  fallible("wait");
  auto* state = static_cast<EventState*>(event);
  push(stream, {.event = state, .version = state->recorded});
}

void FakeDevice::synchronize_event(Event event) {
  const std::lock_guard lock(mutex_);
  const auto* state = static_cast<EventState*>(event);
  if (!is_lost_) run_until([&, version = state->recorded] { return state->completed >= version; });
  fallible("synchronize_event");
}

Graph FakeDevice::capture(Stream stream, const std::function<void()>& enqueue_all) {
  const std::lock_guard lock(mutex_);
  fallible("capture");
  auto graph = std::make_unique<GraphState>();
  auto* state = static_cast<StreamState*>(stream);
  state->captured = graph.get();
  try {
    enqueue_all();
  } catch (...) {
    state->captured = nullptr;
    throw;
  }
  state->captured = nullptr;
  ++live_handles_;
  return graph.release();
}

void FakeDevice::destroy_graph(Graph graph) noexcept {
  const std::lock_guard lock(mutex_);
  delete static_cast<GraphState*>(graph);
  --live_handles_;
}

void FakeDevice::launch(Graph graph, Stream stream) {
  const std::lock_guard lock(mutex_);
  fallible("launch");
  for (const Operation& operation : *static_cast<GraphState*>(graph)) push(stream, operation);
}

// --- memory ---

void* FakeDevice::take(std::map<const char*, std::size_t>& table, std::size_t bytes) {
  char* memory = static_cast<char*>(std::aligned_alloc(cuda::kAlignment, (bytes + 255) / 256 * 256));
  std::memset(memory, kPoison, std::min(bytes, kMostPoison));
  table[memory] = bytes;
  return memory;
}

void FakeDevice::give_back(std::map<const char*, std::size_t>& table, void* memory) {
  const auto found = table.find(static_cast<char*>(memory));
  if (found == table.end()) {
    violations_ += "freed what was not allocated; ";
    return;
  }
  for (const StreamState* stream : streams_)
    for (const Operation& operation : stream->queue)
      for (const void* touched : operation.touched)
        if (touched >= found->first && touched < found->first + found->second)
          violations_ += "memory was freed while work that touches it was enqueued; ";
  table.erase(found);
  std::free(memory);
}

void* FakeDevice::allocate(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  fallible("allocate");
  if (allocated_ + bytes > options_.memory) throw cuda::OutOfDeviceMemory("out of memory");
  allocated_ += bytes;
  peak_ = std::max(peak_, allocated_);
  return take(device_memory_, bytes);
}

void FakeDevice::release(void* memory) noexcept {
  const std::lock_guard lock(mutex_);
  allocated_ -= device_memory_[static_cast<char*>(memory)];
  give_back(device_memory_, memory);
}

void* FakeDevice::allocate_pinned(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  fallible("allocate_pinned");
  ++live_handles_;
  return take(pinned_memory_, bytes);
}

void FakeDevice::release_pinned(void* memory) noexcept {
  const std::lock_guard lock(mutex_);
  --live_handles_;
  give_back(pinned_memory_, memory);
}

bool FakeDevice::is_pinned(const void* memory, std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  fallible("is_pinned");
  const auto* first = static_cast<const char*>(memory);
  return std::any_of(pinned_memory_.begin(), pinned_memory_.end(), [&](const auto& entry) {
    return first >= entry.first && first + bytes <= entry.first + entry.second;
  });
}

void FakeDevice::copy_in(void* to, const void* from, std::size_t bytes, Stream stream) {
  enqueue("copy_in", stream, {to, from}, [=, this] {
    ++copies_in_;
    std::memcpy(to, from, bytes);
  });
}

void FakeDevice::copy_out(void* to, const void* from, std::size_t bytes, Stream stream) {
  enqueue("copy_out", stream, {to, from}, [=] { std::memcpy(to, from, bytes); });
}

void FakeDevice::fill(void* memory, int byte, std::size_t bytes, Stream stream) {
  enqueue("fill", stream, {memory}, [=] { std::memset(memory, byte, bytes); });
}

// --- operations on rows ---

CudaDeviceInfo FakeDevice::info() const {
  return {index_, options_.name, options_.major, options_.minor, options_.memory, options_.reported_free};
}

std::unique_ptr<cuda::PreparedLinear> FakeDevice::prepare(const LinearSpec& spec) {
  const std::lock_guard lock(mutex_);
  fallible("prepare");
  if (spec.activation == Activation::kGelu || spec.output.dtype == DType::kTf32) return nullptr;
  if (options_.no_fused_output.contains(spec.output.dtype)) return nullptr;
  if (options_.bare_sums_only && spec.activation != Activation::kNone) return nullptr;
  return std::make_unique<FakeLinear>(*this, spec);
}

void FakeDevice::load(const Matrix& from, const Matrix& to, Extent extent, std::int64_t block_rows,
                      RowChecks checks, Stream stream) {
  enqueue("load", stream, {from.data, to.data, checks.flags, checks.first_bad},
          [=] { load_rows(from, to, extent, block_rows, checks); });
}

void FakeDevice::store(const Matrix& from, const Matrix& to, Extent extent, RowChecks checks, Stream stream) {
  enqueue("store", stream, {from.data, to.data, checks.flags, checks.first_bad},
          [=] { store_rows(from, to, extent, checks); });
}

void FakeDevice::convert(const Matrix& from, const Matrix& to, Extent extent, Activation activation,
                         Stream stream) {
  enqueue("convert", stream, {from.data, to.data}, [=, this] {
    ++converts_;
    convert_rows(from, to, extent, activation);
  });
}

void FakeDevice::flag(const Matrix& from, Extent extent, std::uint8_t* flags, Stream stream) {
  enqueue("flag", stream, {from.data, flags}, [=] { flag_rows(from, extent, flags); });
}

void FakeDevice::add(const Matrix& left, const Matrix& right, const Matrix& to, Extent extent,
                     Stream stream) {
  enqueue("add", stream, {left.data, right.data, to.data}, [=] { add_rows(left, right, to, extent); });
}

void FakeDevice::normalize(const Matrix& from, const Matrix& to, Extent extent, Stream stream) {
  enqueue("normalize", stream, {from.data, to.data}, [=] { normalize_rows(from, to, extent); });
}

void FakeDevice::shift(const AssignedRows& rows, const DeviceCentroids& centroids, const Matrix& to,
                       std::int64_t padded, std::int64_t block_rows, ListSearch* searches, Stream stream) {
  enqueue("shift", stream, {rows.rows, rows.first_bad, to.data, searches, centroids.mean},
          [=] { shift_rows(rows, centroids, to, padded, block_rows, searches); });
}

void FakeDevice::search(const AssignedRows& rows, const DeviceCentroids& centroids, const Matrix& scores,
                        std::int64_t first_list, std::int64_t lists, ListSearch* searches, Stream stream) {
  enqueue("search", stream,
          {rows.rows, rows.lists, scores.data, searches, centroids.values, centroids.lengths},
          [=] { search_rows(rows, centroids, scores, first_list, lists, searches); });
}

void FakeDevice::encode(const AssignedRows& rows, const DeviceCentroids& centroids,
                        const DeviceCodebooks& codebooks, Stream stream) {
  enqueue("encode", stream, {rows.rows, rows.lists, rows.codes, centroids.values, codebooks.values},
          [=] { encode_rows(rows, centroids, codebooks); });
}

}  // namespace fct::testing
