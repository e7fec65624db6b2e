// The activation family on the CPU: ops, letters and layouts as in datagrad_ext/ops/activation.py.
//
// Tensors are walked in memory order in chunks that stay in the first-level cache; within a chunk each step (widen, add
// the bias, activate, pack bits, sum channels, narrow) is a loop of its own that the compiler vectorises.
#include <common/activation_ops.h>
#include <common/parallel.h>
#include <cpu/activation_loops.h>
#include <cpu/convert.h>
#include <cpu/rectifier.h>

#include <type_traits>
#include <utility>

#if defined(__GNUC__) && !defined(__clang__)
// A chunk's buffer is deliberately not initialised; what is read of it has been written.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace datagrad {
namespace {

constexpr int64_t kChunk = 1024;  // a multiple of 8: a chunk begins at a byte of the bits
constexpr int64_t kBlock = 8192;
constexpr int64_t kMaxPartials = 128;

template <class T>
struct Chunk {
  alignas(64) T value[kChunk];
};

// Calls f(block, begin, count) for all chunks of all blocks, blocks in parallel.
template <class F>
void for_each_chunk(const Blocks& blocks, const F& f) {
  parallel_blocks(blocks, [&](int64_t block, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kChunk) f(block, i, std::min(kChunk, end - i));
  });
}

// Σ over all elements of a channel: one partial sum in double a block, added in the order of the blocks.
class ChannelSums {
 public:
  explicit ChannelSums(const ChannelView& view)
      : view_(view),
        blocks_(view.numel(), std::max({kBlock, 16 * view.channels, view.numel() / kMaxPartials}), kChunk),
        partials_(blocks_.count() * view.channels) {}

  const Blocks& blocks() const { return blocks_; }

  // Adds the values of elements begin ... begin + count - 1, at most kChunk.
  template <class A>
  void add(int64_t block, int64_t begin, const A* values, int64_t count) {
    double* sums = partials_.data() + block * view_.channels;
    if (view_.inner == 1) {
      add_rows(sums, begin, values, count);
    } else {
      for_each_run(view_, begin, begin + count,
                   [&](int64_t channel, int64_t i, int64_t n) { sums[channel] += sum(values + (i - begin), n); });
    }
  }

  template <class T>
  void store(T* target) const {
    std::vector<double> total(view_.channels, 0.0);
    for (int64_t block = 0; block < blocks_.count(); ++block) {
      const double* sums = partials_.data() + block * view_.channels;
      for (int64_t c = 0; c < view_.channels; ++c) total[c] += sums[c];
    }
    for (int64_t c = 0; c < view_.channels; ++c) target[c] = static_cast<T>(static_cast<Acc<T>>(total[c]));
  }

 private:
  // Rows of channels; four at a time, added in pairs before they are widened.
  template <class A>
  void add_rows(double* sums, int64_t begin, const A* values, int64_t count) const {
    const int64_t channels = view_.channels, column = begin % channels;
    int64_t i = column == 0 ? 0 : std::min(channels - column, count);
    for (int64_t k = 0; k < i; ++k) sums[column + k] += static_cast<double>(values[k]);
    for (; i + 4 * channels <= count; i += 4 * channels) {
      const A *a = values + i, *b = a + channels, *c = b + channels, *d = c + channels;
      for (int64_t k = 0; k < channels; ++k) sums[k] += static_cast<double>((a[k] + b[k]) + (c[k] + d[k]));
    }
    for (; i < count; i += channels) {
      const int64_t n = std::min(channels, count - i);
      for (int64_t k = 0; k < n; ++k) sums[k] += static_cast<double>(values[i + k]);
    }
  }

  // A run within a chunk: 32 running sums of at most kChunk / 32 values, then in double.
  template <class A>
  static double sum(const A* run, int64_t n) {
    constexpr int kLanes = 32;
    A lane[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int k = 0; k < kLanes; ++k) lane[k] += run[i + k];
    }
    double total = 0;
    if (i > 0) {
      for (int k = 0; k < kLanes; ++k) total += static_cast<double>(lane[k]);
    }
    for (; i < n; ++i) total += static_cast<double>(run[i]);
    return total;
  }

  ChannelView view_;
  Blocks blocks_;
  std::vector<double> partials_;
};

