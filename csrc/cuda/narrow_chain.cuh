// The four sweeps of a chain up to 256 wide, in 16 bits, each in one kernel (cuda/narrow_kernels.cuh) and one more for the sums of
// its blocks. Ops, letters and places as in common/chain_plan.h.
#pragma once

#include <common/chain.h>
#include <cuda/narrow_kernels.cuh>

namespace datagrad {
namespace {

using warp::NarrowLink;

constexpr int64_t kNarrow16 = 256;  // the widest that is narrow

// How a block shares out its memory; `warps` 0: the chain does not fit.
struct NarrowLayout {
  int warps = 0, row = 0, weights = 0;
  bool resident = false;
  int64_t bytes = 0;

  NarrowLayout(const ChainPlan& plan, int64_t limit) {
    row = warp::row_of(static_cast<int>(*std::max_element(plan.width.begin(), plan.width.end())));
    int64_t all = 0, largest = 0;
    for (int64_t i = 0; i < plan.size(); ++i) {
      if (plan.links[i].kind != Link::Kind::linear) continue;
      const int64_t size = NarrowJob<Half>::weight_size(static_cast<int>(plan.width[i]), static_cast<int>(plan.width[i + 1]));
      all += size;
      largest = std::max(largest, size);
    }
    for (const bool keeps : {true, false}) {
      for (const int count : {8, 4}) {
        weights = 3 * count * warp::kStrip * row;
        bytes = 2 * (weights + (keeps ? all : largest));
        if (bytes > limit) continue;
        warps = count;
        resident = keeps;
        return;
      }
    }
  }
};

inline bool is_narrow_in_16_bits(const ChainPlan& plan) {
  const ScalarType dtype = plan.params[0].scalar_type();
  if (dtype != ScalarType::BFloat16 && dtype != ScalarType::Half) return false;
  if (plan.rows == 0 || plan.size() > warp::kMaxLinks) return false;
  for (const int64_t width : plan.width) {
    if (width < 1 || width > kNarrow16) return false;
  }
  for (const Tensor& parameter : plan.params) {
    if (!parameter.is_contiguous()) return false;
  }
  for (const Link& link : plan.links) {
    if (link.constants.size() > 2 || (link.kind == Link::Kind::smooth && warp::activation_row(Activations(), link.name) < 0)) return false;
  }
  return NarrowLayout(plan, narrow_memory(plan.params[0])).warps > 0;
}

// `Generic` has the same sweeps, and does those that this one has no room for.
template <class T, class Generic>
class NarrowChain16 {
 public:
  using Kind = Link::Kind;

  NarrowChain16(const ChainPlan& plan, const Tensors& saved)
      : p_(plan), saved_(saved), layout_(plan, narrow_memory(plan.params[0])) {}

  void forward(const Tensor& x, const Tensor& y) const {
    NarrowJob<T> job = start(&x, false);
    const auto result = [&](int64_t i) {
      const Place place = i < p_.last() ? p_.values.of[i + 1] : Place();
      return place ? at(saved_, 1, place) : mutable_data<T>(y);
    };
    for (int64_t i = 0; i < p_.size(); ++i) {
      // What the next link overwrites is not written.
      if (i == p_.last() || result(i) != result(i + 1)) job.link[i].result = result(i);
    }
    run<Sweep::forward>(job, x, {});
  }

  void data_vjp(const Tensor& top, const Tensors& found) const {
    NarrowJob<T> job = start(&top, true);
    const auto result = [&](int64_t i) { return i == 0 ? mutable_data<T>(found[0]) : at(found, 1, p_.cotangents.of[i - 1]); };
    for (int64_t i = 0; i < p_.size(); ++i) {
      if (i == 0 || result(i) != result(i - 1)) job.link[i].result = result(i);
    }
    run<Sweep::data_vjp>(job, top, {});
  }

  void data_jvp(const Tensor& v, const Tensors& record, const Flags& wanted, const Tensor* y_tangent, const Places& places,
                const Tensors& kept, const Tensors& sums, bool fresh) const {
    NarrowJob<T> job = start(&v, false);
    job.end = static_cast<int16_t>(p_.tangent_end(wanted, y_tangent != nullptr));
    const std::vector<size_t> order = p_.order(wanted);
    NarrowTotals<T> totals;
    const auto result = [&](int64_t i) -> T* {
      if (i + 1 == job.end) return y_tangent == nullptr ? nullptr : mutable_data<T>(*y_tangent);
      return places.of[i + 1] ? at(kept, 0, places.of[i + 1]) : nullptr;
    };
    for (int64_t i = 0; i < job.end; ++i) {
      if (i + 1 == job.end || result(i) != result(i + 1)) job.link[i].result = result(i);
      if (!ChainPlan::wants_weight(p_.links[i], wanted)) continue;
      job.link[i].delta[0] = delta(record, 0, i);
      add_weight(job, totals, i, sums[order[i]], fresh);
    }
    if (job.end > 0) run<Sweep::data_jvp>(job, v, totals);
  }

