// Per-sample norms and their seeds on the CPU: chunks of rows (penalty_rows.h) run in parallel.
#include <common/parallel.h>
#include <common/penalty_ops.h>
#include <cpu/penalty_rows.h>
#include <math/row_chunks.h>

#include <vector>

namespace datagrad {
namespace {

constexpr int64_t kChunk = 32768;
constexpr int64_t kShort = 32;  // rows of so few elements are summed kRowLanes rows at a time

// The results of `rows` <= kRowLanes short rows, beginning with row `first`: one lane a row.
template <class T, class ReductionOf>
void reduce_short_rows(const ReductionOf& reduction_of, const T* x, int64_t first, int64_t rows, int64_t inner,
                       Acc<T>* value) {
  using Reduction = decltype(reduction_of(0));
  typename Reduction::Sum lane[kRowLanes] = {};
  Acc<T> buffer[kRowLanes * kShort];
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
    parallel_blocks(Blocks(in.rows, kRowLanes, 1), [&](int64_t, int64_t begin, int64_t end) {
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

template <class Norm, class T>
void seed_rows(const Samples& in, const Acc<T>* value, const SeedWeight<Acc<T>>& weight, T* out) {
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
    seed_chunk<Norm>(x + start, value[row], weight(row, value[row]), row_share, out + start, chunks.end(chunk) - begin);
  });
}

struct CpuPenalty {
  template <class Norm, class T>
  static void norms(const Samples& in, Acc<T>* value) {
    reduce_rows<T>(in, EveryRow<Norm>{}, value);
  }

  template <class Norm, class T>
  static void seed(const Samples& in, const Acc<T>* value, const SeedWeight<Acc<T>>& weight, T* out) {
    seed_rows<Norm>(in, value, weight, out);
  }

  template <class A>
  static void total(const Lists&, const PenaltyTotal<A>& job) {
    double sums[PenaltyTotal<A>::kMost];
    for (int i = 0; i < job.lists; ++i) sums[i] = job.share(i, 0, 1);
    job.finish(sums, 1);
  }
};

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) { datagrad::register_penalty<datagrad::CpuPenalty>(m); }
