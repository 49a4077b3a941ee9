// Kept threads: all begin, errors come back, nobody waits for ever, and a fork has threads of its own.
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/thread_pool.h"

namespace fct::testing {
namespace {

using namespace std::chrono_literals;

// The threads that took part, if each waits for the others.
std::set<std::thread::id> meet(int threads) {
  std::mutex mutex;
  std::set<std::thread::id> met;
  std::atomic<int> there{0};
  cpu::on_threads(threads, [&] {
    {
      const std::lock_guard lock(mutex);
      met.insert(std::this_thread::get_id());
    }
    ++there;
    while (there < threads) std::this_thread::yield();
  });
  return met;
}

TEST(threads_work_at_once_and_are_kept) {
  const auto first = meet(4);
  CHECK(first.size() == 4 && first.contains(std::this_thread::get_id()));
  std::set<std::thread::id> all = first;
  for (int repeat = 0; repeat < 200; ++repeat) {
    const auto later = meet(1 + repeat % 4);
    CHECK(static_cast<int>(later.size()) == 1 + repeat % 4);
    all.insert(later.begin(), later.end());
  }
  CHECK(all.size() < 40,
        std::to_string(all.size()) + " threads took turns");  // those that earlier tests left
}

TEST(work_is_done_once_by_whoever_comes) {
  for (int repeat = 0; repeat < 2000; ++repeat) {
    std::atomic<int> next{0}, done{0};
    const int pieces = repeat % 50;
    cpu::on_threads(1 + repeat % 5, [&] {
      while (next.fetch_add(1) < pieces) ++done;
    });
    CHECK(done == pieces);
  }
}

TEST(the_first_error_comes_back_when_all_have_ended) {
  for (int repeat = 0; repeat < 200; ++repeat) {
    std::atomic<int> inside{0};
    std::string message;
    try {
      cpu::on_threads(4, [&] {
        ++inside;
        std::this_thread::yield();
        --inside;
        throw std::runtime_error("one of them failed");
      });
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    CHECK(message == "one of them failed" && inside == 0);
  }
  CHECK(meet(4).size() == 4);
}

TEST(callers_share_the_threads_and_may_nest) {
  std::atomic<int> done{0};
  std::vector<std::jthread> callers;
  for (int caller = 0; caller < 6; ++caller)
    callers.emplace_back([&] {
      for (int repeat = 0; repeat < 50; ++repeat) {
        std::atomic<int> next{0};
        cpu::on_threads(3, [&] {
          while (next.fetch_add(1) < 4) {
            std::atomic<int> inner{0};
            cpu::on_threads(3, [&] {
              while (inner.fetch_add(1) < 4) ++done;
            });
          }
        });
      }
    });
  callers.clear();
  CHECK(done == 6 * 50 * 4 * 4);
}

TEST(a_child_has_threads_of_its_own) {
  meet(3);
  std::atomic<bool> stop{false};  // the pool is in use while the process is forked
  std::jthread busy([&] {
    while (!stop) cpu::on_threads(3, [] {});
  });
  for (int repeat = 0; repeat < 20; ++repeat) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      _exit(meet(3).size() == 3 && meet(2).size() == 2 ? 0 : 1);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
          "child ended with " + std::to_string(status));
  }
  stop = true;
}

TEST(helpers_run_where_the_caller_may_and_take_no_signals) {
  cpu_set_t all;
  CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
  int first = 0;
  while (!CPU_ISSET(first, &all)) ++first;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  for (const cpu_set_t& allowed : {one, all}) {
    std::atomic<int> right{0};
    std::jthread([&] {
      sched_setaffinity(0, sizeof allowed, &allowed);
      std::atomic<int> there{0};
      const auto caller = std::this_thread::get_id();
      cpu::on_threads(3, [&] {
        cpu_set_t own;
        sigset_t blocked;
        sched_getaffinity(0, sizeof own, &own);
        pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
        const bool is_caller = std::this_thread::get_id() == caller;
        right += CPU_EQUAL(&own, &allowed) && (is_caller || sigismember(&blocked, SIGINT) == 1);
        ++there;
        while (there < 3) std::this_thread::yield();
      });
    }).join();
    CHECK(right == 3);
  }
}

}  // namespace
}  // namespace fct::testing
