// The penalty step of a narrow chain that norms are folded into, on the CPU: op and letters as in datagrad_ext/ops/folded_step.py.
#include <cpu/direct_ops.h>

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <sstream>

namespace datagrad {
namespace {

constexpr const char* kOp = "folded_penalty_step";

// Parameters of the op, `count` from `first` on, that become W′ and b′, or stay as they are.
struct Part {
  std::string word;  // of a layer with a norm, else "-"
  size_t first, count;

  bool folded() const { return word != "-"; }
  size_t inside() const { return folded() ? 2 : count; }
};

class Parts {
 public:
  Parts(const std::string& links, const std::string& given, const Tensors& params, const Tensors& statistics) {
    std::istringstream words(given);
    size_t layers = 0;
    for (const Link& link : links_of(links).link) {
      if (link.kind == Link::Kind::linear) {
        std::string word;
        DATAGRAD_CHECK(words >> word, kOp, ": '", given, "' must have a word for each linear link of '", links, "'");
        DATAGRAD_CHECK(word == "-" || link.bias >= 0, kOp, ": a linear link with a norm must have a bias, b′");
        add(word, word == "-" ? (link.bias < 0 ? 1 : 2) : word.size());
        layers += word == "-" ? 0 : 1;
      } else if (link.bias >= 0) {
        add("-", 1);
      }
    }
    DATAGRAD_CHECK(size_ == params.size() && 2 * layers == statistics.size(), kOp, ": the chain has ", size_, " parameters and ",
                   2 * layers, " statistics, got ", params.size(), " and ", statistics.size());
  }

  auto begin() const { return parts_.begin(); }
  auto end() const { return parts_.end(); }

 private:
  void add(const std::string& word, size_t count) {
    parts_.push_back({word, size_, count});
    size_ += count;
  }

  std::vector<Part> parts_;
  size_t size_ = 0;
};

template <class List>
void append(List& to, const List& from, size_t first, size_t count) {
  to.insert(to.end(), from.begin() + first, from.begin() + first + count);
}

bool wants(const Flags& wanted, const Part& part) {
  const auto first = wanted.begin() + part.first;
  return std::find(first, first + part.count, true) != first + part.count;
}

// W′ and b′ of each layer with a norm, and `kept`.
Tensors fold(const Parts& parts, const Tensors& params, const Tensors& statistics, const std::vector<double>& eps) {
  Tensors tensors;
  std::string words;
  size_t next = 0;
  for (const Part& part : parts) {
    if (!part.folded()) continue;
    append(tensors, params, part.first, part.count);
    append(tensors, statistics, next, 2);
    words += part.word + " ";
    next += 2;
  }
  return fold_norms(tensors, words, eps);
}

// Of each wanted layer with a norm W̄, w̄, c̄; `bars`: gradients of the wanted parameters inside.
Tensors unfold(const Parts& parts, const Tensors& params, const Flags& wanted, const Tensor* bars, const Tensor& kept) {
  Tensors weight_bars, bias_bars, weights;
  Flags flags;
  for (const Part& part : parts) {
    if (!part.folded()) {
      bars += std::count(wanted.begin() + part.first, wanted.begin() + part.first + part.count, true);
      continue;
    }
    weights.push_back(params[part.first]);
    flags.push_back(wants(wanted, part));
    if (!flags.back()) continue;
    weight_bars.push_back(*bars++);
    bias_bars.push_back(*bars++);
  }
  return unfold_norms(weight_bars, bias_bars, weights, kept, flags);
}

}  // namespace

Tensors folded_penalty_step(const Tensor& x, Tensors params, Tensors statistics, std::string given, std::vector<double> eps,
                            std::optional<Tensor> target, std::string links, std::string loss, std::vector<double> loss_constants,
                            std::string main, std::vector<double> main_constants, double main_weight, std::string penalties,
                            std::vector<double> constants, std::vector<double> weights, Flags wanted, bool want_x) {
  const Parts parts(links, given, params, statistics);
  DATAGRAD_CHECK(wanted.size() == params.size(), kOp, ": the chain has ", params.size(), " flags, got ", wanted.size());
  const Tensors folded = fold(parts, params, statistics, eps);
  Tensors inside;
  Flags flags;
  size_t next = 0;
  for (const Part& part : parts) {
    if (part.folded()) {
      append(inside, folded, next, 2);
      flags.insert(flags.end(), 2, wants(wanted, part));
      next += 2;
    } else {
      append(inside, params, part.first, part.count);
      append(flags, wanted, part.first, part.count);
    }
  }
  const Tensors step = chain_penalty_step(x, inside, target, links, loss, loss_constants, main, main_constants, main_weight,
                                          penalties, constants, weights, flags, want_x);
  const size_t figures = step.size() - std::count(flags.begin(), flags.end(), true);
  const Tensor* bars = step.data() + figures;
  const Tensors unfolded = unfold(parts, params, wanted, bars, folded.back());
  Tensors found(step.begin(), step.begin() + figures);
  const Tensor* own = unfolded.data();
  for (const Part& part : parts) {
    if (!part.folded()) {
      for (size_t k = part.first; k < part.first + part.count; ++k) {
        if (wanted[k]) found.push_back(*bars++);
      }
    } else if (wants(wanted, part)) {
      for (size_t k = 0; k < part.count; ++k) {
        if (!wanted[part.first + k]) continue;
        const char letter = part.word[k];
        found.push_back(letter == 'W' ? own[0] : letter == 'w' ? own[1] : letter == 'c' ? own[2] : bars[1]);
      }
      own += 3;
      bars += 2;
    }
  }
  found.push_back(folded.back());
  return found;
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) { m.impl("folded_penalty_step", TORCH_BOX(&datagrad::folded_penalty_step)); }
