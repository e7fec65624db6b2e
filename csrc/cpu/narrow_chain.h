// The four sweeps of a chain whose weights stay in a core's cache: a tile of rows walks through all links of a sweep, and the
// threads share out the tiles. Ops, letters and places as in common/chain_plan.h.
//
// Sums over rows (gradients of parameters) are taken block by block of rows, added in the order of the blocks: the blocks are
// fixed by the number of rows, so that the result does not depend on the number of threads.
#pragma once

#include <common/chain_plan.h>
#include <common/parallel.h>
#include <cpu/activation_loops.h>
#include <cpu/bits.h>
#include <cpu/small_products.h>

namespace datagrad {
namespace {

constexpr int64_t kNarrow = 128;    // widths up to here
constexpr int64_t kTileRows = 64;   // a multiple of 8: the bits of a tile begin at a byte
constexpr int64_t kFewRows = 4;     // up to here a product with a transposed weight takes no transposed copy
constexpr int64_t kRun = 1024;      // elements whose mask is unpacked at once

inline bool is_narrow(const ChainPlan& plan) {
  for (const int64_t width : plan.width) {
    if (width > kNarrow) return false;
  }
  for (const Tensor& parameter : plan.params) {
    if (!parameter.is_contiguous()) return false;
  }
  return true;
}

template <class T>
class NarrowChain {
 public:
  using Kind = Link::Kind;

  NarrowChain(const ChainPlan& plan, const Tensors& saved)
      : p_(plan),
        values_(pointers(saved, 1, plan.values)),
        bits_(mutable_data<uint8_t>(saved[0])),
        widest_(*std::max_element(plan.width.begin(), plan.width.end())),
        loops_(plan.size()) {
    for (int64_t i = 0; i < p_.size(); ++i) {
      const Link& link = p_.links[i];
      if (link.kind == Kind::smooth) loops_[i] = loops_of<T>(p_.op, link.name, link.constants);
    }
  }

  void forward(const Tensor& x, const Tensor& y) const {
    const T* x_data = data<T>(x);
    T* y_data = mutable_data<T>(y);
    const Factors turned = transposed_weights();
    for_each_tile([&](const Rows& rows, Scratch&) {
      const T* h = x_data + rows.first * p_.width[0];
      for (int64_t i = 0; i < p_.size(); ++i) {
        const Link& link = p_.links[i];
        const Place place = i < p_.last() ? p_.values.of[i + 1] : Place();
        T* out = at(place ? in(values_, place) : y_data, rows, i + 1);
        if (link.kind == Kind::linear) {
          times_transposed(i, turned, h, bias_behind(i), out, rows);
        } else if (link.bias < 0 || is_added_before(i)) {
          activate(i, h, out, rows);
        } else {
          add_bias(link, h, out, rows, i);
          activate(i, out, out, rows);
        }
        h = out;
      }
    });
  }

  void data_vjp(const Tensor& top, const Tensors& found) const {
    const T* top_data = data<T>(top);
    const std::vector<T*> record = pointers(found, 1, p_.cotangents);
    T* J_data = mutable_data<T>(found[0]);
    const Factors weights = plain_weights();
    for_each_tile([&](const Rows& rows, Scratch& scratch) {
      const T* g = at(top_data, rows, p_.size());
      for (int64_t i = p_.last(); i >= 0; --i) {
        T* out = at(i == 0 ? J_data : in(record, p_.cotangents.of[i - 1]), rows, i);
        if (p_.links[i].kind == Kind::linear) {
          times(i, weights, g, out, rows);
        } else {
          gate(i, g, out, rows, scratch);
        }
        g = out;
      }
    });
  }

