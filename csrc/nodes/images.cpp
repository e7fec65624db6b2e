#include <nodes/images.h>

#include <ATen/ATen.h>

#include <algorithm>

namespace datagrad {

Images::Images(const DirectOps& direct, std::string links, bool outer, bool inner, std::vector<Unit> units)
    : links_(std::move(links)),
      outer_(outer),
      inner_(inner),
      units_(std::move(units)),
      forward_(direct, "image_chain_forward"),
      data_vjp_(direct, "image_chain_data_vjp"),
      data_jvp_(direct, "image_chain_data_jvp"),
      reverse_(direct, "image_chain_reverse") {}

std::pair<at::Tensor, TensorList> Images::forward(const at::Tensor& x, const TensorList& params, const Moving& moving) const {
  return apart(forward_(x, params, links_, moving.statistics, moving.momenta));
}

std::pair<at::Tensor, TensorList> Images::data_vjp(const at::Tensor& g, const Kept& kept) const {
  return apart(data_vjp_(g, kept.entered, kept.inside, kept.saved, links_));
}

TensorList Images::record(const at::Tensor& g, TensorList rest) const {
  if (units_.back().record) rest.push_back(g);
  return rest;
}

bool Images::leaves_pair(const Flags& wanted) const {
  return std::any_of(units_.begin(), units_.end(), [&](const Unit& unit) { return unit.keeps(wanted); });
}

at::Tensor Images::data_jvp(const at::Tensor& t, const Kept& kept, Pair& pair, bool needed, const Flags& wanted,
                            TensorList& sums) const {
  TensorList kept_record;
  for (const Unit& unit : units_) {
    if (unit.keeps(wanted)) kept_record.push_back(pair.record[*unit.record]);
  }
  const TensorList known = known_of(sums);
  const TensorList found = data_jvp_(t, kept.entered, kept.inside, kept.saved, Given{pair.record}, links_, wanted, needed, known);
  size_t next = known.empty() ? put(taken(wanted), found, needed, sums) : size_t(needed);
  pair.record = std::move(kept_record);
  for (const Unit& unit : units_) {
    if (unit.keeps(wanted)) pair.tangents.push_back(unit.reads_x ? t : found[next++]);
  }
  return needed ? found[0] : at::Tensor();
}

at::Tensor Images::reverse(const at::Tensor& zeta, std::vector<Pair>& pairs, Kept& kept, bool want_x, const Flags& wanted,
                           TensorList& sums) const {
  Pair all = joined(pairs);
  pairs.clear();
  const auto curved = [](const Unit& unit) { return unit.curved; };
  want_x = want_x && (zeta.defined() || std::any_of(units_.begin(), units_.end(), curved));
  const TensorList known = known_of(sums);
  const TensorList found = reverse_(optional(zeta), Given{all.record}, Given{all.tangents}, kept.entered, kept.inside, Given{kept.saved},
                                    links_, wanted, want_x, known);
  Flags fresh = wanted;
  if (!known.empty()) {
    const Flags with_sums = taken(wanted);
    for (size_t i = 0; i < wanted.size(); ++i) fresh[i] = wanted[i] && !with_sums[i];
  }
  put(fresh, found, want_x, sums);
  return want_x ? found[0] : at::Tensor();
}

// An image in that layout, or a dense matrix.
at::Tensor Images::laid(const at::Tensor& t, bool channels_last) {
  if (!t.defined()) return t;
  const at::NoGradGuard no_grad;
  return t.contiguous(channels_last && t.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
}

Flags Images::taken(const Flags& wanted) const {
  Flags found(wanted.size());
  for (const Unit& unit : units_) {
    if (unit.weight && wanted[*unit.weight] && !unit.keeps(wanted)) found[*unit.weight] = true;
  }
  return found;
}

}  // namespace datagrad
