// What launches of passes over activations share: their group ops (math/activation_groups.h) from the arguments of ops, and the second
// stage of sums over a channel.
#pragma once

#include <common/activation_arguments.h>
#include <common/cuda_launch.cuh>
#include <math/activation_groups.h>

namespace datagrad {
namespace {

static_assert(kBlockThreads == kThreads);

template <class T>
__global__ void finish_kernel(const Acc<T>* partials, int64_t splits, int64_t channels, T* sums) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  sums[channel] = static_cast<T>(static_cast<Acc<T>>(finish_channel(partials, splits, channels, channel)));
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

template <class... Pointers>
bool aligned(const Pointers*... pointers) {
  return (is_aligned_16(pointers) && ...);
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

template <class T>
BiasedInput<T> biased_input(const PreActivation& z) {
  return {data<T>(z.x), data_or_null<T>(z.bias), data_or_null<T>(z.other), z.view};
}

template <class T>
ReluGate<T> relu_gate_op(const Gated& in, double slope, const Tensor& out) {
  const T *g = data<T>(in.g), *other = data_or_null<T>(in.other);
  T* target = mutable_data<T>(out);
  return {g, other, data<uint8_t>(in.bits), {static_cast<Acc<T>>(slope)}, target, aligned(g, other, target)};
}

template <class T, class Row>
SmoothReverse<T, Row> smooth_reverse_op(const Curved& in, const Row& activation, const Tensor& out) {
  SmoothReverse<T, Row> op{biased_input<T>(in.z), activation};
  op.zeta = data_or_null<T>(in.zeta);
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

}  // namespace
}  // namespace datagrad
