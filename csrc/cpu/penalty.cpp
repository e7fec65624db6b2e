// Per-sample norms and their seeds on the CPU; formulas in math/penalty.h. Chunks of rows run in parallel; within a chunk,
// kLanes partial sums make the loops vectorise.
#include <common/parallel.h>
#include <common/penalty_arguments.h>
#include <cpu/convert.h>
#include <math/row_chunks.h>

#include <torch/csrc/stable/library.h>

#include <vector>

namespace datagrad {
namespace {

constexpr int64_t kChunk = 32768;
constexpr int64_t kBlock = 2048;  // elements converted and summed at a time: a block stays in the first-level cache
constexpr int kLanes = 16;
constexpr int64_t kShort = 32;  // rows of so few elements are summed kLanes rows at a time

// The sum over n elements of a block.
template <class Reduction, class A>
typename Reduction::Sum reduce_block(const Reduction& reduction, const A* x, int64_t n) {
  typename Reduction::Sum lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < kLanes; ++k) reduction.add(lane[k], x[i + k]);
  }
  for (; i < n; ++i) reduction.add(lane[0], x[i]);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) Reduction::merge(lane[k], lane[k + width]);
  }
  return lane[0];
}

// Squares that can be summed as they are, which is the rule; element by element otherwise.
ScaledSquares reduce_block(const L2<double>& norm, const double* x, int64_t n) {
  const double plain = reduce_block(L2Squared<double>{}, x, n);
  if (plain > 0x1p-900 && plain < 0x1p960) return {0.0, plain, 0.0};
  ScaledSquares sum = {};
  for (int64_t i = 0; i < n; ++i) norm.add(sum, x[i]);
  return sum;
}

template <class T, class Reduction>
typename Reduction::Sum reduce_chunk(const Reduction& reduction, const T* x, int64_t n) {
  typename Reduction::Sum sum = {};
  Acc<T> buffer[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t count = std::min(kBlock, n - i);
    Reduction::merge(sum, reduce_block(reduction, widened(x + i, buffer, count), count));
  }
  return sum;
}

// The results of `rows` <= kLanes short rows, beginning with row `first`: one lane a row.
template <class T, class ReductionOf>
void reduce_short_rows(const ReductionOf& reduction_of, const T* x, int64_t first, int64_t rows, int64_t inner,
                       Acc<T>* value) {
  using Reduction = decltype(reduction_of(0));
  typename Reduction::Sum lane[kLanes] = {};
  Acc<T> buffer[kLanes * kShort];
  const Acc<T>* wide = widened(x + first * inner, buffer, rows * inner);
  for (int64_t i = 0; i < inner; ++i) {
    for (int64_t k = 0; k < rows; ++k) reduction_of(first + k).add(lane[k], wide[k * inner + i]);
  }
  for (int64_t k = 0; k < rows; ++k) value[first + k] = Reduction::value(lane[k]);
}

// Calls f(chunk) for all chunks of all rows, in parallel.
template <class F>
void for_each_chunk(const RowChunks& chunks, const F& f) {
  const int64_t elements = std::max<int64_t>(1, std::min(chunks.inner, chunks.size));
  parallel_for(chunks.count(), std::max<int64_t>(1, kSerialElements / elements), [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) f(chunk);
  });
}

// value[row] = the result of reduction_of(row) over the row.
template <class T, class ReductionOf>
void reduce_rows(const Samples& in, const ReductionOf& reduction_of, Acc<T>* value) {
  using Reduction = decltype(reduction_of(0));
  const T* x = data<T>(in.J);
  if (in.inner <= kShort) {
    parallel_blocks(Blocks(in.rows, kLanes, 1), [&](int64_t, int64_t begin, int64_t end) {
      reduce_short_rows(reduction_of, x, begin, end - begin, in.inner, value);
    });
    return;
  }
  const RowChunks chunks(in.rows, in.inner, kChunk);
  const bool split = chunks.per_row > 1;
  std::vector<typename Reduction::Sum> partial(split ? chunks.count() : 0);
  for_each_chunk(chunks, [&](int64_t chunk) {
    const int64_t row = chunks.row(chunk), begin = chunks.begin(chunk);
    const auto sum = reduce_chunk(reduction_of(row), x + row * chunks.inner + begin, chunks.end(chunk) - begin);
    if (split) {
      partial[chunk] = sum;
    } else {
      value[row] = Reduction::value(sum);
    }
  });
  for (int64_t row = 0; split && row < chunks.rows; ++row) {
    auto sum = partial[row * chunks.per_row];
    for (int64_t c = 1; c < chunks.per_row; ++c) Reduction::merge(sum, partial[row * chunks.per_row + c]);
    value[row] = Reduction::value(sum);
  }
}

// out = weight * direction(x), n elements of one row.
template <class Norm, class T>
void seed_chunk(const T* x, Acc<T> value, Acc<T> weight, Acc<T> share, T* out, int64_t n) {
  Acc<T> buffer[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t count = std::min(kBlock, n - i);
    const Acc<T>* wide = widened(x + i, buffer, count);
    Acc<T>* target = wide_target(out + i, buffer);
    for (int64_t k = 0; k < count; ++k) target[k] = weight * Norm::direction(wide[k], value, share);
    store(target, out + i, count);
  }
}

template <class Norm, class T>
void seed_rows(const Samples& in, const Acc<T>* value, const Acc<T>* weight, T* out) {
  std::vector<Acc<T>> share;
  if constexpr (kHasTies<Norm>) {
    share.resize(in.rows);
    reduce_rows<T>(in, ShareOfRow<Acc<T>>{value}, share.data());
  }
  const RowChunks chunks(in.rows, in.inner, kChunk);
  const T* x = data<T>(in.J);
  for_each_chunk(chunks, [&](int64_t chunk) {
    const int64_t row = chunks.row(chunk), begin = chunks.begin(chunk), start = row * chunks.inner + begin;
    const Acc<T> row_share = share.empty() ? Acc<T>(0) : share[row];
    seed_chunk<Norm>(x + start, value[row], weight[row], row_share, out + start, chunks.end(chunk) - begin);
  });
}

Tensor penalty_value(const Tensor& J, std::string kind) {
  const Samples in("penalty_value", J, kind);
  const Tensor value = in.per_sample();
  dispatch_floating(J.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    visit_norm<Acc<T>>(Norms{}, kind, [&](auto norm) {
      reduce_rows<T>(in, EveryRow<decltype(norm)>{}, mutable_data<Acc<T>>(value));
    });
  });
  return value;
}

Tensor penalty_seed(const Tensor& J, const Tensor& value, const Tensor& weight, std::string kind) {
  const Samples in("penalty_seed", J, kind);
  const Tensor value_dense = in.check_per_sample("value", value);
  const Tensor weight_dense = in.check_per_sample("weight", weight);
  const Tensor seed = empty_dense(in.J, in.J.sizes(), J.scalar_type(), in.layout);
  dispatch_floating(J.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    visit_norm<Acc<T>>(Norms{}, kind, [&](auto norm) {
      seed_rows<decltype(norm)>(in, data<Acc<T>>(value_dense), data<Acc<T>>(weight_dense), mutable_data<T>(seed));
    });
  });
  return seed;
}

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) {
  m.impl("penalty_value", TORCH_BOX(&datagrad::penalty_value));
  m.impl("penalty_seed", TORCH_BOX(&datagrad::penalty_seed));
}
