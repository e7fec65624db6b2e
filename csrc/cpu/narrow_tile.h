// The four sweeps of a chain whose weights stay in a core's cache, over one tile of rows: it walks through all links of a sweep.
// Letters and places as in common/chain_plan.h.
#pragma once

#include <cpu/activation_loops.h>
#include <cpu/narrow_sums.h>
#include <cpu/rectifier.h>

namespace datagrad {
namespace {

constexpr int64_t kTileRows = 64;  // a multiple of 8: the bits of a tile begin at a byte
constexpr int64_t kFewRows = 4;    // up to here a product with a transposed weight takes no transposed copy

template <class T>
T* in(const std::vector<T*>& buffers, const Place& place) {
  return buffers[place.buffer] + place.offset;
}

// Where the buffers of `places` begin; they are the list's from `first` on.
template <class T>
std::vector<T*> pointers(const Tensors& list, size_t first, const Places& places) {
  std::vector<T*> found;
  for (size_t i = 0; i < places.sizes.size(); ++i) found.push_back(mutable_data<T>(list[first + i]));
  return found;
}

// Two buffers of a tile for what flows, and two more for the operands of a smooth link. Memory of the thread.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size) : size_(size), memory_(thread_memory<Scratch, T>(4 * size)) {}

  // A buffer to write while `flow` is read: itself if it is one of the two, or the other one.
  T* same(const T* flow) { return flow == memory_ + size_ ? memory_ + size_ : memory_; }
  T* other(const T* flow) { return flow == memory_ ? memory_ + size_ : memory_; }
  T* operand(int64_t which) { return memory_ + (2 + which) * size_; }

 private:
  int64_t size_;
  T* memory_;
};

// The cotangents of sweep 2: of the output of link i. `top`: that of y.
template <class T>
struct Cotangents {
  const ChainPlan& p;
  const T* top;
  std::vector<T*> buffers;

  const T* at(int64_t i, const Rows& rows) const {
    return (i == p.last() ? top : in(buffers, p.cotangents.of[i])) + rows.first * p.width[i + 1];
  }
};

// The tangents that sweep 3 keeps in `places`: of the input of link i. `v`: that of x.
template <class T>
struct Tangents {
  const ChainPlan& p;
  const Places& places;
  const T* v;
  std::vector<T*> buffers;

  const T* at(int64_t i, const Rows& rows) const {
    return (i == 0 ? v : in(buffers, places.of[i])) + rows.first * p.width[i];
  }
};

// What a sweep needs of the links besides their parameters: the loops of smooth ones, and the weights transposed, one after the
// other, in memory of the thread; null for a few rows, or where nothing is multiplied by them.
template <class T>
struct NarrowLinks {
  std::vector<std::shared_ptr<const Loops<T>>> loops;
  T* turned = nullptr;

  explicit NarrowLinks(const ChainPlan& p, int64_t rows_that_need_turned = 0) : loops(p.size()) {
    for (int64_t i = 0; i < p.size(); ++i) {
      const Link& link = p.links[i];
      if (link.kind == Link::Kind::smooth) loops[i] = loops_of<T>(p.op, link.name, link.constants);
    }
    if (rows_that_need_turned <= kFewRows) return;
    turned = thread_memory<NarrowLinks, T>(place(p, p.size()));
    for (int64_t i = 0; i < p.size(); ++i) {
      const Link& link = p.links[i];
      if (link.kind != Link::Kind::linear) continue;
      small::transpose(data<T>(p.weight(link)), p.width[i + 1], p.width[i], turned + place(p, i));
    }
  }

  // Where the transposed weight of link i lies.
  static int64_t place(const ChainPlan& p, int64_t i) {
    int64_t found = 0;
    for (int64_t k = 0; k < i; ++k) found += p.links[k].kind == Link::Kind::linear ? p.width[k] * p.width[k + 1] : 0;
    return found;
  }
};

template <class T>
class NarrowTile {
 public:
  using Kind = Link::Kind;

  // `values`, `bits`: what sweep 1 saves.
  NarrowTile(const ChainPlan& plan, const NarrowLinks<T>& links, std::vector<T*> values, uint8_t* bits)
      : p_(plan), links_(links), values_(std::move(values)), bits_(bits) {}

