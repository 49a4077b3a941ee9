// Kernels: every thread of a warp is a fiber, which gives way where the threads of a warp wait for one
// another. Blocks and warps run in any order, lanes from any one on: what depends on an order shows.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <random>

#include "nvcc.h"
#include "simulated_device.h"

uint3 threadIdx, blockIdx;
dim3 gridDim;

namespace simulated {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kMaxParameters = 4096;  // bytes
constexpr std::size_t kStack = std::size_t{256} << 10;

struct Fiber {
  jmp_buf registers;
  ucontext_t first{};  // where it begins
  std::vector<char> stack = std::vector<char>(kStack);
  bool is_begun = false, is_done = false;
  unsigned mask = 0;  // of the lanes it waits for
  int kind = 0;
  std::array<std::uint64_t, 2> given{};  // by round
};

std::array<Fiber, kWarp> fibers;
unsigned running;   // lane
unsigned turn = 0;  // which of the two is given to; the other one is read
bool agreed;        // whether all gave something else than 0
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

void resume(unsigned lane, unsigned first_thread) {
  running = lane;
  threadIdx = {first_thread + lane, 0, 0};
  Fiber& fiber = fibers[lane];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.is_begun) _longjmp(fiber.registers, 1);
  fiber.is_begun = true;
  getcontext(&fiber.first);
  fiber.first.uc_stack.ss_sp = fiber.stack.data();
  fiber.first.uc_stack.ss_size = fiber.stack.size();
  makecontext(&fiber.first, fiber_main, 0);
  setcontext(&fiber.first);
}

void check_lanes() {
  const bool is_done = fibers[0].is_done;
  for (const Fiber& fiber : fibers)
    if (fiber.is_done != is_done || (!is_done && (fiber.mask != 0xffffffffu || fiber.kind != fibers[0].kind)))
      violation("the lanes of a warp wait for one another at different places");
}

void run_warp(unsigned first_thread, unsigned first_lane) {
  for (Fiber& fiber : fibers) fiber.is_done = false;
  do {
    for (unsigned lane = 0; lane < kWarp; ++lane) resume((first_lane + lane) % kWarp, first_thread);
    check_lanes();
    agreed =
        std::all_of(fibers.begin(), fibers.end(), [](const Fiber& fiber) { return fiber.given[turn] != 0; });
    turn ^= 1;
  } while (!fibers[0].is_done);
}

void wait_for_all(unsigned mask, int kind, std::uint64_t value) {
  Fiber& fiber = fibers[running];
  fiber.mask = mask;
  fiber.kind = kind;
  fiber.given[turn] = value;
  give_way();
}

constexpr int kVote = 1 << 16;  // kinds below it are distances

}  // namespace

int lane() { return static_cast<int>(running); }

std::uint64_t exchange(unsigned mask, int kind, std::uint64_t value, int from) {
  wait_for_all(mask, kind, value);
  return fibers[static_cast<std::size_t>(from)].given[turn ^ 1];
}

bool all(unsigned mask, bool value) {
  wait_for_all(mask, kVote, value);
  return agreed;
}

void run_blocks(const cudaLaunchConfig_t& config, const std::function<void()>& work) {
  static std::minstd_rand random(static_cast<unsigned>(setting("FCT_SIMULATED_SEED", 1)));
  body = &work;
  gridDim = config.gridDim;
  const unsigned warps = config.blockDim.x / kWarp;
  std::vector<unsigned> order(config.gridDim.x * warps);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random);
  for (unsigned warp : order) {
    blockIdx = {warp / warps, 0, 0};
    run_warp(warp % warps * kWarp, static_cast<unsigned>(random() % kWarp));
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
  if (block.x % kWarp != 0 || block.y * block.z * grid.y * grid.z != 1 || config.dynamicSmemBytes != 0)
    violation("a launch that is not simulated: parts of warps, more than one dimension, shared memory");
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
