// What the convolution ops check and agree on: datagrad_ext/ops/convolution.py says what the arguments are.
#pragma once

#include <common/layout.h>

#include <array>

namespace datagrad {

using Pair = std::array<int64_t, 2>;

inline Pair pair_of(const char* op, const char* name, const std::vector<int64_t>& numbers) {
  DATAGRAD_CHECK(numbers.size() == 2, op, ": ", name, " must be 2 numbers, got ", numbers.size());
  return {numbers[0], numbers[1]};
}

// The sizes of one convolution.
struct Window {
  int64_t batch, channels, height, width, out_channels, out_height, out_width;
  Pair kernel, stride, padding, dilation;
  bool channels_last;  // the order of the patches: here that of the weight
};

inline Window window_of(const char* op, const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                        const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  DATAGRAD_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, op,
                 ": x must be float32 or float64, got ", text(x.scalar_type()), "; convert it first");
  check_alike(op, "weight", weight, "x", x);
  DATAGRAD_CHECK(x.dim() == 4 && weight.dim() == 4 && x.size(1) == weight.size(1), op,
                 ": x (N, C, H, W) and weight (C', C, kh, kw) do not fit, got ", text(x.sizes()), " and ",
                 text(weight.sizes()));
  DATAGRAD_CHECK(weight.size(0) > 0 && weight.size(1) > 0, op, ": weight (C', C, kh, kw) needs channels, got ",
                 text(weight.sizes()));
  Window w{x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0), 0, 0, {weight.size(2), weight.size(3)},
           pair_of(op, "stride", stride), pair_of(op, "padding", padding), pair_of(op, "dilation", dilation),
           layout_of(weight) == Layout::channels_last};
  const Pair size{w.height, w.width};
  Pair out;
  for (int d = 0; d < 2; ++d) {
    DATAGRAD_CHECK(w.stride[d] > 0 && w.padding[d] >= 0 && w.dilation[d] > 0, op,
                   ": stride and dilation must be positive, padding must not be negative");
    const int64_t free = size[d] + 2 * w.padding[d] - w.dilation[d] * (w.kernel[d] - 1) - 1;
    DATAGRAD_CHECK(free >= 0 && w.kernel[d] > 0, op, ": the kernel ", text(weight.sizes()),
                   " does not fit into the padded input ", text(x.sizes()));
    out[d] = free / w.stride[d] + 1;
  }
  w.out_height = out[0];
  w.out_width = out[1];
  return w;
}

}  // namespace datagrad
