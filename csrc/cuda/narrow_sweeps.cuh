// The four sweeps of a narrow chain on 16-bit tensor cores, as one block of warps runs them over its tiles of rows. Letters and
// places as in common/chain_plan.h.
//
// A warp owns a strip of 16 rows in shared memory and takes it through all links: only gradients of parameters, which are
// products over the rows of a tile, need the block and are between barriers. They are added tile by tile to the block's partial
// sums, and then block by block: their order is fixed by the number of rows.
#pragma once

#include <common/grid.h>
#include <cuda/warp_tiles.cuh>
#include <math/activation_groups.h>

namespace datagrad::warp {

constexpr int kMaxLinks = 32, kMaxPairs = 2;
constexpr int64_t kMaxBlocks = std::min<int64_t>(128, DATAGRAD_MOST_BLOCKS);

// What a link reads and writes in one sweep; null or -1: nothing.
template <class T>
struct NarrowLink {
  enum Kind : int8_t { linear, relu, smooth };

  Kind kind = linear;
  int8_t activation = 0;        // of a smooth link: its row in Activations
  int16_t in = 0, out = 0;      // widths
  float constants[2] = {};      // of an activation
  const T* weight = nullptr;    // (out, in)
  const T* bias = nullptr;
  const T* input = nullptr;     // z of a smooth link, and the features of a linear one
  T* result = nullptr;          // where the walk's strip goes behind this link
  uint8_t* bits = nullptr;
  const T *delta[kMaxPairs] = {}, *tangent[kMaxPairs] = {};
  int weight_place = 0;         // in shared memory
  int weight_sum = -1, bias_sum = -1;  // among a block's partial sums
};

template <class T>
struct NarrowJob {
  int64_t rows = 0;
  const T* flow = nullptr;  // what enters the sweep; null: nothing
  float* partials = nullptr;
  int partial_size = 0;  // of a block
  int row = 0;           // between the rows of a strip
  int weights = 0;       // where they begin in shared memory
  int16_t links = 0, begin = 0, end = 0, pairs = 0;  // links [begin, end) are visited
  bool resident = false;  // all weights stay in shared memory; or each is loaded before it is used
  bool down = false;      // from the last link to the first
  bool walks_to_begin = false;  // sweep 4 goes through the link `begin`, too
  NarrowLink<T> link[kMaxLinks];

  static constexpr int weight_size(int in, int out) { return padded(out) * row_of(in); }
};

// The gradient of one parameter, (rows, columns): where it goes and where it lies among a block's partial sums, in padded rows.
template <class T>
struct NarrowTotal {
  T* target = nullptr;
  int place = 0, rows = 0, columns = 0;
  bool add = false;  // to what is there

  // Element k: the sum over blocks, in their order.
  __device__ void finish(const float* partials, int64_t blocks, int64_t size, int k) const {
    const float* source = partials + place + k / columns * padded(columns) + k % columns;
    float sum = add ? static_cast<float>(target[k]) : 0.0f;
    for (int64_t block = 0; block < blocks; ++block) sum += source[block * size];
    target[k] = static_cast<T>(sum);
  }
};

// Where an activation stands among the rows; -1: nowhere.
template <template <class> class... Rows>
int activation_row(ActivationRows<Rows...>, std::string_view name) {
  int found = -1, next = 0;
  ((name == Rows<float>::name ? void(found = next++) : void(++next)), ...);
  return found;
}

// f(the activation in that row), in arithmetic of A.
template <class A, class F, template <class> class... Rows>
__device__ void visit_activation_row(ActivationRows<Rows...>, int index, const float* constants, const F& f) {
  const double c[2] = {constants[0], constants[1]};
  int row = 0;
  ((row++ == index ? f(Rows<A>(c)) : void()), ...);
}

// The rows of a strip that there are: elements [0, count) of a matrix in global memory whose first is aligned as the matrix.
template <class T>
class Strip {
 public:
  __device__ Strip(int lane, Matrix<T> memory, int64_t first_row, int64_t rows)
      : lane_(lane), memory_(memory), first_(first_row), rows_(static_cast<int>(rows < 0 ? 0 : at_most(rows, kStrip))) {}

