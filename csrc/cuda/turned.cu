// Transposed copies on CUDA, alone and along with the pass over an activation that makes the matrix (math/turn.h). Ops as in
// datagrad_ext/ops/turned.py.
#include <cuda/activation_passes.cuh>
#include <cuda/passes.h>
#include <math/turn.h>

#include <torch/csrc/stable/library.h>

#include <tuple>

namespace datagrad {
namespace {

template <class T>
__global__ void __launch_bounds__(Turn<T>::kThreads) turn_kernel(Turn<T> turn) {
  __shared__ T shared[Turn<T>::kShared];
  for (int64_t tile = blockIdx.x; tile < turn.tiles(); tile += gridDim.x) {
    turn.read(tile, threadIdx.x, shared);
    __syncthreads();
    turn.write(tile, threadIdx.x, shared);
    __syncthreads();
  }
}

// Block (x, split); sums over rows if there is a place for their parts.
template <class Op>
__global__ void __launch_bounds__(kThreads) turned_pass_kernel(Op op, TurnedPass pass, float* partials) {
  __shared__ float shared[TurnedPass::kShared];
  float sums[kGroup] = {};
  for (int64_t tile = blockIdx.y; tile < pass.tiles(); tile += gridDim.y) {
    pass.compute(op, blockIdx.x, tile, threadIdx.x, sums, shared);
    __syncthreads();
    pass.write(blockIdx.x, tile, threadIdx.x, shared);
    __syncthreads();
  }
  if (partials == nullptr) return;
  pass.put(threadIdx.x, sums, shared);
  __syncthreads();
  pass.reduce(blockIdx.x, blockIdx.y, threadIdx.x, shared, partials);
}

template <class Op>
void run(const Op& op, const Tensor& out, const Tensor* sums, const Tensor& turned) {
  const Launch launch(out);
  const TurnedPass pass{out.size(0), out.size(1), mutable_data<float>(turned)};
  const dim3 grid(static_cast<unsigned>(pass.blocks()), static_cast<unsigned>(pass.splits()));
  std::optional<Tensor> partials;
  if (sums != nullptr) partials = empty_partials<float>(*sums, pass.splits());
  launch(turned_pass_kernel<Op>, grid, kThreads, op, pass, partials ? mutable_data<float>(*partials) : nullptr);
  if (sums != nullptr) finish<float>(launch, *partials, pass.splits(), *sums);
}

bool fits(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float && t.dim() == 2 && t.numel() > 0 && t.size(1) % kGroup == 0;
}

Tensor empty_turned(const char* op, const Tensor& t) {
  DATAGRAD_CHECK(fits(t), op, ": needs a float32 matrix with a multiple of ", kGroup, " columns, got shape ", text(t.sizes()),
                 " and dtype ", text(t.scalar_type()));
  const int64_t sizes[] = {t.size(1), t.size(0)};
  return empty_dense(t, IntHeaderOnlyArrayRef(sizes, 2), t.scalar_type());
}

// The ops, to compare what chains do here with it one by one, and to time it.

Tensor turned_copy(const Tensor& a) {
  empty_turned("turned_copy", a);
  return turned_copy_of(in_layout(a, Layout::contiguous));
}

std::tuple<Tensor, Tensor, Tensor> relu_reverse_turned(const Tensor& g, const Tensor& bits, double slope, bool bias_grad) {
  const char* op = "relu_reverse_turned";
  const Gated in(op, g, bits, false);
  const Tensor gx = in.empty(), turned = empty_turned(op, in.g);
  const int64_t channels = bias_grad ? in.g.size(1) : 0;
  const Tensor sums = empty_dense(g, IntHeaderOnlyArrayRef(&channels, 1), g.scalar_type());
  relu_turned_into(in, slope, gx, bias_grad ? &sums : nullptr, turned);
  return {gx, sums, turned};
}

std::tuple<Tensor, Tensor, Tensor> smooth_reverse_turned(std::optional<Tensor> zeta, std::vector<Tensor> tangents,
                                                         std::vector<Tensor> cotangents, const Tensor& x,
                                                         std::optional<Tensor> bias, std::string kind,
                                                         std::vector<double> constants, bool bias_grad) {
  const char* op = "smooth_reverse_turned";
  const Curved in(op, zeta, tangents, cotangents, PreActivation(op, x, bias, -1, bias_grad));
  const Tensor gx = in.z.empty(), sums = in.z.empty_sums(bias_grad), turned = empty_turned(op, in.z.x);
  const bool done = smooth_turned_into(op, in, kind, constants, gx, bias_grad ? &sums : nullptr, turned);
  DATAGRAD_CHECK(done, op, ": got ", tangents.size(), " pairs, which are too many for one pass");
  return {gx, sums, turned};
}

}  // namespace

Tensor turned_copy_of(const Tensor& t) {
  const int64_t sizes[] = {t.size(1), t.size(0)};
  const Tensor out = empty_dense(t, IntHeaderOnlyArrayRef(sizes, 2), t.scalar_type());
  const Turn<float> turn{data<float>(t), mutable_data<float>(out), t.size(0), t.size(1)};
  Launch launch(t);
  launch(turn_kernel<float>, grid_for(turn.tiles(), 1), Turn<float>::kThreads, turn);
  return out;
}

bool relu_turned_into(const Gated& in, double slope, const Tensor& out, const Tensor* sums, const Tensor& turned) {
  if (!fits(out)) return false;
  run(relu_gate_op<float>(in, slope, out), out, sums, turned);
  return true;
}

bool smooth_turned_into(const char* op, const Curved& in, const std::string& kind, const std::vector<double>& constants,
                        const Tensor& out, const Tensor* sums, const Tensor& turned) {
  if (!fits(out) || in.tangents.size() > SmoothReverse<float, Tanh<float>>::kMaxPairs) return false;
  dispatch_activation<float>(op, kind, constants,
                             [&](const auto& row) { run(smooth_reverse_op<float>(in, row, out), out, sums, turned); });
  return true;
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CUDA, m) {
  m.impl("turned_copy", TORCH_BOX(&datagrad::turned_copy));
  m.impl("relu_reverse_turned", TORCH_BOX(&datagrad::relu_reverse_turned));
  m.impl("smooth_reverse_turned", TORCH_BOX(&datagrad::smooth_reverse_turned));
}
