#include <nodes/nodes.h>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/node.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace datagrad {
namespace {

namespace ag = torch::autograd;

constexpr size_t kAnchor = 1;  // which input of the forward node the anchor is

// Tensors that a node keeps.
class Saved {
 public:
  void add(const at::Tensor& t) { saved_.emplace_back(t, false); }
  void add(const TensorList& list) {
    for (const at::Tensor& t : list) add(t);
  }

  // Those in [first, last).
  TensorList unpack(size_t first, size_t last) const {
    TensorList found;
    found.reserve(last - first);
    for (size_t i = first; i < last; ++i) found.push_back(saved_[i].unpack());
    return found;
  }

  size_t size() const { return saved_.size(); }

  void clear() {
    for (ag::SavedVariable& each : saved_) each.reset_data();
  }

 private:
  std::vector<ag::SavedVariable> saved_;
};

// Whether the running backward goes to the node, or captures what flows to it.
bool is_executed(ag::Node* node) {
  if (node == nullptr) return false;
  if (ag::get_current_graph_task_id() < 0) return true;  // called by hand
  const auto* executed = ag::get_current_graph_task_exec_info();
  if (executed->empty()) return true;
  const auto found = executed->find(node);
  return found != executed->end() && found->second.should_execute();
}

// A gradient that is wanted and that nothing flows to is zero, not undefined: its argument is part of the graph.
at::Tensor filled(const at::Tensor& bar, const at::Tensor& like, bool wanted) {
  if (!wanted) return at::Tensor();
  return bar.defined() ? bar : at::zeros_like(like);
}

int64_t bytes_of(const TensorList& list) {
  int64_t bytes = 0;
  for (const at::Tensor& t : list) bytes += static_cast<int64_t>(t.nbytes());
  return bytes;
}

// What the passes of one backward share.
struct Visit {
  Kept kept;
  bool wants_x = false;
  Flags wanted, inside;           // the parameters, and the layer's own
  std::vector<Pair> pairs;
  TensorList sums;                // by the layer's own parameters
  std::vector<TensorList> parts;  // gradients of x and the parameters left by the reference path
};

// A node that keeps tensors. Compiled autograd refuses it, as it would see no more of it than its name.
class Node : public ag::Node {
 public:
  using ag::Node::Node;

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    saved_.clear();
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const override {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false, "compiled autograd was enabled between a forward and its backward, and cannot compile datagrad_ext's nodes of that "
        "forward. Enable it before the forward too, which then takes nodes of Python that it can compile.");
  }

 protected:
  Saved saved_;
};

// A hook of y that is not called where nothing flows to y: the engine would call it with nothing where the anchor alone is reached.
class HookOfOutput : public ag::FunctionPreHook {
 public:
  explicit HookOfOutput(std::unique_ptr<ag::FunctionPreHook> hook) : hook_(std::move(hook)) {}

  ag::variable_list operator()(const ag::variable_list& cotangents) override {
    return cotangents[0].defined() ? (*hook_)(cotangents) : cotangents;
  }

  // Makes `hook` one of these.
  static void wrap(std::unique_ptr<ag::FunctionPreHook>& hook) {
    if (dynamic_cast<HookOfOutput*>(hook.get()) == nullptr) hook = std::make_unique<HookOfOutput>(std::move(hook));
  }

 private:
  std::unique_ptr<ag::FunctionPreHook> hook_;
};

class Forward : public Node {
 public:
  Forward(std::shared_ptr<const Network> network, std::shared_ptr<const Sweeps> sweeps, const at::Tensor& x, const TensorList& params)
      : Node(ag::collect_next_edges(x, params)), network(std::move(network)), sweeps(std::move(sweeps)) {}

  std::string name() const override { return "DataGradForward"; }

  // y without a graph.
  at::Tensor run(const at::Tensor& x, const TensorList& params, const TensorList& given, const Moving& moving) {
    const at::Tensor entered = sweeps->entering(x);
    const TensorList folded = network->folds.empty() ? TensorList() : network->folds.folded(given);
    auto [y, saved] = sweeps->forward(entered, network->folds.inside(params, folded), moving);
    is_as_it_came_ = entered.is_same(x);
    n_folded_ = folded.size();
    saved_.add(x);
    if (!is_as_it_came_) saved_.add(entered);
    saved_.add(params);
    saved_.add(folded);
    saved_.add(saved);
    saved_bytes_ = bytes_of({entered}) + bytes_of(folded) + bytes_of(saved);
    return sweeps->leaving(y, x);
  }

