// What CUDA does together with a product of a chain: rectifier and gate in cuBLASLt's epilogues (16 bits), and gradients of
// weights from transposed copies (float32: tensor cores read tf32 fastest along the sum).
#pragma once

#include <common/chain_epilogues.h>
#include <common/chain_products.h>
#include <common/cuda_launch.cuh>
#include <common/layout.h>
#include <cuda/cublas_lt.h>
#include <math/turn.h>

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

// A dense copy of the transpose of a dense matrix of float32.
inline Tensor turned_copy(const Tensor& t) {
  const int64_t sizes[] = {t.size(1), t.size(0)};
  const Tensor out = empty_dense(t, IntHeaderOnlyArrayRef(sizes, 2), t.scalar_type());
  const Turn<float> turn{static_cast<const float*>(t.const_data_ptr()), static_cast<float*>(out.mutable_data_ptr()), t.size(0),
                         t.size(1)};
  Launch launch(t);
  launch(turn_kernel<float>, grid_for(turn.tiles(), 1), Turn<float>::kThreads, turn);
  return out;
}

// The product with its epilogue, if the operands are as it takes them.
inline bool with_epilogue(lt::Epilogue epilogue, const Tensor& out, const Tensor& a, const Tensor& b, bool turned, const Tensor* bias,
                          const Tensor& bits) {
  const ScalarType dtype = out.scalar_type();
  if (dtype != ScalarType::Half && dtype != ScalarType::BFloat16) return false;
  if (out.numel() == 0 || a.size(1) == 0 || out.size(1) % 128 != 0 || a.size(1) % 8 != 0) return false;
  const auto fits = [](const Tensor& t) {
    return t.is_contiguous() && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % lt::kAlignment == 0;
  };
  if (!fits(out) || !fits(a) || !fits(b) || !fits(bits) || (bias != nullptr && !fits(*bias))) return false;
  const Launch launch(out);
  const Tensor workspace = empty_dense(out, IntHeaderOnlyArrayRef(&lt::kWorkspace, 1), ScalarType::Byte);
  const lt::Product product{epilogue,
                            dtype == ScalarType::Half ? lt::kHalf : lt::kBFloat16,
                            turned,
                            out.size(0),
                            out.size(1),
                            a.size(1),
                            a.const_data_ptr(),
                            b.const_data_ptr(),
                            bias == nullptr ? nullptr : bias->const_data_ptr(),
                            bits.mutable_data_ptr(),
                            out.mutable_data_ptr()};
  lt::Products::get().run(product, out.get_device_index(), workspace.mutable_data_ptr(), launch.stream());
  return true;
}

template <class Vendor>
struct CudaEpilogues {
  static bool nt_relu(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor* bias, const Tensor& bits) {
    return bias != nullptr && with_epilogue(lt::Epilogue::relu_aux_bias, out, a, b, true, bias, bits);
  }
  static bool nn_gate(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bits) {
    return with_epilogue(lt::Epilogue::drelu, out, a, b, false, nullptr, bits);
  }
  static bool nt_gate(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bits) {
    return with_epilogue(lt::Epilogue::drelu, out, a, b, true, nullptr, bits);
  }
  static bool tn_turned(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
    if (out.scalar_type() != ScalarType::Float || !a.is_contiguous() || !b.is_contiguous()) return false;
    Products<Vendor>::nt(out, turned_copy(a), turned_copy(b), add ? &out : nullptr);
    return true;
  }
};

}  // namespace
}  // namespace datagrad
