// Pooling of images on the CPU, by the vendor's functions; what flows is in one layout throughout.
#pragma once

#include <cpu/image_plan.h>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

namespace datagrad {
namespace {

// y and the places of the maxima within their planes, both in the layout of x.
inline std::pair<Tensor, Tensor> max_pool_forward(const Unit& unit, const Tensor& x, Layout layout) {
  const Numbers kernel = unit.kernel(), stride = unit.numbers(2, 2), padding = unit.numbers(4, 2),
                dilation = unit.numbers(6, 2);
  AtenTensorHandle y = nullptr, places = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_max_pool2d_with_indices(x.get(), kernel.data(), 2, stride.data(), 2, padding.data(),
                                                                2, dilation.data(), 2, 0, &y, &places));
  return {in_layout(Tensor(y), layout), in_layout(Tensor(places), layout)};
}

// `like`: a tensor of x's sizes and layout, whose elements nobody reads.
inline Tensor max_pool_vjp(const Unit& unit, const Tensor& g, const Tensor& places, const Tensor& like, Layout layout) {
  const Numbers kernel = unit.kernel(), stride = unit.numbers(2, 2), padding = unit.numbers(4, 2),
                dilation = unit.numbers(6, 2);
  AtenTensorHandle x_bar = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_max_pool2d_with_indices_backward(g.get(), like.get(), kernel.data(), 2, stride.data(),
                                                                         2, padding.data(), 2, dilation.data(), 2, 0,
                                                                         places.get(), &x_bar));
  return in_layout(Tensor(x_bar), layout);
}

// The elements of t at the places.
template <class T>
void gather_places(const Tensor& t, const Tensor& places, const Tensor& out, bool channels_last) {
  const int64_t channels = t.size(1), plane = t.size(2) * t.size(3), pixels = out.size(2) * out.size(3);
  const T* from = data<T>(t);
  const int64_t* at = data<int64_t>(places);
  T* to = mutable_data<T>(out);
  const int64_t size = channels * pixels;
  parallel_for(t.size(0), std::max<int64_t>(1, kSerialElements / std::max<int64_t>(1, size)), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T* image = from + n * channels * plane;
      for (int64_t i = n * size; i < (n + 1) * size; ++i) {
        const int64_t k = i - n * size;
        to[i] = channels_last ? image[at[i] * channels + k % channels] : image[k / pixels * plane + at[i]];
      }
    }
  });
}

inline Tensor avg_pool(const Unit& unit, const Tensor& x, Layout layout) {
  const Numbers kernel = unit.kernel(), stride = unit.numbers(2, 2), padding = unit.numbers(4, 2);
  AtenTensorHandle y = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_avg_pool2d(x.get(), kernel.data(), 2, stride.data(), 2, padding.data(), 2, 0,
                                                   unit.link->constants[6] != 0, nullptr, &y));
  return in_layout(Tensor(y), layout);
}

inline Tensor avg_pool_vjp(const Unit& unit, const Tensor& g, const Tensor& like, Layout layout) {
  const Numbers kernel = unit.kernel(), stride = unit.numbers(2, 2), padding = unit.numbers(4, 2);
  AtenTensorHandle x_bar = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_avg_pool2d_backward(g.get(), like.get(), kernel.data(), 2, stride.data(), 2,
                                                            padding.data(), 2, 0, unit.link->constants[6] != 0, nullptr,
                                                            &x_bar));
  return in_layout(Tensor(x_bar), layout);
}

}  // namespace
}  // namespace datagrad
