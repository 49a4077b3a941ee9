// The CUDA runtime's calls. One without a context fails, where the runtime would make one on device 0: that
// is what the project's code must not do behind its caller's back.
#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "simulated_device.h"

using namespace simulated;

namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local int captures_begun = 0;  // by this thread, not in relaxed mode

std::set<const void*>& handles() {
  static auto* live = new std::set<const void*>;
  return *live;
}

bool is_live(const void* handle) { return handles().contains(handle); }

template <typename T>
T* remember(T* handle) {
  handles().insert(handle);
  return handle;
}

void forget(const void* handle) { handles().erase(handle); }

struct Refused {
  cudaError_t status;
};

void require(bool condition, cudaError_t status) {
  if (!condition) throw Refused{status};
}

// Every call that needs a context is one of these.
template <typename Body>
cudaError_t call(const Body& body) {
  const std::lock_guard lock(mutex());
  try {
    require(current() != nullptr, cudaErrorDeviceUninitialized);
    require(current()->fault == cudaSuccess, current()->fault);
    body(current());
    return current()->fault;
  } catch (const Refused& refused) {
    return last_error = refused.status;
  }
}

std::shared_ptr<Queue> queue_of(cudaStream_t stream) {
  auto queue = find_queue(stream);
  require(queue != nullptr, cudaErrorInvalidResourceHandle);
  const bool is_default = queue == queue->context->default_stream;
  require(!is_default || !is_blocking_capture(queue->context), cudaErrorStreamCaptureImplicit);
  return queue;
}

// For what a capture cannot contain.
void refuse_capture(Queue& queue) {
  if (!queue.capture) return;
  queue.capture->is_valid = false;
  throw Refused{cudaErrorStreamCaptureUnsupported};
}

// For what might disturb a capture of this thread.
void refuse_during_capture() { require(captures_begun == 0, cudaErrorStreamCaptureUnsupported); }

void require_device(const void* memory, std::size_t bytes, const Queue& queue) {
  require(device_of(memory, bytes) == queue.context->device, cudaErrorInvalidValue);
}

// When it is done it looks again: memory may have been freed meanwhile.
Operation on_device(const Queue& queue, const void* memory, std::size_t bytes, std::function<void()> work) {
  auto checked = [context = queue.context, memory, bytes, work = std::move(work)] {
    if (device_of(memory, bytes) == context->device) return work();
    context->fault = cudaErrorIllegalAddress;
  };
  return {.work = std::move(checked), .touched = {memory}, .after = {}};
}

void copy_in(const std::shared_ptr<Queue>& queue, void* to, const void* from, std::size_t bytes) {
  require_device(to, bytes, *queue);
  require(device_of(from, 1) < 0, cudaErrorInvalidValue);
  if (is_pinned(from, bytes)) {
    auto operation = on_device(*queue, to, bytes, [=] { std::memcpy(to, from, bytes); });
    operation.touched.push_back(from);
    return push(queue, std::move(operation));
  }
  refuse_capture(*queue);
  // Pageable memory is read before the call returns.
  const auto* begin = static_cast<const char*>(from);
  push(queue, on_device(*queue, to, bytes, [to, bytes, staged = std::vector<char>(begin, begin + bytes)] {
         std::memcpy(to, staged.data(), bytes);
       }));
}

void copy_out(const std::shared_ptr<Queue>& queue, void* to, const void* from, std::size_t bytes) {
  require_device(from, bytes, *queue);
  require(device_of(to, 1) < 0, cudaErrorInvalidValue);
  const bool pinned = is_pinned(to, bytes);
  if (!pinned) refuse_capture(*queue);
  auto operation = on_device(*queue, from, bytes, [=] { std::memcpy(to, from, bytes); });
  operation.touched.push_back(to);
  push(queue, std::move(operation));
  if (!pinned) run_until(queue->end(queue));  // pageable memory is written before the call returns
}

void copy(const std::shared_ptr<Queue>& queue, void* to, const void* from, std::size_t bytes,
          cudaMemcpyKind kind) {
  if (bytes == 0) return;
  if (kind == cudaMemcpyHostToDevice) return copy_in(queue, to, from, bytes);
  if (kind == cudaMemcpyDeviceToHost) return copy_out(queue, to, from, bytes);
  throw Refused{cudaErrorInvalidMemcpyDirection};
}

}  // namespace

