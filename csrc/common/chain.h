// The four sweeps of a chain of linear layers and activations: ops and letters as in datagrad_ext/ops/chain.py. `Gemm` has the
// vendor's matrix products for the device, the activations are the kernels of this library.
//
// What a sweep keeps lies in one buffer: a small network notices every tensor that Python has to hold.
#pragma once

#include <common/activation_arguments.h>
#include <common/chain_links.h>

#include <torch/csrc/stable/library.h>

#include <algorithm>

namespace datagrad {
namespace {

using Tensors = std::vector<Tensor>;
using Flags = std::vector<bool>;

inline Tensor empty_matrix(const Tensor& like, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns};
  return empty_dense(like, IntHeaderOnlyArrayRef(sizes, 2), like.scalar_type());
}

inline Tensor empty_vector(const Tensor& like, int64_t size, ScalarType dtype) {
  return empty_dense(like, IntHeaderOnlyArrayRef(&size, 1), dtype);
}

// A dense matrix, or bits, within a buffer.
inline Tensor part_of(const Tensor& buffer, int64_t offset, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(buffer.get(), 2, sizes, strides, offset, &view));
  return Tensor(view);
}

inline Tensor part_of(const Tensor& buffer, int64_t offset, int64_t size) {
  const int64_t stride = 1;
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(buffer.get(), 1, &size, &stride, offset, &view));
  return Tensor(view);
}

// Where the matrices of a sweep lie in its buffer, one for each link; kElsewhere: not in the buffer.
struct Places {
  static constexpr int64_t kAlign = 64, kElsewhere = -1;

  explicit Places(int64_t links) : of(links, kElsewhere) {}

  void add(int64_t link, int64_t size) {
    of[link] = total;
    total += (size + kAlign - 1) / kAlign * kAlign;
  }

  std::vector<int64_t> of;
  int64_t total = 0;
};

template <class Gemm>
class Chain {
 public:
  Chain(const char* op, const std::string& text, const Tensors& params)
      : op_(op), links_(links_of(text)), params_(params), width_(1, 0) {
    check_count("parameters", params.size(), links_.params);
    width_[0] = weight(links_.link[0]).size(1);
    for (const Link& link : links_.link) {
      width_.push_back(link.kind == Link::Kind::linear ? weight(link).size(0) : width_.back());
    }
  }

  // Sweep 1: y and what the links save: inputs in one buffer, bits in another.
  Tensors forward(const Tensor& x) {
    check_parameters(x);
    rows_ = x.size(0);
    const Places inputs = input_places(), bits = bit_places();
    const Tensor y = empty_matrix(x, rows_, width_.back());
    const Tensor values = empty_vector(x, inputs.total, x.scalar_type());
    const Tensor masks = empty_vector(x, bits.total, ScalarType::Byte);
    Tensor h = x;
    for (int64_t i = 0; i < links_.size(); ++i) {
      const Link& link = links_.link[i];
      const int64_t place = i + 1 < links_.size() ? inputs.of[i + 1] : Places::kElsewhere;
      const Tensor out = place < 0 ? y : part_of(values, place, rows_, width_[i + 1]);
      if (link.kind == Link::Kind::linear) {
        Gemm::nt(out, h, weight(link), link.bias < 0 ? nullptr : &params_[link.bias]);
      } else {
        const PreActivation z(op_, h, bias(link), -1);
        if (link.kind == Link::Kind::relu) {
          relu_forward_into(z, link.slope(), out, part_of(masks, bits.of[i], bytes(i)));
        } else {
          smooth_forward_into(op_, z, link.name, link.constants, out);
        }
      }
      h = out;
    }
    return {y, values, masks};
  }

  // Sweep 2: J, and a buffer of the cotangents below the one it begins with.
  Tensors data_vjp(const Tensor& cotangent, const Tensors& saved) {
    remember(cotangent, saved);
    const Tensor top = in_layout(cotangent, Layout::contiguous);
    const Places places = cotangent_places();
    const Tensor buffer = empty_vector(top, places.total, top.scalar_type());
    const Tensor J = empty_matrix(top, rows_, width_[0]);
    Tensor g = top;
    for (int64_t i = links_.size() - 1; i >= 0; --i) {
      const Link& link = links_.link[i];
      const Tensor out = i == 0 ? J : part_of(buffer, places.of[i - 1], rows_, width_[i]);
      if (link.kind == Link::Kind::linear) {
        Gemm::nn(out, g, weight(link));
      } else {
        gate(i, g, out);
      }
      g = out;
    }
    return {J, buffer};
  }