  void data_jvp(const Tensor& v, const Tensors& record, const Flags& wanted, const Tensor* y_tangent, bool keep,
                const Places& places, const Tensors& kept, const Tensors& sums, bool fresh) const {
    const Cotangents delta(p_, record, 0);
    const int64_t end = p_.tangent_end(wanted, y_tangent != nullptr);
    const T* v_data = data<T>(v);
    const std::vector<T*> kept_data = pointers(kept, 0, places);
    T* y_data = y_tangent == nullptr ? nullptr : mutable_data<T>(*y_tangent);
    const Factors turned = transposed_weights();
    Sums total(p_, keep ? Flags(wanted.size(), false) : wanted, sums, fresh, {});
    const Ahead ahead = total.ahead(false);
    for_each_block(total, [&](const Rows& rows, Part& part, Scratch& scratch) {
      const T* t = v_data + rows.first * p_.width[0];
      for (int64_t i = 0; i < end; ++i) {
        fetch_ahead(ahead, i, rows, [&](int64_t k, const Rows& there) {
          small::fetch(delta.at(k, there), there.count * p_.width[k + 1]);
        });
        part.add_outer(p_, i, delta.at(i, rows), t, rows, scratch);
        const bool last = i + 1 == end;
        if (last && y_data == nullptr) break;
        const Place place = last ? Place() : places.of[i + 1];
        T* out = last ? at(y_data, rows, i + 1) : place ? at(in(kept_data, place), rows, i + 1) : scratch.other(t);
        if (p_.links[i].kind == Kind::linear) {
          times_transposed(i, turned, t, nullptr, out, rows);
        } else {
          gate(i, t, out, rows, scratch);
        }
        t = out;
      }
    });
  }