  // What sweep 1 keeps besides parameters.
  int64_t saved_bytes() const { return saved_bytes_; }

  std::vector<std::unique_ptr<ag::FunctionPreHook>>& tensor_pre_hooks() noexcept override {
    auto& hooks = Node::tensor_pre_hooks();
    if (hooks.empty()) return hooks;
    const std::lock_guard<std::mutex> lock(tape_mutex_);
    std::for_each(hooks.begin(), hooks.end(), HookOfOutput::wrap);
    return hooks;
  }

  // A visit of the backward that is running; nothing is wanted of one that does not reach the forward node.
  Visit begin(bool reaches_forward) {
    Visit visit;
    visit.kept = unpack();
    const auto is_wanted = [&](const ag::Edge& edge) { return reaches_forward && is_executed(edge.function.get()); };
    visit.wants_x = is_wanted(next_edge(0));
    for (size_t i = 1; i < num_outputs(); ++i) visit.wanted.push_back(is_wanted(next_edge(i)));
    visit.inside = network->folds.wanted_inside(visit.wanted);
    visit.sums.resize(visit.inside.size());
    return visit;
  }

  // Calls run(visit) with the visit of the backward that is running, and of no other, and keeps it for the forward node if that is
  // reached.
  template <class Run>
  auto meet(const Run& run) {
    const bool reaches_forward = is_executed(this);
    Visit visit = reaches_forward ? take() : begin(false);
    auto found = run(visit);
    if (reaches_forward) {
      const std::lock_guard<std::mutex> lock(tape_mutex_);
      tape_.emplace(ag::get_current_graph_task_id(), std::move(visit));
    }
    return found;
  }

  const std::shared_ptr<const Network> network;
  const std::shared_ptr<const Sweeps> sweeps;

 protected:
  ag::variable_list apply(ag::variable_list&& cotangents) override;

 private:
  Kept unpack() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t inputs = is_as_it_came_ ? 1 : 2, params = inputs + num_outputs() - 1, folds = params + n_folded_;
    const TensorList x = saved_.unpack(0, inputs), folded = saved_.unpack(params, folds);
    Kept kept;
    kept.x = x.front(), kept.entered = x.back();
    kept.params = saved_.unpack(inputs, params);
    if (!folded.empty()) kept.folds = folded.back();
    kept.inside = network->folds.inside(kept.params, folded);
    kept.saved = saved_.unpack(folds, saved_.size());
    return kept;
  }

  // That visit off the tape, or a new one; a thread of its own runs each backward.
  Visit take() {
    {
      const std::lock_guard<std::mutex> lock(tape_mutex_);
      const auto found = tape_.find(ag::get_current_graph_task_id());
      if (found != tape_.end()) return std::move(tape_.extract(found).mapped());
    }
    return begin(true);
  }

  ag::variable_list reverse(Visit& visit, const at::Tensor& zeta);

  bool is_as_it_came_ = true;
  size_t n_folded_ = 0;
  int64_t saved_bytes_ = 0;
  std::mutex tape_mutex_;
  std::map<int, Visit> tape_;
};

class DataGradient : public Node {
 public:
  DataGradient(c10::intrusive_ptr<ag::Node> forward, const at::Tensor& g)
      : Node({ag::Edge(std::move(forward), kAnchor), ag::impl::gradient_edge(g)}) {}

  std::string name() const override { return "DataGradDataGradient"; }

  // J without a graph.
  at::Tensor run(const Visit& visit, const at::Tensor& g) {
    const Sweeps& sweeps = *forward().sweeps;
    const at::Tensor entered = sweeps.cotangent(g);
    auto [J, record] = sweeps.data_vjp(entered, visit.kept);
    is_as_it_came_ = entered.is_same(g);
    saved_.add(g);
    if (!is_as_it_came_) saved_.add(entered);
    saved_.add(record);
    return sweeps.leaving(J, visit.kept.x);
  }

