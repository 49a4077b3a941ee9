// Device and Platform by the CUDA runtime.
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "check.h"
#include "context.h"
#include "cublaslt_linear.h"
#include "kernels.h"

namespace fct::cuda {
namespace {

cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(Event event) { return static_cast<cudaEvent_t>(event); }

// Gives something back in a context. An error says that the device is lost, and with it what was on it.
template <typename Work>
void free_in(CUcontext context, const Work& work) noexcept {
  try {
    const InContext guard(context);
    work();
  } catch (const Error&) {
  }
}

std::string version_text(std::size_t version, std::size_t major_unit, std::size_t minor_unit) {
  return std::to_string(version / major_unit) + "." + std::to_string(version % major_unit / minor_unit);
}

// A layer frees its memory on its device, whatever thread lets it go.
class LinearOnDevice : public PreparedLinear {
 public:
  LinearOnDevice(CUcontext context, std::unique_ptr<PreparedLinear> layer)
      : context_(context), layer_(std::move(layer)) {}
  ~LinearOnDevice() override {
    free_in(context_, [&] { layer_.reset(); });
  }
  void enqueue(std::size_t size, void* workspace, Stream stream) override {
    const InContext guard(context_);
    layer_->enqueue(size, workspace, stream);
  }
  std::string kernel() const override { return layer_->kernel(); }

 private:
  CUcontext context_;
  std::unique_ptr<PreparedLinear> layer_;
};

class CudaDevice : public Device {
 public:
  explicit CudaDevice(int index) : index_(index), context_(primary_context(index)) {
    const InContext guard(context_);
    FCT_CHECK(cublasLtCreate(&cublaslt_));
  }
  ~CudaDevice() override {
    free_in(context_, [&] { (void)cublasLtDestroy(cublaslt_); });
  }

  CudaDeviceInfo info() const override { return describe(index_); }
  std::string label() const override { return "cuda:" + std::to_string(index_); }

  void* allocate(std::size_t bytes) override {
    const InContext guard(context_);
    void* memory = nullptr;
    FCT_CHECK(cudaMalloc(&memory, bytes));
    return memory;
  }
  void release(void* memory) noexcept override {
    free_in(context_, [&] { (void)cudaFree(memory); });
  }
  void* allocate_pinned(std::size_t bytes) override {
    const InContext guard(context_);
    void* memory = nullptr;
    if (cudaHostAlloc(&memory, bytes, cudaHostAllocPortable) != cudaSuccess) {
      (void)cudaGetLastError();
      throw Error(ErrorKind::kResource,
                  "cannot pin " + std::to_string(bytes >> 20) + " MiB of host memory for " + label());
    }
    return memory;
  }
  void release_pinned(void* memory) noexcept override {
    free_in(context_, [&] { (void)cudaFreeHost(memory); });
  }
  bool is_pinned(const void* memory, std::size_t bytes) override {
    const InContext guard(context_);
    auto is_pinned_at = [](const void* address) {
      cudaPointerAttributes attributes{};
      FCT_CHECK(cudaPointerGetAttributes(&attributes, address));
      return attributes.type == cudaMemoryTypeHost;
    };
    return is_pinned_at(memory) && is_pinned_at(static_cast<const char*>(memory) + bytes - 1);
  }

