// The normalisation family on CUDA: ops, letters and layouts as in datagrad_ext/ops/normalisation.py. What a thread computes is
// in math/normalisation_cells.h; here are the kernels around it and the launches.
#include <common/cuda_rows.cuh>
#include <common/normalisation_ops.h>
#include <math/normalisation_cells.h>

namespace datagrad {
namespace {

static_assert(kBlockThreads == kThreads);

template <int kSums, class A, class Op>
__global__ void __launch_bounds__(kThreads) cells_kernel(Op op, Cells cells, CellBlocks cut, A* partials) {
  __shared__ A shared[kThreads];
  const int thread = static_cast<int>(threadIdx.x), row = thread / cut.width;
  A sum[kSums] = {};
  accumulate_cell(op, cells, cut, blockIdx.x, blockIdx.y, thread, sum);
  const int64_t cell = cell_of(cells, cut, blockIdx.x, thread % cut.width);
  for (int k = 0; k < kSums; ++k) {
    shared[thread] = sum[k];
    __syncthreads();
    for (int half = cut.height() / 2; half > 0; half /= 2) {
      if (row < half) shared[thread] += shared[thread + half * cut.width];
      __syncthreads();
    }
    if (row == 0 && cell >= 0) partials[(int64_t{blockIdx.y} * kSums + k) * cells.count() + cell] = shared[thread];
    __syncthreads();
  }
}

// f(i) for i = 0 ... n - 1.
template <class F>
__global__ void __launch_bounds__(kThreads) each_kernel(F f, int64_t n) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += stride) f(i);
}

template <class A, class Op>
__global__ void __launch_bounds__(kThreads) map_kernel(Op op, int64_t n) {
  map_thread<A>(op, n, int64_t{blockIdx.x} * kThreads + threadIdx.x, int64_t{gridDim.x} * kThreads);
}

template <class Team, class Op>
__global__ void __launch_bounds__(kThreads) rows_kernel(Team team, Op op, int64_t rows) {
  for_each_row(team, rows, [&](int64_t row, bool has_row) { op(team, row, has_row); });
}

template <class T>
struct RowStatistics {
  MapRows<T> rows;
  double eps;
  Acc<T>*mean, *rstd, *var;

  template <class Team>
  __device__ void operator()(const Team& team, int64_t set, bool has_set) const {
    rows.statistics(team, set, has_set, eps, mean, rstd, var);
  }
};

template <class T>
struct PivotOfSet {
  const T* x;
  Sets sets;
  Cells cells;
  Acc<T>* pivot;

  __device__ void operator()(int64_t set) const { pivot[set] = pivot_of_set(x, sets, cells, set); }
};

template <class T>
struct ChannelGrads {
  SetCoefficients<T> of;
  Acc<T>*weight_grad, *bias_grad;

  __device__ void operator()(int64_t channel) const { channel_grads(of, channel, weight_grad, bias_grad); }
};

template <class A>
struct StoreRowGrads {
  CellSums<A> sums;
  A *weight_grad, *bias_grad;

  __device__ void operator()(int64_t channel) const {
    weight_grad[channel] = static_cast<A>(sums.sum(0, channel));
    bias_grad[channel] = static_cast<A>(sums.sum(1, channel));
  }
};

template <class A, class R>
struct UpdateRunning {
  Sets sets;
  const A* of_set;
  double scale, momentum;
  R* running;

  __device__ void operator()(int64_t channel) const {
    update_running(sets, of_set, scale, momentum, channel, running);
  }
};

template <class F>
void for_each(const Launch& launch, const F& f, int64_t n) {
  launch(each_kernel<F>, grid_for(n), kThreads, f, n);
}

template <class Op>
void for_each_set(const Launch& launch, const Op& op, const Sets& sets) {
  if (sets.channels() <= kNarrowRow) {
    const NarrowTeam team = narrow_team(sets.channels(), 1);
    launch(rows_kernel<NarrowTeam, Op>, blocks_for_rows(team, sets.count()), kThreads, team, op, sets.count());
  } else {
    launch(rows_kernel<WideTeam, Op>, blocks_for_rows(WideTeam{}, sets.count()), kThreads, WideTeam{}, op, sets.count());
  }
}

// Numbers of the arithmetic type on x's device.
template <class A>
Tensor scratch(const Tensor& like, int64_t n) {
  return empty_dense(like, IntHeaderOnlyArrayRef(&n, 1), sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float);
}

// Sums that are being made, and the memory they are in.
template <class A>
struct Partials {
  Tensor memory;
  CellSums<A> sums;
};

