// The image chain family on the CPU: the sweeps of convolutions, norms, activations, poolings, linear layers and sums, unit by unit. Ops
// and letters as in datagrad_ext/ops/image_chain.py.
#include <cpu/direct_ops.h>
#include <cpu/image_units.h>

#include <torch/csrc/stable/library.h>

#include <numeric>

namespace datagrad {
namespace {

void let_go(Tensor& t) { t = Tensor(); }

// So many samples go through sweep 3 at once. The cotangents of sweep 2 stay until its end, so what flows beside them must be
// little, and it should stay in a core's cache. All of them where the tangents are kept anyway; else at most half, so that two
// neighbours are no more than one of the whole batch; and the bits of a part begin at a byte.
int64_t samples_at_once(const ImagePlan& plan, const Flags& wanted) {
  constexpr int64_t kElements = 1 << 17;
  int64_t largest = 1, unit_of_bits = 1;
  for (const Unit& unit : plan.units) {
    if (unit.keeps(wanted)) return plan.samples();
    const int64_t size = unit.out_of_sample();
    largest = std::max(largest, size);
    if (unit.has_bits()) unit_of_bits = std::max(unit_of_bits, 8 / std::gcd<int64_t>(8, size));
  }
  const int64_t few = std::min(kElements / largest, (plan.samples() + 1) / 2);
  return std::min(plan.samples(), std::max<int64_t>(1, few / unit_of_bits) * unit_of_bits);
}

}  // namespace

Tensors image_chain_forward(const Tensor& x, Tensors params, std::string links, Tensors running, std::vector<double> momenta) {
  const ImagePlan plan("image_chain_forward", links, params, x);
  plan.check_running(running, momenta);
  const Tensors none;
  const ImageChain chain(plan, x, none);
  Values values(plan.readers());
  values.put(0, x);
  Tensors found(1, x);
  size_t norm = 0;
  for (const Unit& unit : plan.units) {
    Moving moving;
    if (unit.updates()) {
      moving = {running[2 * norm], running[2 * norm + 1], momenta[norm]};
      ++norm;
    }
    const Tensor y = chain.forward(unit, values, moving, found);
    for (const int64_t value : unit.reads()) values.read(value);
    values.put(unit.output, y);
  }
  found[0] = values[plan.last().output];
  return found;
}

Tensors image_chain_data_vjp(const Tensor& g, const Tensor& x, Tensors params, Tensors saved, std::string links) {
  const ImagePlan plan("image_chain_data_vjp", links, params, x);
  plan.check_saved(saved);
  const ImageChain chain(plan, x, saved);
  Cotangents flow(plan.readers().size());
  flow.add(plan.last().output, plan.entering("g", g), false);
  Tensors found(1 + plan.made(), g);
  for (int64_t i = plan.size() - 1; i >= 0; --i) {
    const Unit& unit = plan.units[i];
    const Tensor delta = *flow.take(unit.output);
    if (unit.record >= 0 && unit.record < plan.made()) found[1 + unit.record] = delta;
    const Tensor part = chain.vjp(unit, delta);
    for (const int64_t value : unit.reads()) flow.add(value, part, chain.makes_own(unit));
  }
  found[0] = *flow.take(0);
  return found;
}

Tensors image_chain_data_jvp(const Tensor& t, const Tensor& x, Tensors params, Tensors saved, Tensors record,
                             std::string links, Flags wanted, bool want_y, Tensors sums) {
  const ImagePlan plan("image_chain_data_jvp", links, params, x);
  plan.check_saved(saved);
  plan.check_flags(wanted);
  plan.check_record(record);
  plan.check_sums(sums, wanted);
  plan.check("t", t, plan.units[0].in);
  const Needs needs(plan.units, wanted, false, want_y);
  const int64_t all = plan.samples(), step = samples_at_once(plan, wanted);
  std::vector<std::optional<Tensor>> totals(sums.begin(), sums.end());
  Tensors found, kept;
  for (int64_t begin = 0; begin == 0 || begin < all; begin += step) {
    const Samples samples{begin, std::min(all, begin + step), all};
    const ImageChain chain(plan, x, saved, samples);
    Values flow(plan.readers());
    flow.put(0, samples(t));
    size_t sum = 0;
    for (int64_t i = 0; i < plan.size(); ++i) {
      const Unit& unit = plan.units[i];
      const int64_t value = unit.reads()[0];
      if (unit.keeps(wanted)) {
        if (value > 0) kept.push_back(flow[value]);
      } else if (unit.wants_weight(wanted)) {
        if (totals.size() == sum) totals.emplace_back();
        chain.add_weight_bar(unit, samples(record[unit.record]), flow[value], totals[sum++]);
      }
      if (unit.record >= 0 && samples.end == all) let_go(record[unit.record]);
      if (needs.tangents[i]) flow.put(unit.output, chain.jvp(unit, flow));
      for (const int64_t each : unit.reads()) flow.read(each);
    }
    if (!want_y) continue;
    const Tensor& y = flow[plan.last().output];
    if (step >= all) {
      found.push_back(y);
    } else {
      if (begin == 0) found.push_back(plan.empty(t, plan.last().out));
      Tensor part = samples(found[0]);
      torch::stable::copy_(part, y);
    }
  }
  if (sums.empty()) {
    for (const auto& total : totals) found.push_back(*total);
  }
  found.insert(found.end(), kept.begin(), kept.end());
  return found;
}

Tensors image_chain_reverse(std::optional<Tensor> zeta, Tensors records, Tensors tangents, const Tensor& x, Tensors params,
                            Tensors saved, std::string links, Flags wanted, bool want_x, Tensors sums) {
  const ImagePlan plan("image_chain_reverse", links, params, x);
  plan.check_saved(saved);
  plan.check_flags(wanted);
  const size_t pairs = plan.check_pairs(records, tangents, wanted);
  plan.check_sums(sums, wanted);
  DATAGRAD_CHECK(zeta || pairs > 0, plan.op, ": needs a zeta or a record");
  const ImageChain chain(plan, x, saved);
  const Needs needs(plan.units, wanted, want_x, false);
  Cotangents flow(plan.readers().size());
  if (zeta) flow.add(plan.last().output, plan.entering("zeta", *zeta), false);
  std::vector<std::optional<Tensor>> bars(params.size());
  std::vector<size_t> keeping, added;  // the units that keep pairs; the parameters that have sums
  for (size_t i = 0; i < plan.units.size(); ++i) {
    const Unit& unit = plan.units[i];
    if (unit.keeps(wanted)) {
      keeping.push_back(i);
    } else if (!sums.empty() && unit.wants_weight(wanted)) {
      bars[unit.link->weight] = sums[added.size()];
      added.push_back(unit.link->weight);
    }
  }
  for (int64_t i = plan.size() - 1; i >= 0; --i) {
    const Unit& unit = plan.units[i];
    Tensors deltas, ts;
    const size_t here = std::find(keeping.begin(), keeping.end(), i) - keeping.begin();
    for (size_t place = here; here < keeping.size() && place < records.size(); place += keeping.size()) {
      deltas.push_back(std::exchange(records[place], Tensor()));
      ts.push_back(std::exchange(tangents[place], Tensor()));
    }
    if (!needs.cotangents[unit.output]) continue;
    bool goes_on = false;
    for (const int64_t value : unit.reads()) goes_on = goes_on || needs.cotangents[value];
    const std::optional<Tensor> part =
        chain.reverse(unit, flow.take(unit.output), deltas, ts, goes_on,
                      unit.wants_weight(wanted) ? &bars[unit.link->weight] : nullptr,
                      unit.wants_bias(wanted) ? &bars[unit.bias()] : nullptr);
    for (const int64_t value : unit.reads()) {
      if (part && needs.cotangents[value]) flow.add(value, *part, chain.makes_own(unit));
    }
    for (const int64_t place : unit.saves()) let_go(saved[place]);
  }
  Tensors found;
  if (want_x) {
    const std::optional<Tensor> x_bar = flow.take(0);
    DATAGRAD_CHECK(x_bar, plan.op, ": without a zeta a chain without curved links has no cotangent of x");
    found.push_back(*x_bar);
  }
  for (size_t i = 0; i < params.size(); ++i) {
    if (!wanted[i] || std::find(added.begin(), added.end(), i) != added.end()) continue;
    found.push_back(bars[i] ? *bars[i] : torch::stable::new_zeros(params[i], params[i].sizes()));
  }
  return found;
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) {
  m.impl("image_chain_forward", TORCH_BOX(&datagrad::image_chain_forward));
  m.impl("image_chain_data_vjp", TORCH_BOX(&datagrad::image_chain_data_vjp));
  m.impl("image_chain_data_jvp", TORCH_BOX(&datagrad::image_chain_data_jvp));
  m.impl("image_chain_reverse", TORCH_BOX(&datagrad::image_chain_reverse));
}