std::shared_ptr<Queue> simulated::find_queue(cudaStream_t stream) {
  if (stream == nullptr || stream == cudaStreamLegacy) return current()->default_stream;
  return is_live(stream) ? stream->queue : nullptr;
}

extern "C" {

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define NAME(each) \
  case each:       \
    return #each;
    NAME(cudaSuccess)
    NAME(cudaErrorInvalidValue)
    NAME(cudaErrorMemoryAllocation)
    NAME(cudaErrorInvalidConfiguration)
    NAME(cudaErrorInvalidMemcpyDirection)
    NAME(cudaErrorNoDevice)
    NAME(cudaErrorInvalidDevice)
    NAME(cudaErrorDeviceUninitialized)
    NAME(cudaErrorInvalidResourceHandle)
    NAME(cudaErrorIllegalAddress)
    NAME(cudaErrorStreamCaptureUnsupported)
    NAME(cudaErrorStreamCaptureInvalidated)
    NAME(cudaErrorStreamCaptureUnmatched)
    NAME(cudaErrorStreamCaptureImplicit)
    NAME(cudaErrorStreamCaptureWrongThread)
#undef NAME
    default:
      return "unrecognized error code";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

// --- devices ---

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return *count > 0 ? cudaSuccess : last_error = cudaErrorNoDevice;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current() == nullptr ? 0 : current()->device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  const std::lock_guard lock(mutex());
  if (device < 0 || device >= device_count()) return last_error = cudaErrorInvalidDevice;
  // What the runtime retains it never gives back.
  static auto* used = new std::set<int>;
  if (used->insert(device).second) ++primary_context(device)->retained;
  set_current(primary_context(device));
  return cudaSuccess;
}

// --- memory ---

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  return call([&](CUcontext context) {
    refuse_during_capture();
    *memory = bytes == 0 ? nullptr : allocate_device(context->device, bytes);
    require(bytes == 0 || *memory != nullptr, cudaErrorMemoryAllocation);
  });
}

cudaError_t cudaFree(void* memory) {
  return call([&](CUcontext) {
    if (memory == nullptr) return;
    refuse_during_capture();
    require(free_device(memory), cudaErrorInvalidValue);
  });
}

cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned flags) {
  return call([&](CUcontext) {
    refuse_during_capture();
    require(flags <= (cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined),
            cudaErrorInvalidValue);
    *memory = bytes == 0 ? nullptr : allocate_pinned(bytes);
  });
}

