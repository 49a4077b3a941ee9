// Threads that are kept between calls: starting them anew would take longer than a call of some hundred rows.
#pragma once

#include <cstdint>
#include <functional>

namespace fct::cpu {

// Calls work() on this thread and on others, `threads` in all or as many as are at hand in time; returns when
// all have, and rethrows their first error. What is left to do, they are to find out among themselves: a call
// that comes late finds nothing. Any number of threads may call it at once, also from within work(); after a
// fork the child has threads of its own. Helpers run on the CPUs that the caller may run on.
void on_threads(std::int64_t threads, const std::function<void()>& work);

}  // namespace fct::cpu
