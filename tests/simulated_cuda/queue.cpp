// Streams, and the order in which their work is done.
#include <algorithm>
#include <random>

#include "simulated_device.h"

namespace simulated {
namespace {

std::vector<std::weak_ptr<Queue>>& registry() {
  static auto* queues = new std::vector<std::weak_ptr<Queue>>;
  return *queues;
}

// Those with work live on in it after their stream was destroyed.
std::vector<std::shared_ptr<Queue>>& busy() {
  static auto* queues = new std::vector<std::shared_ptr<Queue>>;
  return *queues;
}

std::size_t random_below(std::size_t count) {
  static std::minstd_rand random(static_cast<unsigned>(setting("FCT_SIMULATED_SEED", 1)));
  return random() % count;
}

bool is_ready(const Queue& queue) {
  const auto& after = queue.operations.front().after;
  return std::all_of(after.begin(), after.end(), [](const Point& point) { return point.is_reached(); });
}

bool step() {
  std::vector<std::size_t> ready;
  for (std::size_t index = 0; index < busy().size(); ++index)
    if (is_ready(*busy()[index])) ready.push_back(index);
  if (ready.empty()) return false;
  const std::size_t chosen = ready[random_below(ready.size())];
  const auto queue = busy()[chosen];
  const Operation operation = std::move(queue->operations.front());
  queue->operations.pop_front();
  if (operation.work && queue->context->fault == cudaSuccess) operation.work();
  ++queue->completed;
  if (queue->operations.empty()) busy().erase(busy().begin() + static_cast<std::ptrdiff_t>(chosen));
  return true;
}

// The default stream waits for all streams that are not told otherwise, and they for it.
void take_turns(const std::shared_ptr<Queue>& queue, Operation& operation) {
  if (!queue->is_blocking) return;
  const auto& first = queue->context->default_stream;
  if (queue != first) return operation.after.push_back(first->end(first));
  for (const auto& entry : registry())
    if (const auto other = entry.lock(); other && other->is_blocking && other->context == queue->context)
      operation.after.push_back(other->end(other));
}

}  // namespace

bool Point::is_reached() const { return !queue || queue->completed >= count; }

std::shared_ptr<Queue> make_queue(CUcontext context, bool is_blocking) {
  auto queue = std::make_shared<Queue>(Queue{.context = context, .is_blocking = is_blocking});
  std::erase_if(registry(), [](const auto& entry) { return entry.expired(); });
  registry().push_back(queue);
  return queue;
}

void push(const std::shared_ptr<Queue>& queue, Operation operation) {
  if (queue->capture) return queue->capture->operations.push_back(std::move(operation));
  take_turns(queue, operation);
  if (queue->operations.empty()) busy().push_back(queue);
  queue->operations.push_back(std::move(operation));
  ++queue->pushed;
  if (random_below(8) != 0) return;  // seldom, so that most work waits until somebody asks for its result
  const Opened memory;
  for (std::size_t count = random_below(4); count > 0 && step(); --count) continue;
}

void run_until(const Point& point) {
  if (point.is_reached()) return;
  const Opened memory;
  while (!point.is_reached())
    if (!step()) violation("nothing can run, but somebody waits");
}

bool is_used(const void* first, std::size_t bytes) {
  const auto* begin = static_cast<const char*>(first);
  auto touches = [&](const Operation& operation) {
    return std::any_of(operation.touched.begin(), operation.touched.end(),
                       [&](const void* address) { return address >= begin && address < begin + bytes; });
  };
  return std::any_of(busy().begin(), busy().end(), [&](const auto& queue) {
    return std::any_of(queue->operations.begin(), queue->operations.end(), touches);
  });
}

bool is_blocking_capture(CUcontext context) {
  return std::any_of(registry().begin(), registry().end(), [&](const auto& entry) {
    const auto queue = entry.lock();
    return queue && queue->capture && queue->is_blocking && queue->context == context;
  });
}

}  // namespace simulated
