// Gradients of the parameters of a narrow chain, as sums over rows. They are taken block by block of rows and added in the
// order of the blocks: the blocks are fixed by the number of rows, so that the result does not depend on the number of threads.
#pragma once

#include <common/chain_plan.h>
#include <common/dtype.h>
#include <common/parallel.h>
#include <cpu/small_products.h>
#include <cpu/thread_memory.h>

#include <memory>

namespace datagrad {
namespace {

// Rows [first, first + count) of the matrices that flow.
struct Rows {
  int64_t first, count;
};

// The sums of one block of rows, by link.
template <class T>
struct Part {
  std::vector<T*> weight, bias;            // null: not asked for
  std::vector<char> has_weight, has_bias;  // whether there is something to add to
  std::unique_ptr<T[]> memory;

  void add_outer(const ChainPlan& p, int64_t i, const T* g, const T* h, const Rows& rows) {
    if (weight[i] == nullptr) return;
    const int64_t out = p.width[i + 1], in = p.width[i];
    small::product(small::Strided<T>{g, 1, out}, h, weight[i], out, in, rows.count, has_weight[i] != 0);
    has_weight[i] = 1;
  }

  void add_rows(const ChainPlan& p, int64_t i, const T* g, const Rows& rows) {
    if (bias[i] == nullptr) return;
    const int64_t columns = p.width[i + 1];
    if (!has_bias[i]) std::fill_n(bias[i], columns, T(0));
    has_bias[i] = 1;
    for (int64_t r = 0; r < rows.count; ++r) {
      for (int64_t c = 0; c < columns; ++c) bias[i][c] += g[r * columns + c];
    }
  }
};

template <class T>
class Sums {
 public:
  // `weights` in the order of the wanted ones, `biases` by parameter; `fresh`: there is nothing in the weights' yet.
  Sums(const ChainPlan& plan, const Flags& wanted, const Tensors& weights, bool fresh, const Tensors& biases)
      : p_(plan), fresh_(fresh), total_(empty_part()) {
    const std::vector<size_t> order = p_.order(wanted);
    for (int64_t i = 0; i < p_.size(); ++i) {
      const Link& link = p_.links[i];
      if (ChainPlan::wants_weight(link, wanted)) total_.weight[i] = mutable_data<T>(weights[order[i]]);
      if (!biases.empty() && ChainPlan::wants_bias(link, wanted)) total_.bias[i] = mutable_data<T>(biases[link.bias]);
      total_.has_weight[i] = fresh ? 0 : 1;
      size_ += weights_of(i) + biases_of(i);
    }
  }

  // Calls f(block, part) for every block, and adds up what they leave in the parts.
  template <class F>
  void over(int64_t blocks, const F& f) {
    if (blocks <= 1) {
      if (blocks == 1) f(0, total_);
      return;
    }
    std::vector<Part<T>> parts(blocks);
    bool alone = false;
    parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
      alone = first == 0 && last == blocks;
      if (alone) return in_order(blocks, f);
      for (int64_t block = first; block < last; ++block) {
        parts[block] = fresh_part();
        f(block, parts[block]);
      }
    });
    if (!alone) add_up(parts);
  }

  // Zeros where nothing was added.
  void complete() const {
    for (int64_t i = 0; i < p_.size(); ++i) {
      if (total_.weight[i] != nullptr && !total_.has_weight[i]) std::fill_n(total_.weight[i], weights_of(i), T(0));
      if (total_.bias[i] != nullptr && !total_.has_bias[i]) std::fill_n(total_.bias[i], biases_of(i), T(0));
    }
  }

 private:
  static constexpr int64_t kRun = 1024;  // elements

  // One thread has all blocks: the same sums with memory for two parts.
  template <class F>
  void in_order(int64_t blocks, const F& f) {
    Part<T> part = part_in(thread_memory<Sums, T>(size_));
    for (int64_t block = 0; block < blocks; ++block) {
      if (block == 0 && fresh_) {
        f(block, total_);
        continue;
      }
      std::fill(part.has_weight.begin(), part.has_weight.end(), 0);
      std::fill(part.has_bias.begin(), part.has_bias.end(), 0);
      f(block, part);
      for (int64_t i = 0; i < p_.size(); ++i) {
        add(part, i, &Part<T>::weight, &Part<T>::has_weight, 0, weights_of(i));
        add(part, i, &Part<T>::bias, &Part<T>::has_bias, 0, biases_of(i));
        total_.has_weight[i] |= part.has_weight[i];
        total_.has_bias[i] |= part.has_bias[i];
      }
    }
  }

  void add_up(const std::vector<Part<T>>& parts) {
    for (int64_t i = 0; i < p_.size(); ++i) {
      add_up(parts, i, &Part<T>::weight, &Part<T>::has_weight, weights_of(i));
      add_up(parts, i, &Part<T>::bias, &Part<T>::has_bias, biases_of(i));
    }
  }

  using Pointers = std::vector<T*> Part<T>::*;
  using Marks = std::vector<char> Part<T>::*;

  // Every block leaves the same sums: those that the first one has.
  void add_up(const std::vector<Part<T>>& parts, int64_t i, Pointers list, Marks has, int64_t n) {
    if (!(parts[0].*has)[i]) return;
    parallel_for(n, kRun, [&](int64_t begin, int64_t end) {
      bool more = (total_.*has)[i] != 0;
      for (const Part<T>& part : parts) {
        add((part.*list)[i], begin, end, (total_.*list)[i], more);
        more = true;
      }
    });
    (total_.*has)[i] = 1;
  }

  void add(const Part<T>& part, int64_t i, Pointers list, Marks has, int64_t begin, int64_t end) const {
    if ((part.*has)[i]) add((part.*list)[i], begin, end, (total_.*list)[i], (total_.*has)[i] != 0);
  }

  static void add(const T* source, int64_t begin, int64_t end, T* target, bool more) {
    if (!more) {
      std::copy(source + begin, source + end, target + begin);
      return;
    }
    for (int64_t k = begin; k < end; ++k) target[k] += source[k];
  }

  Part<T> empty_part() const {
    const int64_t n = p_.size();
    return {std::vector<T*>(n), std::vector<T*>(n), std::vector<char>(n, 0), std::vector<char>(n, 0), nullptr};
  }

  // With memory of its own.
  Part<T> fresh_part() const {
    std::unique_ptr<T[]> memory(new T[size_]);
    Part<T> part = part_in(memory.get());
    part.memory = std::move(memory);
    return part;
  }

  Part<T> part_in(T* next) const {
    Part<T> part = empty_part();
    for (int64_t i = 0; i < p_.size(); ++i) {
      if (total_.weight[i] != nullptr) part.weight[i] = next;
      next += weights_of(i);
      if (total_.bias[i] != nullptr) part.bias[i] = next;
      next += biases_of(i);
    }
    return part;
  }

  int64_t weights_of(int64_t i) const { return total_.weight[i] == nullptr ? 0 : p_.width[i] * p_.width[i + 1]; }
  int64_t biases_of(int64_t i) const { return total_.bias[i] == nullptr ? 0 : p_.width[i + 1]; }

  const ChainPlan& p_;
  bool fresh_;
  Part<T> total_;
  int64_t size_ = 0;
};

}  // namespace
}  // namespace datagrad
