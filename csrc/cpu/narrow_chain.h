// The ops of a narrow chain: the threads share out the tiles of rows, or the blocks of tiles where parameters have gradients.
#pragma once

#include <cpu/narrow_tile.h>

namespace datagrad {
namespace {

constexpr int64_t kNarrow = 128;  // widths up to here

inline bool is_narrow(const ChainPlan& plan) {
  for (const int64_t width : plan.width) {
    if (width > kNarrow) return false;
  }
  for (const Tensor& parameter : plan.params) {
    if (!parameter.is_contiguous()) return false;
  }
  return true;
}

inline int64_t widest(const ChainPlan& plan) { return *std::max_element(plan.width.begin(), plan.width.end()); }

// Blocks of whole tiles, fixed by the number of rows.
inline Blocks blocks_of(int64_t rows) {
  return Blocks(rows, std::max<int64_t>(128, std::min<int64_t>(rows / 16, 1024)), kTileRows);
}

// Calls f(rows) for the tiles of a block.
template <class F>
void for_each_tile(const Blocks& blocks, int64_t block, const F& f) {
  for (int64_t row = blocks.begin(block); row < blocks.end(block); row += kTileRows) {
    f(Rows{row, std::min(kTileRows, blocks.end(block) - row)});
  }
}

template <class T>
class NarrowChain {
 public:
  NarrowChain(const ChainPlan& plan, const Tensors& saved) : p_(plan), saved_(saved) {}

  void forward(const Tensor& x, const Tensor& y) const {
    const T* x_data = data<T>(x);
    T* y_data = mutable_data<T>(y);
    const NarrowLinks<T> links(p_, p_.rows);
    const NarrowTile<T> tile = tiles(links);
    for_each_tile_of_all([&](const Rows& rows, Scratch<T>&) { tile.forward(rows, x_data, y_data); });
  }

  void data_vjp(const Tensor& top, const Tensors& found) const {
    const Cotangents<T> delta{p_, data<T>(top), pointers<T>(found, 1, p_.cotangents)};
    T* J_data = mutable_data<T>(found[0]);
    const NarrowLinks<T> links(p_);
    const NarrowTile<T> tile = tiles(links);
    for_each_tile_of_all([&](const Rows& rows, Scratch<T>& scratch) { tile.data_vjp(rows, delta, J_data, scratch); });
  }

  void data_jvp(const Tensor& v, const Tensors& record, const Flags& wanted, const Tensor* y_tangent, const Places& places,
                const Tensors& kept, const Tensors& sums, bool fresh) const {
    const Cotangents<T> delta = cotangents(record, 0);
    const Tangents<T> tangents{p_, places, data<T>(v), pointers<T>(kept, 0, places)};
    const int64_t end = p_.tangent_end(wanted, y_tangent != nullptr);
    T* y_data = y_tangent == nullptr ? nullptr : mutable_data<T>(*y_tangent);
    const NarrowLinks<T> links(p_, p_.rows);
    const NarrowTile<T> tile = tiles(links);
    Sums<T> total(p_, wanted, sums, fresh, {});
    for_each_block(total, [&](const Rows& rows, Part<T>& part, Scratch<T>& scratch) {
      tile.data_jvp(rows, delta, tangents, end, y_data, part, scratch);
    });
  }

  template <class Pairs>
  void reverse(const std::optional<Tensor>& cotangent, const Pairs& pairs, const Tensor& x, const Flags& wanted,
               const Tensor* x_bar, const Tensors& sums, bool fresh, const Tensors& biases) const {
    std::vector<Cotangents<T>> deltas;
    std::vector<Tangents<T>> tangents;
    for (size_t pair = 0; pair < pairs.count; ++pair) {
      const size_t first = pair * (1 + pairs.places.sizes.size());
      deltas.push_back(cotangents(pairs.records, pair * p_.record_size()));
      tangents.push_back(
          {p_, pairs.places, data<T>(pairs.tangents[first]), pointers<T>(pairs.tangents, first + 1, pairs.places)});
    }
    const int64_t stop = x_bar != nullptr ? 0 : p_.first_wanted(wanted);
    const T *x_data = data<T>(x), *top = cotangent ? data<T>(*cotangent) : nullptr;
    T* x_bar_data = x_bar == nullptr ? nullptr : mutable_data<T>(*x_bar);
    const NarrowLinks<T> links(p_);
    const NarrowTile<T> tile = tiles(links);
    Sums<T> total(p_, wanted, sums, fresh, biases);
    for_each_block(total, [&](const Rows& rows, Part<T>& part, Scratch<T>& scratch) {
      tile.reverse(rows, top, deltas, tangents, x_data, x_bar_data, stop, part, scratch);
    });
  }

 private:
  NarrowTile<T> tiles(const NarrowLinks<T>& links) const {
    return NarrowTile<T>(p_, links, pointers<T>(saved_, 1, p_.values), mutable_data<uint8_t>(saved_[0]));
  }

  Cotangents<T> cotangents(const Tensors& record, size_t first) const {
    return {p_, data<T>(record[first]), pointers<T>(record, first + 1, p_.cotangents)};
  }

  Scratch<T> scratch() const { return Scratch<T>(std::min(p_.rows, kTileRows) * widest(p_)); }

  // Calls f(rows, scratch) for every tile, or f(rows, part, scratch) where parameters have gradients.
  template <class F>
  void for_each_tile_of_all(const F& f) const {
    const Blocks tiles(p_.rows, kTileRows, kTileRows);
    parallel_for(tiles.count(), 2, [&](int64_t first, int64_t last) {
      Scratch<T> memory = scratch();
      for (int64_t tile = first; tile < last; ++tile) {
        f(Rows{tiles.begin(tile), tiles.end(tile) - tiles.begin(tile)}, memory);
      }
    });
  }

  template <class F>
  void for_each_block(Sums<T>& sums, const F& f) const {
    const Blocks blocks = blocks_of(p_.rows);
    sums.over(blocks.count(), [&](int64_t block, Part<T>& part) {
      Scratch<T> memory = scratch();
      for_each_tile(blocks, block, [&](const Rows& rows) { f(rows, part, memory); });
    });
  }

  const ChainPlan& p_;
  const Tensors& saved_;  // bits, and the buffers of values
};

}  // namespace
}  // namespace datagrad
