#include <nodes/chain.h>

namespace datagrad {
namespace {

// The first of a list, and the rest.
std::pair<at::Tensor, TensorList> apart(TensorList list) {
  at::Tensor first = std::move(list.front());
  list.erase(list.begin());
  return {std::move(first), std::move(list)};
}

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

std::pair<at::Tensor, TensorList> Chain::forward(const at::Tensor& x, const TensorList& params) const {
  return apart(forward_(x, params, links_.all));
}

std::pair<at::Tensor, TensorList> Chain::data_vjp(const at::Tensor& g, const TensorList& params, const TensorList& saved) const {
  return apart(data_vjp_(g, inner(params), saved, links_.inner));
}

at::Tensor Chain::data_jvp(const at::Tensor& t, const TensorList& params, const TensorList& saved, Pair& pair, bool needed,
                           const Flags& wanted, TensorList& sums) const {
  Flags wants;
  for (const size_t place : links_.places) wants.push_back(wanted[place]);
  const TensorList known = defined(sums);
  const TensorList found = data_jvp_(t, inner(params), saved, pair.record, links_.inner, wants, needed, known);
  size_t next = needed;
  for (size_t i = 0; known.empty() && i < wanted.size(); ++i) {
    if (wanted[i] && links_.is_weight[i]) sums[i] = found[next++];
  }
  pair.tangents = {t};
  pair.tangents.insert(pair.tangents.end(), found.begin() + static_cast<int64_t>(next), found.end());
  return needed ? found[0] : at::Tensor();
}

at::Tensor Chain::reverse(const at::Tensor& zeta, const std::vector<Pair>& pairs, const at::Tensor& x, const TensorList& params,
                          const TensorList& saved, bool want_x, const Flags& wanted, TensorList& sums) const {
  TensorList records, tangents;
  for (const Pair& pair : pairs) {
    records.insert(records.end(), pair.record.begin(), pair.record.end());
    tangents.insert(tangents.end(), pair.tangents.begin(), pair.tangents.end());
  }
  want_x = want_x && (zeta.defined() || links_.curved);
  const TensorList known = defined(sums);
  const auto given = zeta.defined() ? std::optional<at::Tensor>(zeta) : std::nullopt;
  const TensorList found = reverse_(given, records, tangents, x, params, saved, links_.all, wanted, want_x, known);
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