template <class A, int kSums, class Op>
Partials<A> sum_cells(const Launch& launch, const Tensor& like, const Op& op, const Cells& cells) {
  const CellBlocks cut(cells);
  const int64_t stride = kSums * cells.count();
  const Tensor memory = scratch<A>(like, cut.splits * stride);
  A* partials = mutable_data<A>(memory);
  const dim3 grid(static_cast<unsigned>(cut.blocks(cells)), static_cast<unsigned>(cut.splits));
  launch(cells_kernel<kSums, A, Op>, grid, kThreads, op, cells, cut, partials);
  return {memory, {partials, cut.splits, stride, cells.count()}};
}

// The same sums from number `first` on.
template <class A>
CellSums<A> from(CellSums<A> sums, int first) {
  sums.partials += first * sums.cells;
  return sums;
}

// Sums of all operands over the cells: u and the first pair in one pass over x, each other pair in one of its own.
template <class T>
std::vector<Partials<Acc<T>>> sum_operands(const Launch& launch, const Tensor& x, SetCoefficients<T>& of) {
  using A = Acc<T>;
  const NormMap<T>& map = of.map;
  const Cells cells(map.sets);
  std::vector<Partials<A>> made;
  NormSums<T> in{map.x, map.single, nullptr, nullptr, false, map.gate};
  int first_pair = 0;
  if (map.single != nullptr && map.pairs > 0) {
    in.tangent = map.tangents[0], in.cotangent = map.cotangents[0];
    using Op = SumCells<T, true, true>;
    made.push_back(sum_cells<A, Op::kSums>(launch, x, Op{in, map.mean, map.sets}, cells));
    of.single = made.back().sums;
    of.pair[0] = from(made.back().sums, kSingleSums);
    first_pair = 1;
  } else if (map.single != nullptr) {
    using Op = SumCells<T, true, false>;
    made.push_back(sum_cells<A, Op::kSums>(launch, x, Op{in, map.mean, map.sets}, cells));
    of.single = made.back().sums;
  }
  for (int p = first_pair; p < map.pairs; ++p) {
    using Op = SumCells<T, false, true>;
    made.push_back(sum_cells<A, Op::kSums>(launch, x, Op{map.pair(p), map.mean, map.sets}, cells));
    of.pair[p] = made.back().sums;
  }
  return made;
}

template <class T>
void map_cells(const Launch& launch, const NormMap<T>& map, const Acc<T>* total, const KeptPair<Acc<T>>* pairs) {
  using Op = MapCells<T>;
  launch(map_kernel<Acc<T>, Op>, grid_for(ceil_div(map.sets.numel(), kGroup)), kThreads, Op{map, total, pairs},
         map.sets.numel());
}

template <class T>
struct Grads {
  Acc<T>*weight = nullptr, *bias = nullptr;  // null if not wanted
};

// Sums, coefficients, map, where a set is several cells.
template <class T>
void map_by_cells(const Launch& launch, const Tensor& x, const NormMap<T>& map, const Grads<T>& grads) {
  using A = Acc<T>;
  SetCoefficients<T> of{map, {}, {}, nullptr, nullptr};
  const auto made = sum_operands(launch, x, of);
  const Tensor total = scratch<A>(x, 3 * map.sets.count());
  const Tensor pairs = scratch<A>(x, 4 * map.pairs * map.sets.count());
  of.total = mutable_data<A>(total);
  of.pairs = reinterpret_cast<KeptPair<A>*>(mutable_data<A>(pairs));
  for_each_set(launch, of, map.sets);
  if (grads.weight != nullptr) for_each(launch, ChannelGrads<T>{of, grads.weight, grads.bias}, map.sets.c);
  if (map.out != nullptr) map_cells(launch, map, of.total, of.pairs);
}

// All of a set by one team, and the gradients of parameters in a pass over the columns.
template <class T>
void map_by_rows(const Launch& launch, const Tensor& x, const NormMap<T>& map, const Grads<T>& grads) {
  using A = Acc<T>;
  const Tensor kept = scratch<A>(x, grads.weight == nullptr ? 0 : 4 * map.pairs * map.sets.count());
  auto* pairs = grads.weight == nullptr ? nullptr : reinterpret_cast<KeptPair<A>*>(mutable_data<A>(kept));
  for_each_set(launch, MapRows<T>{map, pairs}, map.sets);
  if (grads.weight == nullptr) return;
  Sets columns = map.sets;
  columns.groups = 0;  // a column is a cell
  using Op = SumRowGrads<T>;
  const auto made = sum_cells<A, Op::kSums>(launch, x, Op{map, pairs}, Cells(columns));
  for_each(launch, StoreRowGrads<A>{made.sums, grads.weight, grads.bias}, map.sets.c);
}