  void forward(const Rows& rows, const T* x, T* y) const {
    const T* h = at(x, rows, 0);
    for (int64_t i = 0; i < p_.size(); ++i) {
      const Link& link = p_.links[i];
      const Place place = i < p_.last() ? p_.values.of[i + 1] : Place();
      T* out = at(place ? in(values_, place) : y, rows, i + 1);
      if (link.kind == Kind::linear) {
        times_transposed(i, h, out, rows);
        add_bias(link, out, out, rows, i + 1);
      } else {
        add_bias(link, h, out, rows, i);
        activate(i, link.bias < 0 ? h : out, out, rows);
      }
      h = out;
    }
  }

  // Fills the buffers of `delta`.
  void data_vjp(const Rows& rows, const Cotangents<T>& delta, T* J, Scratch<T>& scratch) const {
    const T* g = delta.at(p_.last(), rows);
    for (int64_t i = p_.last(); i >= 0; --i) {
      const Place place = i == 0 ? Place() : p_.cotangents.of[i - 1];
      T* out = i == 0 ? at(J, rows, 0) : place ? at(in(delta.buffers, place), rows, i) : scratch.same(g);
      if (p_.links[i].kind == Kind::linear) {
        times(i, g, out, rows);
      } else {
        gate(i, g, out, rows, scratch);
      }
      g = out;
    }
  }

  // Fills the buffers of `kept`, and y's tangent if there is a place for it, up to link `end`; δᵀt goes into the part.
  void data_jvp(const Rows& rows, const Cotangents<T>& delta, const Tangents<T>& kept, int64_t end, T* y_tangent,
                Part<T>& part, Scratch<T>& scratch) const {
    const T* t = kept.at(0, rows);
    for (int64_t i = 0; i < end; ++i) {
      if (part.weight[i] != nullptr) part.add_outer(p_, i, cotangent(i, delta, rows, scratch), t, rows);
      const bool last = i + 1 == end;
      if (last && y_tangent == nullptr) break;
      const Place place = last ? Place() : kept.places.of[i + 1];
      T* out = last ? at(y_tangent, rows, i + 1) : place ? at(in(kept.buffers, place), rows, i + 1) : scratch.other(t);
      if (p_.links[i].kind == Kind::linear) {
        times_transposed(i, t, out, rows);
      } else {
        gate(i, t, out, rows, scratch);
      }
      t = out;
    }
  }

  // From y down to link `stop`, and to x if there is a place for its cotangent; ζᵀh goes into the part.
  void reverse(const Rows& rows, const T* top, const std::vector<Cotangents<T>>& deltas,
               const std::vector<Tangents<T>>& tangents, const T* x, T* x_bar, int64_t stop, Part<T>& part,
               Scratch<T>& scratch) const {
    const T* zeta = top == nullptr ? nullptr : at(top, rows, p_.size());
    for (int64_t i = p_.last(); i >= stop; --i) {
      const bool last = i == stop;
      if (p_.links[i].kind == Kind::linear) {
        if (zeta == nullptr) continue;
        part.add_rows(p_, i, zeta, rows);
        part.add_outer(p_, i, zeta, i == 0 ? at(x, rows, 0) : at(in(values_, p_.values.of[i]), rows, i), rows);
        if (last && x_bar == nullptr) continue;
        T* out = last ? at(x_bar, rows, 0) : scratch.other(zeta);
        times(i, zeta, out, rows);
        zeta = out;
      } else if (p_.links[i].kind == Kind::relu) {
        if (zeta == nullptr) continue;
        T* out = scratch.same(zeta);
        gate(i, zeta, out, rows, scratch);
        zeta = out;
        part.add_rows(p_, i, zeta, rows);
      } else if (zeta != nullptr || !deltas.empty()) {
        T* out = scratch.same(zeta);
        curve(i, zeta, deltas, tangents, out, rows, scratch);
        zeta = out;
        part.add_rows(p_, i, zeta, rows);
      }
    }
  }

 private:
  // The tile's rows of a matrix of the width of link i's input (of y: i = size).
  template <class P>
  P* at(P* matrix, const Rows& rows, int64_t i) const {
    return matrix + rows.first * p_.width[i];
  }