  // Sweep 3: the tangents that smooth activations received, the tangent of y if wanted, and the gradients of the wanted
  // weights, unless there are `sums` to add them to. `record` is what sweep 2 began with and its buffer.
  Tensors data_jvp(const Tensor& tangent, const Tensors& saved, const Tensors& record, const Flags& wanted, bool want_y,
                   const Tensors& sums) {
    remember(tangent, saved);
    check_count("flags", wanted.size(), links_.params);
    const Places places = cotangent_places();
    check_record(record, places);
    const auto order = order_of(wanted);
    Tensors found, bars;
    Tensor t = in_layout(tangent, Layout::contiguous);
    const int64_t end = want_y ? links_.size() : last_reader(wanted) + 1;
    bool fresh = false;
    for (int64_t i = 0; i < end; ++i) {
      const Link& link = links_.link[i];
      if (link.kind == Link::Kind::linear) {
        if (wanted[link.weight]) outer(delta(record, places, i), t, sums, order[i], bars);
        if (!want_y && i + 1 == end) break;
        const Tensor out = empty_matrix(t, rows_, width_[i + 1]);
        Gemm::nt(out, t, weight(link), nullptr);
        t = out;
      } else {
        if (link.kind == Link::Kind::smooth) found.push_back(t);
        const bool in_place = fresh && link.kind == Link::Kind::relu;
        const Tensor out = in_place ? t : empty_matrix(t, rows_, width_[i + 1]);
        gate(i, t, out);
        t = out;
      }
      fresh = true;
    }
    if (want_y) found.push_back(t);
    found.insert(found.end(), bars.begin(), bars.end());
    return found;
  }

  // Sweep 4: the cotangent of x if wanted, and the gradients of the wanted parameters from y, or from the last smooth
  // activation, down; those of weights are added to `sums` instead, if there are any. `records` and `tangents` are what
  // sweeps 2 and 3 kept, data gradient after data gradient.
  Tensors reverse(const std::optional<Tensor>& cotangent, const Tensors& records, const Tensors& tangents, const Tensor& x,
                  const Tensors& saved, const Flags& wanted, bool want_x, const Tensors& sums) {
    remember(x, saved);
    check_count("flags", wanted.size(), links_.params);
    const Places places = cotangent_places();
    check_pairs(records, tangents, places);
    const auto order = order_of(wanted);
    Tensors bars;
    std::optional<Tensor> zeta;
    if (cotangent) zeta = in_layout(*cotangent, Layout::contiguous);
    const int64_t start = zeta ? links_.size() - 1 : last_curve();
    const int64_t stop = want_x ? 0 : first_wanted(wanted);
    bool fresh = false;
    for (int64_t i = start; i >= stop; --i) {
      const Link& link = links_.link[i];
      const bool want_bias = link.bias >= 0 && wanted[link.bias];
      if (link.kind == Link::Kind::linear) {
        if (want_bias) bars.push_back(column_sums(*zeta));
        if (wanted[link.weight]) outer(*zeta, input(i, x), sums, order[i], bars);
        if (!want_x && i == stop) break;
        const Tensor out = empty_matrix(*zeta, rows_, width_[i]);
        Gemm::nn(out, *zeta, weight(link));
        zeta = out;
      } else {
        const Tensor out = fresh ? *zeta : empty_matrix(x, rows_, width_[i]);
        if (want_bias) bars.push_back(empty_vector(x, width_[i], x.scalar_type()));
        activation_reverse(i, zeta, records, tangents, places, out, want_bias ? &bars.back() : nullptr);
        zeta = out;
      }
      fresh = true;
    }
    std::reverse(bars.begin(), bars.end());
    if (want_x) bars.insert(bars.begin(), *zeta);
    return bars;
  }

 private:
  // Places of what flows. A rectifier works in place; what it would overwrite is needed by nobody.

  // The input of each link but the first, unless nothing but rectifiers lies between it and y: then it is in y.
  Places input_places() const {
    Places places(links_.size());
    int64_t last = links_.size() - 1;
    while (links_.link[last].kind == Link::Kind::relu) --last;
    for (int64_t i = 1; i <= last; ++i) {
      if (links_.link[i - 1].kind == Link::Kind::relu) {
        places.of[i] = places.of[i - 1];
      } else {
        places.add(i, rows_ * width_[i]);
      }
    }
    return places;
  }

  Places bit_places() const {
    Places places(links_.size());
    for (int64_t i = 0; i < links_.size(); ++i) {
      if (links_.link[i].kind == Link::Kind::relu) places.add(i, bytes(i));
    }
    return places;
  }

  // The cotangent of the output of each link but the last.
  Places cotangent_places() const {
    Places places(links_.size());
    for (int64_t i = links_.size() - 2; i >= 0; --i) {
      if (links_.link[i + 1].kind == Link::Kind::relu && places.of[i + 1] >= 0) {
        places.of[i] = places.of[i + 1];
      } else {
        places.add(i, rows_ * width_[i + 1]);
      }
    }
    return places;
  }

