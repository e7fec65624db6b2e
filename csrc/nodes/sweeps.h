// The sweeps of a layer that is a whole network, for the nodes: each is one call of an op.
#pragma once

#include <nodes/call.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace datagrad {

// What a network keeps of its forward.
struct Kept {
  at::Tensor x, entered;     // entered: x as the ops read it
  TensorList params;
  at::Tensor folds;          // what the folds keep, if there are any
  TensorList inside, saved;  // the layer's own parameters, and what its forward saved
};

// What sweep 2 leaves for sweep 3, and what both leave for sweep 4.
struct Pair {
  TensorList record, tangents;
};

// What a call tells its forward of running statistics: mean and variance of each norm that updates some, and the momenta.
struct Moving {
  TensorList statistics;
  std::vector<double> momenta;
};

// Tensors are those that the ops read, in the shape and memory format that `entering` and `cotangent` give. Sums are gradients by the
// layer's own parameters, undefined where there is none; `wanted` are flags of the same.
class Sweeps {
 public:
  virtual ~Sweeps() = default;

  // The links, as the ops spell them.
  virtual const std::string& links() const = 0;

  // x or a tangent of it, and a cotangent of y, as the ops read them.
  virtual at::Tensor entering(const at::Tensor& x) const = 0;
  virtual at::Tensor cotangent(const at::Tensor& g) const = 0;
  // What an op returned, y or a gradient of x, as the user of x sees it.
  virtual at::Tensor leaving(const at::Tensor& found, const at::Tensor& x) const = 0;

  // y, and what the other sweeps read.
  virtual std::pair<at::Tensor, TensorList> forward(const at::Tensor& x, const TensorList& params, const Moving& moving) const = 0;

  // J, and the record without g, which `record` makes whole.
  virtual std::pair<at::Tensor, TensorList> data_vjp(const at::Tensor& g, const Kept& kept) const = 0;
  virtual TensorList record(const at::Tensor& g, TensorList rest) const = 0;

  // Whether sweep 3 leaves a pair to sweep 4.
  virtual bool leaves_pair(const Flags& wanted) const = 0;

  // The tangent of y if it is `needed`. Gradients of weights wanted are added to the sums. The pair has a record, and gets what sweep 4
  // reads.
  virtual at::Tensor data_jvp(const at::Tensor& t, const Kept& kept, Pair& pair, bool needed, const Flags& wanted,
                              TensorList& sums) const = 0;

  // The cotangent of x if it is wanted and there is one. Gradients of the parameters wanted are added to the sums. Takes what it reads
  // of the pairs and of `kept`.
  virtual at::Tensor reverse(const at::Tensor& zeta, std::vector<Pair>& pairs, Kept& kept, bool want_x, const Flags& wanted,
                             TensorList& sums) const = 0;

 protected:
  // The first of a list, and the rest.
  static std::pair<at::Tensor, TensorList> apart(TensorList list) {
    at::Tensor first = std::move(list.front());
    list.erase(list.begin());
    return {std::move(first), std::move(list)};
  }

  // All pairs, one after the other.
  static Pair joined(const std::vector<Pair>& pairs) {
    Pair all;
    for (const Pair& pair : pairs) {
      all.record.insert(all.record.end(), pair.record.begin(), pair.record.end());
      all.tangents.insert(all.tangents.end(), pair.tangents.begin(), pair.tangents.end());
    }
    return all;
  }

  // The sums that there are.
  static TensorList known_of(const TensorList& sums) {
    TensorList found;
    for (const at::Tensor& t : sums) {
      if (t.defined()) found.push_back(t);
    }
    return found;
  }

  // Makes those found from `next` on the sums of the parameters that are flagged; behind the last of them.
  static size_t put(const Flags& flagged, const TensorList& found, size_t next, TensorList& sums) {
    for (size_t i = 0; i < flagged.size(); ++i) {
      if (flagged[i]) sums[i] = found[next++];
    }
    return next;
  }

  static std::optional<at::Tensor> optional(const at::Tensor& t) {
    return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
  }
};

}  // namespace datagrad
