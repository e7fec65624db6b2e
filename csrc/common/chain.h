// The four sweeps of a chain of linear layers and activations, link by link: the matrix products are a vendor's, the
// activations are the kernels of this library.
//
// `Backend` is a device's: nn, nt and tn are its matrix products, and `narrow` runs a sweep of a narrow chain whole, if it
// can, and says whether it did.
#pragma once

#include <common/activation_arguments.h>
#include <common/chain_epilogues.h>
#include <common/chain_plan.h>

#include <torch/csrc/stable/library.h>

namespace datagrad {
namespace {

// A dense matrix, or bits, within a buffer.
inline Tensor part_of(const Tensor& buffer, int64_t offset, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(buffer.get(), 2, sizes, strides, offset, &view));
  return Tensor(view);
}

// The matrix at a place of the buffers from the list's `first` on.
inline Tensor part_of(const Tensors& list, size_t first, const Place& place, int64_t rows, int64_t columns) {
  return part_of(list[first + place.buffer], place.offset, rows, columns);
}

inline Tensor part_of(const Tensor& buffer, int64_t offset, int64_t size) {
  const int64_t stride = 1;
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(buffer.get(), 1, &size, &stride, offset, &view));
  return Tensor(view);
}

// One element, as a scalar.
inline Tensor part_of(const Tensor& buffer, int64_t offset) {
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(buffer.get(), 0, nullptr, nullptr, offset, &view));
  return Tensor(view);
}

// What sweeps 2 and 3 of every data gradient left.
struct Pairs {
  const Tensors &records, &tangents;
  const Places& places;  // of the tangents
  size_t count;
};

template <class Backend>
class Chain {
 public:
  using Kind = Link::Kind;
  using Fused = Epilogues<Backend>;

  explicit Chain(const ChainPlan& plan, const Tensors& saved) : p_(plan), saved_(saved) {}

  void forward(const Tensor& x, const Tensor& y) const {
    Tensor h = x;
    const auto output = [&](int64_t i) {
      const Place place = i < p_.last() ? p_.values.of[i + 1] : Place();
      return place ? part_of(saved_, 1, place, p_.rows, p_.width[i + 1]) : y;
    };
    for (int64_t i = 0; i < p_.size(); ++i) {
      const Link& link = p_.links[i];
      if (link.kind == Kind::linear && link.bias < 0 && (epilogue(i + 1, 'f') || epilogue(i + 1, 'm'))) {
        const Tensor out = output(i + 1);
        if (product_relu(i + 1, h, p_.weight(link), out)) {
          h = out;
          ++i;
          continue;
        }
      }
      const Tensor out = output(i);
      if (link.kind == Kind::linear) {
        Backend::nt(out, h, p_.weight(link), link.bias < 0 ? nullptr : &p_.params[link.bias]);
      } else {
        const PreActivation z(p_.op, h, p_.bias(link), -1);
        if (link.kind == Kind::relu) {
          relu_forward_into(z, link.slope(), out, bits(i));
        } else {
          smooth_forward_into(p_.op, z, link.name, link.constants, out);
        }
      }
      h = out;
    }
  }

  // `found`: J, and the buffers of the record.
  void data_vjp(Tensor g, const Tensors& found) const {
    // Where the record leaves it out it is memory of this sweep.
    const auto input_cotangent = [&](int64_t i) {
      if (i == 0) return found[0];
      const Place place = p_.cotangents.of[i - 1];
      if (place) return part_of(found, 1, place, p_.rows, p_.width[i]);
      return p_.links[i].kind == Kind::linear ? empty_matrix(g, p_.rows, p_.width[i]) : g;
    };
    for (int64_t i = p_.last(); i >= 0; --i) {
      const Link& link = p_.links[i];
      if (link.kind == Kind::linear && epilogue(i - 1, 'b')) {
        const Tensor out = input_cotangent(i - 1);
        if (Fused::nn_gate(out, g, p_.weight(link), bits(i - 1))) {
          g = out;
          --i;
          continue;
        }
      }
      const Tensor out = input_cotangent(i);
      if (link.kind == Kind::linear) {
        Backend::nn(out, g, p_.weight(link));
      } else {
        gate(i, g, out);
      }
      g = out;
    }
  }

