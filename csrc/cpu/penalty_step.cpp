// The penalty step of a narrow chain on the CPU.
#include <common/chain.h>
#include <cpu/direct_ops.h>
#include <cpu/narrow_step.h>

#include <torch/csrc/stable/library.h>

namespace datagrad {
namespace {

constexpr const char* kOp = "chain_penalty_step";

Tensors contiguous(Tensors tensors) {
  for (Tensor& t : tensors) t = in_layout(t, Layout::contiguous);
  return tensors;
}

// The results: figures, J, and gradients. The figures share one piece of memory, and the gradients of the parameters do: a small
// network notices every piece that malloc looks for.
struct StepResults {
  Tensors figures, gradients, weights, biases;
  Tensor J;
  bool has_x_bar;

  StepResults(const ChainPlan& plan, const Tensor& x, size_t n_figures, const Flags& wanted, bool want_x)
      : biases(plan.params.size(), x), J(empty_matrix(x, x.size(0), plan.width[0])), has_x_bar(want_x) {
    const Tensor numbers = empty_vector(x, static_cast<int64_t>(n_figures), x.scalar_type());
    for (size_t k = 0; k < n_figures; ++k) figures.push_back(part_of(numbers, static_cast<int64_t>(k)));
    if (want_x) gradients.push_back(empty_matrix(x, x.size(0), plan.width[0]));
    Places places(static_cast<int64_t>(wanted.size()), std::numeric_limits<int64_t>::max());
    for (size_t k = 0; k < wanted.size(); ++k) {
      if (wanted[k]) places.add(static_cast<int64_t>(k), plan.params[k].numel());
    }
    if (places.sizes.empty()) return;
    const Tensor memory = empty_vector(x, places.sizes[0], x.scalar_type());
    for (const Link& link : plan.links) {
      if (ChainPlan::wants_weight(link, wanted)) {
        const Tensor& weight = plan.weight(link);
        weights.push_back(part_of(memory, places.of[link.weight].offset, weight.size(0), weight.size(1)));
        gradients.push_back(weights.back());
      }
      if (ChainPlan::wants_bias(link, wanted)) {
        biases[link.bias] = part_of(memory, places.of[link.bias].offset, plan.params[link.bias].numel());
        gradients.push_back(biases[link.bias]);
      }
    }
  }

  Tensors list() const {
    Tensors found = figures;
    found.push_back(J);
    found.insert(found.end(), gradients.begin(), gradients.end());
    return found;
  }
};

template <class T>
void set(const Tensor& scalar, double value) {
  *mutable_data<T>(scalar) = static_cast<T>(value);
}

// total, the mean of the loss of the objective itself if it has one, the mean of each penalty.
template <class T>
void write_figures(const StepObjective<T>& o, const std::vector<double>& sums, int64_t rows, const Tensors& figures) {
  size_t next = 1;
  double total = 0;
  if (o.main != nullptr) {
    const double mean = sums[0] * o.main->share;
    total = o.main_weight * mean;
    set<T>(figures[next++], mean);
  }
  for (size_t k = 0; k < o.weights.size(); ++k) {
    const double mean = sums[1 + k] / static_cast<double>(rows);
    total += o.weights[k] * mean;
    set<T>(figures[next++], mean);
  }
  set<T>(figures[0], total);
}

}  // namespace

Tensors chain_penalty_step(const Tensor& x_in, Tensors params_in, std::optional<Tensor> target, std::string links,
                           std::string loss, std::vector<double> loss_constants, std::string main,
                           std::vector<double> main_constants, double main_weight, std::string penalties,
                           std::vector<double> constants, std::vector<double> weights, Flags wanted, bool want_x) {
  const Tensors params = contiguous(params_in);
  ChainPlan plan(kOp, links, params);
  plan.begin(x_in, kTileRows);
  plan.check_flags(wanted);
  const ScalarType dtype = x_in.scalar_type();
  DATAGRAD_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, kOp, ": x must be float32 or float64, got ",
                 text(dtype), "; run the sweeps of the chain one by one");
  const Tensor x = in_layout(x_in, Layout::contiguous), y = empty_matrix(x, x.size(0), plan.width.back());
  const bool has_main = !main.empty(), same = main == loss && main_constants == loss_constants;
  StepResults results(plan, x, 1 + (has_main ? 1 : 0) + weights.size(), wanted, want_x);
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto head = head_of<T>(kOp, loss, loss_constants, y, target);
    const auto other = has_main && !same ? head_of<T>(kOp, main, main_constants, y, target) : nullptr;
    const auto terms = penalties_of<T>(kOp, penalties, constants);
    DATAGRAD_CHECK(terms.size() == weights.size() && terms.size() == constants.size(), kOp,
                   ": needs a weight and a constant for every penalty, got ", weights.size(), " and ", constants.size(),
                   " for ", terms.size());
    const StepObjective<T> objective{head.get(), has_main ? (same ? head.get() : other.get()) : nullptr, main_weight, terms,
                                     weights};
    const StepRows<T> at{data<T>(x), mutable_data<T>(y), mutable_data<T>(results.J),
                         want_x ? mutable_data<T>(results.gradients[0]) : nullptr};
    Sums<T> sums(plan, wanted, results.weights, true, results.biases);
    const std::vector<double> found = NarrowStep<T>(plan, x.size(0), objective, at, wanted).run(sums);
    write_figures(objective, found, x.size(0), results.figures);
  };
  dtype == ScalarType::Float ? run(Tag<float>{}) : run(Tag<double>{});
  return results.list();
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) { m.impl("chain_penalty_step", TORCH_BOX(&datagrad::chain_penalty_step)); }
