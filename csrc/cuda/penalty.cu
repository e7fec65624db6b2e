// Per-sample norms and their seeds on CUDA; formulas in math/penalty.h, how rows are shared out in common/cuda_rows.cuh. Few long
// rows are cut into chunks, one a block, whose sums a second kernel adds in order.
#include <common/cuda_rows.cuh>
#include <common/penalty_arguments.h>
#include <math/row_chunks.h>

#include <torch/csrc/stable/library.h>

#include <string>

namespace datagrad {
namespace {

template <class T, int kVector>
struct alignas(sizeof(T) * kVector) Vector {
  T element[kVector];
};

template <class T>
constexpr int kFull = 16 / sizeof(T);  // elements of a 16-byte access

// Σ over the thread's share of x[begin ... end - 1]; begin and end are multiples of kVector.
template <int kVector, class Reduction, class T, class Team>
__device__ typename Reduction::Sum reduce_share(const Team& team, const Reduction& reduction, const T* x, int64_t begin,
                                                int64_t end) {
  typename Reduction::Sum sum = {};
  for (int64_t i = begin + team.lane() * kVector; i < end; i += team.lanes * kVector) {
    const auto values = *reinterpret_cast<const Vector<T, kVector>*>(x + i);
    for (int k = 0; k < kVector; ++k) reduction.add(sum, static_cast<Acc<T>>(values.element[k]));
  }
  return sum;
}

// value[row] = the result over a short row; a few lanes a row.
template <int kVector, class T, class ReductionOf>
__global__ void __launch_bounds__(kThreads) reduce_short_rows(NarrowTeam team, const T* x, int64_t rows, int64_t inner,
                                                              ReductionOf reduction_of, Acc<T>* value) {
  for_each_row(team, rows, [&](int64_t row, bool has_row) {
    const auto reduction = reduction_of(has_row ? row : 0);
    using Reduction = decltype(reduction_of(0));
    const auto share = reduce_share<kVector>(team, reduction, x + row * inner, 0, has_row ? inner : 0);
    const auto sum = team.reduce<Reduction>(share);
    if (has_row && team.lane() == 0) value[row] = Reduction::value(sum);
  });
}

// partial[chunk] = the sum over a chunk, or, if there are no partial sums, value[row] = its result; a block a chunk.
template <int kVector, class T, class ReductionOf, class Sum>
__global__ void __launch_bounds__(kThreads) reduce_chunks(const T* x, RowChunks chunks, ReductionOf reduction_of,
                                                          Sum* partial, Acc<T>* value) {
  const WideTeam team;
  using Reduction = decltype(reduction_of(0));
  for_each_row(team, chunks.count(), [&](int64_t chunk, bool) {
    const int64_t row = chunks.row(chunk);
    const T* start = x + row * chunks.inner;
    const auto share = reduce_share<kVector>(team, reduction_of(row), start, chunks.begin(chunk), chunks.end(chunk));
    const Sum sum = team.reduce<Reduction>(share);
    if (team.lane() != 0) return;
    if (partial != nullptr) {
      partial[chunk] = sum;
    } else {
      value[row] = Reduction::value(sum);
    }
  });
}

template <class Reduction, class A>
__global__ void __launch_bounds__(kThreads) add_chunks(RowChunks chunks, const typename Reduction::Sum* partial, A* value) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x; row < chunks.rows; row += stride) {
    auto sum = partial[row * chunks.per_row];
    for (int64_t c = 1; c < chunks.per_row; ++c) Reduction::merge(sum, partial[row * chunks.per_row + c]);
    value[row] = Reduction::value(sum);
  }
}

// weight * direction(x) of one row's elements, kVector at a time; inner is a multiple of kVector.
template <int kVector, class Norm, class T>
__global__ void __launch_bounds__(kThreads) seed_elements(const T* x, int64_t rows, int64_t inner, const Acc<T>* value,
                                                          const Acc<T>* weight, const Acc<T>* share, T* out) {
  const int64_t stride = int64_t{gridDim.x} * kThreads * kVector;
  const bool is_32_bit = rows * inner <= UINT32_MAX;  // a 64-bit division is many instructions
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector; i < rows * inner; i += stride) {
    const int64_t row = is_32_bit ? static_cast<uint32_t>(i) / static_cast<uint32_t>(inner) : i / inner;
    const Acc<T> row_share = share == nullptr ? Acc<T>(0) : share[row];
    auto values = *reinterpret_cast<const Vector<T, kVector>*>(x + i);
    for (int k = 0; k < kVector; ++k) {
      const Acc<T> direction = Norm::direction(static_cast<Acc<T>>(values.element[k]), value[row], row_share);
      values.element[k] = static_cast<T>(weight[row] * direction);
    }
    *reinterpret_cast<Vector<T, kVector>*>(out + i) = values;
  }
}