// values[k] + other[k] for elements begin ... begin + count - 1, in `buffer` if there is an `other`.
template <class T>
const Acc<T>* plus(const T* other, int64_t begin, int64_t count, const Acc<T>* values, Acc<T>* buffer) {
  if (other == nullptr) return values;
  Chunk<Acc<T>> wide;
  const Acc<T>* term = widened(other + begin, wide.value, count);
  for (int64_t k = 0; k < count; ++k) buffer[k] = values[k] + term[k];
  return buffer;
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

// z = x + bias + other, chunk by chunk.
template <class T>
class Reader {
 public:
  explicit Reader(const PreActivation& z) : x_(data<T>(z.x)), other_(data_or_null<T>(z.other)), view_(z.view) {
    if (!z.bias || view_.channels == 0) return;
    // Where channels are the fastest dimension they are repeated, so that a chunk is one loop wherever it begins.
    bias_.resize(view_.channels + (view_.inner == 1 ? std::min(kChunk, view_.numel()) : 0));
    widen(data<T>(*z.bias), bias_.data(), view_.channels);
    for (size_t i = view_.channels; i < bias_.size(); ++i) bias_[i] = bias_[i - view_.channels];
  }

  // The values of z for elements begin ... begin + count - 1, in `buffer` if they are not those of x.
  const Acc<T>* read(int64_t begin, int64_t count, Acc<T>* buffer) const {
    return plus(other_, begin, count, biased(begin, count, buffer), buffer);
  }

 private:
  const Acc<T>* biased(int64_t begin, int64_t count, Acc<T>* buffer) const {
    const Acc<T>* x = widened(x_ + begin, buffer, count);
    if (bias_.empty()) return x;
    const Acc<T>* bias = bias_.data();
    if (view_.inner == 1) {
      bias += begin % view_.channels;
      for (int64_t k = 0; k < count; ++k) buffer[k] = x[k] + bias[k];
    } else {
      for_each_run(view_, begin, begin + count, [&](int64_t channel, int64_t i, int64_t n) {
        const Acc<T> b = bias[channel];
        for (int64_t k = i - begin; k < i - begin + n; ++k) buffer[k] = x[k] + b;
      });
    }
    return buffer;
  }

  const T* x_;
  const T* other_;
  ChannelView view_;
  std::vector<Acc<T>> bias_;
};

}  // namespace

void relu_forward_into(const PreActivation& z, double slope, const Tensor& y, const Tensor& bits) {
  const int64_t n = z.x.numel();
  dispatch_floating(z.x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Reader<T> reader(z);
    T* y_data = mutable_data<T>(y);
    uint8_t* bits_data = mutable_data<uint8_t>(bits);
    for_each_chunk(Blocks(n, kBlock, kChunk), [&](int64_t, int64_t begin, int64_t count) {
      Chunk<Acc<T>> buffer;
      const Acc<T>* value = reader.read(begin, count, buffer.value);
      Acc<T>* out = wide_target(y_data + begin, buffer.value);
      rectify(value, out, count, static_cast<Acc<T>>(slope), bits_data + begin / 8);
      store(out, y_data + begin, count);
    });
  });
}

namespace {

// The gate over all chunks of `blocks`; done(block, begin, values, count) sees its results before they are rounded.
template <class T, class Done>
void gate_chunks(const Gated& in, const Tensor& out, double slope, const Blocks& blocks, const Done& done) {
  const T* g_data = data<T>(in.g);
  const T* other = data_or_null<T>(in.other);
  const uint8_t* bits_data = data<uint8_t>(in.bits);
  T* out_data = mutable_data<T>(out);
  for_each_chunk(blocks, [&](int64_t block, int64_t begin, int64_t count) {
    Chunk<Acc<T>> buffer;
    const Acc<T>* g = plus(other, begin, count, widened(g_data + begin, buffer.value, count), buffer.value);
    Acc<T>* target = wide_target(out_data + begin, buffer.value);
    gate_run(g, target, count, static_cast<Acc<T>>(slope), bits_data + begin / 8);
    done(block, begin, target, count);
    store(target, out_data + begin, count);
  });
}

}  // namespace

