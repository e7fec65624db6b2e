// Plans of the fused convolutions: built by number, run by number. Each belongs to one device and one set of operands.
//
// One lock covers cuDNN: a handle may be used by one thread at a time, and not every plan by two. What runs under it is the launch.
// There is one handle a device, whose stream is set at each call: making one allocates, which a capture forbids. A plan is
// freed only by `close`, since a CUDA graph may have recorded its kernels.
#pragma once

#include <cudnn/graphs.h>

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <unordered_map>

namespace datagrad {

constexpr int64_t kWorkspace = int64_t{256} << 20;  // plans that need more are not built

struct Plan {
  FusedConvolution what;
  int device;
  std::shared_ptr<fe::graph::Graph> graph;
  int64_t index, workspace;
};

inline void require_good(fe::error_t error, const char* doing) {
  if (error.is_bad()) throw std::runtime_error(std::string("cuDNN, ") + doing + ": " + error.get_message());
}

// What numbers a user's settings rule out.
struct Rules {
  bool tf32, deterministic;

  std::vector<fe::NumericalNote_t> refused(fe::DataType_t dtype) const {
    std::vector<fe::NumericalNote_t> notes;
    if (deterministic) notes.push_back(fe::NumericalNote_t::NONDETERMINISTIC);
    if (dtype == fe::DataType_t::FLOAT && !tf32) notes.push_back(fe::NumericalNote_t::TENSOR_CORE);
    if (dtype == fe::DataType_t::FLOAT) notes.push_back(fe::NumericalNote_t::DOWN_CONVERT_INPUTS);
    return notes;
  }
};

class Plans {
 public:
  // The first `limit` plans of cuDNN's heuristics that can be built, as numbers; an error if there is none.
  std::vector<int64_t> open(const FusedConvolution& what, const Rules& rules, int device, int64_t limit) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<int64_t> numbers;
    std::string reason = "it has no plan";
    auto graph = prepared(what, rules, handle(device));
    const int64_t count = graph->get_execution_plan_count();
    for (int64_t index = 0; index < count && static_cast<int64_t>(numbers.size()) < limit; ++index) {
      auto status = graph->build_plan_at_index(handle(device), index);
      if (status.is_bad()) {
        reason = status.get_message();
        continue;
      }
      const int64_t workspace = graph->get_workspace_size_plan_at_index(index);
      if (workspace <= kWorkspace) {
        numbers.push_back(next_++);
        plans_.emplace(numbers.back(), std::make_shared<const Plan>(Plan{what, device, graph, index, workspace}));
      }
      graph = prepared(what, rules, handle(device));  // a graph for each plan, so that closing one frees it
    }
    if (numbers.empty()) throw std::runtime_error("cuDNN, building a plan: " + reason);
    return numbers;
  }

  void close(int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    plans_.erase(number);
  }

  std::shared_ptr<const Plan> find(int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = plans_.find(number);
    if (found == plans_.end()) throw std::runtime_error("there is no plan " + std::to_string(number));
    return found->second;
  }

  void run(const Plan& plan, std::unordered_map<int64_t, void*> pack, void* workspace, void* stream) {
    float zero = 0, slope = plan.what.slope;
    if (plan.what.form == Form::select) pack[kZero] = &zero;
    if (plan.what.form == Form::select && slope != 0) pack[kSlope] = &slope;
    const std::lock_guard<std::mutex> lock(mutex_);
    const cudnnHandle_t own = handle(plan.device);
    if (fe::detail::set_stream(own, static_cast<cudaStream_t>(stream)) != CUDNN_STATUS_SUCCESS) {
      throw std::runtime_error("cuDNN does not take the stream");
    }
    require_good(plan.graph->execute_plan_at_index(own, pack, workspace, plan.index), "running a plan");
  }

 private:
  static std::shared_ptr<fe::graph::Graph> prepared(const FusedConvolution& what, const Rules& rules, cudnnHandle_t handle) {
    const auto graph = GraphOf(what).graph();
    require_good(graph->validate(), "reading the graph");
    require_good(graph->build_operation_graph(handle), "building the graph");
    require_good(graph->create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK}), "looking for plans");
    graph->deselect_numeric_notes(rules.refused(what.dtype));
    graph->deselect_workspace_greater_than(kWorkspace);
    return graph;
  }

  // The device is current.
  cudnnHandle_t handle(int device) {
    const auto found = handles_.find(device);
    if (found != handles_.end()) return found->second;
    cudnnHandle_t made = nullptr;
    if (fe::detail::create_handle(&made) != CUDNN_STATUS_SUCCESS) throw std::runtime_error("cuDNN made no handle");
    return handles_[device] = made;
  }

  std::mutex mutex_;
  std::map<int, cudnnHandle_t> handles_;
  std::unordered_map<int64_t, std::shared_ptr<const Plan>> plans_;
  int64_t next_ = 0;
};

}  // namespace datagrad
