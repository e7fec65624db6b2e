// What each unit of a chain of images does in each sweep, by the functions that its own ops call. Letters as in
// datagrad_ext/ops/image_chain.py.
#pragma once

#include <common/activation_arguments.h>
#include <common/normalisation_ops.h>
#include <cpu/image_plan.h>
#include <cpu/image_values.h>
#include <cpu/matrix_products.h>
#include <cpu/pooling.h>
#include <cpu/views.h>

#include <tuple>

namespace datagrad {
namespace {

// Samples [begin, end) of a tensor.
struct Samples {
  int64_t begin, end, of;

  Tensor operator()(const Tensor& t) const {
    if (is_all()) return t;
    Numbers sizes(t.sizes().begin(), t.sizes().end());
    sizes[0] = end - begin;
    return view(t, sizes, Numbers(t.strides().begin(), t.strides().end()), begin * t.stride(0));
  }

  // The same of bits, so many a sample; the first begins a byte.
  Tensor bits(const Tensor& t, int64_t each) const {
    return is_all() ? t : view(t, {((end - begin) * each + 7) / 8}, {1}, begin * each / 8);
  }

 private:
  bool is_all() const { return end - begin == of; }
};

// The running statistics of a norm, if it updates some.
struct Moving {
  std::optional<Tensor> mean, var;
  double momentum = 0;
};

class ImageChain {
 public:
  using Kind = Link::Kind;

  // The chain at some of its samples.
  ImageChain(const ImagePlan& plan, const Tensor& x, const Tensors& saved, Samples samples)
      : p_(plan), samples_(samples), x_(samples(x)), saved_(saved) {}

  ImageChain(const ImagePlan& plan, const Tensor& x, const Tensors& saved)
      : ImageChain(plan, x, saved, {0, plan.samples(), plan.samples()}) {}

  // The output of a unit; what it saves goes to the end of `saved`.
  Tensor forward(const Unit& u, const Values& values, const Moving& moving, Tensors& saved) const {
    const Tensor& h = values[u.reads()[0]];
    if (u.saves_input) saved.push_back(h);
    switch (u.link->kind) {
      case Kind::convolution: {
        const ConvolutionOp op = convolution(u, h);
        if (u.rectifier == nullptr) return convolution_forward(op, p_.bias(u));
        const auto [y, bits] = convolution_relu_forward(op, p_.bias(u), u.rectifier->slope());
        saved.push_back(bits);
        return y;
      }
      case Kind::linear: {
        const Tensor y = p_.empty(h, sizes_of(h, u.out));
        const std::optional<Tensor> bias = p_.bias(u);
        CpuProducts::nt(y, h, p_.weight(u), bias ? &*bias : nullptr);
        return y;
      }
      case Kind::relu: {
        const PreActivation z(p_.op, h, p_.bias(u), 1);
        const Tensor y = z.empty();
        saved.push_back(z.empty_bits());
        relu_forward_into(z, u.link->slope(), y, saved.back());
        return y;
      }
      case Kind::smooth: {
        const PreActivation z(p_.op, h, p_.bias(u), 1);
        const Tensor y = z.empty();
        smooth_forward_into(p_.op, z, u.link->name, u.link->constants, y);
        return y;
      }
      case Kind::max_pool: {
        const auto [y, places] = max_pool_forward(u, h, p_.layout);
        saved.push_back(places);
        return y;
      }
      case Kind::normalise: return normalised(u, h, moving, saved);
      case Kind::add: {
        const Tensor& other = values[u.reads()[1]];
        if (u.rectifier == nullptr) return sum_of(h, other);
        PreActivation z(p_.op, h, std::nullopt, 0);
        z.plus(p_.op, other);
        const Tensor y = z.empty();
        saved.push_back(z.empty_bits());
        relu_forward_into(z, u.rectifier->slope(), y, saved.back());
        return y;
      }
      case Kind::flatten: return flat(u, h);
      default: return avg_pool(u, h, p_.layout);
    }
  }