 protected:
  ag::variable_list apply(ag::variable_list&& seeds) override {
    const at::Tensor& seed = seeds[0];
    if (!seed.defined()) return {at::Tensor(), at::Tensor()};
    return forward().meet([&](Visit& visit) -> ag::variable_list { return {at::Tensor(), tangent(visit, seed)}; });
  }

 private:
  Forward& forward() const { return static_cast<Forward&>(*next_edge(0).function); }

  // The tangent of g, undefined if nobody asks for it.
  at::Tensor tangent(Visit& visit, const at::Tensor& seed) {
    TensorList saved;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      saved = saved_.unpack(0, saved_.size());
    }
    const at::Tensor g = saved[0];
    const Reference& reference = forward().network->reference;
    const Sweeps& sweeps = *forward().sweeps;
    if (reference.is_needed({seed}, at::GradMode::is_enabled())) {
      auto [bars, g_bar] = reference.tangent(sweeps, visit.kept, g, seed);
      visit.parts.push_back(std::move(bars));
      return g_bar;
    }
    const bool needed = is_executed(next_edge(1).function.get());
    if (!ag::get_current_graph_task_keep_graph()) release_variables();
    const size_t cotangents = is_as_it_came_ ? 1 : 2;
    const auto rest = saved.begin() + static_cast<int64_t>(cotangents);
    Pair pair;
    pair.record = sweeps.record(saved[cotangents - 1].detach(), TensorList(rest, saved.end()));
    saved.clear();
    const at::Tensor y_tangent = sweeps.data_jvp(sweeps.entering(seed), visit.kept, pair, needed, visit.inside, visit.sums);
    if (sweeps.leaves_pair(visit.inside)) visit.pairs.push_back(std::move(pair));
    return sweeps.leaving(y_tangent, visit.kept.x);
  }

  bool is_as_it_came_ = true;
};

ag::variable_list Forward::apply(ag::variable_list&& cotangents) {
  const at::Tensor& g = cotangents[0];
  Visit visit = take();
  const bool differentiable = at::GradMode::is_enabled();
  if (!visit.parts.empty() || network->reference.is_needed({g}, differentiable && any(visit.wanted))) {
    return network->reference.reverse(*sweeps, visit.kept, visit.parts, visit.wants_x, visit.wanted, g);
  }
  if (!differentiable) return reverse(visit, g);
  ag::variable_list found(num_outputs());
  if (!visit.wants_x) return found;
  if (!g.defined()) {
    found[0] = at::zeros_like(visit.kept.x);
    return found;
  }
  auto node = c10::make_intrusive<DataGradient>(getptr(), g);
  const at::Tensor J = node->run(visit, g);
  ag::set_history(J, node);
  found[0] = J;
  return found;
}

// Sweep 4.
ag::variable_list Forward::reverse(Visit& visit, const at::Tensor& zeta) {
  if (!ag::get_current_graph_task_keep_graph()) release_variables();
  Kept& kept = visit.kept;
  at::Tensor x_bar;
  if ((zeta.defined() || !visit.pairs.empty()) && (visit.wants_x || any(visit.wanted))) {
    x_bar = sweeps->reverse(sweeps->cotangent(zeta), visit.pairs, kept, visit.wants_x, visit.inside, visit.sums);
  }
  ag::variable_list found = network->folds.unfolded(kept.folds, kept.params, visit.sums);
  for (size_t i = 0; i < found.size(); ++i) found[i] = filled(found[i], kept.params[i], visit.wanted[i]);
  found.insert(found.begin(), filled(sweeps->leaving(x_bar, kept.x), kept.x, visit.wants_x));
  return found;
}

}  // namespace

at::Tensor apply(std::shared_ptr<const Network> network, std::shared_ptr<const Sweeps> sweeps, const at::Tensor& x,
                 const TensorList& params, const TensorList& given, const Moving& moving) {
  auto node = c10::make_intrusive<Forward>(std::move(network), std::move(sweeps), x, params);
  const at::Tensor y = node->run(x, params, given, moving);
  ag::set_history(y, node);
  node->add_input_metadata(ag::Node::undefined_input());
  return y;
}

int64_t saved_bytes(const at::Tensor& y) { return dynamic_cast<const Forward&>(*y.grad_fn()).saved_bytes(); }

}  // namespace datagrad