template <class T>
NormMap<T> norm_map(const Normalised& in, const std::optional<Tensor>& weight, const Tensor& mean, const Tensor& rstd) {
  NormMap<T> map;
  map.sets = in.sets;
  map.x = data<T>(in.x);
  map.weight = weight ? data<Acc<T>>(*weight) : nullptr;
  map.mean = data<Acc<T>>(mean), map.rstd = data<Acc<T>>(rstd);
  return map;
}

template <class T>
void update(const Launch& launch, const Running& running, const Sets& sets, const Acc<T>* of_set, double scale,
            double momentum) {
  using A = Acc<T>;
  const Tensor& values = *running.values;
  if (values.scalar_type() == accumulation_dtype(values.scalar_type())) {
    for_each(launch, UpdateRunning<A, A>{sets, of_set, scale, momentum, mutable_data<A>(values)}, sets.c);
  } else {
    for_each(launch, UpdateRunning<A, T>{sets, of_set, scale, momentum, mutable_data<T>(values)}, sets.c);
  }
}

}  // namespace

void normalise_forward_into(const Normalised& in, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                            const Running& running_mean, const Running& running_var, double momentum, double eps,
                            const Tensor& y, const Tensor& mean, const Tensor& rstd) {
  const Launch launch(in.x);
  const Sets& sets = in.sets;
  dispatch_floating(in.x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    NormMap<T> map = norm_map<T>(in, weight, mean, rstd);
    map.outer = true;
    map.bias = bias ? data<A>(*bias) : nullptr;
    map.out = mutable_data<T>(y);
    const bool tracked = running_mean.values.has_value() && sets.numel() > 0;
    const Tensor var = scratch<A>(in.x, tracked ? sets.count() : 0);
    A* var_data = tracked ? mutable_data<A>(var) : nullptr;
    A *mean_data = mutable_data<A>(mean), *rstd_data = mutable_data<A>(rstd);
    if (sets.has_rows()) {
      for_each_set(launch, RowStatistics<T>{{map, nullptr}, eps, mean_data, rstd_data, var_data}, sets);
    } else {
      const Cells cells(sets);
      const Tensor pivot = scratch<A>(in.x, sets.count()), total = scratch<A>(in.x, 3 * sets.count());
      for_each(launch, PivotOfSet<T>{map.x, sets, cells, mutable_data<A>(pivot)}, sets.count());
      using Op = SumCells<T, true, false>;
      const NormSums<T> own{map.x, nullptr, nullptr, nullptr, true, {}};
      const auto made = sum_cells<A, Op::kSums>(launch, in.x, Op{own, data<A>(pivot), sets}, cells);
      const SetStatistics<T> statistics{sets,      made.sums, data<A>(pivot), eps,
                                        mean_data, rstd_data, var_data,       mutable_data<A>(total)};
      for_each_set(launch, statistics, sets);
      map_cells<T>(launch, map, data<A>(total), nullptr);
    }
    if (!tracked) return;
    const double count = static_cast<double>(sets.elements());
    update<T>(launch, running_mean, sets, mean_data, 1, momentum);
    update<T>(launch, running_var, sets, var_data, count / std::max(1.0, count - 1), momentum);
  });
}

void normalise_map_into(const Linearised& at, const Terms& terms, bool outer, const Tensor* out,
                        const Tensor* weight_grad, const Tensor* bias_grad) {
  DATAGRAD_CHECK(terms.tangents.size() <= kMaxNormPairs, at.in.op, ": takes up to ", kMaxNormPairs, " pairs on CUDA, got ",
                 terms.tangents.size(), "; take the data gradients in several backwards");
  const Launch launch(at.in.x);
  dispatch_floating(at.in.x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    NormMap<T> map = norm_map<T>(at.in, at.weight, at.mean, at.rstd);
    map.outer = outer;
    map.single = terms.single ? data<T>(*terms.single) : nullptr;
    map.pairs = static_cast<int>(terms.tangents.size());
    for (int p = 0; p < map.pairs; ++p) {
      map.tangents[p] = data<T>(terms.tangents[p]);
      map.cotangents[p] = data<T>(terms.cotangents[p]);
    }
    if (terms.rectified.bits) {
      map.gate = {data<uint8_t>(*terms.rectified.bits), {static_cast<A>(terms.rectified.slope)}};
    }
    map.out = out == nullptr ? nullptr : mutable_data<T>(*out);
    Grads<T> grads;
    if (weight_grad != nullptr) grads = {mutable_data<A>(*weight_grad), mutable_data<A>(*bias_grad)};
    if (map.sets.has_rows()) {
      map_by_rows(launch, at.in.x, map, grads);
    } else {
      map_by_cells(launch, at.in.x, map, grads);
    }
  });
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CUDA, m) { datagrad::register_normalisation(m); }