  // What goes to each of the values that the unit reads.
  Tensor vjp(const Unit& u, const Tensor& g) const {
    switch (u.link->kind) {
      case Kind::convolution: return convolution_gradients(u, {g, {}, {}, true, false, false})[0];
      case Kind::linear: {
        const Tensor x_bar = p_.empty(g, sizes_of(g, u.in));
        CpuProducts::nn(x_bar, g, p_.weight(u));
        return x_bar;
      }
      case Kind::max_pool: return max_pool_vjp(u, g, extra(u), p_.empty(g, sizes_of(g, u.in)), p_.layout);
      case Kind::avg_pool: return avg_pool_vjp(u, g, p_.empty(g, sizes_of(g, u.in)), p_.layout);
      case Kind::flatten: return turned(view(g, sizes_of(g, u.in), dense_strides(u.in, Layout::contiguous), 0), p_.layout);
      case Kind::normalise: {
        const auto [x, mean, rstd] = point(u);
        return normalise_vjp(g, x, mean, rstd, p_.scale(u), groups(u), bits(u), slope(u));
      }
      case Kind::add: return u.rectifier == nullptr ? g : gate(u, g);
      default: return gate(u, g);
    }
  }

  // Whether what a unit's vjp returns is nobody else's.
  static bool makes_own(const Unit& u) { return !u.is(Kind::add) && !u.is(Kind::flatten); }

  Tensor jvp(const Unit& u, const Values& tangents) const {
    const Tensor& t = tangents[u.reads()[0]];
    switch (u.link->kind) {
      case Kind::convolution:
        if (u.rectifier == nullptr) return convolution_jvp(convolution(u, t));
        return convolution_relu_jvp(convolution(u, t), t, extra(u), u.rectifier->slope());
      case Kind::linear: {
        const Tensor y = p_.empty(t, sizes_of(t, u.out));
        CpuProducts::nt(y, t, p_.weight(u), nullptr);
        return y;
      }
      case Kind::max_pool: {
        const Tensor y = p_.empty(t, sizes_of(t, u.out));
        const bool channels_last = p_.layout == Layout::channels_last;
        t.scalar_type() == ScalarType::Float ? gather_places<float>(t, extra(u), y, channels_last)
                                             : gather_places<double>(t, extra(u), y, channels_last);
        return y;
      }
      case Kind::avg_pool: return avg_pool(u, t, p_.layout);
      case Kind::flatten: return flat(u, t);
      case Kind::normalise: {
        const auto [x, mean, rstd] = point(u);
        return normalise_jvp(t, x, mean, rstd, p_.scale(u), groups(u), bits(u), slope(u));
      }
      case Kind::add: {
        const Tensor& other = tangents[u.reads()[1]];
        if (u.rectifier == nullptr) return sum_of(t, other);
        Gated in(p_.op, t, extra(u), is_channels_last_at(u));
        in.plus(p_.op, other);
        const Tensor y = in.empty();
        relu_gate_into(in, u.rectifier->slope(), y);
        return y;
      }
      default: return gate(u, t);
    }
  }

  // Adds the gradient of the weight from (δ, t) to the sum; without one, it becomes that.
  void add_weight_bar(const Unit& u, const Tensor& delta, const Tensor& t, std::optional<Tensor>& sum) const {
    if (u.is(Kind::linear)) {
      const bool adds = sum.has_value();
      if (!adds) sum = empty_matrix(t, u.out[1], u.in[1]);
      CpuProducts::tn(*sum, delta, t, adds);
      return;
    }
    ConvolutionAsked asked{std::nullopt, {delta}, {t}, false, true, false};
    asked.sum = sum;
    sum = convolution_gradients(u, asked)[0];
  }