  void reverse(const std::optional<Tensor>& zeta, const Pairs& pairs, const Tensor& x, const Flags& wanted,
               const Tensor* x_bar, const Tensors& sums, bool fresh, const Tensors& biases) const {
    if (pairs.count > warp::kMaxPairs) {
      Generic(p_, saved_).reverse(zeta, pairs, x, wanted, x_bar, sums, fresh, biases);
      return;
    }
    NarrowJob<T> job = start(zeta ? &*zeta : nullptr, true);
    job.begin = static_cast<int16_t>(x_bar != nullptr ? 0 : p_.first_wanted(wanted));
    job.pairs = static_cast<int16_t>(pairs.count);
    job.walks_to_begin = x_bar != nullptr;
    const std::vector<size_t> order = p_.order(wanted);
    const int64_t first = zeta ? p_.last() : p_.last_curve();  // links up to here have a ζ
    NarrowTotals<T> totals;
    for (int64_t i = job.begin; i < p_.size(); ++i) {
      const Link& link = p_.links[i];
      if (i == 0) job.link[i].input = data<T>(x);
      if (i == 0 && x_bar != nullptr) job.link[i].result = mutable_data<T>(*x_bar);
      for (size_t pair = 0; pair < pairs.count && link.kind == Kind::smooth; ++pair) {
        job.link[i].delta[pair] = delta(pairs.records, pair * p_.record_size(), i);
        job.link[i].tangent[pair] = tangent(pairs, pair, i);
      }
      if (ChainPlan::wants_weight(link, wanted) && i <= first) add_weight(job, totals, i, sums[order[i]], fresh);
      if (ChainPlan::wants_bias(link, wanted) && i <= first) add_bias(job, totals, i, biases[link.bias]);
    }
    if (totals.count > 0 || x_bar != nullptr) run<Sweep::reverse>(job, x, totals);
  }

 private:
  static T* at(const Tensors& list, size_t first, const Place& place) {
    return mutable_data<T>(list[first + place.buffer]) + place.offset;
  }

  // The cotangent of the output of link i in sweep 2; its record begins at `first`.
  const T* delta(const Tensors& records, size_t first, int64_t i) const {
    return i == p_.last() ? data<T>(records[first]) : at(records, first + 1, p_.cotangents.of[i]);
  }

  // The tangent of the input of smooth link i in sweep 3.
  const T* tangent(const Pairs& pairs, size_t pair, int64_t i) const {
    const size_t first = pair * (1 + pairs.places.sizes.size());
    return at(pairs.tangents, first + 1, pairs.places.of[i]);
  }

  NarrowJob<T> start(const Tensor* flow, bool down) const {
    NarrowJob<T> job;
    job.rows = p_.rows;
    job.flow = flow == nullptr ? nullptr : data<T>(*flow);
    job.row = layout_.row;
    job.weights = layout_.weights;
    job.resident = layout_.resident;
    job.down = down;
    job.end = static_cast<int16_t>(p_.size());
    int place = 0;
    for (int64_t i = 0; i < p_.size(); ++i) {
      job.link[i] = link(i, place);
      if (layout_.resident && p_.links[i].kind == Kind::linear) place += job.weight_size(job.link[i].in, job.link[i].out);
    }
    return job;
  }

  NarrowLink<T> link(int64_t i, int weight_place) const {
    const Link& from = p_.links[i];
    NarrowLink<T> to;
    to.kind = from.kind == Kind::linear ? to.linear : from.kind == Kind::relu ? to.relu : to.smooth;
    to.in = static_cast<int16_t>(p_.width[i]);
    to.out = static_cast<int16_t>(p_.width[i + 1]);
    for (size_t k = 0; k < from.constants.size(); ++k) to.constants[k] = static_cast<float>(from.constants[k]);
    if (from.kind == Kind::smooth) to.activation = static_cast<int8_t>(warp::activation_row(Activations(), from.name));
    if (from.kind == Kind::linear) to.weight = data<T>(p_.weight(from));
    if (from.kind == Kind::relu) to.bits = mutable_data<uint8_t>(saved_[0]) + p_.bits.of[i].offset;
    if (from.bias >= 0) to.bias = data<T>(p_.params[from.bias]);
    if (i > 0 && p_.values.of[i]) to.input = at(saved_, 1, p_.values.of[i]);
    to.weight_place = weight_place;
    return to;
  }

  void add_weight(NarrowJob<T>& job, NarrowTotals<T>& totals, int64_t i, const Tensor& sum, bool fresh) const {
    const int in = job.link[i].in, out = job.link[i].out;
    job.link[i].weight_sum = job.partial_size;
    totals.add(mutable_data<T>(sum), job.partial_size, out, in, !fresh);
    job.partial_size += warp::padded(out) * warp::padded(in);
  }

  void add_bias(NarrowJob<T>& job, NarrowTotals<T>& totals, int64_t i, const Tensor& bar) const {
    const int out = job.link[i].out;
    job.link[i].bias_sum = job.partial_size;
    totals.add(mutable_data<T>(bar), job.partial_size, 1, out, false);
    job.partial_size += warp::padded(out);
  }

  template <Sweep sweep>
  void run(NarrowJob<T>& job, const Tensor& like, const NarrowTotals<T>& totals) const {
    const int64_t tile = layout_.warps * warp::kStrip;
    const int64_t blocks = std::min(warp::kMaxBlocks, (p_.rows + tile - 1) / tile);
    const Tensor partials = empty_vector(like, blocks * job.partial_size, ScalarType::Float);
    job.partials = mutable_data<float>(partials);
    run_narrow_sweep<sweep>(like, job, layout_.warps, layout_.bytes, blocks, totals);
  }

  const ChainPlan& p_;
  const Tensors& saved_;
  NarrowLayout layout_;
};

}  // namespace
}  // namespace datagrad
