// Folding of norms into the layers before them, on the CPU: ops and letters as in datagrad_ext/ops/folding.py.
#include <common/dtype.h>
#include <common/layout.h>
#include <common/parallel.h>
#include <cpu/direct_ops.h>
#include <cpu/lanes.h>
#include <cpu/views.h>

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <sstream>

namespace datagrad {
namespace {

constexpr int64_t kKept = 5;  // vectors of a layer: r, s, c − μ, μ, var

void check_weight(const char* op, const Tensor& weight, const Tensor& first) {
  DATAGRAD_CHECK(weight.scalar_type() == ScalarType::Float || weight.scalar_type() == ScalarType::Double, op,
                 ": weight must be float32 or float64, got ", text(weight.scalar_type()), "; convert it first");
  DATAGRAD_CHECK(weight.dim() > 1, op, ": weight must have outputs and inputs, got shape ", text(weight.sizes()));
  check_alike(op, "weight", weight, "the first weight", first);
}

// A dense vector.
Tensor vector_of(const char* op, const char* name, const Tensor& t, const Tensor& weight) {
  const int64_t outputs = weight.size(0);
  check_alike(op, name, t, "weight", weight);
  check_shape(op, name, t, IntHeaderOnlyArrayRef(&outputs, 1));
  return in_layout(t, Layout::contiguous);
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

// Results that share few pieces of memory: a small network notices every piece that malloc looks for.
class Results {
 public:
  // For so many of them in turn.
  explicit Results(size_t count) : places_(static_cast<int64_t>(count)) {}

  void plan(int64_t size) { places_.add(next_++, size); }

  void allocate(const Tensor& like) {
    for (const int64_t size : places_.sizes) buffers_.push_back(empty_vector(like, size, like.scalar_type()));
    next_ = 0;
  }

  // The next one that was planned.
  Tensor take(IntHeaderOnlyArrayRef sizes, Layout layout) {
    const Place place = places_.of[next_++];
    return view(buffers_[place.buffer], sizes, dense_strides(sizes, layout), place.offset);
  }

  Tensor take_like(const Tensor& weight) { return take(weight.sizes(), layout_of(weight)); }

  Tensor take_vector(int64_t size) { return take(IntHeaderOnlyArrayRef(&size, 1), Layout::contiguous); }

 private:
  Places places_;
  Tensors buffers_;
  int64_t next_ = 0;
};

// A layer and the norm behind it; letters as the words of `given` have them.
struct Folded {
  Tensor weight;
  std::optional<Tensor> c, w, b;
  Tensor mean, var;
  double eps;
};

std::vector<Folded> layers_of(const char* op, const Tensors& tensors, const std::string& given, const std::vector<double>& eps) {
  std::istringstream stream(given);
  std::vector<std::string> words;
  size_t expected = 0;
  for (std::string word; stream >> word; expected += word.size() + 2) words.push_back(word);
  DATAGRAD_CHECK(tensors.size() == expected && eps.size() == words.size() && !words.empty(), op, ": '", given, "' has ", expected,
                 " tensors and ", words.size(), " eps, got ", tensors.size(), " and ", eps.size());
  std::vector<Folded> layers;
  size_t next = 0;
  for (size_t i = 0; i < words.size(); ++i) {
    const Tensor& weight = tensors[next++];
    check_weight(op, weight, tensors[0]);
    const auto vector = [&](const char* name) { return vector_of(op, name, tensors[next++], weight); };
    const auto vector_if = [&](char letter, const char* name) {
      return words[i].find(letter) == std::string::npos ? std::nullopt : std::optional<Tensor>(vector(name));
    };
    // In the order of the tensors: members are initialised one after the other.
    layers.push_back(Folded{weight, vector_if('c', "bias"), vector_if('w', "norm_weight"), vector_if('b', "norm_bias"),
                            vector("mean"), vector("var"), eps[i]});
  }
  return layers;
}

// Calls f(Tag<T>{}) in the weight's type.
template <class F>
void with_type(const Tensor& weight, const F& f) {
  weight.scalar_type() == ScalarType::Float ? f(Tag<float>{}) : f(Tag<double>{});
}

int64_t inner_of(const Tensor& weight) { return weight.size(0) == 0 ? 0 : weight.numel() / weight.size(0); }

// Calls f(output) for all outputs.
template <class F>
void for_each_output(int64_t outputs, int64_t inner, const F& f) {
  parallel_for(outputs, kSerialElements / std::max<int64_t>(1, inner) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) f(o);
  });
}

template <class T>
T dot(const T* a, const T* b, int64_t n) {
  using L = small::Lanes<T>;
  typename L::Vector sums = {};
  int64_t k = 0;
  for (; k + L::kCount <= n; k += L::kCount) sums += L::load(a + k) * L::load(b + k);
  T sum = 0;
  for (int64_t i = 0; i < L::kCount; ++i) sum += sums[i];
  for (; k < n; ++k) sum += a[k] * b[k];
  return sum;
}

// `rows`: where the layer's vectors of `kept` begin.
template <class T>
void fold(const Folded& layer, const Tensor& folded, const Tensor& moved, T* rows) {
  const Tensor dense = in_layout(layer.weight, layout_of(layer.weight));
  const int64_t outputs = layer.weight.size(0), inner = inner_of(layer.weight);
  const T *own = data<T>(dense), *c = data_or_null<T>(layer.c), *w = data_or_null<T>(layer.w), *b = data_or_null<T>(layer.b);
  const T *means = data<T>(layer.mean), *variances = data<T>(layer.var);
  T *target = mutable_data<T>(folded), *target_bias = mutable_data<T>(moved);
  const T eps = static_cast<T>(layer.eps);
  for_each_output(outputs, inner, [&](int64_t o) {
    const T r = T(1) / std::sqrt(variances[o] + eps), s = w == nullptr ? r : w[o] * r;
    const T shift = (c == nullptr ? T(0) : c[o]) - means[o];
    target_bias[o] = b == nullptr ? s * shift : s * shift + b[o];
    const T column[kKept] = {r, s, shift, means[o], variances[o]};
    for (int64_t k = 0; k < kKept; ++k) rows[k * outputs + o] = column[k];
    for (int64_t k = o * inner; k < (o + 1) * inner; ++k) target[k] = own[k] * s;
  });
}

// W̄, w̄, and c̄ if there is b̄′, behind what was found.
template <class T>
void unfold(const Tensor& weight_bar, const std::optional<Tensor>& bias_bar, const Tensor& weight, const T* r, Results& results,
            Tensors& found) {
  const Layout layout = layout_of(weight);
  const Tensor dense = in_layout(weight, layout), dense_bar = in_layout(weight_bar, layout);
  const int64_t outputs = weight.size(0), inner = inner_of(weight);
  const Tensor own_bar = results.take_like(weight), scale_bar = results.take_vector(outputs);
  found.insert(found.end(), {own_bar, scale_bar});
  if (bias_bar) found.push_back(results.take_vector(outputs));
  const T *own = data<T>(dense), *bar = data<T>(dense_bar), *b_bar = data_or_null<T>(bias_bar);
  const T *s = r + outputs, *shift = s + outputs;
  T *target = mutable_data<T>(own_bar), *target_scale = mutable_data<T>(scale_bar);
  T* c_bar = b_bar == nullptr ? nullptr : mutable_data<T>(found.back());
  for_each_output(outputs, inner, [&](int64_t o) {
    const T *row = own + o * inner, *row_bar = bar + o * inner;
    T s_bar = dot(row, row_bar, inner);
    if (b_bar != nullptr) {
      s_bar += shift[o] * b_bar[o];
      c_bar[o] = s[o] * b_bar[o];
    }
    target_scale[o] = r[o] * s_bar;
    for (int64_t k = 0; k < inner; ++k) target[o * inner + k] = row_bar[k] * s[o];
  });
}

}  // namespace

