// What flows through a chain of images: a tensor for each value as long as somebody will read it, and sums of cotangents.
#pragma once

#include <common/chain_plan.h>
#include <common/layout.h>
#include <common/parallel.h>

namespace datagrad {
namespace {

// out = a + b, all dense in one layout; out may be an operand.
template <class T>
void add_into(const Tensor& a, const Tensor& b, const Tensor& out) {
  const T *first = data<T>(a), *second = data<T>(b);
  T* sums = mutable_data<T>(out);
  parallel_blocks(Blocks(out.numel(), kSerialElements / 2, 1), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sums[i] = first[i] + second[i];
  });
}

inline void add_into(const Tensor& a, const Tensor& b, const Tensor& out) {
  a.scalar_type() == ScalarType::Float ? add_into<float>(a, b, out) : add_into<double>(a, b, out);
}

// Values on their way from their maker to their last reader.
class Values {
 public:
  explicit Values(const std::vector<int64_t>& readers) : left_(readers), at_(readers.size()) {}

  void put(int64_t value, Tensor t) { at_[value] = std::move(t); }

  const Tensor& operator[](int64_t value) const { return *at_[value]; }

  // A reader of the value is done.
  void read(int64_t value) {
    if (--left_[value] == 0) at_[value].reset();
  }

 private:
  std::vector<int64_t> left_;
  std::vector<std::optional<Tensor>> at_;
};

// The sums of what the readers of each value give back. A tensor that is nobody else's takes a sum in.
class Cotangents {
 public:
  explicit Cotangents(size_t values) : at_(values) {}

  void add(int64_t value, const Tensor& part, bool own) {
    Sum& sum = at_[value];
    if (!sum.total) {
      sum = {part, own};
      return;
    }
    const Tensor total = own       ? part
                         : sum.own ? *sum.total
                                   : empty_dense(part, part.sizes(), part.scalar_type(), layout_of(part));
    add_into(*sum.total, part, total);
    sum = {total, true};
  }

  std::optional<Tensor> take(int64_t value) {
    std::optional<Tensor> found;
    std::swap(found, at_[value].total);
    return found;
  }

 private:
  struct Sum {
    std::optional<Tensor> total;
    bool own = false;
  };

  std::vector<Sum> at_;
};

}  // namespace
}  // namespace datagrad