  Stream create_stream() override {
    const InContext guard(context_);
    cudaStream_t stream = nullptr;
    FCT_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
  }
  void destroy_stream(Stream stream) noexcept override {
    free_in(context_, [&] { (void)cudaStreamDestroy(stream_of(stream)); });
  }
  void synchronize_stream(Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(cudaStreamSynchronize(stream_of(stream)));
  }
  bool is_capturing(Stream stream) override {
    const InContext guard(context_);
    auto state = cudaStreamCaptureStatusNone;
    const cudaError_t status = cudaStreamIsCapturing(stream_of(stream), &state);
    if (status == cudaErrorStreamCaptureImplicit) {  // the default one, which would wait for one that is
      (void)cudaGetLastError();
      return true;
    }
    check(status, "cudaStreamIsCapturing");
    return state != cudaStreamCaptureStatusNone;
  }
  Event create_event() override {
    const InContext guard(context_);
    cudaEvent_t event = nullptr;
    FCT_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync));
    return event;
  }
  void destroy_event(Event event) noexcept override {
    free_in(context_, [&] { (void)cudaEventDestroy(event_of(event)); });
  }
  void record(Event event, Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(cudaEventRecord(event_of(event), stream_of(stream)));
  }
  void wait(Stream stream, Event event) override {
    const InContext guard(context_);
    FCT_CHECK(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0));
  }
  void synchronize_event(Event event) override {
    const InContext guard(context_);
    FCT_CHECK(cudaEventSynchronize(event_of(event)));
  }

  Graph capture(Stream stream, const std::function<void()>& enqueue) override {
    const InContext guard(context_);
    // Only this thread's calls count: others may use the device meanwhile.
    FCT_CHECK(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph = nullptr;
    try {
      enqueue();
    } catch (...) {
      (void)cudaStreamEndCapture(stream_of(stream), &graph);
      (void)cudaGraphDestroy(graph);
      (void)cudaGetLastError();
      throw;
    }
    FCT_CHECK(cudaStreamEndCapture(stream_of(stream), &graph));
    cudaGraphExec_t executable = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
    (void)cudaGraphDestroy(graph);
    check(status, "cudaGraphInstantiate");
    return executable;
  }
  void destroy_graph(Graph graph) noexcept override {
    free_in(context_, [&] { (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); });
  }
  void launch(Graph graph, Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(stream)));
  }

  void copy_in(void* to, const void* from, std::size_t bytes, Stream stream) override {
    copy(to, from, bytes, cudaMemcpyHostToDevice, stream);
  }
  void copy_out(void* to, const void* from, std::size_t bytes, Stream stream) override {
    copy(to, from, bytes, cudaMemcpyDeviceToHost, stream);
  }
  void fill(void* memory, int byte, std::size_t bytes, Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(cudaMemsetAsync(memory, byte, bytes, stream_of(stream)));
  }

  std::unique_ptr<PreparedLinear> prepare(const LinearSpec& spec) override {
    const InContext guard(context_);
    auto layer = make_cublaslt_linear(cublaslt_, spec);
    if (!layer) return nullptr;
    return std::make_unique<LinearOnDevice>(context_, std::move(layer));
  }

  void load(const Matrix& from, const Matrix& to, Extent extent, std::int64_t block_rows, RowChecks checks,
            Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(kernels::load(from, to, extent, block_rows, checks, stream_of(stream)));
  }
  void store(const Matrix& from, const Matrix& to, Extent extent, RowChecks checks, Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(kernels::store(from, to, extent, checks, stream_of(stream)));
  }
  void convert(const Matrix& from, const Matrix& to, Extent extent, Activation activation,
               Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(kernels::convert(from, to, extent, activation, stream_of(stream)));
  }
  void flag(const Matrix& from, Extent extent, std::uint8_t* flags, Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(kernels::flag(from, extent, flags, stream_of(stream)));
  }
  void add(const Matrix& left, const Matrix& right, const Matrix& to, Extent extent, Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(kernels::add(left, right, to, extent, stream_of(stream)));
  }
  void normalize(const Matrix& from, const Matrix& to, Extent extent, Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(kernels::normalize(from, to, extent, stream_of(stream)));
  }

  void shift(const AssignedRows& rows, const DeviceCentroids& centroids, const Matrix& to,
             std::int64_t padded, std::int64_t block_rows, ListSearch* searches, Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(kernels::shift(rows, centroids, to, padded, block_rows, searches, stream_of(stream)));
  }
  void search(const AssignedRows& rows, const DeviceCentroids& centroids, const Matrix& scores,
              std::int64_t first_list, std::int64_t lists, ListSearch* searches, Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(kernels::search(rows, centroids, scores, first_list, lists, searches, stream_of(stream)));
  }
  void encode(const AssignedRows& rows, const DeviceCentroids& centroids, const DeviceCodebooks& codebooks,
              Stream stream) override {
    const InContext guard(context_);
    FCT_CHECK(kernels::encode(rows, centroids, codebooks, stream_of(stream)));
  }

 private:
  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, Stream stream) {
    const InContext guard(context_);
    FCT_CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream_of(stream)));
  }

  int index_;
  CUcontext context_;
  cublasLtHandle_t cublaslt_ = nullptr;
};

class CudaPlatform : public Platform {
 public:
  int count() override {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorNoDevice) return 0;
    if (status == cudaErrorInsufficientDriver)
      throw Error(ErrorKind::kUnsupported, "the NVIDIA driver is too old: it knows CUDA " + driver_version() +
                                               ", needed is " + version_text(CUDART_VERSION, 1000, 10));
    check(status, "cudaGetDeviceCount");
    return count;
  }
  std::vector<CudaDeviceInfo> devices() override {
    std::vector<CudaDeviceInfo> found;
    for (int index = 0; index < count(); ++index) found.push_back(describe(index));
    return found;
  }
  std::string driver_version() override {
    int version = 0;
    FCT_CHECK(cudaDriverGetVersion(&version));
    return version_text(static_cast<std::size_t>(version), 1000, 10);
  }
  std::string cublaslt_version() override {
    const std::size_t version = cublasLtGetVersion();
    return version_text(version, 10000, 100);
  }
  std::unique_ptr<Device> open(int index) override { return std::make_unique<CudaDevice>(index); }
};

}  // namespace
}  // namespace fct::cuda

extern "C" FCT_SHARED fct::cuda::Platform& fct_cuda_platform() {
  static fct::cuda::CudaPlatform platform;
  return platform;
}