  __device__ Matrix<T> matrix() const { return memory_; }

  // f(first, count, values) for groups of eight of the elements of a matrix of this width, where f changes `values`; `first` is an
  // element of the whole matrix, a multiple of eight. `reads`, `writes`: the strip.
  template <class F>
  __device__ void map(int width, bool reads, bool writes, const F& f) const {
    const int count = rows_ * width;
    for (int first = lane_ * kGroup; first < count; first += kLanes * kGroup) {
      float values[kGroup] = {};
      const int n = count - first < kGroup ? count - first : kGroup;
      if (reads) move(first, n, width, values, false);
      f(first_ * width + first, n, values);
      if (writes) move(first, n, width, values, true);
    }
    __syncwarp();
  }

  __device__ void load(const T* source, int width) const {
    clear(width);
    map(width, false, true, [&](int64_t first, int n, float* values) { load_group(source, first, n, is_aligned_16(source), values); });
  }

  __device__ void store(T* target, int width) const {
    if (target == nullptr) return;
    map(width, true, false, [&](int64_t first, int n, float* values) { store_group(target, first, n, is_aligned_16(target), values); });
  }

  // Zeros, in all rows and up to the padded width.
  __device__ void clear(int width) const {
    for (int k = lane_; k < kStrip * padded(width); k += kLanes) *memory_.at(k / padded(width), k % padded(width)) = T(0.0f);
    __syncwarp();
  }

 private:
  __device__ void move(int first, int n, int width, float* values, bool out) const {
    int row = first / width, column = first % width;
    if (width % kGroup == 0) {
      T* group = memory_.at(row, column);
      if (out) {
        store_group(group, 0, kGroup, true, values);
      } else {
        load_group(group, 0, kGroup, true, values);
      }
      return;
    }
    for (int k = 0; k < n; ++k) {
      T* element = memory_.at(row, column);
      if (out) {
        *element = static_cast<T>(values[k]);
      } else {
        values[k] = static_cast<float>(*element);
      }
      if (++column == width) column = 0, ++row;
    }
  }

  int lane_;
  Matrix<T> memory_;
  int64_t first_;
  int rows_;
};

// z = x + bias of a group of a matrix (rows, width).
template <class T>
__device__ void add_bias(const T* bias, int64_t first, int n, int width, float* z) {
  if (bias == nullptr) return;
  int column = static_cast<int>(first % width);
  for (int k = 0; k < n; ++k) {
    z[k] += static_cast<float>(bias[column]);
    if (++column == width) column = 0;
  }
}

// The strip's values through an activation, z = strip + bias.
template <class T>
__device__ void activate(const Strip<T>& strip, const NarrowLink<T>& link) {
  if (link.kind == NarrowLink<T>::relu) {
    const Rectifier<float> relu{link.constants[0]};
    strip.map(link.in, true, true, [&](int64_t first, int n, float* z) {
      add_bias(link.bias, first, n, link.in, z);
      unsigned octet = 0;
      for (int k = 0; k < n; ++k) {
        const bool bit = relu.bit(z[k]);
        octet |= (bit ? 1u : 0u) << k;
        z[k] = relu.gate(bit, z[k]);
      }
      link.bits[first / 8] = static_cast<uint8_t>(octet);
    });
    return;
  }
  visit_activation_row<float>(Activations(), link.activation, link.constants, [&](const auto& activation) {
    strip.map(link.in, true, true, [&](int64_t first, int n, float* z) {
      add_bias(link.bias, first, n, link.in, z);
      for (int k = 0; k < n; ++k) z[k] = activation.f(z[k]);
    });
  });
}

// strip = f'(z) strip + f''(z) Σ t δ, over `pairs` of them.
template <class T>
__device__ void gate(const Strip<T>& strip, const NarrowLink<T>& link, int pairs) {
  if (link.kind == NarrowLink<T>::relu) {
    const Rectifier<float> relu{link.constants[0]};
    strip.map(link.in, true, true, [&](int64_t first, int n, float* g) {
      const unsigned octet = link.bits[first / 8];
      for (int k = 0; k < n; ++k) g[k] = relu.gate((octet >> k) & 1u, g[k]);
    });
    return;
  }
  visit_activation_row<float>(Activations(), link.activation, link.constants, [&](const auto& activation) {
    strip.map(link.in, true, true, [&](int64_t first, int n, float* g) {
      float z[kGroup], products[kGroup] = {}, t[kGroup], delta[kGroup];
      load_group(link.input, first, n, is_aligned_16(link.input), z);
      add_bias(link.bias, first, n, link.in, z);
      for (int k = 0; k < n; ++k) g[k] *= activation.first(z[k]);
      for (int pair = 0; pair < pairs; ++pair) {
        load_group(link.tangent[pair], first, n, is_aligned_16(link.tangent[pair]), t);
        load_group(link.delta[pair], first, n, is_aligned_16(link.delta[pair]), delta);
        for (int k = 0; k < n; ++k) products[k] += t[k] * delta[k];
      }
      if (pairs == 0) return;
      for (int k = 0; k < n; ++k) g[k] += activation.second(z[k]) * products[k];
    });
  });
}

// The block and the place in it of the thread that asks.
struct Position {
  int64_t block = blockIdx.x, blocks = gridDim.x;
  int warps = static_cast<int>(blockDim.x) / kLanes;
  int warp = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
};

// The walk of one block over its tiles: `here` is the strip that flows, `there` the one a product writes, `other` a third.
template <class T>
class NarrowWalk {
 public:
  using Kind = NarrowLink<T>;