Tensors fold_norms(Tensors tensors, std::string given, std::vector<double> eps) {
  const std::vector<Folded> layers = layers_of("fold_norms", tensors, given, eps);
  const Tensor& first = layers[0].weight;
  Results results(2 * layers.size());
  int64_t size = 0;
  for (const Folded& layer : layers) {
    results.plan(layer.weight.numel());
    results.plan(layer.weight.size(0));
    size += kKept * layer.weight.size(0);
  }
  results.allocate(first);
  const Tensor kept = empty_vector(first, size, first.scalar_type());
  Tensors found;
  with_type(first, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* rows = mutable_data<T>(kept);
    for (size_t i = 0; i < layers.size(); ++i) {
      const Tensor& weight = layers[i].weight;
      found.push_back(results.take_like(weight));
      found.push_back(results.take_vector(weight.size(0)));
      fold<T>(layers[i], found[2 * i], found[2 * i + 1], rows);
      rows += kKept * weight.size(0);
    }
  });
  found.push_back(kept);
  return found;
}

Tensors unfold_norms(Tensors weight_bars, Tensors bias_bars, Tensors weights, const Tensor& kept_in, Flags wanted) {
  const char* op = "unfold_norms";
  const auto n_wanted = static_cast<size_t>(std::count(wanted.begin(), wanted.end(), true));
  DATAGRAD_CHECK(!weights.empty() && wanted.size() == weights.size() && n_wanted == weight_bars.size() &&
                     bias_bars.size() <= weight_bars.size(),
                 op, ": needs a weight and a flag for each layer and a weight_bar for each that is wanted, got ", weights.size(),
                 ", ", wanted.size(), " and ", weight_bars.size(), ", and ", bias_bars.size(), " bias_bars");
  int64_t size = 0;
  for (const Tensor& weight : weights) {
    check_weight(op, weight, weights[0]);
    size += kKept * weight.size(0);
  }
  check_alike(op, "kept", kept_in, "weight", weights[0]);
  check_shape(op, "kept", kept_in, IntHeaderOnlyArrayRef(&size, 1));
  const Tensor kept = in_layout(kept_in, Layout::contiguous);
  Results results(weight_bars.size() * 2 + bias_bars.size());
  for (size_t i = 0, next = 0; i < weights.size(); ++i) {
    if (!wanted[i]) continue;
    results.plan(weights[i].numel());
    for (int k = next++ < bias_bars.size() ? 2 : 1; k > 0; --k) results.plan(weights[i].size(0));
  }
  results.allocate(weights[0]);
  Tensors found;
  with_type(weights[0], [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* rows = data<T>(kept);
    size_t next = 0;
    for (size_t i = 0; i < weights.size(); rows += kKept * weights[i].size(0), ++i) {
      if (!wanted[i]) continue;
      const Tensor& weight_bar = weight_bars[next];
      check_alike(op, "weight_bar", weight_bar, "weight", weights[i]);
      check_shape(op, "weight_bar", weight_bar, weights[i].sizes());
      std::optional<Tensor> bias_bar;
      if (next < bias_bars.size()) bias_bar = vector_of(op, "bias_bar", bias_bars[next], weights[i]);
      unfold<T>(weight_bar, bias_bar, weights[i], rows, results, found);
      ++next;
    }
  });
  return found;
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) {
  m.impl("fold_norms", TORCH_BOX(&datagrad::fold_norms));
  m.impl("unfold_norms", TORCH_BOX(&datagrad::unfold_norms));
}
