// Memory layouts. A tensor is walked in memory order, so a kernel needs all its tensors in one layout: `contiguous`, or
// `channels_last`, (N, H, W, C) or (N, D, H, W, C) in memory. Whatever else comes is copied once.
#pragma once

#include <common/channels.h>
#include <common/check.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <vector>

namespace datagrad {

enum class Layout { contiguous, channels_last };

// The dimensions of a tensor of `dims` dimensions from slowest to fastest in memory.
inline std::vector<int64_t> memory_order(int64_t dims, Layout layout) {
  std::vector<int64_t> order;
  for (int64_t d = 0; d < dims; ++d) {
    if (layout == Layout::contiguous || d != 1) order.push_back(d);
  }
  if (layout == Layout::channels_last) order.push_back(1);
  return order;
}

inline std::vector<int64_t> dense_strides(IntHeaderOnlyArrayRef sizes, Layout layout) {
  std::vector<int64_t> strides(sizes.size());
  const auto order = memory_order(static_cast<int64_t>(sizes.size()), layout);
  int64_t stride = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    strides[*d] = stride;
    stride *= sizes[*d] > 1 ? sizes[*d] : 1;
  }
  return strides;
}

inline bool is_channels_last(const Tensor& t) {
  const auto sizes = t.sizes();
  if (sizes.size() != 4 && sizes.size() != 5) return false;
  const auto expected = dense_strides(sizes, Layout::channels_last);
  const auto strides = t.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1 && strides[d] != expected[d]) return false;
  }
  return true;
}

// The layout results of an op on t take: t's own if it is dense in one of the two, else contiguous.
inline Layout layout_of(const Tensor& t) {
  return !t.is_contiguous() && is_channels_last(t) ? Layout::channels_last : Layout::contiguous;
}

// t itself if it is dense in `layout`, else a dense copy.
inline Tensor in_layout(const Tensor& t, Layout layout) {
  using torch::headeronly::MemoryFormat;
  if (layout == Layout::contiguous) return t.is_contiguous() ? t : torch::stable::contiguous(t);
  if (is_channels_last(t)) return t;
  return torch::stable::contiguous(t, t.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d);
}

// An uninitialised dense tensor on the device of `like`. Not by torch::stable::empty or new_empty, which look the op up by name: 1 µs that
// a small network notices.
inline Tensor empty_dense(const Tensor& like, IntHeaderOnlyArrayRef sizes, ScalarType dtype,
                          Layout layout = Layout::contiguous) {
  int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  const auto dims = static_cast<int64_t>(sizes.size());
  AtenTensorHandle result = nullptr;
  if (layout == Layout::contiguous) {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_aten_new_empty(like.get(), sizes.data(), dims, &type, nullptr, nullptr, 0, nullptr, &result));
    return Tensor(result);
  }
  int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  const auto strides = dense_strides(sizes, layout);
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes.data(), strides.data(), type, device, index, &result));
  return Tensor(result);
}

inline ChannelView channel_view(IntHeaderOnlyArrayRef sizes, int64_t channel_dim, Layout layout) {
  ChannelView view;
  bool before = true;
  for (const int64_t d : memory_order(static_cast<int64_t>(sizes.size()), layout)) {
    if (d == channel_dim) {
      view.channels = sizes[d];
      before = false;
    } else {
      (before ? view.outer : view.inner) *= sizes[d];
    }
  }
  if (view.channels == 1) view = {1, 1, view.outer * view.inner};  // one long run
  return view;
}

// channel_dim counted from the front.
inline int64_t check_channel_dim(const char* op, int64_t channel_dim, int64_t dims) {
  DATAGRAD_CHECK(-dims <= channel_dim && channel_dim < dims, op, ": channel_dim must name one of the ", dims,
                 " dimensions, got ", channel_dim);
  return channel_dim < 0 ? channel_dim + dims : channel_dim;
}

}  // namespace datagrad
