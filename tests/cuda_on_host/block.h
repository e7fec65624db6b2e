// A block of CUDA threads on one thread of the host.
//
// Each thread of the block is a coroutine, which goes on until it waits: at a barrier for all threads of the block, at what a warp
// does together for all lanes of its warp. A warp goes as far as it can before the next one does, in ascending order in one grid and in
// descending order in the next, so what lacks a barrier reads in one of them what is not written yet, or written too early. A thread
// that never comes to where others wait is an error.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

struct dim3 {
  unsigned x, y, z;

  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;  // of the thread whose turn it is

namespace datagrad {

class HostBlock {
 public:
  static constexpr unsigned kLanes = 32;

  // The block that is running.
  static HostBlock& current() {
    static HostBlock block;
    return block;
  }

  // Calls `thread` in each of so many threads, with so many bytes of shared memory.
  void run(unsigned threads, int64_t bytes, bool backwards, const std::function<void()>& thread) {
    memory_.assign(bytes / sizeof(uint64_t) + 1, ~uint64_t{0});  // NaN in every type
    thread_ = &thread;
    count_ = threads, started_ = ended_ = 0, backwards_ = backwards;
    all_ = {};
    warps_.assign((threads + kLanes - 1) / kLanes, {});
    size_t used = 0;
    while (started_ < count_) start(used++);
    while (ended_ < count_) {
      bool moved = false;
      for (size_t begin = 0, end = 0; begin < used; begin = end) {
        while (end < used && coroutines_[end]->warp() == coroutines_[begin]->warp()) ++end;
        while (go_on(begin, end)) moved = true;
      }
      if (!moved) throw std::runtime_error("threads of a block wait for others, which do not come");
    }
  }

  void* memory() { return memory_.data(); }

  void meet_block() { meet(all_, count_); }

  void meet_warp() { meet(warp().meeting, std::min(kLanes, count_ - threadIdx.x / kLanes * kLanes)); }

  // Calls f with what each lane of the warp gave, lane after lane; it is there until the last one returns.
  template <class A, class F>
  void with_lanes(const A& own, const F& f) {
    warp().given[threadIdx.x % kLanes] = &own;
    meet_warp();
    f([&](unsigned lane) -> const A& { return *static_cast<const A*>(warp().given[lane]); });
    meet_warp();
  }

 private:
  struct Meeting {
    unsigned arrived = 0, round = 0;
  };

  struct Warp {
    Meeting meeting;
    const void* given[kLanes] = {};
  };

  struct Coroutine {
    static constexpr size_t kStack = 1 << 17;

    std::unique_ptr<char[]> stack{new char[kStack]};
    ucontext_t context;
    jmp_buf place;
    dim3 index;
    const Meeting* meeting = nullptr;  // where it waits, and since which round
    unsigned round = 0;

    unsigned warp() const { return index.x / kLanes; }
    bool is_ready() const { return meeting != nullptr && round != meeting->round; }
  };

  Warp& warp() { return warps_[threadIdx.x / kLanes]; }

  void meet(Meeting& meeting, unsigned all) {
    if (++meeting.arrived == all) {
      meeting.arrived = 0;
      ++meeting.round;
      return;
    }
    Coroutine& self = *running_;
    self.index = threadIdx, self.meeting = &meeting, self.round = meeting.round;
    if (_setjmp(self.place) == 0) _longjmp(scheduler_, 1);
    self.meeting = nullptr;
    threadIdx = self.index;
  }

  // Runs threads that have not begun, until one waits or there is none.
  void start(size_t i) {
    if (i == coroutines_.size()) coroutines_.push_back(std::make_unique<Coroutine>());
    running_ = coroutines_[i].get();
    running_->meeting = nullptr;
    getcontext(&running_->context);
    running_->context.uc_stack.ss_sp = running_->stack.get();
    running_->context.uc_stack.ss_size = Coroutine::kStack;
    makecontext(&running_->context, [] { current().run_threads(); }, 0);
    if (_setjmp(scheduler_) == 0) setcontext(&running_->context);
  }

  // Lets each of these coroutines go on that can: whether one could.
  bool go_on(size_t begin, size_t end) {
    bool moved = false;
    for (size_t i = begin; i < end; ++i) {
      if (!coroutines_[i]->is_ready()) continue;
      moved = true;
      running_ = coroutines_[i].get();
      if (_setjmp(scheduler_) == 0) _longjmp(running_->place, 1);
    }
    return moved;
  }

  void run_threads() {
    while (started_ < count_) {
      const unsigned turn = started_++;
      threadIdx = backwards_ ? count_ - 1 - turn : turn;
      (*thread_)();
      ++ended_;
    }
    _longjmp(scheduler_, 1);
  }

  const std::function<void()>* thread_ = nullptr;
  unsigned count_ = 0, started_ = 0, ended_ = 0;
  bool backwards_ = false;
  Meeting all_;
  std::vector<Warp> warps_;
  std::vector<uint64_t> memory_;
  std::vector<std::unique_ptr<Coroutine>> coroutines_;
  Coroutine* running_ = nullptr;
  jmp_buf scheduler_;
};

// Calls `thread` in every thread of a grid of two dimensions, whose blocks have so many threads and bytes of shared memory.
inline void run_grid(dim3 grid, unsigned threads, int64_t bytes, const std::function<void()>& thread) {
  static bool backwards = false;
  backwards = !backwards;
  gridDim = grid, blockDim = threads;
  const unsigned count = grid.x * grid.y;
  for (unsigned turn = 0; turn < count; ++turn) {
    const unsigned index = backwards ? count - 1 - turn : turn;
    blockIdx = {index % grid.x, index / grid.x};
    HostBlock::current().run(threads, bytes, backwards, thread);
  }
}

}  // namespace datagrad
