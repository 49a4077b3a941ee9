#include "fct/pipeline.h"

#include <atomic>
#include <chrono>
#include <deque>
#include <exception>
#include <thread>

#include "channel.h"
#include "fct/error.h"

namespace fct {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kPollInterval = std::chrono::milliseconds(50);

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Item {
  int block;
  std::int64_t rows;
  std::int64_t first_row;
};

struct Started {
  Item item;
  std::unique_ptr<PendingRun> run;
};

// Rows of a block become rows of the whole stream in what `work` throws.
template <typename Work>
auto in_rows_of(const Item& item, const Work& work) {
  try {
    return work();
  } catch (const NonFiniteRow& error) {
    throw NonFiniteRow(error.array(), item.first_row + error.row());
  }
}

class Pipeline {
 public:
  Pipeline(const Executable& executable, const PipelineConfig& config, std::vector<Block>& blocks,
           const PipelineStages& stages)
      : executable_(executable),
        config_(config),
        blocks_(blocks),
        stages_(stages),
        consumers_(blocks.size()) {
    for (int block = 0; block < static_cast<int>(blocks.size()); ++block) free_.push(block);
  }

  PipelineTimes run() {
    const auto start = Clock::now();
    {
      std::vector<std::jthread> threads;
      const int count = stages_.index ? 4 : 3;
      try {
        running_ = count;
        threads.emplace_back([this] { guarded([this] { read(); }); });
        threads.emplace_back([this] { guarded([this] { transform(); }); });
        threads.emplace_back([this] { guarded([this] { consume(written_, stages_.write, times_.write); }); });
        if (stages_.index)
          threads.emplace_back(
              [this] { guarded([this] { consume(indexed_, stages_.index, times_.index); }); });
        wait();
      } catch (...) {
        fail(std::current_exception());
      }
    }  // joins
    if (error_) std::rethrow_exception(error_);
    times_.wall = seconds_since(start);
    return times_;
  }

 private:
  void read() {
    while (auto block = free_.pop()) {
      const auto start = Clock::now();
      const std::int64_t rows = stages_.read(*block);
      times_.read += seconds_since(start);
      if (rows == 0) break;
      loaded_.push({*block, rows, times_.rows});
      times_.rows += rows;
    }
    loaded_.finish();
  }

  // Up to runs_in_flight() blocks at once; they end in order.
  void transform() {
    std::deque<Started> started;
    while (auto item = loaded_.pop()) {
      if (static_cast<int>(started.size()) == executable_.runs_in_flight()) finish_first(started);
      start(*item, started);
      // Nothing to prepare meanwhile: what has been started need not wait for the next block to be read.
      while (!started.empty() && loaded_.is_empty()) finish_first(started);
    }
    while (!started.empty()) finish_first(started);
    written_.finish();
    indexed_.finish();
  }

  void start(const Item& item, std::deque<Started>& started) {
    const auto begin = Clock::now();
    Block& block = blocks_[static_cast<std::size_t>(item.block)];
    const InputRows old{block.old.get(), config_.old_dtype};
    InputRows side{};
    if (executable_.side_dim() > 0)
      side = config_.side_is_old ? old : InputRows{block.side.get(), config_.side_dtype};
    const OutputRows out{block.out.get(), config_.out_dtype};
    const KeptRows kept{static_cast<float*>(block.kept.get()), config_.keep == Keep::kNormalizedRows};
    auto run =
        in_rows_of(item, [&] { return executable_.start(old, side, out, item.rows, config_.threads, kept); });
    started.push_back({item, std::move(run)});
    times_.transform += seconds_since(begin);
  }

  void finish_first(std::deque<Started>& started) {
    const auto begin = Clock::now();
    const Item item = started.front().item;
    in_rows_of(item, [&] { started.front().run->wait(); });
    started.pop_front();
    times_.transform += seconds_since(begin);
    consumers_[static_cast<std::size_t>(item.block)] = stages_.index ? 2 : 1;
    written_.push(item);
    if (stages_.index) indexed_.push(item);
  }

  void consume(Channel<Item>& channel, const std::function<void(int, std::int64_t)>& stage, double& seconds) {
    while (auto item = channel.pop()) {
      const auto start = Clock::now();
      stage(item->block, item->rows);
      seconds += seconds_since(start);
      if (--consumers_[static_cast<std::size_t>(item->block)] == 0) free_.push(item->block);
    }
  }

  template <typename Stage>
  void guarded(const Stage& stage) {
    try {
      stage();
    } catch (...) {
      fail(std::current_exception());
    }
    const std::lock_guard lock(mutex_);
    --running_;
    ended_.notify_all();
  }

  void wait() {
    std::unique_lock lock(mutex_);
    while (!ended_.wait_for(lock, kPollInterval, [&] { return running_ == 0; })) {
      lock.unlock();
      stages_.poll();
      lock.lock();
    }
  }

  void fail(std::exception_ptr error) {
    {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::move(error);
    }
    free_.abort();
    loaded_.abort();
    written_.abort();
    indexed_.abort();
  }

  const Executable& executable_;
  const PipelineConfig& config_;
  std::vector<Block>& blocks_;
  const PipelineStages& stages_;
  Channel<int> free_;
  Channel<Item> loaded_, written_, indexed_;
  std::vector<std::atomic<int>> consumers_;  // stages that still hold the block
  PipelineTimes times_;                      // each field is touched by one thread until all are joined
  std::mutex mutex_;
  std::condition_variable ended_;
  int running_ = 0;
  std::exception_ptr error_;
};

}  // namespace

PipelineTimes run_pipeline(const Executable& executable, const PipelineConfig& config,
                           std::vector<Block>& blocks, const PipelineStages& stages) {
  return Pipeline(executable, config, blocks, stages).run();
}

std::vector<Block> allocate_blocks(const Executable& executable, const PipelineConfig& config) {
  const auto rows = static_cast<std::size_t>(config.block_rows);
  auto memory = [&](int dim, DType dtype) {
    return executable.allocate_host(rows * static_cast<std::size_t>(dim) * size_of(dtype));
  };
  std::vector<Block> blocks(static_cast<std::size_t>(config.blocks + executable.runs_in_flight() - 1));
  // All or none.
  const std::size_t kept_bytes = rows * static_cast<std::size_t>(executable.new_dim()) * sizeof(float);
  DeviceAllocation kept;
  if (config.keep != Keep::kNothing) kept = executable.allocate_device(blocks.size() * kept_bytes);
  for (std::size_t number = 0; number < blocks.size(); ++number) {
    Block& block = blocks[number];
    if (kept) block.kept = {kept, static_cast<char*>(kept.get()) + number * kept_bytes};
    block.old = memory(executable.old_dim(), config.old_dtype);
    if (executable.side_dim() > 0 && !config.side_is_old)
      block.side = memory(executable.side_dim(), config.side_dtype);
    block.out = memory(executable.new_dim(), config.out_dtype);
  }
  return blocks;
}

}  // namespace fct