  // Sweep 4 at a unit: the cotangent of its input if it is wanted; gradients are added to `weight`, and become `bias`.
  std::optional<Tensor> reverse(const Unit& u, const std::optional<Tensor>& zeta, const Tensors& deltas, const Tensors& tangents,
                                bool want_x, std::optional<Tensor>* weight, std::optional<Tensor>* bias) const {
    if (u.is(Kind::smooth)) return reverse_smooth(u, zeta, deltas, tangents, bias);
    if (u.is(Kind::normalise)) return reverse_normalised(u, zeta, deltas, tangents, want_x, weight, bias);
    if (u.is(Kind::convolution)) return reverse_convolution(u, zeta, deltas, tangents, want_x, weight, bias);
    if (!zeta) return std::nullopt;
    if (u.is(Kind::relu) && bias != nullptr) {
      const Gated in(p_.op, *zeta, extra(u), is_channels_last_at(u));
      const Tensor out = in.empty();
      *bias = vector_of(*zeta, u.in[1]);
      relu_reverse_into(in, channel_view(in.g.sizes(), 1, in.layout), u.link->slope(), out, **bias);
      return out;
    }
    if (weight != nullptr) add_weight_bar(u, *zeta, input(u), *weight);
    if (bias != nullptr) *bias = sum_over_all_but_channels(*zeta);
    return want_x ? std::optional<Tensor>(vjp(u, *zeta)) : std::nullopt;
  }

 private:
  static Tensor vector_of(const Tensor& like, int64_t size) { return empty_vector(like, size, like.scalar_type()); }

  // The sizes with as many samples as the tensor has.
  static Numbers sizes_of(const Tensor& t, Numbers sizes) {
    sizes[0] = t.size(0);
    return sizes;
  }

  static Tensor sum_over_all_but_channels(const Tensor& g) {
    const Numbers dims = g.dim() == 4 ? Numbers{0, 2, 3} : Numbers{0};
    return torch::stable::sum(g, IntHeaderOnlyArrayRef(dims.data(), dims.size()));
  }

  bool is_channels_last_at(const Unit& u) const { return p_.layout_at(u.in) == Layout::channels_last; }

  Tensor flat(const Unit& u, const Tensor& h) const {
    return view(turned(h, Layout::contiguous), sizes_of(h, u.out), {u.out[1], 1}, 0);
  }

  // The input of a unit in sweep 1.
  Tensor input(const Unit& u) const { return u.input < 0 ? x_ : samples_(saved_[u.input]); }

  // The bits of a unit, or the places of its maxima.
  Tensor extra(const Unit& u) const {
    return u.has_bits() ? samples_.bits(saved_[u.extra], u.out_of_sample()) : samples_(saved_[u.extra]);
  }

  // The op of a unit's convolution of h, or of what is like h.
  ConvolutionOp convolution(const Unit& u, const Tensor& h) const {
    return {p_.op, h, p_.weight(u), u.numbers(0, 2), u.numbers(2, 2), u.numbers(4, 2), p_.layout};
  }

  std::vector<Tensor> convolution_gradients(const Unit& u, ConvolutionAsked asked) const {
    if (u.rectifier != nullptr) {
      asked.bits = extra(u);
      asked.slope = u.rectifier->slope();
    }
    const Tensor h = input(u);
    return convolution_reverse(convolution(u, h), asked);
  }

  std::optional<Tensor> reverse_convolution(const Unit& u, const std::optional<Tensor>& zeta, const Tensors& deltas,
                                            const Tensors& tangents, bool want_x, std::optional<Tensor>* weight,
                                            std::optional<Tensor>* bias) const {
    const bool want_weight = weight != nullptr && (zeta || !deltas.empty()), want_bias = bias != nullptr && zeta;
    ConvolutionAsked asked{zeta, deltas, tangents, want_x && zeta, want_weight, want_bias && u.rectifier != nullptr};
    if (want_weight) asked.sum = *weight;
    std::optional<Tensor> x_bar;
    if (asked.x || asked.weight || asked.bias) {
      const std::vector<Tensor> found = convolution_gradients(u, asked);
      size_t place = 0;
      if (asked.x) x_bar = found[place++];
      if (asked.weight) *weight = found[place++];
      if (asked.bias) *bias = found[place];
    }
    if (want_bias && !asked.bias) *bias = sum_over_all_but_channels(*zeta);
    return x_bar;
  }

