// The activation family on CUDA: ops, letters and layouts as in datagrad_ext/ops/activation.py. What a thread computes is in
// math/activation_groups.h, which thread computes what in math/groups.h; here are the kernels around them and the launches.
#include <common/activation_ops.h>
#include <cuda/activation_passes.cuh>
#include <cuda/passes.h>

namespace datagrad {
namespace {

template <class A, class Op>
__global__ void map_kernel(Op op, int64_t n) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  map_thread<A>(op, n, thread, static_cast<int64_t>(gridDim.x) * blockDim.x);
}

template <class A, int W, class Op>
__global__ void columns_kernel(Op op, Columns<W> columns, A* partials) {
  __shared__ A shared[Columns<W>::kShared];
  const int x = threadIdx.x % columns.width, y = threadIdx.x / columns.width;
  columns.template accumulate<A>(op, blockIdx.x, blockIdx.y, x, y, shared);
  __syncthreads();
  columns.reduce(blockIdx.x, blockIdx.y, threadIdx.x, shared, partials);
}

template <class A, int W, class Op>
__global__ void runs_kernel(Op op, Runs<W> runs, A* partials) {
  __shared__ A shared[kBlockThreads];
  shared[threadIdx.x] = runs.template accumulate<A>(op, blockIdx.x, blockIdx.y, threadIdx.x);
  __syncthreads();
  for (int half = kBlockThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) partials[blockIdx.y * runs.channels + blockIdx.x] = shared[0];
}

template <class T, class Op>
void map(const Launch& launch, const Op& op, int64_t n) {
  launch(map_kernel<Acc<T>, Op>, grid_for(ceil_div(n, kGroup)), kThreads, op, n);
}

template <class T, int W, class Op>
void map_and_sum(const Launch& launch, const Op& op, const ChannelView& view, const Tensor& sums) {
  using A = Acc<T>;
  if (view.inner == 1) {
    const Columns<W> columns(view);
    const Tensor partials = empty_partials<T>(sums, columns.splits);
    launch(columns_kernel<A, W, Op>, dim3(columns.blocks(), columns.splits), kThreads, op, columns,
           mutable_data<A>(partials));
    finish<T>(launch, partials, columns.splits, sums);
  } else {
    const Runs<W> runs(view);
    const Tensor partials = empty_partials<T>(sums, runs.splits);
    launch(runs_kernel<A, W, Op>, dim3(runs.channels, runs.splits), kThreads, op, runs, mutable_data<A>(partials));
    finish<T>(launch, partials, runs.splits, sums);
  }
}

// The op over all elements, and the sum of its values per channel into `sums`.
template <class T, class Op>
void map_and_sum(const Launch& launch, const Op& op, const ChannelView& view, const Tensor& sums) {
  if (fits_groups(view)) {
    map_and_sum<T, kGroup>(launch, op, view, sums);
  } else {
    map_and_sum<T, 1>(launch, op, view, sums);
  }
}

}  // namespace

void relu_forward_into(const PreActivation& z, double slope, const Tensor& y, const Tensor& bits) {
  const Launch launch(y);
  dispatch_floating(y.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Rectifier<Acc<T>> relu{static_cast<Acc<T>>(slope)};
    T* target = mutable_data<T>(y);
    const BiasedInput<T> input = biased_input<T>(z);
    const bool vector = aligned(input.x, input.other, target);  // a null pointer is aligned
    map<T>(launch, ReluForward<T>{input, relu, target, mutable_data<uint8_t>(bits), vector}, y.numel());
  });
}

void relu_bits_into(const Tensor& y, const Tensor& bits) {
  const Launch launch(y);
  dispatch_floating(y.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    map<T>(launch, ReluBits<T>{data<T>(y), mutable_data<uint8_t>(bits), aligned(data<T>(y))}, y.numel());
  });
}

void relu_gate_into(const Gated& in, double slope, const Tensor& out) {
  const Launch launch(out);
  dispatch_floating(out.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    map<T>(launch, relu_gate_op<T>(in, slope, out), out.numel());
  });
}

void relu_reverse_into(const Gated& in, const ChannelView& view, double slope, const Tensor& out, const Tensor& sums) {
  const Launch launch(out);
  dispatch_floating(out.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    map_and_sum<T>(launch, relu_gate_op<T>(in, slope, out), view, sums);
  });
}

void smooth_forward_into(const char* op, const PreActivation& z, const std::string& kind,
                         const std::vector<double>& constants, const Tensor& y) {
  const Launch launch(y);
  dispatch_floating(y.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* target = mutable_data<T>(y);
    const bool vector = aligned(data<T>(z.x), target);
    dispatch_activation<Acc<T>>(op, kind, constants, [&](const auto& activation) {
      using Row = std::decay_t<decltype(activation)>;
      map<T>(launch, SmoothForward<T, Row>{biased_input<T>(z), activation, target, vector}, y.numel());
    });
  });
}

void smooth_reverse_into(const char* op, const Curved& in, const std::string& kind,
                         const std::vector<double>& constants, const Tensor& out, const Tensor* sums) {
  constexpr size_t kMaxPairs = SmoothReverse<float, Tanh<float>>::kMaxPairs;
  DATAGRAD_CHECK(in.tangents.size() <= kMaxPairs, op, ": takes up to ", kMaxPairs, " pairs on CUDA, got ",
                 in.tangents.size(), "; add the products up in groups");
  const Launch launch(out);
  dispatch_floating(out.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_activation<Acc<T>>(op, kind, constants, [&](const auto& activation) {
      const auto group_op = smooth_reverse_op<T>(in, activation, out);
      if (sums == nullptr) {
        map<T>(launch, group_op, out.numel());
      } else {
        map_and_sum<T>(launch, group_op, in.z.view, *sums);
      }
    });
  });
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CUDA, m) { datagrad::register_activation(m); }