  int64_t bytes(int64_t i) const { return (rows_ * width_[i] + 7) / 8; }

  // What sweep 1 saved, for the sweeps after it.
  void remember(const Tensor& flow, const Tensors& saved) {
    check_count("saved buffers", saved.size(), 2);
    DATAGRAD_CHECK(flow.dim() == 2, op_, ": what flows through a chain is a matrix, got shape ", text(flow.sizes()));
    rows_ = flow.size(0);
    inputs_ = input_places();
    bits_ = bit_places();
    values_ = saved[0];
    masks_ = saved[1];
    check_alike(op_, "saved values", values_, "the weight", params_[0]);
    check_shape(op_, "saved values", values_, IntHeaderOnlyArrayRef(&inputs_.total, 1));
    check_dtype(op_, "saved bits", masks_, ScalarType::Byte);
    check_shape(op_, "saved bits", masks_, IntHeaderOnlyArrayRef(&bits_.total, 1));
  }

  Tensor input(int64_t i, const Tensor& x) const {
    return i == 0 ? x : part_of(values_, inputs_.of[i], rows_, width_[i]);
  }

  Tensor bits(int64_t i) const { return part_of(masks_, bits_.of[i], bytes(i)); }

  // The cotangent of the output of link i in sweep 2.
  Tensor delta(const Tensors& record, const Places& places, int64_t i, size_t first = 0) const {
    if (i == links_.size() - 1) return record[first];
    return part_of(record[first + 1], places.of[i], rows_, width_[i + 1]);
  }

  const Tensor& weight(const Link& link) const { return params_[link.weight]; }

  std::optional<Tensor> bias(const Link& link) const {
    return link.bias < 0 ? std::nullopt : std::optional<Tensor>(params_[link.bias]);
  }

  // gᵀ x, added to sums[place] or, if there are no sums, put at the end of `found`.
  void outer(const Tensor& g, const Tensor& x, const Tensors& sums, size_t place, Tensors& found) const {
    if (sums.empty()) found.push_back(empty_matrix(g, g.size(1), x.size(1)));
    Gemm::tn(sums.empty() ? found.back() : sums.at(place), g, x, !sums.empty());
  }

  static Tensor column_sums(const Tensor& g) {
    const int64_t rows = 0;
    return torch::stable::sum(g, IntHeaderOnlyArrayRef(&rows, 1));
  }

  // out = f'(z) g at an activation; out may be g.
  void gate(int64_t i, const Tensor& g, const Tensor& out) const {
    const Link& link = links_.link[i];
    if (link.kind == Link::Kind::relu) {
      relu_gate_into(Gated(op_, g, bits(i), false), link.slope(), out);
      return;
    }
    Curved in(op_, std::nullopt, {}, {}, PreActivation(op_, input(i, g), bias(link), -1));
    in.zeta = in.z.like_x(op_, "g", g);
    smooth_reverse_into(op_, in, link.name, link.constants, out, nullptr);
  }

  // Sweep 4 at an activation: the cotangent of its input, and the gradient of its bias into `bias_bar`, if there is one.
  void activation_reverse(int64_t i, const std::optional<Tensor>& zeta, const Tensors& records, const Tensors& tangents,
                          const Places& places, const Tensor& out, const Tensor* bias_bar) const {
    const Link& link = links_.link[i];
    if (link.kind == Link::Kind::smooth) {
      Tensors t, d;
      for (size_t k = link.curve, first = 0; k < tangents.size(); k += links_.curves, first += 2) {
        t.push_back(tangents[k]);
        d.push_back(delta(records, places, i, first));
      }
      const PreActivation z(op_, input(i, out), bias(link), -1, bias_bar != nullptr);
      smooth_reverse_into(op_, Curved(op_, zeta, t, d, z), link.name, link.constants, out, bias_bar);
    } else if (bias_bar != nullptr) {
      const Gated in(op_, *zeta, bits(i), false);
      relu_reverse_into(in, channel_view(in.g.sizes(), 1, in.layout), link.slope(), out, *bias_bar);
    } else {
      gate(i, *zeta, out);
    }
  }

  // For each link, where the gradient of its weight stands among the sums, if it is wanted.
  std::vector<size_t> order_of(const Flags& wanted) const {
    std::vector<size_t> order;
    size_t next = 0;
    for (const Link& link : links_.link) {
      order.push_back(next);
      next += link.weight >= 0 && wanted[link.weight] ? 1 : 0;
    }
    return order;
  }

  // The last link that reads a tangent, -1 for none.
  int64_t last_reader(const Flags& wanted) const {
    int64_t i = links_.size() - 1;
    for (; i >= 0; --i) {
      const Link& link = links_.link[i];
      if (link.curve >= 0 || (link.weight >= 0 && wanted[link.weight])) break;
    }
    return i;
  }