  // Tangents into the buffers `kept`, that of y into `y_tangent` if there is one, δᵀt added to the sums of the weights wanted; a
  // fresh sum is overwritten.
  void data_jvp(Tensor t, const Tensors& record, const Flags& wanted, const Tensor* y_tangent, const Places& places,
                const Tensors& kept, const Tensors& sums, bool fresh_sums) const {
    const std::vector<size_t> order = p_.order(wanted);
    const int64_t end = p_.tangent_end(wanted, y_tangent != nullptr);
    std::optional<Tensor> turned;  // the transposed copy of t, where a gate has written it
    bool fresh = false;
    for (int64_t i = 0; i < end; ++i) {
      const Link& link = p_.links[i];
      if (ChainPlan::wants_weight(link, wanted)) {
        weight_bar(i, sums[order[i]], {delta(record, i, 0), std::nullopt}, {t, turned}, !fresh_sums);
        turned.reset();
      }
      if (link.kind == Kind::linear && epilogue(i + 1, 't') && (i + 2 < end || (i + 2 == end && y_tangent != nullptr))) {
        const Place place = i + 2 == end ? Place() : places.of[i + 2];
        const Tensor out = i + 2 == end ? *y_tangent
                           : place      ? part_of(kept, 0, place, p_.rows, p_.width[i + 2])
                                        : empty_matrix(t, p_.rows, p_.width[i + 2]);
        if (Fused::nt_gate(out, t, p_.weight(link), bits(i + 1))) {
          t = out;
          fresh = !place;
          ++i;
          continue;
        }
      }
      const bool last = i + 1 == end;
      if (last && y_tangent == nullptr) break;
      const Place place = last ? Place() : places.of[i + 1];
      const bool in_place = fresh && !place && !last && link.kind == Kind::relu;
      const Tensor out = last       ? *y_tangent
                         : place    ? part_of(kept, 0, place, p_.rows, p_.width[i + 1])
                         : in_place ? t
                                    : empty_matrix(t, p_.rows, p_.width[i + 1]);
      if (link.kind == Kind::linear) {
        Backend::nt(out, t, p_.weight(link), nullptr);
      } else {
        turned = gate(i, t, out, wants_copy(i, 'g', i + 1, wanted));
      }
      t = out;
      fresh = !place;
    }
  }

  // Cotangent of x into `x_bar` if there is one; ζᵀh added to the sums of the weights (overwriting where `fresh_sums`); gradients
  // of biases. `biases` and `sums` have a tensor for each flag that is wanted here.
  void reverse(std::optional<Tensor> zeta, const Pairs& pairs, const Tensor& x, const Flags& wanted,
               const Tensor* x_bar, const Tensors& sums, bool fresh_sums, const Tensors& biases) const {
    const std::vector<size_t> order = p_.order(wanted);
    const int64_t stop = x_bar != nullptr ? 0 : p_.first_wanted(wanted);
    std::optional<Tensor> turned;  // the transposed copy of ζ, where a pass has written it
    bool fresh = false;
    for (int64_t i = p_.last(); i >= stop; --i) {
      const Link& link = p_.links[i];
      const Tensor* bias_bar = zeta && ChainPlan::wants_bias(link, wanted) ? &biases[link.bias] : nullptr;
      const bool last = i == stop;
      if (link.kind == Kind::linear) {
        if (!zeta) continue;
        if (bias_bar != nullptr) column_sums(*zeta, *bias_bar);
        if (ChainPlan::wants_weight(link, wanted)) {
          weight_bar(i, sums[order[i]], {*zeta, turned}, {input(i, x), std::nullopt}, !fresh_sums);
          turned.reset();
        }
        if (last && x_bar == nullptr) continue;
        const Tensor out = last ? *x_bar : empty_matrix(*zeta, p_.rows, p_.width[i]);
        const bool gates = !last && epilogue(i - 1, 'z') && ChainPlan::wants_bias(p_.links[i - 1], wanted);
        if (gates && Fused::nn_reverse(out, *zeta, p_.weight(link), bits(i - 1), biases[p_.links[i - 1].bias], tf32(i - 1))) {
          --i;
        } else {
          Backend::nn(out, *zeta, p_.weight(link));
        }
        zeta = out;
        fresh = true;
      } else if (zeta || (link.kind == Kind::smooth && pairs.count > 0)) {
        const Tensor out = fresh ? *zeta : empty_matrix(x, p_.rows, p_.width[i]);
        // A smooth link may be where ζ begins.
        if (bias_bar == nullptr && ChainPlan::wants_bias(link, wanted)) bias_bar = &biases[link.bias];
        turned = activation_reverse(i, zeta, pairs, out, bias_bar, wants_copy(i, 'r', i - 1, wanted));
        zeta = out;
        fresh = true;
      }
    }
  }