cudaError_t cudaFreeHost(void* memory) {
  return call([&](CUcontext) {
    refuse_during_capture();
    require(memory == nullptr || free_pinned(memory), cudaErrorInvalidValue);
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  return call([&](CUcontext) {
    *attributes = {};
    attributes->device = -2;  // as documented for memory that CUDA does not know
    if (const int device = device_of(pointer, 1); device >= 0) {
      attributes->type = cudaMemoryTypeDevice;
      attributes->device = device;
      attributes->devicePointer = const_cast<void*>(pointer);
    } else if (is_pinned(pointer, 1)) {
      attributes->type = cudaMemoryTypeHost;
      attributes->device = 0;
      attributes->hostPointer = attributes->devicePointer = const_cast<void*>(pointer);
    }
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return call([&](CUcontext) { copy(queue_of(stream), to, from, bytes, kind); });
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return call([&](CUcontext) {
    refuse_during_capture();
    const auto queue = queue_of(nullptr);
    copy(queue, to, from, bytes, kind);
    run_until(queue->end(queue));
  });
}

cudaError_t cudaMemsetAsync(void* memory, int byte, std::size_t bytes, cudaStream_t stream) {
  return call([&](CUcontext) {
    const auto queue = queue_of(stream);
    if (bytes == 0) return;
    require_device(memory, bytes, *queue);
    push(queue, on_device(*queue, memory, bytes, [=] { std::memset(memory, byte, bytes); }));
  });
}

// --- streams ---

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return call([&](CUcontext context) {
    require(flags == cudaStreamDefault || flags == cudaStreamNonBlocking, cudaErrorInvalidValue);
    *stream = remember(new CUstream_st{make_queue(context, flags == cudaStreamDefault)});
  });
}

// Work that it still has is done all the same.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return call([&](CUcontext) {
    require(is_live(stream), cudaErrorInvalidResourceHandle);
    if (stream->queue->capture) violation("a stream was destroyed that is captured");
    forget(stream);
    delete stream;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call([&](CUcontext) {
    const auto queue = queue_of(stream);
    refuse_capture(*queue);
    run_until(queue->end(queue));
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return call([&](CUcontext context) {
    require(flags <= (cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess),
            cudaErrorInvalidValue);
    *event = remember(new CUevent_st{context});
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call([&](CUcontext) {
    require(is_live(event), cudaErrorInvalidResourceHandle);
    forget(event);
    delete event;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call([&](CUcontext) {
    const auto queue = queue_of(stream);
    require(is_live(event) && event->context == queue->context, cudaErrorInvalidResourceHandle);
    if (queue->capture) violation("events inside a capture are not simulated");
    event->point = queue->end(queue);
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return call([&](CUcontext) {
    const auto queue = queue_of(stream);
    require(is_live(event), cudaErrorInvalidResourceHandle);
    require(flags == cudaEventWaitDefault, cudaErrorInvalidValue);
    if (queue->capture) violation("events inside a capture are not simulated");
    push(queue, {.work = {}, .touched = {}, .after = {event->point}});
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call([&](CUcontext) {
    require(is_live(event), cudaErrorInvalidResourceHandle);
    run_until(event->point);
  });
}

// --- graphs ---

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return call([&](CUcontext context) {
    const auto queue = queue_of(stream);
    require(queue != context->default_stream, cudaErrorStreamCaptureUnsupported);
    require(!queue->capture, cudaErrorIllegalState);
    if (mode == cudaStreamCaptureModeGlobal)
      violation("captures that forbid other threads' calls are not simulated");
    queue->capture = std::make_unique<Capture>(Capture{.operations = {}, .mode = mode});
    if (mode != cudaStreamCaptureModeRelaxed) ++captures_begun;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return call([&](CUcontext) {
    *graph = nullptr;
    require(is_live(stream), cudaErrorInvalidResourceHandle);
    require(stream->queue->capture != nullptr, cudaErrorIllegalState);
    const bool is_relaxed = stream->queue->capture->mode == cudaStreamCaptureModeRelaxed;
    require(is_relaxed || captures_begun > 0, cudaErrorStreamCaptureWrongThread);
    if (!is_relaxed) --captures_begun;
    const auto capture = std::move(stream->queue->capture);
    require(capture->is_valid, cudaErrorStreamCaptureInvalidated);
    *graph = remember(new CUgraph_st{std::move(capture->operations)});
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return call([&](CUcontext) {
    const auto& capture = queue_of(stream)->capture;
    *status = !capture            ? cudaStreamCaptureStatusNone
              : capture->is_valid ? cudaStreamCaptureStatusActive
                                  : cudaStreamCaptureStatusInvalidated;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags) {
  return call([&](CUcontext context) {
    require(is_live(graph) && flags == 0, cudaErrorInvalidValue);
    *executable = remember(new CUgraphExec_st{context, graph->operations});
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call([&](CUcontext) {
    require(is_live(graph), cudaErrorInvalidValue);
    forget(graph);
    delete graph;
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return call([&](CUcontext) {
    require(is_live(executable), cudaErrorInvalidValue);
    forget(executable);
    delete executable;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return call([&](CUcontext) {
    const auto queue = queue_of(stream);
    require(is_live(executable), cudaErrorInvalidValue);
    require(executable->context == queue->context, cudaErrorInvalidValue);
    refuse_capture(*queue);
    push(queue, {.work = {}, .touched = {}, .after = {executable->last}});
    for (const Operation& operation : executable->operations) push(queue, operation);
    executable->last = queue->end(queue);
  });
}

}  // extern "C"