  __device__ explicit NarrowWalk(const NarrowJob<T>& job) : job_(job) {}

  __device__ void forward() {
    run([&] {
      enter();
      for (int i = job_.begin; i < job_.end; ++i) {
        const NarrowLink<T>& link = job_.link[i];
        if (link.kind == Kind::linear) {
          multiply<true>(i, link.bias);
        } else {
          activate(strip(here_), link);
        }
        leave(link.result, link.out);
      }
    });
  }

  __device__ void data_vjp() {
    run([&] {
      enter();
      for (int i = job_.end - 1; i >= job_.begin; --i) {
        const NarrowLink<T>& link = job_.link[i];
        if (link.kind == Kind::linear) {
          multiply<false>(i, nullptr);
        } else {
          gate(strip(here_), link, 0);
        }
        leave(link.result, link.in);
      }
    });
  }

  __device__ void data_jvp() {
    run([&] {
      enter();
      for (int i = job_.begin; i < job_.end; ++i) {
        const NarrowLink<T>& link = job_.link[i];
        if (link.weight_sum >= 0) {
          strip(other_).load(link.delta[0], link.out);
          outer(link, other_, here_);
        }
        if (i + 1 == job_.end && link.result == nullptr) break;
        if (link.kind == Kind::linear) {
          multiply<true>(i, nullptr);
        } else {
          gate(strip(here_), link, 0);
        }
        leave(link.result, link.out);
      }
    });
  }

  __device__ void reverse() {
    run([&] {
      bool flows = job_.flow != nullptr;
      if (flows) enter();
      for (int i = job_.end - 1; i >= job_.begin; --i) {
        const NarrowLink<T>& link = job_.link[i];
        if (link.kind == Kind::linear) {
          if (!flows) continue;
          add_bias_gradient(link, link.out);
          if (link.weight_sum >= 0) {
            strip(other_).load(link.input, link.in);
            outer(link, here_, other_);
          }
          if (i == job_.begin && !job_.walks_to_begin) continue;
          multiply<false>(i, nullptr);
          leave(link.result, link.in);
          continue;
        }
        const int pairs = link.kind == Kind::smooth ? job_.pairs : 0;
        if (!flows && pairs == 0) continue;
        if (!flows) strip(here_).clear(link.in);
        gate(strip(here_), link, pairs);
        flows = true;
        add_bias_gradient(link, link.in);
      }
    });
  }