  // That of link i's output; behind a slim head it is computed again.
  const T* cotangent(int64_t i, const Cotangents<T>& delta, const Rows& rows, Scratch<T>& scratch) const {
    if (i == p_.last() || p_.cotangents.of[i]) return delta.at(i, rows);
    T* out = scratch.operand(0);
    times(p_.last(), delta.at(p_.last(), rows), out, rows);
    gate(p_.last() - 1, out, out, rows, scratch);
    return out;
  }

  // out = g W, and out = h Wᵀ
  void times(int64_t i, const T* g, T* out, const Rows& rows) const {
    const int64_t in = p_.width[i], depth = p_.width[i + 1];
    small::product(small::Strided<T>{g, depth, 1}, weight(i), out, rows.count, in, depth, false);
  }

  void times_transposed(int64_t i, const T* h, T* out, const Rows& rows) const {
    const int64_t depth = p_.width[i], columns = p_.width[i + 1];
    if (links_.turned != nullptr) {
      const T* turned = links_.turned + NarrowLinks<T>::place(p_, i);
      small::product(small::Strided<T>{h, depth, 1}, turned, out, rows.count, columns, depth, false);
      return;
    }
    for (int64_t r = 0; r < rows.count; ++r) {
      small::row_times_transposed(h + r * depth, weight(i), out + r * columns, columns, depth);
    }
  }

  const T* weight(int64_t i) const { return data<T>(p_.weight(p_.links[i])); }

  // out = h + bias; without a bias nothing happens. `i` is the link whose input is as wide as h.
  void add_bias(const Link& link, const T* h, T* out, const Rows& rows, int64_t i) const {
    if (link.bias < 0) return;
    const T* bias = data<T>(p_.params[link.bias]);
    const int64_t columns = p_.width[i];
    for (int64_t r = 0; r < rows.count; ++r) {
      for (int64_t c = 0; c < columns; ++c) out[r * columns + c] = h[r * columns + c] + bias[c];
    }
  }

  // out = f(z)
  void activate(int64_t i, const T* z, T* out, const Rows& rows) const {
    const int64_t n = rows.count * p_.width[i];
    if (p_.links[i].kind == Kind::smooth) {
      links_.loops[i]->value(z, out, n);
      return;
    }
    rectify(z, out, n, static_cast<T>(p_.links[i].slope()), bits_of(i, rows));
  }

  // out = f'(z) g
  void gate(int64_t i, const T* g, T* out, const Rows& rows, Scratch<T>& scratch) const {
    const int64_t n = rows.count * p_.width[i];
    if (p_.links[i].kind == Kind::smooth) {
      links_.loops[i]->combine(pre_activation(i, rows, scratch.operand(0)), g, nullptr, out, n);
      return;
    }
    gate_run(g, out, n, static_cast<T>(p_.links[i].slope()), bits_of(i, rows));
  }

  // out = f'(z) ζ + f''(z) Σ t δ; ζ may be null.
  void curve(int64_t i, const T* zeta, const std::vector<Cotangents<T>>& deltas, const std::vector<Tangents<T>>& tangents,
             T* out, const Rows& rows, Scratch<T>& scratch) const {
    const int64_t n = rows.count * p_.width[i];
    T* products = deltas.empty() ? nullptr : scratch.operand(1);
    for (size_t k = 0; k < deltas.size(); ++k) {
      const T *t = tangents[k].at(i, rows), *delta = deltas[k].at(i, rows);
      for (int64_t e = 0; e < n; ++e) products[e] = k == 0 ? t[e] * delta[e] : products[e] + t[e] * delta[e];
    }
    links_.loops[i]->combine(pre_activation(i, rows, scratch.operand(0)), zeta, products, out, n);
  }

  // z of a smooth link, in `buffer` if it has a bias.
  const T* pre_activation(int64_t i, const Rows& rows, T* buffer) const {
    const T* h = at(static_cast<const T*>(in(values_, p_.values.of[i])), rows, i);
    if (p_.links[i].bias < 0) return h;
    add_bias(p_.links[i], h, buffer, rows, i);
    return buffer;
  }

  uint8_t* bits_of(int64_t i, const Rows& rows) const { return bits_ + p_.bits.of[i].offset + rows.first * p_.width[i] / 8; }

  const ChainPlan& p_;
  const NarrowLinks<T>& links_;
  std::vector<T*> values_;
  uint8_t* bits_;
};

}  // namespace
}  // namespace datagrad
