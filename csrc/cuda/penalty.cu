// Per-sample norms and their seeds on CUDA; formulas in math/penalty.h, how rows are shared out in common/cuda_rows.cuh. Few long
// rows are cut into chunks, one a block, whose sums a second kernel adds in order.
#include <common/cuda_rows.cuh>
#include <common/penalty_ops.h>
#include <math/row_chunks.h>

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

// weight * direction(x) of each row's elements, kVector at a time; inner is a multiple of kVector.
template <int kVector, class Norm, class T>
__global__ void __launch_bounds__(kThreads) seed_elements(const T* x, int64_t rows, int64_t inner, const Acc<T>* value,
                                                          SeedWeight<Acc<T>> weight, const Acc<T>* share, T* out) {
  const int64_t stride = int64_t{gridDim.x} * kThreads * kVector;
  const bool is_32_bit = rows * inner <= UINT32_MAX;  // a 64-bit division is many instructions
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector; i < rows * inner; i += stride) {
    const int64_t row = is_32_bit ? static_cast<uint32_t>(i) / static_cast<uint32_t>(inner) : i / inner;
    const Acc<T> row_share = share == nullptr ? Acc<T>(0) : share[row], row_weight = weight(row, value[row]);
    auto values = *reinterpret_cast<const Vector<T, kVector>*>(x + i);
    for (int k = 0; k < kVector; ++k) {
      const Acc<T> direction = Norm::direction(static_cast<Acc<T>>(values.element[k]), value[row], row_share);
      values.element[k] = static_cast<T>(row_weight * direction);
    }
    *reinterpret_cast<Vector<T, kVector>*>(out + i) = values;
  }
}

struct AddedUp {
  __device__ static void merge(double& a, double b) { a += b; }
};

// part[list][block] = the block's share of the list's sum; a single block also finishes.
template <class A>
__global__ void __launch_bounds__(kThreads) sum_lists(PenaltyTotal<A> of, double* part) {
  const WideTeam team;
  const int64_t blocks = gridDim.x;
  for (int i = 0; i < of.lists; ++i) {
    const double share = of.share(i, int64_t{blockIdx.x} * kThreads + team.lane(), blocks * kThreads);
    const double sum = team.reduce<AddedUp>(share);
    if (team.lane() == 0) part[i * blocks + blockIdx.x] = sum;
  }
  if (blocks == 1 && team.lane() == 0) of.finish(part, 1);
}

template <class A>
__global__ void finish_lists(PenaltyTotal<A> of, const double* part, int64_t parts) {
  of.finish(part, parts);
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
void seed_rows(const Launch& launch, const Samples& in, const Acc<T>* value, const SeedWeight<Acc<T>>& weight, T* out) {
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

struct CudaPenalty {
  template <class Norm, class T>
  static void norms(const Samples& in, Acc<T>* value) {
    reduce_rows<T>(Launch(in.J), in, EveryRow<Norm>{}, value);
  }

  template <class Norm, class T>
  static void seed(const Samples& in, const Acc<T>* value, const SeedWeight<Acc<T>>& weight, T* out) {
    seed_rows<Norm>(Launch(in.J), in, value, weight, out);
  }

  template <class A>
  static void total(const Lists& lists, const PenaltyTotal<A>& job) {
    const Launch launch(lists.total);
    const int64_t parts = std::min<int64_t>(64, 1 + lists.longest() / 8192), sums = parts * job.lists;
    const Tensor part = empty_dense(lists.total, IntHeaderOnlyArrayRef(&sums, 1), ScalarType::Double);
    launch(sum_lists<A>, static_cast<unsigned>(parts), kThreads, job, mutable_data<double>(part));
    if (parts > 1) launch(finish_lists<A>, 1, 1, job, data<double>(part), parts);
  }
};

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CUDA, m) { datagrad::register_penalty<datagrad::CudaPenalty>(m); }