  std::optional<Tensor> reverse_smooth(const Unit& u, const std::optional<Tensor>& zeta, const Tensors& deltas,
                                       const Tensors& tangents, std::optional<Tensor>* bias) const {
    if (!zeta && deltas.empty()) return std::nullopt;
    const PreActivation z(p_.op, input(u), p_.bias(u), 1, bias != nullptr);
    const Tensor out = z.empty();
    if (bias != nullptr) *bias = vector_of(z.x, u.in[1]);
    smooth_reverse_into(p_.op, Curved(p_.op, zeta, tangents, deltas, z), u.link->name, u.link->constants, out,
                        bias != nullptr ? &**bias : nullptr);
    return out;
  }

  Tensor normalised(const Unit& u, const Tensor& h, const Moving& moving, Tensors& saved) const {
    const double momentum = moving.momentum, eps = u.link->constants[1];
    const auto keep = [&](const Tensor& y, const auto&... kept) {
      (saved.push_back(kept), ...);
      return y;
    };
    if (u.rectifier == nullptr) {
      return std::apply(keep, normalise_forward(h, p_.scale(u), p_.bias(u), moving.mean, moving.var, groups(u), momentum, eps));
    }
    return std::apply(keep, normalise_relu_forward(h, p_.scale(u), p_.bias(u), moving.mean, moving.var, groups(u), momentum,
                                                   eps, u.rectifier->slope()));
  }

  std::optional<Tensor> reverse_normalised(const Unit& u, const std::optional<Tensor>& zeta, const Tensors& deltas,
                                           const Tensors& tangents, bool want_x, std::optional<Tensor>* weight,
                                           std::optional<Tensor>* bias) const {
    if (!zeta && deltas.empty()) return std::nullopt;
    const auto [x, mean, rstd] = point(u);
    const auto [x_bar, weight_bar, bias_bar] =
        normalise_reverse(zeta, tangents, deltas, x, mean, rstd, p_.scale(u), groups(u), bits(u), slope(u), want_x,
                          weight != nullptr || bias != nullptr);
    if (weight != nullptr) *weight = weight_bar;
    if (bias != nullptr) *bias = bias_bar;
    return want_x ? std::optional<Tensor>(x_bar) : std::nullopt;
  }

  // Where a norm is linearised: x, μ and r.
  std::tuple<Tensor, Tensor, Tensor> point(const Unit& u) const {
    return {input(u), saved_[u.statistics], saved_[u.statistics + 1]};
  }

  static int64_t groups(const Unit& u) { return static_cast<int64_t>(u.link->constants[0]); }

  // Of the rectifier that a unit took in.
  std::optional<Tensor> bits(const Unit& u) const {
    return u.rectifier == nullptr ? std::nullopt : std::optional<Tensor>(extra(u));
  }
  static double slope(const Unit& u) { return u.rectifier == nullptr ? 0.0 : u.rectifier->slope(); }

  Tensor sum_of(const Tensor& a, const Tensor& b) const {
    const Tensor sum = empty_dense(a, a.sizes(), a.scalar_type(), layout_of(a));
    add_into(a, b, sum);
    return sum;
  }

  // f'(z) g at an activation, or at the rectifier that a sum took in.
  Tensor gate(const Unit& u, const Tensor& g) const {
    if (u.has_bits()) {
      const Gated in(p_.op, g, extra(u), is_channels_last_at(u));
      const Tensor out = in.empty();
      relu_gate_into(in, u.rectifier == nullptr ? u.link->slope() : u.rectifier->slope(), out);
      return out;
    }
    Curved in(p_.op, std::nullopt, {}, {}, PreActivation(p_.op, input(u), p_.bias(u), 1));
    in.zeta = in.z.like_x(p_.op, "g", g);
    const Tensor out = in.z.empty();
    smooth_reverse_into(p_.op, in, u.link->name, u.link->constants, out, nullptr);
    return out;
  }

  const ImagePlan& p_;
  Samples samples_;
  Tensor x_;
  const Tensors& saved_;
};

}  // namespace
}  // namespace datagrad
