// Devices, contexts, and which of these a thread uses.
#include <cstdio>
#include <cstdlib>
#include <deque>

#include "simulated_device.h"

namespace simulated {
namespace {

constexpr std::uint64_t kMemory = std::uint64_t{8} << 30;

// Contexts of one thread. What was pushed has to be popped again before the thread ends.
struct ThreadContexts {
  std::vector<CUcontext> stack;
  int pushed = 0;
  ~ThreadContexts() {
    if (pushed != 0) violation("a thread ended with a context that it had pushed");
  }
};
thread_local ThreadContexts contexts;

}  // namespace

void violation(const std::string& what) {
  std::fprintf(stderr, "simulated device: %s\n", what.c_str());
  std::abort();
}

std::uint64_t setting(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == 0 ? otherwise : std::strtoull(text, nullptr, 10);
}

std::recursive_mutex& mutex() {
  static std::recursive_mutex only;
  return only;
}

int device_count() {
  static const int count = static_cast<int>(setting("FCT_SIMULATED_DEVICES", 2));
  return count;
}

std::uint64_t device_memory() {
  static const std::uint64_t bytes = setting("FCT_SIMULATED_MEMORY", kMemory);
  return bytes;
}

int compute_capability() {
  static const int capability = static_cast<int>(setting("FCT_SIMULATED_CAPABILITY", 90));
  return capability;
}

CUcontext primary_context(int device) {
  static auto* contexts = [] {  // never freed: threads may outlive main
    auto* made = new std::deque<CUctx_st>;
    for (int index = 0; index < device_count(); ++index) made->push_back({.device = index});
    for (CUctx_st& context : *made) context.default_stream = make_queue(&context, true);
    return made;
  }();
  return &(*contexts)[static_cast<std::size_t>(device)];
}

CUcontext current() { return contexts.stack.empty() ? nullptr : contexts.stack.back(); }

void set_current(CUcontext context) {
  if (contexts.stack.empty()) contexts.stack.push_back(nullptr);
  contexts.stack.back() = context;
}

void push_current(CUcontext context) {
  contexts.stack.push_back(context);
  ++contexts.pushed;
}

bool pop_current() {
  if (contexts.pushed == 0) return false;
  contexts.stack.pop_back();
  --contexts.pushed;
  return true;
}

}  // namespace simulated
