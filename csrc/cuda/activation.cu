// The activation family on CUDA: ops, letters and layouts as in datagrad_ext/ops/activation.py. What a thread computes is in
// math/activation_groups.h, which thread computes what in math/groups.h; here are the kernels around them and the launches.
#include <common/activation_arguments.h>
#include <common/cuda_launch.cuh>
#include <math/activation_groups.h>

#include <torch/csrc/stable/library.h>

#include <tuple>

namespace datagrad {
namespace {

static_assert(kBlockThreads == kThreads);

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

template <class T>
__global__ void finish_kernel(const Acc<T>* partials, int64_t splits, int64_t channels, T* sums) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  sums[channel] = static_cast<T>(static_cast<Acc<T>>(finish_channel(partials, splits, channels, channel)));
}

template <class T, class Op>
void map(const Launch& launch, const Op& op, int64_t n) {
  launch(map_kernel<Acc<T>, Op>, grid_for(ceil_div(n, kGroup)), kThreads, op, n);
}

template <class T>
void finish(const Launch& launch, const Tensor& partials, int64_t splits, const Tensor& sums) {
  const int64_t channels = sums.numel();
  launch(finish_kernel<T>, static_cast<unsigned>(ceil_div(channels, kThreads)), kThreads, data<Acc<T>>(partials), splits,
         channels, mutable_data<T>(sums));
}

template <class T>
Tensor empty_partials(const Tensor& sums, int64_t splits) {
  const int64_t shape[] = {splits, sums.numel()};
  return empty_dense(sums, IntHeaderOnlyArrayRef(shape, 2), accumulation_dtype(sums.scalar_type()));
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

template <class... Pointers>
bool aligned(const Pointers*... pointers) {
  return (is_aligned_16(pointers) && ...);
}

template <class T>
BiasedInput<T> biased_input(const PreActivation& z) {
  return {data<T>(z.x), z.bias ? data<T>(*z.bias) : nullptr, z.view};
}

std::tuple<Tensor, Tensor> relu_forward(const Tensor& x, std::optional<Tensor> bias, int64_t channel_dim, double slope) {
  const PreActivation z("relu_forward", x, bias, channel_dim);
  const Launch launch(x);
  const Tensor y = z.empty();
  const int64_t bytes = ceil_div(x.numel(), 8);
  const Tensor bits = empty_dense(x, IntHeaderOnlyArrayRef(&bytes, 1), ScalarType::Byte);
  dispatch_floating(x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Rectifier<Acc<T>> relu{static_cast<Acc<T>>(slope)};
    T* target = mutable_data<T>(y);
    const bool vector = aligned(data<T>(z.x), target);
    map<T>(launch, ReluForward<T>{biased_input<T>(z), relu, target, mutable_data<uint8_t>(bits), vector}, x.numel());
  });
  return {y, bits};
}

template <class T>
ReluGate<T> relu_gate_op(const Gated& in, double slope, const Tensor& out) {
  const T* g = data<T>(in.g);
  T* target = mutable_data<T>(out);
  return {g, data<uint8_t>(in.bits), {static_cast<Acc<T>>(slope)}, target, aligned(g, target)};
}

Tensor relu_gate(const Tensor& g, const Tensor& bits, double slope, bool channels_last) {
  const Gated in("relu_gate", g, bits, channels_last);
  const Launch launch(g);
  const Tensor out = in.empty();
  dispatch_floating(g.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    map<T>(launch, relu_gate_op<T>(in, slope, out), g.numel());
  });
  return out;
}

std::tuple<Tensor, Tensor> relu_reverse(const Tensor& g, const Tensor& bits, double slope, bool channels_last,
                                        int64_t channel_dim) {
  const Gated in("relu_reverse", g, bits, channels_last);
  const int64_t dim = check_channel_dim("relu_reverse", channel_dim, g.dim());
  const ChannelView view = channel_view(g.sizes(), dim, in.layout);
  const Launch launch(g);
  const Tensor gx = in.empty();
  const Tensor bias_grad = empty_dense(g, IntHeaderOnlyArrayRef(&view.channels, 1), g.scalar_type());
  dispatch_floating(g.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    map_and_sum<T>(launch, relu_gate_op<T>(in, slope, gx), view, bias_grad);
  });
  return {gx, bias_grad};
}

