#include <nodes/folds.h>

namespace datagrad {
namespace {

// The gradients of the parameters of one fold, "W", "c", "w", "b" of its word, of those of W′ and b′ and what unfold_norms found from
// `next` on: W, w, c.
TensorList outside_of(const std::string& word, const TensorList& bars, const TensorList& own, size_t& next) {
  TensorList found(word.size());
  if (!bars[0].defined()) return found;
  const at::Tensor &bias_bar = bars[1], weight_bar = own[next++], scale_bar = own[next++];
  const at::Tensor own_bias_bar = bias_bar.defined() ? own[next++] : at::Tensor();
  for (size_t i = 0; i < word.size(); ++i) {
    switch (word[i]) {
      case 'W': found[i] = weight_bar; break;
      case 'c': found[i] = own_bias_bar; break;
      case 'w': found[i] = scale_bar; break;
      default: found[i] = bias_bar;
    }
  }
  return found;
}

}  // namespace

Folds::Folds(const DirectOps& direct, std::vector<double> eps, std::vector<Part> parts)
    : eps_(std::move(eps)), parts_(std::move(parts)), fold_(direct, "fold_norms"), unfold_(direct, "unfold_norms") {
  for (const auto& [word, in, out] : parts_) {
    if (!word.empty()) given_ += (given_.empty() ? "" : " ") + word;
  }
}

TensorList Folds::inside(const TensorList& params, const TensorList& folded) const {
  if (empty()) return params;
  TensorList found;
  size_t place = 0, next = 0;
  for (const auto& [word, in, out] : parts_) {
    for (size_t i = 0; i < in; ++i) found.push_back(word.empty() ? params[place + i] : folded[next++]);
    place += out;
  }
  return found;
}

Flags Folds::wanted_inside(const Flags& wanted) const {
  if (empty()) return wanted;
  Flags found;
  auto next = wanted.begin();
  for (const auto& [word, in, out] : parts_) {
    const Flags own(next, next + static_cast<int64_t>(out));
    const Flags inside = word.empty() ? own : Flags(in, any(own));
    found.insert(found.end(), inside.begin(), inside.end());
    next += static_cast<int64_t>(out);
  }
  return found;
}

TensorList Folds::unfolded(const at::Tensor& kept, const TensorList& params, const TensorList& bars) const {
  if (empty()) return bars;
  TensorList weights, weight_bars, bias_bars;
  Flags wanted;
  size_t inside = 0, outside = 0;
  for (const auto& [word, in, out] : parts_) {
    if (!word.empty()) {
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
  TensorList found;
  size_t next = 0;
  inside = 0;
  for (const auto& [word, in, out] : parts_) {
    TensorList here(bars.begin() + static_cast<int64_t>(inside), bars.begin() + static_cast<int64_t>(inside + in));
    if (!word.empty()) here = outside_of(word, here, own, next);
    found.insert(found.end(), here.begin(), here.end());
    inside += in;
  }
  return found;
}

}  // namespace datagrad
