// The products of one convolution on the CPU: which of the ways (cpu/winograd_convolution.h, cpu/direct_convolution.h,
// cpu/patches.h) each takes.
#pragma once

#include <cpu/direct_convolution.h>
#include <cpu/dot_products.h>
#include <cpu/patches.h>
#include <cpu/thread_memory.h>
#include <cpu/winograd_convolution.h>

namespace datagrad {
namespace {

constexpr int64_t kPatchElements = 1 << 18;     // of a group of samples
constexpr int64_t kFewChannels = 4;             // fewer than this, and a direct product wastes most of a vector
constexpr int64_t kSerialProducts = 1 << 16;    // multiplications below which one thread is enough

// What the memory of a thread is for.
struct Padded;
struct TurnedPatches;
struct Sums;
struct Gathered;
struct Packed;
struct WeightRows;
struct Gradient;
struct Turned;

// Calls f(i, j) for all blocks i of `rows` and j of `columns`, in parallel if the work of all of them is large.
template <class F>
void parallel_grid(const Blocks& rows, const Blocks& columns, int64_t depth, const F& f) {
  const int64_t count = rows.count() * columns.count();
  const int64_t each = std::max<int64_t>(1, rows.size * columns.size * depth);
  parallel_for(count, std::max<int64_t>(1, kSerialProducts / each), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) f(task % rows.count(), task / rows.count());
  });
}

template <class T>
class Convolution {
 public:
  Convolution(const Window& window, const Tensor& weight)
      : weight_(in_layout(weight, layout_of(weight))),
        is_direct_(is_direct(window)),
        is_filtered_(with_winograd(window, kExact, [](auto, auto, auto) {})),
        reorders_(!window.channels_last && pays_to_reorder(window)),
        w_(reorders_ ? in_channels_last(window) : window),
        patches_(w_),
        pixels_(patches_.pixels()),
        depth_(patches_.depth()),
        stride_(patches_.stride()),
        group_(std::max<int64_t>(1, kPatchElements / std::max<int64_t>(1, pixels_ * stride_))) {}

  // y = w * x + b; then finish(begin, count) for all elements of y in memory order, count a multiple of 8 but at the end.
  // nullptr: there is nothing to finish. Signs and maxima may be read off y, so the fewest products are not worth their rounding.
  template <class Finish>
  void forward(const Tensor& x, const T* bias, const Tensor& y, const Finish& finish) {
    run_forward(x, bias, y, kExact, finish);
  }

  // The same of a tangent, which decides nothing.
  template <class Finish>
  void jvp(const Tensor& t, const Tensor& y, const Finish& finish) {
    run_forward(t, nullptr, y, kFast, finish);
  }

  // Whether the products for such a window read the image where it lies, and add up the bias gradient on the way.
  static bool is_direct(const Window& w) { return w.batch * w.out_height * w.out_width >= w.out_channels; }

  // x̄ of g behind the gate.
  void vjp(const Tensor& g, const Gate<T>& gate, const Tensor& x_bar) {
    if (is_filtered_) {
      by_winograd(kFast, [&](const auto& products) { products.vjp(g, gate, x_bar); });
    } else if (is_direct_ && w_.channels > kFewChannels) {
      direct().vjp(g, gate, x_bar);
    } else {
      vjp_by_patches(g, gate, x_bar);
    }
  }

  // w̄ = Σ gᵀ patches(x) over all pairs, or added to w̄, each g behind the gate; of direct products also the sum of the last g
  // over all pixels.
  void weight_gradient(const std::vector<Tensor>& gs, const std::vector<Tensor>& xs, const Gate<T>& gate,
                       const Tensor& weight_bar, bool add, T* bias_bar) {
    T* dense = mutable_data<T>(weight_bar);
    const bool turns = reorders_ || (is_filtered_ && !w_.channels_last);
    T* target = turns || add ? thread_memory<Gradient, T>(w_.out_channels * depth_) : dense;
    const auto done = [&](int64_t o) {
      if (turns || add) put_filter(target + o * depth_, dense + o * depth_, turns, add);
    };
    if (gs.empty() || w_.batch == 0) {
      std::fill_n(target, w_.out_channels * depth_, T(0));
      for_each_filter(done);
    } else if (is_filtered_) {
      by_winograd(kFast, [&](const auto& products) { products.weight_gradient(gs, xs, gate, target, bias_bar, done); });
    } else if (is_direct_) {
      weight_gradient_directly(gs, xs, gate, target, bias_bar, done);
    } else {
      weight_gradient_by_patches(gs, xs, gate, target);
      for_each_filter(done);
    }
  }

