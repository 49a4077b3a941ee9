// Device memory and pinned memory.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "simulated_device.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace simulated {
namespace {

constexpr std::size_t kAlignment = 256;  // that cudaMalloc promises
constexpr std::size_t kMostPoison = std::size_t{16}
                                    << 20;  // bytes; the rest of a large buffer begins as zeros
constexpr int kPoison = 0xff;               // NaN in every type

struct Allocation {
  std::size_t bytes;
  int device;
  char* pages;  // the first that belongs to it
  std::size_t page_bytes;
};
using Allocations = std::map<const char*, Allocation>;

Allocations& device_allocations() {
  static auto* all = new Allocations;
  return *all;
}
std::map<const char*, std::size_t>& pinned_allocations() {
  static auto* all = new std::map<const char*, std::size_t>;
  return *all;
}
int opened = 0;

// Costs more than all the rest, so it has to be asked for.
bool is_closed_to_host() {
  static const bool closed = setting("FCT_SIMULATED_PROTECT", 0) != 0;
  return closed;
}

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }
std::size_t page() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

void protect(const Allocation& allocation, int protection) {
  if (mprotect(allocation.pages, allocation.page_bytes, protection) != 0) violation("mprotect failed");
}

template <typename Map, typename Size>
auto containing(const Map& map, const void* first, std::size_t bytes, const Size& size) {
  const auto* begin = static_cast<const char*>(first);
  auto found = map.upper_bound(begin);
  if (found == map.begin()) return map.end();
  --found;
  return begin + bytes <= found->first + size(found->second) ? found : map.end();
}

}  // namespace

void* allocate_device(int device, std::size_t bytes) {
  if (used_memory(device) + bytes > device_memory()) return nullptr;
  const std::size_t size = round_up(bytes, kAlignment), page_bytes = round_up(size, page());
  void* mapped = mmap(nullptr, page_bytes + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* pages = static_cast<char*>(mapped) + page();
  char* memory = pages + page_bytes - size;
  const Allocation allocation{bytes, device, pages, page_bytes};
  protect(allocation, PROT_READ | PROT_WRITE);
  std::memset(memory, kPoison, std::min(size, kMostPoison));
  ASAN_POISON_MEMORY_REGION(pages, page_bytes);
  ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
  if (opened == 0 && is_closed_to_host()) protect(allocation, PROT_NONE);
  device_allocations()[memory] = allocation;
  return memory;
}

bool free_device(void* memory) {
  const auto found = device_allocations().find(static_cast<char*>(memory));
  if (found == device_allocations().end()) return false;
  const Allocation allocation = found->second;
  // A device waits here; whoever relies on that relies on luck, as with memory that is handed on and not
  // freed.
  if (is_used(memory, allocation.bytes)) violation("memory was freed that enqueued work touches");
  device_allocations().erase(found);
  ASAN_UNPOISON_MEMORY_REGION(allocation.pages, allocation.page_bytes);
  munmap(allocation.pages - page(), allocation.page_bytes + 2 * page());
  return true;
}

std::uint64_t used_memory(int device) {
  std::uint64_t used = 0;
  for (const auto& [address, allocation] : device_allocations())
    if (allocation.device == device) used += round_up(allocation.bytes, kAlignment);
  return used;
}

int device_of(const void* first, std::size_t bytes) {
  const auto& all = device_allocations();
  const auto found = containing(all, first, bytes, [](const Allocation& each) { return each.bytes; });
  return found == all.end() ? -1 : found->second.device;
}

void* allocate_pinned(std::size_t bytes) {
  void* memory = std::aligned_alloc(kAlignment, round_up(bytes, kAlignment));
  std::memset(memory, kPoison, std::min(bytes, kMostPoison));
  pinned_allocations()[static_cast<char*>(memory)] = bytes;
  return memory;
}

bool free_pinned(void* memory) {
  const auto found = pinned_allocations().find(static_cast<char*>(memory));
  if (found == pinned_allocations().end()) return false;
  if (is_used(memory, found->second)) violation("pinned memory was freed that enqueued work touches");
  pinned_allocations().erase(found);
  std::free(memory);
  return true;
}

bool is_pinned(const void* first, std::size_t bytes) {
  const auto& all = pinned_allocations();
  return containing(all, first, bytes, [](std::size_t size) { return size; }) != all.end();
}

Opened::Opened() {
  if (opened++ == 0 && is_closed_to_host())
    for (const auto& [address, allocation] : device_allocations())
      protect(allocation, PROT_READ | PROT_WRITE);
}
Opened::~Opened() {
  if (--opened == 0 && is_closed_to_host())
    for (const auto& [address, allocation] : device_allocations()) protect(allocation, PROT_NONE);
}

}  // namespace simulated