 private:
  Tensor input(int64_t i, const Tensor& x) const {
    return i == 0 ? x : part_of(saved_, 1, p_.values.of[i], p_.rows, p_.width[i]);
  }

  Tensor bits(int64_t i) const { return part_of(saved_[0], p_.bits.of[i].offset, p_.bit_bytes(i)); }

  // The cotangent of the output of link i in sweep 2; `first`: where its record begins.
  Tensor delta(const Tensors& records, int64_t i, size_t first) const {
    if (i == p_.last()) return records[first];
    if (p_.cotangents.of[i]) return part_of(records, first + 1, p_.cotangents.of[i], p_.rows, p_.width[i + 1]);
    const Tensor out = empty_matrix(records[first], p_.rows, p_.width[p_.last()]);
    Backend::nn(out, records[first], p_.weight(p_.links[p_.last()]));
    gate(p_.last() - 1, out, out);
    return out;
  }

  Tensor delta(const Pairs& pairs, int64_t i, size_t pair) const {
    return delta(pairs.records, i, pair * p_.record_size());
  }

  // The tangent of the input of link i in sweep 3.
  Tensor tangent(const Pairs& pairs, int64_t i, size_t pair) const {
    const size_t first = pair * (1 + pairs.places.sizes.size());
    return i == 0 ? pairs.tangents[first]
                  : part_of(pairs.tangents, first + 1, pairs.places.of[i], p_.rows, p_.width[i]);
  }

  // Whether link i is a ReLU that a product beside it should do.
  bool epilogue(int64_t i, char mark) const {
    return 0 <= i && i < p_.size() && p_.links[i].kind == Kind::relu && p_.links[i].slope() == 0 && p_.links[i].marked(mark);
  }

  // Whether products of float32 beside link i may use tf32.
  bool tf32(int64_t i) const { return p_.links[i].marked('x'); }

  // Whether the pass at activation i should write the transposed copy that the gradient of the weight of link `reader` reads.
  bool wants_copy(int64_t i, char mark, int64_t reader, const Flags& wanted) const {
    return p_.links[i].marked(mark) && 0 <= reader && reader < p_.size() && p_.links[reader].marked('w') &&
           ChainPlan::wants_weight(p_.links[reader], wanted);
  }

  // out = relu(h wᵀ + bias) at the ReLU i, with its bits, as its marks ask: whether it was done.
  bool product_relu(int64_t i, const Tensor& h, const Tensor& w, const Tensor& out) const {
    const std::optional<Tensor> bias = p_.bias(p_.links[i]);
    if (!bias) return false;
    return epilogue(i, 'f') ? Fused::nt_relu(out, h, w, *bias, bits(i))
                            : Fused::nt_relu_then_bits(out, h, w, *bias, bits(i), tf32(i));
  }

  // sum = aᵀ b, or sum += aᵀ b: the gradient of the weight of link i.
  void weight_bar(int64_t i, const Tensor& sum, const Flow& a, const Flow& b, bool add) const {
    if (p_.links[i].marked('w') && Fused::tn_turned(sum, a, b, add)) return;
    Backend::tn(sum, a.matrix, b.matrix, add);
  }

  static void column_sums(const Tensor& g, const Tensor& out) {
    const int64_t rows = 0;
    torch::stable::copy_(const_cast<Tensor&>(out), torch::stable::sum(g, IntHeaderOnlyArrayRef(&rows, 1)));
  }

  // What follows are passes over an activation: into `out`, which may be what comes in, and its sums over rows into `sums`, if
  // there are any. Returned is the transposed copy of `out`, if it was asked for (`turn`) and the device writes it in this pass.