 private:
  // Outputs of a tile in one dimension, at most.
  static constexpr int64_t kExact = 2, kFast = 4;

  template <class Finish>
  void run_forward(const Tensor& x, const T* bias, const Tensor& y, int64_t most, const Finish& finish) {
    constexpr bool finishes = !std::is_same_v<Finish, std::nullptr_t>;
    // A band of rows is one run of memory, which is finished while it is in the cache.
    const bool by_bands = (is_direct_ || is_filtered_) && Image(y).c == 1 && w_.out_width * w_.out_channels % 8 == 0;
    const auto done = [&](int64_t begin, int64_t count) {
      if constexpr (finishes) {
        if (by_bands) finish(begin, count);
      }
    };
    const auto forward = [&](const auto& products) { products.forward(x, bias, y, done); };
    if (is_filtered_) {
      by_winograd(most, forward);
    } else if (is_direct_) {
      forward(direct());
    } else {
      forward_by_patches(x, bias, y);
    }
    if constexpr (finishes) {
      if (!by_bands) parallel_blocks(Blocks(y.numel(), 8192, 8), [&](int64_t, int64_t b, int64_t e) { finish(b, e - b); });
    }
  }

  // Calls f with the products by minimal filtering.
  template <class F>
  void by_winograd(int64_t most, const F& f) const {
    const bool rows = w_.channels_last && !reorders_;
    const winograd::Weight<T> weight{data<T>(weight_), rows ? w_.channels : 1, rows ? 1 : area()};
    with_winograd(w_, most, [&](auto outputs, auto taps, auto stride) {
      f(WinogradConvolution<T, decltype(outputs)::value, decltype(taps)::value, decltype(stride)::value>(w_, weight));
    });
  }

  void forward_by_patches(const Tensor& x, const T* bias, const Tensor& y) {
    const T* weight = weight_rows();
    const Image at(y);
    for (int64_t n = 0; n < w_.batch; n += group_) {
      const int64_t samples = std::min(group_, w_.batch - n);
      const T* patches = gather({{&x, n, samples}}, samples);
      T* target = mutable_data<T>(y) + n * at.n;
      const auto store = [&](int64_t pixel, int64_t channel, T sum) {
        T* to = target + pixel / pixels_ * at.n + pixel % pixels_ * pixel_stride(at) + channel * at.c;
        *to = bias == nullptr ? sum : sum + bias[channel];
      };
      if (samples * pixels_ >= small::kLanes<T>) {
        products_of_pixels(weight, patches, samples * pixels_, store);
      } else {
        products_of_rows(weight, patches, samples * pixels_, store);
      }
    }
  }

  // store(pixel, channel, Σ) of all, few pixels: both are read along their rows.
  template <class Store>
  void products_of_rows(const T* weight, const T* patches, int64_t count, const Store& store) {
    const Blocks rows(count, kPixels, kDotRows), columns(w_.out_channels, kOutputs, kDotColumns);
    parallel_grid(rows, columns, depth_, [&](int64_t i, int64_t j) {
      dot_block(patches, weight, stride_, rounded_up(depth_, small::kLanes<T>), rows.begin(i), rows.end(i), columns.begin(j),
                columns.end(j), store);
    });
  }

