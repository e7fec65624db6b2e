// What flows through a chain of images: a tensor for each value as long as somebody will read it, sums of cotangents, and images in
// the other layout.
#pragma once

#include <common/chain_plan.h>
#include <common/layout.h>
#include <common/parallel.h>
#include <cpu/small_products.h>

namespace datagrad {
namespace {

// out = t, dense images in the two layouts.
template <class T>
void turn_images(const Tensor& t, const Tensor& out) {
  const int64_t channels = t.size(1), pixels = t.size(2) * t.size(3), size = channels * pixels;
  const int64_t rows = t.is_contiguous() ? channels : pixels;
  const T* from = data<T>(t);
  T* to = mutable_data<T>(out);
  parallel_for(t.size(0), std::max<int64_t>(1, kSerialElements / 2 / size), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) small::transpose(from + n * size, rows, size / rows, to + n * size);
  });
}

// Images, dense in either layout, in this one.
inline Tensor turned(const Tensor& t, Layout layout) {
  if (layout == Layout::contiguous ? t.is_contiguous() : is_channels_last(t)) return t;
  const Tensor out = empty_dense(t, t.sizes(), t.scalar_type(), layout);
  t.scalar_type() == ScalarType::Float ? turn_images<float>(t, out) : turn_images<double>(t, out);
  return out;
}

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