Tensor smooth_forward(const Tensor& x, std::optional<Tensor> bias, int64_t channel_dim, std::string kind,
                      std::vector<double> constants) {
  const char* op = "smooth_forward";
  const PreActivation z(op, x, bias, channel_dim);
  const Launch launch(x);
  const Tensor y = z.empty();
  dispatch_floating(x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* target = mutable_data<T>(y);
    const bool vector = aligned(data<T>(z.x), target);
    dispatch_activation<Acc<T>>(op, kind, constants, [&](const auto& activation) {
      using Row = std::decay_t<decltype(activation)>;
      map<T>(launch, SmoothForward<T, Row>{biased_input<T>(z), activation, target, vector}, x.numel());
    });
  });
  return y;
}

template <class T, class Row>
SmoothReverse<T, Row> smooth_reverse_op(const Curved& in, const Row& activation, const Tensor& out) {
  SmoothReverse<T, Row> op{biased_input<T>(in.z), activation};
  op.zeta = in.zeta ? data<T>(*in.zeta) : nullptr;
  op.pairs = static_cast<int>(in.tangents.size());
  op.out = mutable_data<T>(out);
  op.vector = aligned(op.z.x, op.zeta, op.out);  // a null zeta is aligned
  for (int i = 0; i < op.pairs; ++i) {
    op.tangents[i] = data<T>(in.tangents[i]);
    op.cotangents[i] = data<T>(in.cotangents[i]);
    op.vector = op.vector && aligned(op.tangents[i], op.cotangents[i]);
  }
  return op;
}

// f'(z) zeta + f''(z) products into `out`; with `sums` its channels' sums too.
void reverse(const char* op, const Curved& in, const std::string& kind, const std::vector<double>& constants,
             const Tensor& out, const Tensor* sums) {
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

Tensor smooth_gate(const Tensor& g, const Tensor& x, std::optional<Tensor> bias, int64_t channel_dim, std::string kind,
                   std::vector<double> constants) {
  const char* op = "smooth_gate";
  const PreActivation z(op, x, bias, channel_dim);
  Curved in(op, std::nullopt, {}, {}, z);
  in.zeta = z.like_x(op, "g", g);
  const Tensor out = z.empty();
  reverse(op, in, kind, constants, out, nullptr);
  return out;
}

std::tuple<Tensor, Tensor> smooth_reverse(std::optional<Tensor> zeta, std::vector<Tensor> tangents,
                                          std::vector<Tensor> cotangents, const Tensor& x, std::optional<Tensor> bias,
                                          int64_t channel_dim, std::string kind, std::vector<double> constants,
                                          bool bias_grad) {
  const char* op = "smooth_reverse";
  const Curved in(op, zeta, tangents, cotangents, PreActivation(op, x, bias, channel_dim, bias_grad));
  const Tensor gx = in.z.empty();
  const int64_t channels = bias_grad ? in.z.view.channels : 0;
  const Tensor sums = empty_dense(x, IntHeaderOnlyArrayRef(&channels, 1), x.scalar_type());
  reverse(op, in, kind, constants, gx, bias_grad ? &sums : nullptr);
  return {gx, sums};
}

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CUDA, m) {
  m.impl("relu_forward", TORCH_BOX(&datagrad::relu_forward));
  m.impl("relu_gate", TORCH_BOX(&datagrad::relu_gate));
  m.impl("relu_reverse", TORCH_BOX(&datagrad::relu_reverse));
  m.impl("smooth_forward", TORCH_BOX(&datagrad::smooth_forward));
  m.impl("smooth_gate", TORCH_BOX(&datagrad::smooth_gate));
  m.impl("smooth_reverse", TORCH_BOX(&datagrad::smooth_reverse));
}
