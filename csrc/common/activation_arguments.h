// What the ops of the activation family take, checked and brought into one layout, for CPU and CUDA alike.
#pragma once

#include <common/dtype.h>
#include <common/layout.h>
#include <math/activation.h>

#include <optional>
#include <string>
#include <vector>

namespace datagrad {

// z = x + bias along the channel dimension, plus other. Without a bias, and unless `channels` is asked for, channel_dim is
// not looked at and the view is flat.
struct PreActivation {
  Tensor x;
  std::optional<Tensor> bias, other;
  Layout layout;
  ChannelView view;

  PreActivation(const char* op, const Tensor& input, const std::optional<Tensor>& b, int64_t channel_dim,
                bool channels = false)
      : x(input), layout(layout_of(input)) {
    check_floating(op, "x", input);
    view.inner = input.numel();
    if (b.has_value() || channels) {
      const int64_t dim = check_channel_dim(op, channel_dim, input.dim());
      view = channel_view(input.sizes(), dim, layout);
    }
    if (b.has_value()) {
      check_alike(op, "bias", *b, "x", input);
      check_shape(op, "bias", *b, IntHeaderOnlyArrayRef(&view.channels, 1));
      bias = in_layout(*b, Layout::contiguous);
    }
    x = in_layout(input, layout);
  }

  // A tensor like x, brought into x's layout.
  Tensor like_x(const char* op, const char* name, const Tensor& t) const {
    check_alike(op, name, t, "x", x);
    check_shape(op, name, t, x.sizes());
    return in_layout(t, layout);
  }

  Tensor empty() const { return empty_dense(x, x.sizes(), x.scalar_type(), layout); }

  void plus(const char* op, const std::optional<Tensor>& t) {
    if (t.has_value()) other = like_x(op, "other", *t);
  }

  Tensor empty_bits() const {
    const int64_t bytes = (x.numel() + 7) / 8;
    return empty_dense(x, IntHeaderOnlyArrayRef(&bytes, 1), ScalarType::Byte);
  }

  // A place for the sums per channel; for none of them if they are not `wanted`.
  Tensor empty_sums(bool wanted) const {
    const int64_t channels = wanted ? view.channels : 0;
    return empty_dense(x, IntHeaderOnlyArrayRef(&channels, 1), x.scalar_type());
  }
};

// A cotangent or tangent, plus other, and the bits that gate it, in the layout the bits were written in.
struct Gated {
  Tensor g;
  std::optional<Tensor> other;
  Tensor bits;
  Layout layout;

  Gated(const char* op, const Tensor& input, const Tensor& b, bool channels_last)
      : g(input), bits(b), layout(channels_last ? Layout::channels_last : Layout::contiguous) {
    check_floating(op, "g", input);
    check_dtype(op, "bits", b, ScalarType::Byte);
    check_device(op, "bits", b, "g", input);
    const int64_t bytes = (input.numel() + 7) / 8;
    check_shape(op, "bits", b, IntHeaderOnlyArrayRef(&bytes, 1));
    DATAGRAD_CHECK(!channels_last || input.dim() == 4 || input.dim() == 5, op,
                   ": channels_last needs 4 or 5 dimensions, got ", input.dim(), "; pass channels_last=False");
    g = in_layout(input, layout);
    bits = in_layout(b, Layout::contiguous);
  }

  void plus(const char* op, const std::optional<Tensor>& t) {
    if (!t.has_value()) return;
    check_alike(op, "other", *t, "g", g);
    check_shape(op, "other", *t, g.sizes());
    other = in_layout(*t, layout);
  }

  Tensor empty() const { return empty_dense(g, g.sizes(), g.scalar_type(), layout); }
};

// What smooth_reverse adds up: f'(z) zeta + f''(z) sum of tangents[i] * cotangents[i], all in x's layout.
struct Curved {
  PreActivation z;
  std::optional<Tensor> zeta;
  std::vector<Tensor> tangents, cotangents;

  Curved(const char* op, const std::optional<Tensor>& zeta_or_none, const std::vector<Tensor>& t,
         const std::vector<Tensor>& delta, const PreActivation& pre_activation)
      : z(pre_activation) {
    DATAGRAD_CHECK(t.size() == delta.size(), op, ": needs one cotangent per tangent, got ", t.size(),
                   " tangents and ", delta.size(), " cotangents");
    if (zeta_or_none.has_value()) zeta = z.like_x(op, "zeta", *zeta_or_none);
    for (size_t i = 0; i < t.size(); ++i) {
      tangents.push_back(z.like_x(op, "tangent", t[i]));
      cotangents.push_back(z.like_x(op, "cotangent", delta[i]));
    }
  }
};

// The family's kernels, for CPU or CUDA, written into tensors that are there already. An output may be an operand itself.
// With `sums` the results are also summed per channel.
void relu_forward_into(const PreActivation& z, double slope, const Tensor& y, const Tensor& bits);
void relu_gate_into(const Gated& in, double slope, const Tensor& out);
void relu_reverse_into(const Gated& in, const ChannelView& view, double slope, const Tensor& out, const Tensor& sums);
void smooth_forward_into(const char* op, const PreActivation& z, const std::string& kind,
                         const std::vector<double>& constants, const Tensor& y);
void smooth_reverse_into(const char* op, const Curved& in, const std::string& kind,
                         const std::vector<double>& constants, const Tensor& out, const Tensor* sums);

template <template <class> class... Rows>
std::string activation_names(ActivationRows<Rows...>) {
  std::string names;
  ((names += names.empty() ? "" : ", ", names += Rows<float>::name), ...);
  return names;
}

// visit(activation) with the activation of element type T that `kind` and `constants` name.
template <class T, class Visit>
void dispatch_activation(const char* op, const std::string& kind, const std::vector<double>& constants,
                         const Visit& visit) {
  const bool known = visit_activation<T>(Activations{}, kind, [&](auto* row) {
    using Row = std::remove_pointer_t<decltype(row)>;
    DATAGRAD_CHECK(constants.size() == Row::constants, op, ": ", kind, " has ", Row::constants, " constants, got ",
                   constants.size());
    visit(Row(constants.data()));
  });
  DATAGRAD_CHECK(known, op, ": kind must be one of ", activation_names(Activations{}), ", got ", kind);
}

}  // namespace datagrad
