// A device of the seam csrc/cuda/device.h in host memory, made to catch bad scheduling: what is enqueued runs
// late and in random order, bound only by streams and events; fresh memory is full of NaN; memory is limited;
// any call can be made to fail.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "random_programs.h"

namespace fct::testing {

struct FakeOptions {
  unsigned seed = 1;
  std::size_t memory = std::size_t{1} << 40;  // what can be allocated
  std::size_t reported_free = std::size_t{1} << 40;
  std::string name = "Fake";
  int major = 9, minor = 0;
  std::set<DType> no_fused_output{};  // linear layers cannot write these
  bool bare_sums_only = false;        // nor can they activate
  int backwards_below = 0;       // blocks of fewer rows sum in the opposite order, as matrix libraries may
  int uneven_from = 1 << 30;     // blocks of so many rows sum their second half in the opposite order
  int uneven_choices = 1 << 30;  // only kernels before this choice do so
  std::map<std::int64_t, double> seconds_per_row{};  // of a linear layer, by rows of the block
};

class FakeDevice : public cuda::Device {
 public:
  explicit FakeDevice(FakeOptions options = {}, int index = 0);
  ~FakeDevice() override;

  // The call with this number, counted from now, fails; kLost: and all after it; kOutOfMemory: of those that
  // take device memory. A number that is never reached ends that.
  enum class Failure { kOnce, kOutOfMemory, kLost };
  void fail_at(int call, Failure failure);
  bool has_failed() const { return !failed_call_.empty(); }
  const std::string& failed_call() const { return failed_call_; }
  // What was done wrong so far, and what is still allocated or enqueued.
  std::string violations();
  std::size_t allocated() const { return allocated_; }
  std::size_t peak() const { return peak_; }
  int live_handles() const { return live_handles_; }
  int converts() const { return converts_; }
  int copies_in() const { return copies_in_; }
  double seconds() const { return seconds_; }  // that all linear layers took

  CudaDeviceInfo info() const override;
  std::string label() const override { return "cuda:" + std::to_string(index_); }
  void* allocate(std::size_t bytes) override;
  void release(void* memory) noexcept override;
  void* allocate_pinned(std::size_t bytes) override;
  void release_pinned(void* memory) noexcept override;
  bool is_pinned(const void* memory, std::size_t bytes) override;
  cuda::Stream create_stream() override;
  void destroy_stream(cuda::Stream stream) noexcept override;
  void synchronize_stream(cuda::Stream stream) override;
  bool is_capturing(cuda::Stream stream) override;
  cuda::Event create_event() override;
  void destroy_event(cuda::Event event) noexcept override;
  void record(cuda::Event event, cuda::Stream stream) override;
  void wait(cuda::Stream stream, cuda::Event event) override;
  void synchronize_event(cuda::Event event) override;
  cuda::Graph capture(cuda::Stream stream, const std::function<void()>& enqueue) override;
  void destroy_graph(cuda::Graph graph) noexcept override;
  void launch(cuda::Graph graph, cuda::Stream stream) override;
  void copy_in(void* to, const void* from, std::size_t bytes, cuda::Stream stream) override;
  void copy_out(void* to, const void* from, std::size_t bytes, cuda::Stream stream) override;
  void fill(void* memory, int byte, std::size_t bytes, cuda::Stream stream) override;
  std::unique_ptr<cuda::PreparedLinear> prepare(const cuda::LinearSpec& spec) override;
  void load(const cuda::Matrix& from, const cuda::Matrix& to, cuda::Extent extent, std::int64_t block_rows,
            cuda::RowChecks checks, cuda::Stream stream) override;
  void store(const cuda::Matrix& from, const cuda::Matrix& to, cuda::Extent extent, cuda::RowChecks checks,
             cuda::Stream stream) override;
  void convert(const cuda::Matrix& from, const cuda::Matrix& to, cuda::Extent extent, Activation activation,
               cuda::Stream stream) override;
  void flag(const cuda::Matrix& from, cuda::Extent extent, std::uint8_t* flags, cuda::Stream stream) override;
  void add(const cuda::Matrix& left, const cuda::Matrix& right, const cuda::Matrix& to, cuda::Extent extent,
           cuda::Stream stream) override;
  void normalize(const cuda::Matrix& from, const cuda::Matrix& to, cuda::Extent extent,
                 cuda::Stream stream) override;
  void shift(const cuda::AssignedRows& rows, const cuda::DeviceCentroids& centroids, const cuda::Matrix& to,
             std::int64_t padded, std::int64_t block_rows, cuda::ListSearch* searches,
             cuda::Stream stream) override;
  void search(const cuda::AssignedRows& rows, const cuda::DeviceCentroids& centroids,
              const cuda::Matrix& scores, std::int64_t first_list, std::int64_t lists,
              cuda::ListSearch* searches, cuda::Stream stream) override;
  void encode(const cuda::AssignedRows& rows, const cuda::DeviceCentroids& centroids,
              const cuda::DeviceCodebooks& codebooks, cuda::Stream stream) override;

  const FakeOptions& options() const { return options_; }
  void pass(double seconds) { seconds_ += seconds; }
  // Puts work on a stream that touches the given memory.
  void enqueue(const char* what, cuda::Stream stream, std::vector<const void*> touched,
               std::function<void()> work);

 private:
  struct EventState {
    int recorded = 0, completed = 0;  // how many times
  };
  struct Operation {
    std::function<void()> work{};
    std::vector<const void*> touched{};
    EventState* event = nullptr;  // waits for it, or records it if there is no work
    int version = 0;
    bool is_record = false;
  };
  struct StreamState {
    std::deque<Operation> queue;
    std::vector<Operation>* captured = nullptr;
  };
  using GraphState = std::vector<Operation>;

  void fallible(const char* what);
  void abandon_all();
  void push(cuda::Stream stream, Operation operation);
  void run_some();
  bool step();
  template <typename Done>
  void run_until(const Done& done);
  void check_unused(const void* memory, std::size_t bytes);
  void* take(std::map<const char*, std::size_t>& table, std::size_t bytes);
  void give_back(std::map<const char*, std::size_t>& table, void* memory);

  FakeOptions options_;
  int index_;
  std::recursive_mutex mutex_;  // a captured function enqueues
  Random random_;
  std::vector<StreamState*> streams_;
  std::map<const char*, std::size_t> device_memory_, pinned_memory_;
  std::size_t allocated_ = 0, peak_ = 0;
  double seconds_ = 0;
  int live_handles_ = 0, converts_ = 0, copies_in_ = 0;
  int calls_ = 0, fail_at_ = -1;
  Failure failure_ = Failure::kOnce;
  bool is_lost_ = false;
  std::string failed_call_;
  std::string violations_;
};

}  // namespace fct::testing