 private:
  template <class F>
  __device__ void run(const F& tile) {
    if (job_.resident) {
      for (int i = job_.begin; i < job_.end; ++i) {
        if (job_.link[i].kind == Kind::linear) load_weight(job_.link[i]);
      }
    }
    for_elements(job_.partial_size, [&](int k) { partial()[k] = 0.0f; });
    const int64_t rows = at_.warps * kStrip, tiles = (job_.rows + rows - 1) / rows;
    for (int64_t i = at_.block; i < tiles; i += at_.blocks) {
      first_ = i * rows;
      here_ = 0, there_ = 1;
      tile();
    }
  }

  // f(k) for k in [0, n), over all threads of the block and between barriers.
  template <class F>
  __device__ void for_elements(int n, const F& f) {
    together([&] {
      for (int k = threadIdx.x; k < n; k += at_.warps * kLanes) f(k);
    });
  }

  template <class F>
  __device__ void together(const F& f) {
    __syncthreads();
    f();
    __syncthreads();
  }

  __device__ void load_weight(const NarrowLink<T>& link) {
    const Matrix<T> target = weight(link);
    const int in = padded(link.in);
    for_elements(padded(link.out) * in, [&](int k) {
      const int r = k / in, c = k % in;
      *target.at(r, c) = r < link.out && c < link.in ? link.weight[r * link.in + c] : T(0.0f);
    });
  }

  __device__ Matrix<T> weight(const NarrowLink<T>& link) const {
    return {memory() + job_.weights + link.weight_place, row_of(link.in)};
  }

  __device__ float* partial() const { return job_.partials + at_.block * job_.partial_size; }

  // The strips of all warps, one of the three sets.
  __device__ Matrix<T> strips(int which) const {
    return {memory() + which * at_.warps * kStrip * job_.row, job_.row};
  }

  // The strip of the thread's warp.
  __device__ Strip<T> strip(int which) const {
    const int64_t first = first_ + at_.warp * kStrip;
    return {at_.lane, strips(which).from_row(at_.warp * kStrip), first, job_.rows - first};
  }

  __device__ void enter() { strip(here_).load(job_.flow, entrance()); }

  // The width of what enters: of the first link in the direction of the sweep.
  __device__ int entrance() const { return job_.down ? job_.link[job_.end - 1].out : job_.link[job_.begin].in; }

  __device__ void leave(T* target, int width) { strip(here_).store(target, width); }

  template <bool Transposed>
  __device__ void multiply(int i, const T* bias) {
    const NarrowLink<T>& link = job_.link[i];
    if (!job_.resident) load_weight(link);
    const int depth = Transposed ? link.in : link.out, columns = Transposed ? link.out : link.in;
    product<Transposed>(at_.lane, strip(here_).matrix(), weight(link), depth, columns, bias, strip(there_).matrix());
    const int done = here_;
    here_ = there_;
    there_ = done;
  }

  __device__ void outer(const NarrowLink<T>& link, int d, int t) {
    together([&] {
      add_outer(at_.lane, at_.warp, at_.warps, strips(d), strips(t), at_.warps * kStrip, link.out, link.in,
                partial() + link.weight_sum);
    });
  }

  __device__ void add_bias_gradient(const NarrowLink<T>& link, int width) {
    if (link.bias_sum < 0) return;
    together([&] {
      add_rows(at_.lane, at_.warp, at_.warps, strips(here_), at_.warps * kStrip, width, partial() + link.bias_sum);
    });
  }

  __device__ static T* memory() { return static_cast<T*>(memory_of_block()); }

  const NarrowJob<T>& job_;
  const Position at_{};
  int64_t first_ = 0;
  int here_ = 0, there_ = 1;
  static constexpr int other_ = 2;
};

enum class Sweep { forward, data_vjp, data_jvp, reverse };

template <Sweep sweep, class T>
__device__ void run_sweep(const NarrowJob<T>& job) {
  NarrowWalk<T> walk(job);
  if constexpr (sweep == Sweep::forward) walk.forward();
  if constexpr (sweep == Sweep::data_vjp) walk.data_vjp();
  if constexpr (sweep == Sweep::data_jvp) walk.data_jvp();
  if constexpr (sweep == Sweep::reverse) walk.reverse();
}

}  // namespace datagrad::warp