  int64_t last_curve() const {
    int64_t i = links_.size() - 1;
    while (i >= 0 && links_.link[i].curve < 0) --i;
    return i;
  }

  // The first link with a parameter that is asked for; behind the last if there is none.
  int64_t first_wanted(const Flags& wanted) const {
    int64_t i = 0;
    for (; i < links_.size(); ++i) {
      const Link& link = links_.link[i];
      if ((link.weight >= 0 && wanted[link.weight]) || (link.bias >= 0 && wanted[link.bias])) break;
    }
    return i;
  }

  void check_parameters(const Tensor& x) const {
    check_floating(op_, "x", x);
    DATAGRAD_CHECK(x.dim() == 2, op_, ": x must be a matrix, got shape ", text(x.sizes()));
    int64_t columns = x.size(1);
    for (const Link& link : links_.link) {
      if (link.kind != Link::Kind::linear) continue;
      const Tensor& w = weight(link);
      check_alike(op_, "weight", w, "x", x);
      DATAGRAD_CHECK(w.dim() == 2 && columns == w.size(1), op_, ": mat1 and mat2 shapes cannot be multiplied: ",
                     "the input has ", columns, " columns, the weight has shape ", text(w.sizes()));
      columns = w.size(0);
      if (link.bias < 0) continue;
      check_alike(op_, "bias", params_[link.bias], "x", x);
      check_shape(op_, "bias", params_[link.bias], IntHeaderOnlyArrayRef(&columns, 1));
    }
  }

  void check_record(const Tensors& record, const Places& places, size_t first = 0) const {
    DATAGRAD_CHECK(record.size() >= first + 2, op_, ": a record has 2 tensors, got ", record.size() - first);
    const int64_t top[] = {rows_, width_.back()};
    check_alike(op_, "record", record[first], "the weight", params_[0]);
    check_alike(op_, "record", record[first + 1], "the weight", params_[0]);
    check_shape(op_, "record", record[first], IntHeaderOnlyArrayRef(top, 2));
    check_shape(op_, "record", record[first + 1], IntHeaderOnlyArrayRef(&places.total, 1));
  }

  void check_pairs(const Tensors& records, const Tensors& tangents, const Places& places) const {
    if (tangents.empty()) return;
    check_count("smooth activations", tangents.size() % std::max<int64_t>(links_.curves, 1), 0);
    for (size_t first = 0; first < 2 * tangents.size() / links_.curves; first += 2) check_record(records, places, first);
  }

  void check_count(const char* what, size_t count, int64_t expected) const {
    DATAGRAD_CHECK(static_cast<int64_t>(count) == expected, op_, ": the chain has ", expected, " ", what, ", got ",
                   count);
  }

  const char* op_;
  const Links& links_;
  const Tensors& params_;
  std::vector<int64_t> width_;  // of the input of each link, and of y
  int64_t rows_ = 0;
  Tensor values_, masks_;
  Places inputs_{0}, bits_{0};
};

template <class Gemm>
Tensors chain_forward(const Tensor& x, Tensors params, std::string links) {
  return Chain<Gemm>("chain_forward", links, params).forward(x);
}

template <class Gemm>
Tensors chain_data_vjp(const Tensor& g, Tensors params, Tensors saved, std::string links) {
  return Chain<Gemm>("chain_data_vjp", links, params).data_vjp(g, saved);
}

template <class Gemm>
Tensors chain_data_jvp(const Tensor& t, Tensors params, Tensors saved, Tensors record, std::string links, Flags wanted,
                       bool want_y, Tensors sums) {
  return Chain<Gemm>("chain_data_jvp", links, params).data_jvp(t, saved, record, wanted, want_y, sums);
}

template <class Gemm>
Tensors chain_reverse(std::optional<Tensor> zeta, Tensors records, Tensors tangents, const Tensor& x, Tensors params,
                      Tensors saved, std::string links, Flags wanted, bool want_x, Tensors sums) {
  return Chain<Gemm>("chain_reverse", links, params).reverse(zeta, records, tangents, x, saved, wanted, want_x, sums);
}

template <class Gemm, class Library>
void register_chain(Library& m) {
  m.impl("chain_forward", TORCH_BOX(&chain_forward<Gemm>));
  m.impl("chain_data_vjp", TORCH_BOX(&chain_data_vjp<Gemm>));
  m.impl("chain_data_jvp", TORCH_BOX(&chain_data_jvp<Gemm>));
  m.impl("chain_reverse", TORCH_BOX(&chain_reverse<Gemm>));
}

}  // namespace
}  // namespace datagrad