  // The same with the pixels as vectors: a weight is read once for as many of them as a tile has.
  template <class Store>
  void products_of_pixels(const T* weight, const T* patches, int64_t count, const Store& store) {
    const int64_t width = rounded_up(count, small::kLanes<T>);
    T* turned = thread_memory<TurnedPatches, T>(depth_ * width);
    const Blocks depths(depth_, kDepth, small::kColumns), outputs(w_.out_channels, kOutputs, small::kRows);
    parallel_for(depths.count(), std::max<int64_t>(1, kSerialElements / (kDepth * count)), [&](int64_t begin, int64_t end) {
      const int64_t first = depths.begin(begin), last = depths.end(end - 1);
      small::transpose(patches + first, stride_, count, last - first, turned + first * width, width);
    });
    const int64_t each = outputs.size * count * depth_;
    parallel_for(outputs.count(), std::max<int64_t>(1, kSerialProducts / each), [&](int64_t begin, int64_t end) {
      T* sums = thread_memory<Sums, T>(outputs.size * width);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = outputs.begin(i), rows = outputs.end(i) - first;
        small::product({weight + first * stride_, stride_, 1}, turned, sums, rows, width, depth_, false);
        for (int64_t o = 0; o < rows; ++o) {
          for (int64_t p = 0; p < count; ++p) store(p, first + o, sums[o * width + p]);
        }
      }
    });
  }

  void vjp_by_patches(const Tensor& g, const Gate<T>& gate, const Tensor& x_bar) {
    const T* weight = weight_rows();
    const Image at(x_bar);
    if (is_direct_ && w_.batch >= num_threads()) {
      vjp_of_samples(g, gate, x_bar, weight);
      return;
    }
    for (int64_t n = 0; n < w_.batch; n += group_) {
      const int64_t samples = std::min(group_, w_.batch - n), count = samples * pixels_;
      const T* cotangents = pack({{&g, n, samples}}, samples, gate);
      T* patches = thread_memory<Gathered, T>(count * stride_);
      const Blocks rows(count, kPixels, small::kRows), columns(stride_, 128, small::kColumns);
      parallel_grid(rows, columns, w_.out_channels, [&](int64_t i, int64_t j) {
        const int64_t first = rows.begin(i), last = rows.end(i);
        const small::Strided<T> a{cotangents + first * w_.out_channels, w_.out_channels, 1};
        small::block(a, weight, stride_, patches + first * stride_, stride_, last - first, columns.begin(j),
                     columns.end(j), w_.out_channels, false);
      });
      T* images = thread_memory<Padded, T>(samples * patches_.image_size());
      T* target = mutable_data<T>(x_bar);
      const Blocks planes(patches_.planes(), kPlanes, 1);
      const int64_t tasks = samples * planes.count();
      parallel_for(tasks, std::max<int64_t>(1, kSerialElements * tasks / (samples * pixels_ * stride_)), [&](int64_t b, int64_t e) {
        for (int64_t task = b; task < e; ++task) {
          const int64_t s = task / planes.count(), block = task % planes.count();
          const int64_t first = planes.begin(block), last = planes.end(block);
          T* image = images + s * patches_.image_size();
          patches_.scatter(patches + s * pixels_ * stride_, image, first, last);
          patches_.crop(image, target + (n + s) * at.n, at, first, last);
        }
      });
    }
  }

  // The same where threads have samples of their own.
  void vjp_of_samples(const Tensor& g, const Gate<T>& gate, const Tensor& x_bar, const T* weight) {
    const Image from(g), at(x_bar);
    const int64_t size = pixels_ * w_.out_channels, columns = rounded_up(depth_, small::kLanes<T>);
    parallel_for(w_.batch, std::max<int64_t>(1, kSerialProducts / (size * depth_)), [&](int64_t begin, int64_t end) {
      T* packed = thread_memory<Packed, T>(size);
      T* patches = thread_memory<Gathered, T>(pixels_ * stride_);
      T* image = thread_memory<Padded, T>(patches_.image_size());
      for (int64_t n = begin; n < end; ++n) {
        const T* cotangents = data<T>(g) + n * from.n;
        if (gate.bits != nullptr || !is_packed(from)) {
          pack_sample(cotangents, from, packed);
          gate.apply(packed, n * size, size);
          cotangents = packed;
        }
        const small::Strided<T> a{cotangents, w_.out_channels, 1};
        small::block(a, weight, stride_, patches, stride_, pixels_, 0, columns, w_.out_channels, false);
        patches_.scatter(patches, image, 0, patches_.planes());
        patches_.crop(image, mutable_data<T>(x_bar) + n * at.n, at, 0, patches_.planes());
      }
    });
  }

  // One filter of the gradient to where it belongs, or added to what is there.
  void put_filter(const T* from, T* to, bool turns, bool add) const {
    if (turns && !add) {
      small::transpose(from, area(), w_.channels, to);
      return;
    }
    if (turns) {
      T* turned = thread_memory<Turned, T>(depth_);
      small::transpose(from, area(), w_.channels, turned);
      from = turned;
    }
    for (int64_t i = 0; i < depth_; ++i) to[i] += from[i];
  }

  template <class Done>
  void weight_gradient_directly(const std::vector<Tensor>& gs, const std::vector<Tensor>& xs, const Gate<T>& gate,
                                T* target, T* bias_bar, const Done& done) {
    const int64_t all = static_cast<int64_t>(gs.size()) * w_.batch;
    const DirectConvolution<T> products(w_, nullptr);
    const int64_t last = all - w_.batch;
    const auto load = [&](int64_t v, T* cotangents, T* image, double* sums) {
      const int64_t n = v % w_.batch;
      const Tensor &g = gs[v / w_.batch], &x = xs[v / w_.batch];
      const Image from(g), at(x);
      pack_sample(data<T>(g) + n * from.n, from, cotangents);
      gate.apply(cotangents, n * pixels_ * w_.out_channels, pixels_ * w_.out_channels);
      if (sums != nullptr && v >= last) add_pixels(cotangents, sums);
      products.pad(data<T>(x) + n * at.n, at, image);
    };
    products.weight_gradient(all, load, target, bias_bar, done);
  }

  void weight_gradient_by_patches(const std::vector<Tensor>& gs, const std::vector<Tensor>& xs, const Gate<T>& gate,
                                  T* target) {
    const int64_t all = static_cast<int64_t>(gs.size()) * w_.batch;
    for (int64_t v = 0; v < all; v += group_) {
      const int64_t samples = std::min(group_, all - v), count = samples * pixels_;
      const T* cotangents = pack(pieces(gs, v, samples), samples, gate);
      const T* patches = gather(pieces(xs, v, samples), samples);
      const Blocks rows(w_.out_channels, 16, small::kRows), columns(depth_, 256, small::kColumns);
      parallel_grid(rows, columns, count, [&](int64_t i, int64_t j) {
        const int64_t first = rows.begin(i), last = rows.end(i);
        for (int64_t p = 0; p < count; p += kDepth) {
          const small::Strided<T> a{cotangents + first + p * w_.out_channels, 1, w_.out_channels};
          small::block(a, patches + p * stride_, stride_, target + first * depth_, depth_, last - first,
                       columns.begin(j), columns.end(j), std::min(kDepth, count - p), v > 0 || p > 0);
        }
      });
    }
  }

  DirectConvolution<T> direct() const { return {w_, direct_rows()}; }

  // The weight as (C', kh, kw, C).
  const T* direct_rows() const {
    const T* dense = data<T>(weight_);
    if (!reorders_) return dense;
    T* rows = thread_memory<WeightRows, T>(w_.out_channels * depth_);
    for_each_filter([&](int64_t o) { small::transpose(dense + o * depth_, w_.channels, area(), rows + o * depth_); });
    return rows;
  }

  // Calls f for every output channel; in parallel if the weight is large.
  template <class F>
  void for_each_filter(const F& f) const {
    parallel_for(w_.out_channels, kSerialElements / depth_ + 1, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) f(o);
    });
  }

  static constexpr int64_t kDepth = 256, kPixels = 64, kPlanes = 32, kOutputs = 16;

  // Samples [begin, begin + count) of a tensor.
  struct Piece {
    const Tensor* tensor;
    int64_t begin, count;
  };

  std::vector<Piece> pieces(const std::vector<Tensor>& tensors, int64_t begin, int64_t count) const {
    std::vector<Piece> found;
    for (int64_t v = begin; v < begin + count;) {
      const int64_t n = v % w_.batch, here = std::min(w_.batch - n, begin + count - v);
      found.push_back({&tensors[v / w_.batch], n, here});
      v += here;
    }
    return found;
  }

  // The step from one pixel to the next where they follow one another, as in every dense layout; else 0.
  int64_t pixel_stride(const Image& at) const {
    if (w_.out_height > 1 && w_.out_width > 1 && at.h != at.w * w_.out_width) return 0;
    return w_.out_width > 1 ? at.w : at.h;
  }

  // Whether the long runs of patches in channels_last are worth a reordered weight: it is small beside the patches.
  static bool pays_to_reorder(const Window& w) {
    return w.kernel[0] * w.kernel[1] > 1 && w.batch * w.out_height * w.out_width >= w.out_channels;
  }

  static Window in_channels_last(Window window) {
    window.channels_last = true;
    return window;
  }

  int64_t area() const { return w_.kernel[0] * w_.kernel[1]; }

  // The weight as rows of whole steps, in the order of the patches.
  const T* weight_rows() const {
    const T* dense = data<T>(weight_);
    if (stride_ == depth_ && !reorders_) return dense;
    T* rows = thread_memory<WeightRows, T>(w_.out_channels * stride_);
    for (int64_t o = 0; o < w_.out_channels; ++o) {
      T* row = rows + o * stride_;
      if (reorders_) {
        small::transpose(dense + o * depth_, w_.channels, area(), row);
      } else {
        std::copy_n(dense + o * depth_, depth_, row);
      }
      std::fill(row + depth_, row + stride_, T(0));
    }
    return rows;
  }

  // Calls f(s, number in its tensor, sample, its strides) for all samples of the pieces, each of `size` elements; in
  // parallel if that pays.
  template <class F>
  static void for_each_sample(const std::vector<Piece>& pieces, int64_t samples, int64_t size, const F& f) {
    const int64_t grain = std::max<int64_t>(1, kSerialElements / std::max<int64_t>(1, size));
    parallel_for(samples, grain, [&](int64_t b, int64_t e) {
      int64_t first = 0;
      for (const Piece& piece : pieces) {
        const Image at(*piece.tensor);
        const T* source = data<T>(*piece.tensor) + piece.begin * at.n;
        for (int64_t s = std::max(b, first); s < std::min(e, first + piece.count); ++s) {
          f(s, piece.begin + s - first, source + (s - first) * at.n, at);
        }
        first += piece.count;
      }
    });
  }

  // The patches of all samples of the pieces.
  const T* gather(const std::vector<Piece>& pieces, int64_t samples) const {
    T* images = thread_memory<Padded, T>(samples * patches_.image_size());
    T* patches = thread_memory<Gathered, T>(samples * pixels_ * stride_);
    for_each_sample(pieces, samples, patches_.image_size(), [&](int64_t s, int64_t, const T* x, const Image& at) {
      patches_.pad(x, at, images + s * patches_.image_size());
    });
    parallel_for(samples * pixels_, std::max<int64_t>(1, kSerialElements / stride_), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end;) {
        const int64_t s = p / pixels_, first = p % pixels_, last = std::min(pixels_, first + end - p);
        patches_.gather(images + s * patches_.image_size(), first, last, patches + s * pixels_ * stride_);
        p += last - first;
      }
    });
    return patches;
  }

  // Cotangents behind the gate as rows of pixels.
  const T* pack(const std::vector<Piece>& pieces, int64_t samples, const Gate<T>& gate) const {
    const int64_t size = pixels_ * w_.out_channels;
    T* rows = thread_memory<Packed, T>(samples * size);
    for_each_sample(pieces, samples, size, [&](int64_t s, int64_t n, const T* sample, const Image& at) {
      pack_sample(sample, at, rows + s * size);
      gate.apply(rows + s * size, n * size, size);
    });
    return rows;
  }

  // Adds the rows of pixels of one sample; few at a time before they are widened.
  void add_pixels(const T* rows, double* sums) const {
    const int64_t channels = w_.out_channels;
    for (int64_t p = 0; p < pixels_; p += 8) {
      const T* some = rows + p * channels;
      const int64_t count = std::min<int64_t>(8, pixels_ - p);
      for (int64_t c = 0; c < channels; ++c) {
        T sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += some[i * channels + c];
        sums[c] += static_cast<double>(sum);
      }
    }
  }

  // Whether a sample of cotangents lies as rows of pixels.
  bool is_packed(const Image& at) const { return at.c == 1 && pixel_stride(at) == w_.out_channels; }

  void pack_sample(const T* sample, const Image& at, T* target) const {
    if (is_packed(at)) {
      std::copy_n(sample, pixels_ * w_.out_channels, target);
    } else if (pixel_stride(at) == 1 && at.c == pixels_) {
      small::transpose(sample, w_.out_channels, pixels_, target);
    } else {
      pack_strided(sample, at, target);
    }
  }

  void pack_strided(const T* sample, const Image& at, T* target) const {
    for (int64_t h = 0; h < w_.out_height; ++h) {
      for (int64_t w = 0; w < w_.out_width; ++w) {
        for (int64_t c = 0; c < w_.out_channels; ++c) *target++ = sample[h * at.h + w * at.w + c * at.c];
      }
    }
  }

  Tensor weight_;
  bool is_direct_, is_filtered_;
  bool reorders_;  // the weight is contiguous and the patches are in channels_last
  Window w_;
  Patches patches_;
  int64_t pixels_, depth_, stride_, group_;
};

}  // namespace
}  // namespace datagrad