  template <class Pairs>
  void reverse(const std::optional<Tensor>& cotangent, const Pairs& pairs, bool keep, const Tensor& x, const Flags& wanted,
               const Tensor* x_bar, const Tensors& sums, bool fresh, const Tensors& biases) const {
    std::vector<Cotangents> deltas;
    std::vector<Tangents> tangents;
    for (size_t pair = 0; pair < pairs.count; ++pair) {
      deltas.emplace_back(p_, pairs.records, pair * p_.record_size());
      tangents.emplace_back(p_, pairs.tangents, pair * (1 + pairs.places.sizes.size()), pairs.places);
    }
    const int64_t stop = x_bar != nullptr ? 0 : p_.first_wanted(wanted);
    const T *x_data = data<T>(x), *top = cotangent ? data<T>(*cotangent) : nullptr;
    T* x_bar_data = x_bar == nullptr ? nullptr : mutable_data<T>(*x_bar);
    const Factors weights = plain_weights();
    Sums total(p_, wanted, sums, fresh, biases);
    const Ahead ahead = total.ahead(true);
    const auto input = [&](int64_t i, const Rows& rows) { return at(i == 0 ? x_data : in(values_, p_.values.of[i]), rows, i); };
    for_each_block(total, [&](const Rows& rows, Part& part, Scratch& scratch) {
      const T* zeta = top == nullptr ? nullptr : at(top, rows, p_.size());
      for (int64_t i = p_.last(); i >= stop; --i) {
        const bool last = i == stop;
        if (p_.links[i].kind == Kind::linear) {
          if (zeta != nullptr) {
            fetch_ahead(ahead, i, rows, [&](int64_t k, const Rows& there) {
              small::fetch(input(k, there), there.count * p_.width[k]);
            });
            part.add_rows(p_, i, zeta, rows);
            part.add_outer(p_, i, zeta, input(i, rows), rows, scratch);
          }
          for (size_t k = 0; keep && k < deltas.size(); ++k) {
            part.add_outer(p_, i, deltas[k].at(i, rows), tangents[k].at(i, rows), rows, scratch);
          }
          if (zeta == nullptr || (last && x_bar == nullptr)) continue;
          T* out = last ? at(x_bar_data, rows, 0) : scratch.other(zeta);
          times(i, weights, zeta, out, rows);
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
    });
  }

 private:
  struct Rows {
    int64_t first, count;
  };

  // Where the buffers of `places` begin; they are the list's from `first` on.
  static std::vector<T*> pointers(const Tensors& list, size_t first, const Places& places) {
    std::vector<T*> found;
    for (size_t i = 0; i < places.sizes.size(); ++i) found.push_back(mutable_data<T>(list[first + i]));
    return found;
  }

  static T* in(const std::vector<T*>& buffers, const Place& place) { return buffers[place.buffer] + place.offset; }

  // Two buffers of a tile for what flows, two more for the operands of a smooth link, and the tail of one.
  class Scratch {
   public:
    Scratch(int64_t rows, int64_t widest) : size_(rows * widest) {
      const size_t total = 4 * size_ + rows * small::kLanes<T>;
      thread_local std::vector<T> memory;
      if (memory.size() < total) memory.resize(total);
      memory_ = memory.data();
    }

    // A buffer to write while `flow` is read: itself if it is one of the two, or the other one.
    T* same(const T* flow) { return flow == memory_ + size_ ? memory_ + size_ : memory_; }
    T* other(const T* flow) { return flow == memory_ ? memory_ + size_ : memory_; }
    T* operand(int64_t which) { return memory_ + (2 + which) * size_; }
    T* tail() { return operand(2); }

   private:
    int64_t size_;
    T* memory_;
  };

  // The cotangents of sweep 2: of the output of link i.
  class Cotangents {
   public:
    Cotangents(const ChainPlan& plan, const Tensors& record, size_t first)
        : p_(&plan), top_(data<T>(record[first])), buffers_(pointers(record, first + 1, plan.cotangents)) {}

    const T* at(int64_t i, const Rows& rows) const {
      const T* matrix = i == p_->last() ? top_ : in(buffers_, p_->cotangents.of[i]);
      return matrix + rows.first * p_->width[i + 1];
    }

   private:
    const ChainPlan* p_;
    const T* top_;
    std::vector<T*> buffers_;
  };

  // The tangents that sweep 3 kept: of the input of link i.
  class Tangents {
   public:
    Tangents(const ChainPlan& plan, const Tensors& kept, size_t first, const Places& places)
        : p_(&plan), places_(&places), v_(data<T>(kept[first])), buffers_(pointers(kept, first + 1, places)) {}

    const T* at(int64_t i, const Rows& rows) const {
      return (i == 0 ? v_ : in(buffers_, places_->of[i])) + rows.first * p_->width[i];
    }

   private:
    const ChainPlan* p_;
    const Places* places_;
    const T* v_;
    std::vector<T*> buffers_;
  };

  // Gradients of parameters. A part has those of one block of rows: the tensors themselves if there is but one block.
  struct Part {
    std::vector<T*> weight, bias;           // by link; null: not asked for
    std::vector<char> has_weight, has_bias;  // whether there is something to add to

    void add_outer(const ChainPlan& p, int64_t i, const T* g, const T* h, const Rows& rows, Scratch& scratch) {
      if (weight[i] == nullptr) return;
      const int64_t out = p.width[i + 1], in = p.width[i];
      const small::Right<T> right = small::with_tail(h, rows.count, in, scratch.tail());
      const small::Plus<T> sum{has_weight[i] != 0 ? weight[i] : nullptr, in};
      small::product(small::Strided<T>{g, 1, out}, right, sum, weight[i], out, in, rows.count);
      has_weight[i] = 1;
    }

    void add_rows(const ChainPlan& p, int64_t i, const T* g, const Rows& rows) {
      if (bias[i] == nullptr) return;
      const int64_t columns = p.width[i + 1];
      if (!has_bias[i]) std::fill_n(bias[i], columns, T(0));
      has_bias[i] = 1;
      for (int64_t r = 0; r < rows.count; ++r) {
        for (int64_t c = 0; c < columns; ++c) bias[i][c] += g[r * columns + c];
      }
    }
  };

  // For each link with a gradient of its weight, the link with one that a sweep comes to next, perhaps in its next tile.
  struct Ahead {
    std::vector<int64_t> link;  // -1: this one has none
    bool down;                  // the sweep goes from the last link to the first

    bool in_next_tile(int64_t i) const { return down ? link[i] >= i : link[i] <= i; }
  };

  class Sums {
   public:
    // `weights` in the order of the wanted ones, `biases` by parameter; `fresh`: there is nothing in the weights' yet.
    Sums(const ChainPlan& plan, const Flags& wanted, const Tensors& weights, bool fresh, const Tensors& biases)
        : p_(plan), total_(empty_part()) {
      const std::vector<size_t> order = p_.order(wanted);
      for (int64_t i = 0; i < p_.size(); ++i) {
        const Link& link = p_.links[i];
        if (ChainPlan::wants_weight(link, wanted)) total_.weight[i] = mutable_data<T>(weights[order[i]]);
        if (!biases.empty() && ChainPlan::wants_bias(link, wanted)) total_.bias[i] = mutable_data<T>(biases[link.bias]);
        total_.has_weight[i] = fresh ? 0 : 1;
      }
    }

    Ahead ahead(bool down) const {
      std::vector<int64_t> visited;
      for (int64_t k = 0; k < p_.size(); ++k) {
        const int64_t i = down ? p_.last() - k : k;
        if (total_.weight[i] != nullptr) visited.push_back(i);
      }
      Ahead found{std::vector<int64_t>(p_.size(), -1), down};
      for (size_t k = 0; k < visited.size(); ++k) found.link[visited[k]] = visited[(k + 1) % visited.size()];
      return found;
    }

    void begin(int64_t blocks) {
      if (blocks == 1) return;
      for (int64_t i = 0; i < p_.size(); ++i) size_ += weights_of(i) + biases_of(i);
      memory_.reset(new T[blocks * size_]);
      for (int64_t block = 0; block < blocks; ++block) {
        Part part = empty_part();
        T* next = memory_.get() + block * size_;
        for (int64_t i = 0; i < p_.size(); ++i) {
          if (total_.weight[i] != nullptr) part.weight[i] = next;
          next += weights_of(i);
          if (total_.bias[i] != nullptr) part.bias[i] = next;
          next += biases_of(i);
        }
        parts_.push_back(std::move(part));
      }
    }

    Part& part(int64_t block) { return parts_.empty() ? total_ : parts_[block]; }

    // Every block leaves the same sums: those that the first one has.
    void end() const {
      if (parts_.empty()) return;
      for (int64_t i = 0; i < p_.size(); ++i) {
        if (parts_[0].has_weight[i]) add_up(&Part::weight, i, weights_of(i), total_.has_weight[i] != 0);
        if (parts_[0].has_bias[i]) add_up(&Part::bias, i, biases_of(i), false);
      }
    }

   private:
    Part empty_part() const {
      const int64_t n = p_.size();
      return {std::vector<T*>(n), std::vector<T*>(n), std::vector<char>(n, 0), std::vector<char>(n, 0)};
    }

    int64_t weights_of(int64_t i) const { return total_.weight[i] == nullptr ? 0 : p_.width[i] * p_.width[i + 1]; }
    int64_t biases_of(int64_t i) const { return total_.bias[i] == nullptr ? 0 : p_.width[i + 1]; }

    void add_up(std::vector<T*> Part::*list, int64_t i, int64_t n, bool add) const {
      T* target = (total_.*list)[i];
      parallel_for(n, kRun, [&](int64_t begin, int64_t end) {
        if (!add) std::fill(target + begin, target + end, T(0));
        for (const Part& part : parts_) {
          const T* source = (part.*list)[i];
          for (int64_t k = begin; k < end; ++k) target[k] += source[k];
        }
      });
    }

    const ChainPlan& p_;
    Part total_;
    std::vector<Part> parts_;
    std::unique_ptr<T[]> memory_;
    int64_t size_ = 0;
  };

  // Calls f(k, rows) for what a sweep reads behind link i: link k, and the rows of this tile or of the next one.
  template <class F>
  void fetch_ahead(const Ahead& ahead, int64_t i, Rows rows, const F& f) const {
    if (ahead.link[i] < 0) return;
    if (ahead.in_next_tile(i)) rows = {rows.first + rows.count, std::min(kTileRows, p_.rows - rows.first - rows.count)};
    f(ahead.link[i], rows);
  }

  // Calls f(rows, scratch) for every tile, or f(rows, part, scratch) where parameters have gradients.
  template <class F>
  void for_each_tile(const F& f) const {
    const Blocks tiles(p_.rows, kTileRows, kTileRows);
    parallel_for(tiles.count(), 2, [&](int64_t first, int64_t last) {
      Scratch scratch(std::min(p_.rows, kTileRows), widest_);
      for (int64_t tile = first; tile < last; ++tile) {
        f(Rows{tiles.begin(tile), tiles.end(tile) - tiles.begin(tile)}, scratch);
      }
    });
  }

  template <class F>
  void for_each_block(Sums& sums, const F& f) const {
    const int64_t size = std::max<int64_t>(128, std::min<int64_t>(p_.rows / 16, 1024));
    const Blocks blocks(p_.rows, size, kTileRows);
    sums.begin(blocks.count());
    parallel_for(blocks.count(), 1, [&](int64_t first, int64_t last) {
      Scratch scratch(std::min(p_.rows, kTileRows), widest_);
      for (int64_t block = first; block < last; ++block) {
        Part& part = sums.part(block);
        for (int64_t row = blocks.begin(block); row < blocks.end(block); row += kTileRows) {
          f(Rows{row, std::min(kTileRows, blocks.end(block) - row)}, part, scratch);
        }
      }
    });
    sums.end();
  }

  // The tile's rows of a matrix of the width of link i's input (of y: i = size).
  template <class P>
  P* at(P* matrix, const Rows& rows, int64_t i) const {
    return matrix + rows.first * p_.width[i];
  }

  // The right factors of a sweep's products, by link.
  struct Factors {
    std::vector<T> memory;
    std::vector<small::Right<T>> of;
  };

  // out = g W, and out = h Wᵀ plus the bias in every row, if there is one
  void times(int64_t i, const Factors& weights, const T* g, T* out, const Rows& rows) const {
    const int64_t in = p_.width[i], depth = p_.width[i + 1];
    small::product(small::Strided<T>{g, depth, 1}, weights.of[i], {}, out, rows.count, in, depth);
  }

  void times_transposed(int64_t i, const Factors& turned, const T* h, const T* bias, T* out, const Rows& rows) const {
    const int64_t depth = p_.width[i], columns = p_.width[i + 1];
    if (!turned.of.empty()) {
      small::product(small::Strided<T>{h, depth, 1}, turned.of[i], {bias, 0}, out, rows.count, columns, depth);
      return;
    }
    for (int64_t r = 0; r < rows.count; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        const T sum = small::dot(h + r * depth, weight(i) + c * depth, depth);
        out[r * columns + c] = bias == nullptr ? sum : sum + bias[c];
      }
    }
  }

  const T* weight(int64_t i) const { return data<T>(p_.weight(p_.links[i])); }

  Factors plain_weights() const {
    Factors found = factors([&](int64_t i) { return small::tail_size<T>(p_.width[i + 1], p_.width[i]); });
    T* next = found.memory.data();
    for (int64_t i = 0; i < p_.size(); ++i) {
      if (p_.links[i].kind != Kind::linear) continue;
      found.of[i] = small::with_tail(weight(i), p_.width[i + 1], p_.width[i], next);
      next += small::tail_size<T>(p_.width[i + 1], p_.width[i]);
    }
    return found;
  }

  // None for few rows.
  Factors transposed_weights() const {
    if (p_.rows <= kFewRows) return {};
    const auto size = [&](int64_t i) { return p_.width[i] * p_.width[i + 1]; };
    const auto tail = [&](int64_t i) { return small::tail_size<T>(p_.width[i], p_.width[i + 1]); };
    Factors found = factors([&](int64_t i) { return size(i) + tail(i); });
    T* next = found.memory.data();
    for (int64_t i = 0; i < p_.size(); ++i) {
      if (p_.links[i].kind != Kind::linear) continue;
      small::transpose(weight(i), p_.width[i + 1], p_.width[i], next);
      found.of[i] = small::with_tail(static_cast<const T*>(next), p_.width[i], p_.width[i + 1], next + size(i));
      next += size(i) + tail(i);
    }
    return found;
  }

  // With memory for `size` elements a linear link.
  template <class Size>
  Factors factors(const Size& size) const {
    int64_t total = 0;
    for (int64_t i = 0; i < p_.size(); ++i) total += p_.links[i].kind == Kind::linear ? size(i) : 0;
    return {std::vector<T>(total), std::vector<small::Right<T>>(p_.size())};
  }

  // Whether the bias of rectifier i is added by the product before it: the rectifier works on that in place.
  bool is_added_before(int64_t i) const {
    const Link& before = p_.links[i - 1];
    return p_.links[i].kind == Kind::relu && before.kind == Kind::linear && before.bias < 0;
  }

  // The bias that the product of linear link i adds.
  const T* bias_behind(int64_t i) const {
    const int64_t bias = p_.links[i < p_.last() && is_added_before(i + 1) ? i + 1 : i].bias;
    return bias < 0 ? nullptr : data<T>(p_.params[bias]);
  }

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
      loops_[i]->value(z, out, n);
      return;
    }
    const Rectifier<T> relu{static_cast<T>(p_.links[i].slope())};
    uint8_t* bits = bits_of(i, rows);
    alignas(64) uint8_t mask[kRun];
    for (int64_t begin = 0; begin < n; begin += kRun) {
      const int64_t count = std::min(kRun, n - begin);
      for (int64_t k = 0; k < count; ++k) mask[k] = relu.bit(z[begin + k]);
      for (int64_t k = count; k % 8 != 0; ++k) mask[k] = 0;
      for (int64_t k = 0; k < count; ++k) out[begin + k] = relu.gate(mask[k] != 0, z[begin + k]);
      pack(mask, count, bits + begin / 8);
    }
  }

