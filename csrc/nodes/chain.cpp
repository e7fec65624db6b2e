#include <nodes/chain.h>

#include <ATen/ATen.h>

namespace datagrad {

Chain::Chain(const DirectOps& direct, Links links)
    : links_(std::move(links)),
      forward_(direct, "chain_forward"),
      data_vjp_(direct, "chain_data_vjp"),
      data_jvp_(direct, "chain_data_jvp"),
      reverse_(direct, "chain_reverse") {}

at::Tensor Chain::entering(const at::Tensor& x) const {
  if (!x.defined()) return x;
  const at::NoGradGuard no_grad;
  return (x.dim() == 2 ? x : x.reshape({-1, x.size(-1)})).contiguous();
}

// In memory of its own.
at::Tensor Chain::leaving(const at::Tensor& found, const at::Tensor& x) const {
  if (!found.defined() || x.dim() == 2) return found;
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = found.size(-1);
  const at::NoGradGuard no_grad;
  return at::_unsafe_view(found, sizes);
}

std::pair<at::Tensor, TensorList> Chain::forward(const at::Tensor& x, const TensorList& params, const Moving&) const {
  return apart(forward_(x, params, links_.all));
}

std::pair<at::Tensor, TensorList> Chain::data_vjp(const at::Tensor& g, const Kept& kept) const {
  return apart(data_vjp_(g, inner(kept.inside), kept.saved, links_.inner));
}

TensorList Chain::record(const at::Tensor& g, TensorList rest) const {
  rest.insert(rest.begin(), g);
  return rest;
}

at::Tensor Chain::data_jvp(const at::Tensor& t, const Kept& kept, Pair& pair, bool needed, const Flags& wanted,
                           TensorList& sums) const {
  Flags wants, fresh(wanted.size());
  for (const size_t place : links_.places) wants.push_back(wanted[place]);
  const TensorList known = known_of(sums);
  for (size_t i = 0; known.empty() && i < wanted.size(); ++i) fresh[i] = wanted[i] && links_.is_weight[i];
  const TensorList found = data_jvp_(t, inner(kept.inside), kept.saved, pair.record, links_.inner, wants, needed, known);
  const size_t next = put(fresh, found, needed, sums);
  pair.tangents = {t};
  pair.tangents.insert(pair.tangents.end(), found.begin() + static_cast<int64_t>(next), found.end());
  return needed ? found[0] : at::Tensor();
}

at::Tensor Chain::reverse(const at::Tensor& zeta, std::vector<Pair>& pairs, Kept& kept, bool want_x, const Flags& wanted,
                          TensorList& sums) const {
  const Pair all = joined(pairs);
  want_x = want_x && (zeta.defined() || links_.curved);
  const TensorList known = known_of(sums);
  const TensorList found = reverse_(optional(zeta), all.record, all.tangents, kept.entered, kept.inside, kept.saved, links_.all, wanted,
                                    want_x, known);
  Flags fresh(wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) {
    const bool is_known = !known.empty() && links_.is_weight[i];
    fresh[i] = wanted[i] && (zeta.defined() || links_.is_below[i]) && !is_known;
  }
  put(fresh, found, want_x, sums);
  return want_x ? found[0] : at::Tensor();
}

TensorList Chain::inner(const TensorList& params) const {
  TensorList found;
  found.reserve(links_.places.size());
  for (const size_t place : links_.places) found.push_back(params[place]);
  return found;
}

}  // namespace datagrad