  // out = f'(z) g
  std::optional<Tensor> gate(int64_t i, const Tensor& g, const Tensor& out, bool turn = false) const {
    const Link& link = p_.links[i];
    if (link.kind == Kind::relu) return rectify(i, g, out, nullptr, turn);
    Curved in(p_.op, std::nullopt, {}, {}, PreActivation(p_.op, input(i, g), p_.bias(link), -1));
    in.zeta = in.z.like_x(p_.op, "g", g);
    return curve(i, in, out, nullptr, turn);
  }

  // Sweep 4: the cotangent of the activation's input, and the gradient of its bias.
  std::optional<Tensor> activation_reverse(int64_t i, const std::optional<Tensor>& zeta, const Pairs& pairs, const Tensor& out,
                                           const Tensor* sums, bool turn) const {
    const Link& link = p_.links[i];
    if (link.kind == Kind::relu) return rectify(i, *zeta, out, sums, turn);
    Tensors t, d;
    for (size_t pair = 0; pair < pairs.count; ++pair) {
      t.push_back(tangent(pairs, i, pair));
      d.push_back(delta(pairs, i, pair));
    }
    const PreActivation z(p_.op, input(i, out), p_.bias(link), -1, sums != nullptr);
    return curve(i, Curved(p_.op, zeta, t, d, z), out, sums, turn);
  }

  std::optional<Tensor> rectify(int64_t i, const Tensor& g, const Tensor& out, const Tensor* sums, bool turn) const {
    const Gated in(p_.op, g, bits(i), false);
    const double slope = p_.links[i].slope();
    if (turn) {
      const Tensor turned = empty_matrix(out, out.size(1), out.size(0));
      if (Fused::relu_turned(in, slope, out, sums, turned)) return turned;
    }
    if (sums != nullptr) {
      relu_reverse_into(in, channel_view(in.g.sizes(), 1, in.layout), slope, out, *sums);
    } else {
      relu_gate_into(in, slope, out);
    }
    return std::nullopt;
  }

  std::optional<Tensor> curve(int64_t i, const Curved& in, const Tensor& out, const Tensor* sums, bool turn) const {
    const Link& link = p_.links[i];
    if (turn) {
      const Tensor turned = empty_matrix(out, out.size(1), out.size(0));
      if (Fused::smooth_turned(p_.op, in, link.name, link.constants, out, sums, turned)) return turned;
    }
    smooth_reverse_into(p_.op, in, link.name, link.constants, out, sums);
    return std::nullopt;
  }

  const ChainPlan& p_;
  const Tensors& saved_;  // bits, and the buffers of values
};

inline void add_buffers(Tensors& list, const Tensor& like, const Places& places) {
  for (const int64_t size : places.sizes) list.push_back(empty_vector(like, size, like.scalar_type()));
}

template <class Backend>
Tensors chain_forward(const Tensor& x, Tensors params, std::string links) {
  ChainPlan plan("chain_forward", links, params);
  plan.begin(x);
  const Tensor rows = in_layout(x, Layout::contiguous);
  const Tensor y = empty_matrix(x, plan.rows, plan.width.back());
  Tensors saved = {empty_vector(x, plan.bit_bytes(), ScalarType::Byte)};
  add_buffers(saved, x, plan.values);
  if (!Backend::narrow(plan, saved, [&](const auto& chain) { chain.forward(rows, y); })) {
    Chain<Backend>(plan, saved).forward(rows, y);
  }
  saved.insert(saved.begin(), y);
  return saved;
}

template <class Backend>
Tensors chain_data_vjp(const Tensor& g, Tensors params, Tensors saved, std::string links) {
  ChainPlan plan("chain_data_vjp", links, params);
  plan.resume("g", g, plan.width.back(), saved);
  const Tensor top = in_layout(g, Layout::contiguous);
  Tensors found = {empty_matrix(g, plan.rows, plan.width[0])};
  add_buffers(found, g, plan.cotangents);
  if (!Backend::narrow(plan, saved, [&](const auto& chain) { chain.data_vjp(top, found); })) {
    Chain<Backend>(plan, saved).data_vjp(top, found);
  }
  return found;
}