  // out = f'(z) g
  void gate(int64_t i, const T* g, T* out, const Rows& rows, Scratch& scratch) const {
    const int64_t n = rows.count * p_.width[i];
    if (p_.links[i].kind == Kind::smooth) {
      loops_[i]->combine(pre_activation(i, rows, scratch.operand(0)), g, nullptr, out, n);
      return;
    }
    const Rectifier<T> relu{static_cast<T>(p_.links[i].slope())};
    const uint8_t* bits = bits_of(i, rows);
    alignas(64) uint8_t mask[kRun];
    for (int64_t begin = 0; begin < n; begin += kRun) {
      const int64_t count = std::min(kRun, n - begin);
      unpack(bits + begin / 8, count, mask);
      for (int64_t k = 0; k < count; ++k) out[begin + k] = relu.gate(mask[k] != 0, g[begin + k]);
    }
  }

  // out = f'(z) ζ + f''(z) Σ t δ; ζ may be null.
  void curve(int64_t i, const T* zeta, const std::vector<Cotangents>& deltas, const std::vector<Tangents>& tangents, T* out,
             const Rows& rows, Scratch& scratch) const {
    const int64_t n = rows.count * p_.width[i];
    T* products = deltas.empty() ? nullptr : scratch.operand(1);
    for (size_t k = 0; k < deltas.size(); ++k) {
      const T *t = tangents[k].at(i, rows), *delta = deltas[k].at(i, rows);
      for (int64_t e = 0; e < n; ++e) products[e] = k == 0 ? t[e] * delta[e] : products[e] + t[e] * delta[e];
    }
    loops_[i]->combine(pre_activation(i, rows, scratch.operand(0)), zeta, products, out, n);
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
  std::vector<T*> values_;
  uint8_t* bits_;
  int64_t widest_;
  std::vector<std::shared_ptr<const Loops<T>>> loops_;
};

}  // namespace
}  // namespace datagrad
