#include <nodes/folds.h>

namespace datagrad {

Folds::Folds(const DirectOps& direct, std::string given, std::vector<double> eps, std::vector<Part> parts)
    : given_(std::move(given)),
      eps_(std::move(eps)),
      parts_(std::move(parts)),
      fold_(direct, "fold_norms"),
      unfold_(direct, "unfold_norms") {}

TensorList Folds::inside(const TensorList& params, const TensorList& folded) const {
  if (empty()) return params;
  TensorList found;
  size_t place = 0, next = 0;
  for (const auto& [is_folded, in, out] : parts_) {
    for (size_t i = 0; i < in; ++i) found.push_back(is_folded ? folded[next++] : params[place + i]);
    place += out;
  }
  return found;
}

Flags Folds::wanted_inside(const Flags& wanted) const {
  if (empty()) return wanted;
  Flags found;
  auto own = wanted.begin();
  for (const auto& [is_folded, in, out] : parts_) {
    const auto end = own + static_cast<int64_t>(out);
    if (is_folded) {
      found.insert(found.end(), in, std::find(own, end, true) != end);
    } else {
      found.insert(found.end(), own, end);
    }
    own = end;
  }
  return found;
}

TensorList Folds::unfolded(const at::Tensor& kept, const TensorList& params, const TensorList& bars) const {
  if (empty()) return bars;
  TensorList weights, weight_bars, bias_bars;
  Flags wanted;
  size_t inside = 0, outside = 0;
  for (const auto& [is_folded, in, out] : parts_) {
    if (is_folded) {
      weights.push_back(params[outside]);
      wanted.push_back(bars[inside].defined());
      if (wanted.back()) weight_bars.push_back(bars[inside]);
      if (bars[inside + 1].defined()) bias_bars.push_back(bars[inside + 1]);
    }
    inside += in;
    outside += out;
  }
  TensorList own;
  if (!weight_bars.empty()) own = unfold_(weight_bars, bias_bars, weights, kept, wanted);
  TensorList found(params.size());
  std::istringstream words(given_);
  size_t next = 0;
  inside = outside = 0;
  for (const auto& [is_folded, in, out] : parts_) {
    if (!is_folded) std::copy_n(bars.begin() + static_cast<int64_t>(inside), in, found.begin() + static_cast<int64_t>(outside));
    std::string word;
    if (is_folded && words >> word && bars[inside].defined()) {
      // The op's order is W, w, c; the word's is that of the parameters, of "W", "c", "w", "b".
      const at::Tensor& bias_bar = bars[inside + 1];
      found[outside] = own[next++];
      const at::Tensor scale_bar = own[next++], own_bias_bar = bias_bar.defined() ? own[next++] : at::Tensor();
      for (size_t i = 1; i < word.size(); ++i) {
        found[outside + i] = word[i] == 'w' ? scale_bar : word[i] == 'c' ? own_bias_bar : bias_bar;
      }
    }
    inside += in;
    outside += out;
  }
  return found;
}

}  // namespace datagrad