// Calls f with the number of elements of one access: 16 bytes if every row begins at a multiple of them.
template <class T, class F>
void with_vector(const T* x, int64_t inner, const F& f) {
  if (is_aligned_16(x) && inner % kFull<T> == 0) {
    f(std::integral_constant<int, kFull<T>>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

// One chunk a row if there are many rows, else about 1024 chunks in all, each of whole vectors.
RowChunks chunks_of(int64_t rows, int64_t inner) {
  if (rows >= 256) return {rows, inner, inner};
  const int64_t size = std::max<int64_t>(8192, rows * inner / 1024);
  return {rows, inner, (size + 15) / 16 * 16};
}

// value[row] = the result of reduction_of(row) over the row.
template <class T, class ReductionOf>
void reduce_rows(const Launch& launch, const Samples& in, const ReductionOf& reduction_of, Acc<T>* value) {
  using Reduction = decltype(reduction_of(0));
  using Sum = typename Reduction::Sum;
  const T* x = data<T>(in.J);
  with_vector(x, in.inner, [&](auto vector) {
    if (in.inner <= kNarrowRow) {
      const NarrowTeam team = narrow_team(in.inner, vector);
      launch(reduce_short_rows<vector.value, T, ReductionOf>, blocks_for_rows(team, in.rows), kThreads, team, x, in.rows,
             in.inner, reduction_of, value);
      return;
    }
    const RowChunks chunks = chunks_of(in.rows, in.inner);
    const bool split = chunks.per_row > 1;
    const int64_t bytes = split ? chunks.count() * static_cast<int64_t>(sizeof(Sum)) : 0;
    const Tensor scratch = empty_dense(in.J, IntHeaderOnlyArrayRef(&bytes, 1), ScalarType::Byte);
    Sum* partial = split ? static_cast<Sum*>(scratch.mutable_data_ptr()) : nullptr;
    launch(reduce_chunks<vector.value, T, ReductionOf, Sum>, blocks_for_rows(WideTeam{}, chunks.count()), kThreads, x,
           chunks, reduction_of, partial, value);
    if (split) launch(add_chunks<Reduction, Acc<T>>, grid_for(in.rows), kThreads, chunks, partial, value);
  });
}

template <class Norm, class T>
void seed_rows(const Launch& launch, const Samples& in, const Acc<T>* value, const Acc<T>* weight, T* out) {
  const Tensor share = in.per_sample();
  const Acc<T>* share_data = nullptr;
  if constexpr (kHasTies<Norm>) {
    reduce_rows<T>(launch, in, ShareOfRow<Acc<T>>{value}, mutable_data<Acc<T>>(share));
    share_data = data<Acc<T>>(share);
  }
  const T* x = data<T>(in.J);
  with_vector(x, in.inner, [&](auto vector) {
    launch(seed_elements<vector.value, Norm, T>, grid_for(in.rows * in.inner / vector), kThreads, x, in.rows, in.inner,
           value, weight, share_data, out);
  });
}

Tensor penalty_value(const Tensor& J, std::string kind) {
  const Samples in("penalty_value", J, kind);
  const Launch launch(in.J);
  const Tensor value = in.per_sample();
  dispatch_floating(J.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    visit_norm<Acc<T>>(Norms{}, kind, [&](auto norm) {
      reduce_rows<T>(launch, in, EveryRow<decltype(norm)>{}, mutable_data<Acc<T>>(value));
    });
  });
  return value;
}

Tensor penalty_seed(const Tensor& J, const Tensor& value, const Tensor& weight, std::string kind) {
  const Samples in("penalty_seed", J, kind);
  const Tensor value_dense = in.check_per_sample("value", value);
  const Tensor weight_dense = in.check_per_sample("weight", weight);
  const Launch launch(in.J);
  const Tensor seed = empty_dense(in.J, in.J.sizes(), J.scalar_type(), in.layout);
  dispatch_floating(J.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    visit_norm<Acc<T>>(Norms{}, kind, [&](auto norm) {
      seed_rows<decltype(norm)>(launch, in, data<Acc<T>>(value_dense), data<Acc<T>>(weight_dense), mutable_data<T>(seed));
    });
  });
  return seed;
}

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CUDA, m) {
  m.impl("penalty_value", TORCH_BOX(&datagrad::penalty_value));
  m.impl("penalty_seed", TORCH_BOX(&datagrad::penalty_seed));
}