template <class Backend>
Tensors chain_data_jvp(const Tensor& t, Tensors params, Tensors saved, Tensors record, std::string links, Flags wanted,
                       bool want_y, Tensors sums) {
  ChainPlan plan("chain_data_jvp", links, params);
  plan.resume("t", t, plan.width[0], saved);
  plan.check_flags(wanted);
  plan.check_record(record);
  plan.check_sums(sums, wanted);
  const Tensor v = in_layout(t, Layout::contiguous);
  const Places places = plan.tangents();
  Tensors found, kept;
  if (want_y) found.push_back(empty_matrix(t, plan.rows, plan.width.back()));
  const Tensor y_tangent = want_y ? found[0] : v;
  add_buffers(kept, t, places);
  const bool fresh = sums.empty();
  for (const Link& link : plan.links) {
    if (!fresh || !ChainPlan::wants_weight(link, wanted)) continue;
    sums.push_back(empty_matrix(t, plan.weight(link).size(0), plan.weight(link).size(1)));
  }
  const auto run = [&](const auto& chain) {
    chain.data_jvp(v, record, wanted, want_y ? &y_tangent : nullptr, places, kept, sums, fresh);
  };
  if (!Backend::narrow(plan, saved, run)) run(Chain<Backend>(plan, saved));
  if (fresh) found.insert(found.end(), sums.begin(), sums.end());
  found.insert(found.end(), kept.begin(), kept.end());
  return found;
}

template <class Backend>
Tensors chain_reverse(std::optional<Tensor> zeta, Tensors records, Tensors tangents, const Tensor& x, Tensors params,
                      Tensors saved, std::string links, Flags wanted, bool want_x, Tensors sums) {
  ChainPlan plan("chain_reverse", links, params);
  plan.resume("x", x, plan.width[0], saved);
  if (zeta) plan.check_flow("zeta", *zeta, plan.width.back());
  plan.check_flags(wanted);
  const Places places = plan.tangents();
  plan.check_pairs(records, tangents, places);
  plan.check_sums(sums, wanted);
  DATAGRAD_CHECK(zeta || !records.empty(), plan.op, ": needs a zeta or a record");
  const Tensor rows = in_layout(x, Layout::contiguous);
  if (zeta) zeta = in_layout(*zeta, Layout::contiguous);
  // Links from `start` down have a ζ: all, or those below the last smooth one.
  const int64_t start = zeta ? plan.last() : plan.last_curve();
  DATAGRAD_CHECK(!want_x || start >= 0, plan.op, ": without a zeta a chain without smooth links has no cotangent of x");
  const bool fresh = sums.empty();
  Tensors found, weights = sums, biases(params.size(), rows);
  if (want_x) found.push_back(empty_matrix(x, plan.rows, plan.width[0]));
  for (int64_t i = 0; i < plan.size(); ++i) {
    const Link& link = plan.links[i];
    if (ChainPlan::wants_weight(link, wanted)) {
      const bool here = i <= start;
      if (fresh) weights.push_back(here ? empty_matrix(x, plan.weight(link).size(0), plan.weight(link).size(1)) : rows);
      if (fresh && here) found.push_back(weights.back());
    }
    if (i <= start && ChainPlan::wants_bias(link, wanted)) {
      biases[link.bias] = empty_vector(x, plan.width[i + 1], x.scalar_type());
      found.push_back(biases[link.bias]);
    }
  }
  const Pairs pairs{records, tangents, places, records.size() / plan.record_size()};
  const auto run = [&](const auto& chain) {
    chain.reverse(zeta, pairs, rows, wanted, want_x ? &found[0] : nullptr, weights, fresh, biases);
  };
  if (!Backend::narrow(plan, saved, run)) run(Chain<Backend>(plan, saved));
  return found;
}

template <class Backend, class Library>
void register_chain(Library& m) {
  m.impl("chain_forward", TORCH_BOX(&chain_forward<Backend>));
  m.impl("chain_data_vjp", TORCH_BOX(&chain_data_vjp<Backend>));
  m.impl("chain_data_jvp", TORCH_BOX(&chain_data_jvp<Backend>));
  m.impl("chain_reverse", TORCH_BOX(&chain_reverse<Backend>));
}

}  // namespace
}  // namespace datagrad
