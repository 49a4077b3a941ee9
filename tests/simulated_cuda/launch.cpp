// Kernels: every thread of a block is a fiber, which gives way where the threads of a warp, or of the block,
// wait for one another. Blocks and warps run in any order, lanes from any one on: what depends on an order
// shows.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>

#include "nvcc.h"
#include "simulated_device.h"

namespace {

constexpr std::size_t kMaxShared = std::size_t{48} << 10;  // bytes; more has to be asked for

}  // namespace

uint3 threadIdx, blockIdx;
dim3 gridDim;
alignas(16) float fct_shared[kMaxShared / sizeof(float)];

namespace simulated {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kMaxParameters = 4096;  // bytes
constexpr std::size_t kStack = std::size_t{256} << 10;
constexpr int kVote = 1 << 16, kBarrier = 1 << 17;  // kinds above those of nvcc.h

struct Fiber {
  jmp_buf registers;
  ucontext_t first{};  // where it begins
  std::unique_ptr<char[]> stack;
  bool is_done = false;
  unsigned mask = 0;  // of the lanes it waits for
  int kind = 0;
  std::array<std::uint64_t, 2> given{};  // by turn
};

struct Warp {
  unsigned turn = 0;    // which of the two is given to; the other one is read
  unsigned ballot = 0;  // a bit for each lane that gave something else than 0
};

std::array<Fiber, kMaxThreads> fibers;
std::array<Warp, kMaxThreads / kWarp> warps;
unsigned running;  // thread
jmp_buf scheduler;
const std::function<void()>* body;

void give_way() {
  if (_setjmp(fibers[running].registers) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    (*body)();
    fibers[running].is_done = true;
    give_way();
  }
}

void resume(unsigned thread) {
  running = thread;
  threadIdx = {thread, 0, 0};
  Fiber& fiber = fibers[thread];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.stack) _longjmp(fiber.registers, 1);
  fiber.stack.reset(new char[kStack]);
  getcontext(&fiber.first);
  fiber.first.uc_stack.ss_sp = fiber.stack.get();
  fiber.first.uc_stack.ss_size = kStack;
  makecontext(&fiber.first, fiber_main, 0);
  setcontext(&fiber.first);
}

void check_lanes(const Fiber* lanes) {
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const Fiber& fiber = lanes[lane];
    if (fiber.is_done != lanes->is_done ||
        (!fiber.is_done && (fiber.mask != 0xffffffffu || fiber.kind != lanes->kind)))
      violation("the lanes of a warp wait for one another at different places");
  }
}

// Until it has ended or waits for the block.
void run_warp(unsigned number, unsigned first_lane) {
  Warp& warp = warps[number];
  const Fiber* lanes = fibers.data() + number * kWarp;
  do {
    for (unsigned lane = 0; lane < kWarp; ++lane) resume(number * kWarp + (first_lane + lane) % kWarp);
    check_lanes(lanes);
    warp.ballot = 0;
    for (unsigned lane = 0; lane < kWarp; ++lane)
      warp.ballot |= static_cast<unsigned>(lanes[lane].given[warp.turn] != 0) << lane;
    warp.turn ^= 1;
  } while (!lanes->is_done && lanes->kind != kBarrier);
}

void run_block(unsigned count, std::size_t shared_bytes, std::minstd_rand& random) {
  for (unsigned thread = 0; thread < count * kWarp; ++thread) fibers[thread].is_done = false;
  std::memset(fct_shared, 0xff, shared_bytes);  // NaN
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  do {
    std::shuffle(order.begin(), order.end(), random);
    for (unsigned number : order) run_warp(number, static_cast<unsigned>(random() % kWarp));
    for (unsigned number : order)
      if (fibers[number * kWarp].is_done != fibers[0].is_done)
        violation("the warps of a block wait for one another, but not all of them");
  } while (!fibers[0].is_done);
}

void wait_for_all(unsigned mask, int kind, std::uint64_t value) {
  Fiber& fiber = fibers[running];
  fiber.mask = mask;
  fiber.kind = kind;
  fiber.given[warps[running / kWarp].turn] = value;
  give_way();
}

}  // namespace

int lane() { return static_cast<int>(running % kWarp); }

std::uint64_t exchange(unsigned mask, int kind, std::uint64_t value, int from) {
  wait_for_all(mask, kind, value);
  const unsigned number = running / kWarp;
  return fibers[number * kWarp + static_cast<unsigned>(from)].given[warps[number].turn ^ 1];
}

unsigned ballot(unsigned mask, bool value) {
  wait_for_all(mask, kVote, value);
  return warps[running / kWarp].ballot;
}

void wait_for_block() { wait_for_all(0xffffffffu, kBarrier, 0); }

void run_blocks(const cudaLaunchConfig_t& config, const std::function<void()>& work) {
  static std::minstd_rand random(static_cast<unsigned>(setting("FCT_SIMULATED_SEED", 1)));
  body = &work;
  gridDim = config.gridDim;
  std::vector<unsigned> order(config.gridDim.x);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random);
  for (unsigned block : order) {
    blockIdx = {block, 0, 0};
    run_block(config.blockDim.x / kWarp, config.dynamicSmemBytes, random);
  }
}

cudaError_t launch(Launch launch) {
  const std::lock_guard lock(mutex());
  const auto& config = launch.config;
  const CUcontext context = current();
  if (context == nullptr) return cudaErrorDeviceUninitialized;
  if (context->fault != cudaSuccess) return context->fault;
  const auto queue = find_queue(config.stream);
  if (!queue || queue->context != context) return cudaErrorInvalidResourceHandle;
  const auto [grid, block] = std::pair(config.gridDim, config.blockDim);
  if (block.x == 0 || block.x > kMaxThreads || grid.x == 0 || grid.x > 0x7fffffffu)
    return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > kMaxShared) return cudaErrorInvalidValue;
  if (block.x % kWarp != 0 || block.y * block.z * grid.y * grid.z != 1)
    violation("a launch that is not simulated: parts of warps, more than one dimension");
  if (launch.parameter_bytes > kMaxParameters) return cudaErrorInvalidValue;
  Operation operation{.work = [config, body = std::move(launch.body)] { run_blocks(config, body); },
                      .touched = {},
                      .after = {}};
  for (const void* word : launch.words) {
    const int device = device_of(word, 1);
    if (device >= 0 && device != context->device) violation("a kernel was given memory of another device");
    if (device >= 0 || is_pinned(word, 1)) operation.touched.push_back(word);
  }
  push(queue, std::move(operation));
  return cudaSuccess;
}

}  // namespace simulated