void relu_gate_into(const Gated& in, double slope, const Tensor& out) {
  dispatch_floating(out.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    gate_chunks<T>(in, out, slope, Blocks(out.numel(), kBlock, kChunk), [](auto&&...) {});
  });
}

void relu_reverse_into(const Gated& in, const ChannelView& view, double slope, const Tensor& out, const Tensor& sums) {
  dispatch_floating(out.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    ChannelSums channel_sums(view);
    gate_chunks<T>(in, out, slope, channel_sums.blocks(),
                   [&](int64_t block, int64_t begin, const auto* values, int64_t count) {
                     channel_sums.add(block, begin, values, count);
                   });
    channel_sums.store(mutable_data<T>(sums));
  });
}

namespace {

// The chunk loops of smooth_reverse: pointers to the operands, and Σ_i t_i δ_i of a chunk.
template <class T>
class CurvedReader {
 public:
  explicit CurvedReader(const Curved& in) : zeta_(data_or_null<T>(in.zeta)) {
    for (size_t i = 0; i < in.tangents.size(); ++i) {
      pairs_.emplace_back(data<T>(in.tangents[i]), data<T>(in.cotangents[i]));
    }
  }

  const Acc<T>* zeta(int64_t begin, int64_t count, Acc<T>* buffer) const {
    return zeta_ == nullptr ? nullptr : widened(zeta_ + begin, buffer, count);
  }

  // The sum of products in `sum`, or nullptr if there are no pairs.
  const Acc<T>* products(int64_t begin, int64_t count, Acc<T>* sum) const {
    for (size_t i = 0; i < pairs_.size(); ++i) {
      Chunk<Acc<T>> t_buffer, delta_buffer;
      const Acc<T>* t = widened(pairs_[i].first + begin, t_buffer.value, count);
      const Acc<T>* delta = widened(pairs_[i].second + begin, delta_buffer.value, count);
      if (i == 0) {
        for (int64_t k = 0; k < count; ++k) sum[k] = t[k] * delta[k];
      } else {
        for (int64_t k = 0; k < count; ++k) sum[k] += t[k] * delta[k];
      }
    }
    return pairs_.empty() ? nullptr : sum;
  }

 private:
  const T* zeta_;
  std::vector<std::pair<const T*, const T*>> pairs_;
};

}  // namespace

void smooth_forward_into(const char* op, const PreActivation& z, const std::string& kind,
                         const std::vector<double>& constants, const Tensor& y) {
  dispatch_floating(z.x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Reader<T> reader(z);
    T* y_data = mutable_data<T>(y);
    const auto loops = loops_of<Acc<T>>(op, kind, constants);
    for_each_chunk(Blocks(z.x.numel(), kBlock, kChunk), [&](int64_t, int64_t begin, int64_t count) {
      Chunk<Acc<T>> buffer;
      const Acc<T>* value = reader.read(begin, count, buffer.value);
      Acc<T>* out = wide_target(y_data + begin, buffer.value);
      loops->value(value, out, count);
      store(out, y_data + begin, count);
    });
  });
}

void smooth_reverse_into(const char* op, const Curved& in, const std::string& kind,
                         const std::vector<double>& constants, const Tensor& out, const Tensor* sums) {
  dispatch_floating(out.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Reader<T> reader(in.z);
    const CurvedReader<T> operands(in);
    ChannelSums channel_sums(in.z.view);
    T* out_data = mutable_data<T>(out);
    const auto loops = loops_of<Acc<T>>(op, kind, constants);
    for_each_chunk(channel_sums.blocks(), [&](int64_t block, int64_t begin, int64_t count) {
      Chunk<Acc<T>> z_buffer, zeta_buffer, product_buffer;
      const Acc<T>* value = reader.read(begin, count, z_buffer.value);
      const Acc<T>* wide_zeta = operands.zeta(begin, count, zeta_buffer.value);
      const Acc<T>* products = operands.products(begin, count, product_buffer.value);
      Acc<T>* target = wide_target(out_data + begin, product_buffer.value);
      loops->combine(value, wide_zeta, products, target, count);
      if (sums != nullptr) channel_sums.add(block, begin, target, count);
      store(target, out_data + begin, count);
    });
    if (sums != nullptr) channel_sums.store(mutable_data<T>(*sums));
  });
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) { datagrad::register_activation(m); }
