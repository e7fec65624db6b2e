#include <nodes/chain.h>

#include <ATen/ATen.h>

namespace datagrad {
namespace {

TensorList defined(const TensorList& list) {
  TensorList found;
  for (const at::Tensor& t : list) {
    if (t.defined()) found.push_back(t);
  }
  return found;
}

}  // namespace

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
  Flags wants;
  for (const size_t place : links_.places) wants.push_back(wanted[place]);
  const TensorList known = defined(sums);
  const TensorList found = data_jvp_(t, inner(kept.inside), kept.saved, pair.record, links_.inner, wants, needed, known);
  size_t next = needed;
  for (size_t i = 0; known.empty() && i < wanted.size(); ++i) {
    if (wanted[i] && links_.is_weight[i]) sums[i] = found[next++];
  }
  pair.tangents = {t};
  pair.tangents.insert(pair.tangents.end(), found.begin() + static_cast<int64_t>(next), found.end());
  return needed ? found[0] : at::Tensor();
}

at::Tensor Chain::reverse(const at::Tensor& zeta, std::vector<Pair>& pairs, Kept& kept, bool want_x, const Flags& wanted,
                          TensorList& sums) const {
  TensorList records, tangents;
  for (const Pair& pair : pairs) {
    append(records, pair.record);
    append(tangents, pair.tangents);
  }
  want_x = want_x && (zeta.defined() || links_.curved);
  const TensorList known = defined(sums);
  const TensorList found = reverse_(optional(zeta), records, tangents, kept.entered, kept.inside, kept.saved, links_.all, wanted,
                                    want_x, known);
  size_t next = want_x;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const bool is_known = !known.empty() && links_.is_weight[i];
    if (wanted[i] && (zeta.defined() || links_.is_below[i]) && !is_known) sums[i] = found[next++];
  }
  return want_x ? found[0] : at::Tensor();
}

TensorList Chain::inner(const TensorList& params) const {
  TensorList found;
  found.reserve(links_.places.size());
  for (const size_t place : links_.places) found.push_back(params[place]);
  return found;
}

}  // namespace datagrad
