// The sweeps of one convolution by products of images (cpu/image_products.h). The gradient of the input is such a product, too:
// with a stride, one for each residue of the places (`Phase`).
#pragma once

#include <common/parallel.h>
#include <cpu/image_products.h>
#include <cpu/rectifier.h>
#include <cpu/thread_memory.h>

namespace datagrad {
namespace {
namespace direct {

constexpr int64_t kTaskProducts = 1 << 18, kTaskPixels = 16;  // multiplications and pixels of a task
constexpr int64_t kCached = 1 << 14;                          // elements that a core's first caches hold
constexpr int64_t kLeastDepth = 128;                          // pixels that a weight gradient adds up in registers
constexpr int64_t kPartElements = 1 << 18, kMaxParts = 16;    // sums over some of the samples, added at last

// What the memory of a thread is for.
struct Band;
struct Pixels;
struct Result;
struct Weights;
struct Parts;

// Along one dimension: the places h of the input with (h + padding) mod stride = residue, h + padding = stride q + residue for
// q in [begin, end), and the taps of the kernel that touch them, from last to first. Tap i meets the output at q − shift[i].
struct Phase {
  int64_t residue, begin, end;
  std::vector<int64_t> taps, shifts;

  static std::vector<Phase> all(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    std::vector<Phase> phases;
    for (int64_t r = 0; r < stride; ++r) {
      Phase phase{r, std::max<int64_t>(0, padding - r + stride - 1) / stride,
                  std::max<int64_t>(0, padding + size - r + stride - 1) / stride, {}, {}};
      for (int64_t k = kernel - 1; k >= 0; --k) {
        if ((k * dilation - r) % stride != 0) continue;
        phase.taps.push_back(k);
        phase.shifts.push_back((k * dilation - r) / stride);
      }
      phases.push_back(phase);
    }
    return phases;
  }
};

// One phase of each dimension: what its pixels read of a padded image of cotangents.
struct PhasePair {
  const Phase *h, *w;
  Runs runs;
  bool joined;  // taps of a row follow one another in memory

  PhasePair(const Phase& rows, const Phase& columns, int64_t row, int64_t channels) : h(&rows), w(&columns) {
    const auto& shifts = columns.shifts;
    joined = shifts.size() < 2 || shifts[0] - shifts[1] == 1;
    runs.length = channels * (joined ? static_cast<int64_t>(shifts.size()) : 1);
    for (const int64_t i : rows.shifts) {
      for (size_t j = 0; j < (joined ? std::min<size_t>(1, shifts.size()) : shifts.size()); ++j) {
        runs.offsets.push_back(-i * row - shifts[j] * channels);
      }
    }
  }

  int64_t depth() const { return static_cast<int64_t>(runs.offsets.size()) * runs.length; }
};

// The places of x̄ by phases, q in [first, last) for its rows, and the rows of padded cotangents that they read: from q − reach
// to q, `row` elements each, with `left` pixels of zeros before the first.
struct Phases {
  std::vector<Phase> rows, columns;
  int64_t reach, first, last, left, width, row;
  std::vector<PhasePair> pairs;

  explicit Phases(const Window& w)
      : rows(Phase::all(w.height, w.kernel[0], w.stride[0], w.padding[0], w.dilation[0])),
        columns(Phase::all(w.width, w.kernel[1], w.stride[1], w.padding[1], w.dilation[1])),
        reach(w.dilation[0] * (w.kernel[0] - 1) / w.stride[0]),
        first(w.padding[0] / w.stride[0]),
        last((w.padding[0] + w.height - 1) / w.stride[0] + 1),
        left(std::max<int64_t>(0, w.dilation[1] * (w.kernel[1] - 1) / w.stride[1] - w.padding[1] / w.stride[1])),
        width(left + std::max(w.out_width, (w.padding[1] + w.width - 1) / w.stride[1] + 1)),
        row(width * w.out_channels) {
    for (const Phase& h : rows) {
      for (const Phase& v : columns) pairs.emplace_back(h, v, row, w.out_channels);
    }
  }
};

}  // namespace direct

// The products of one convolution. `rows` is the weight as (C', kh, kw, C), dense; samples and bands of their rows are the
// tasks of threads.
template <class T>
class DirectConvolution {
 public:
  DirectConvolution(const Window& window, const T* rows)
      : w_(window), rows_(rows), depth_(w_.channels * area()) {}

  // y = w * x + b. done(begin, count) is called when so many elements of y, one run of memory in channels_last, are there.
  template <class Done>
  void forward(const Tensor& x, const T* bias, const Tensor& y, const Done& done) const {
    const int64_t padded = w_.width + 2 * w_.padding[1], row = this->row();
    const direct::Runs runs = runs_of(row);
    const int64_t columns = rounded_up(w_.out_channels, direct::kWide<T>);
    T* memory = thread_memory<direct::Weights, T>(depth_ * columns + columns);
    const direct::Panels<T> matrix = forward_panels(memory);
    T* biases = nullptr;
    if (bias != nullptr) {
      biases = memory + depth_ * columns;
      std::fill(std::copy_n(bias, w_.out_channels, biases), biases + columns, T(0));
    }
    const Image from(x), to(y);
    const T* source = data<T>(x);
    T* target = mutable_data<T>(y);
    const int64_t work = w_.out_width * depth_ * w_.out_channels;
    for_each_band(w_.out_height, w_.out_width, work, [&](int64_t n, int64_t begin, int64_t end) {
      const int64_t first = begin * w_.stride[0] - w_.padding[0];
      const int64_t last = (end - 1) * w_.stride[0] - w_.padding[0] + w_.dilation[0] * (w_.kernel[0] - 1) + 1;
      T* image = thread_memory<direct::Band, T>((last - first) * row);
      direct::copy_rows(source + n * from.n, from, w_.channels, w_.height, w_.width, first, last, w_.padding[1], padded,
                        image);
      const int64_t count = (end - begin) * w_.out_width;
      int64_t* places = thread_memory<direct::Pixels, int64_t>(2 * count);
      const bool dense = to.c == 1;
      T* out = dense ? target + n * to.n : thread_memory<direct::Result, T>(count * w_.out_channels);
      int64_t p = 0;
      for (int64_t h = begin; h < end; ++h) {
        for (int64_t w = 0; w < w_.out_width; ++w, ++p) {
          places[p] = (h - begin) * w_.stride[0] * row + w * w_.stride[1] * w_.channels;
          places[count + p] = dense ? h * to.h + w * to.w : p * w_.out_channels;
        }
      }
      direct::multiply(direct::Product<T>{image, places, places + count, count, runs, matrix, biases, out});
      if (!dense) direct::put_rows(out, w_.out_channels, begin, end, w_.out_width, target + n * to.n, to);
      done(n * to.n + begin * to.h, count * w_.out_channels);
    });
  }

  // x̄ of g behind the gate.
  void vjp(const Tensor& g, const Gate<T>& gate, const Tensor& x_bar) const {
    const direct::Phases phases(w_);
    const std::vector<direct::Panels<T>> matrices = reverse_panels(phases.pairs);
    const Image from(g), to(x_bar);
    const T* source = data<T>(g);
    T* target = mutable_data<T>(x_bar);
    const int64_t width = (w_.width + w_.stride[1] - 1) / w_.stride[1], work = w_.out_channels * depth_ * width;
    for_each_band(phases.last - phases.first, width, work, [&](int64_t n, int64_t begin, int64_t end) {
      begin += phases.first;
      end += phases.first;
      const T* image = cotangent_band(phases, source + n * from.n, from, gate, n, begin, end);
      const int64_t top = std::max<int64_t>(0, begin * w_.stride[0] - w_.padding[0]);
      const int64_t bottom = std::min(w_.height, end * w_.stride[0] - w_.padding[0]);
      if (to.c == 1) {
        vjp_band(phases, matrices, image, begin, end, {target + n * to.n, to.h, to.w, 0});
      } else {
        const int64_t row = w_.width * w_.channels;
        T* out = thread_memory<direct::Result, T>((bottom - top) * row);
        vjp_band(phases, matrices, image, begin, end, {out, row, w_.channels, top});
        direct::put_rows(out, w_.channels, top, bottom, w_.width, target + n * to.n, to);
      }
    });
  }

  // target = Σ gᵀ x over `samples` pairs, in the order of `rows`. load(v, cotangents, image, sums) copies those of pair v:
  // rows of pixels, and what `pad` makes of x; unless `sums` is null it adds to them what `bias` is to have, one number a
  // channel (nullptr: nothing). At last done(o) for every filter o, in parallel. The parts that are added do not depend on the number
  // of threads.
  template <class Load, class Done>
  void weight_gradient(int64_t samples, const Load& load, T* target, T* bias, const Done& done) const {
    const int64_t size = w_.out_channels * depth_;
    const int64_t count = halved_parts(direct::kMaxParts, direct::kPartElements / size);
    const Blocks parts(samples, (samples + count - 1) / count, 1);
    T* others = thread_memory<direct::Parts, T>((parts.count() - 1) * size);
    std::vector<double> sums(bias == nullptr ? 0 : parts.count() * w_.out_channels);
    const auto part = [&](int64_t i) { return i == 0 ? target : others + (i - 1) * size; };
    const int64_t shares = std::clamp<int64_t>(num_threads() / parts.count(), 1, w_.out_channels / 16 + 1);
    const Blocks channels(w_.out_channels, (w_.out_channels + shares - 1) / shares, small::kRows);
    parallel_for(parts.count() * channels.count(), 1, [&](int64_t b, int64_t e) {
      for (int64_t task = b; task < e; ++task) {
        const int64_t i = task % parts.count(), share = task / parts.count();
        double* own = bias == nullptr || share > 0 ? nullptr : sums.data() + i * w_.out_channels;
        add_samples(parts.begin(i), parts.end(i), load, channels.begin(share), channels.end(share), part(i), own);
      }
    });
    for (int64_t o = 0; bias != nullptr && o < w_.out_channels; ++o) {
      double total = 0;
      for (int64_t i = 0; i < parts.count(); ++i) total += sums[i * w_.out_channels + o];
      bias[o] = static_cast<T>(total);
    }
    parallel_for(w_.out_channels, std::max<int64_t>(1, kSerialElements / (parts.count() * depth_)), [&](int64_t b, int64_t e) {
      for (int64_t i = 1; i < parts.count(); ++i) {
        const T* other = part(i);
        for (int64_t k = b * depth_; k < e * depth_; ++k) target[k] += other[k];
      }
      for (int64_t o = b; o < e; ++o) done(o);
    });
  }

  // One sample of x as the products of the weight gradient read it.
  void pad(const T* x, const Image& at, T* image) const {
    direct::copy_rows(x, at, w_.channels, w_.height, w_.width, -w_.padding[0], w_.height + w_.padding[0], w_.padding[1],
                      w_.width + 2 * w_.padding[1], image);
  }

 private:
  int64_t image_size() const { return (w_.height + 2 * w_.padding[0]) * row(); }

  // Rows [first, last) of the products of samples [begin, end), few enough at a time to stay in the cache for all tiles.
  template <class Load>
  void add_samples(int64_t begin, int64_t end, const Load& load, int64_t first, int64_t last, T* target,
                   double* sums) const {
    const direct::Runs runs = runs_of(row());
    const int64_t wide = direct::kWide<T>, pixels = w_.out_height * w_.out_width, image = image_size();
    const int64_t rows = pixels * w_.out_channels;
    const int64_t few = std::max(direct::kCached / (image + rows), direct::kLeastDepth / pixels) + 1;
    T* cotangents = thread_memory<direct::Result, T>(few * rows);
    T* images = thread_memory<direct::Band, T>(few * image + wide);
    direct::Gradient<T> m{cotangents, images, 0, w_.out_channels, w_.out_height, w_.out_width,
                          image, w_.stride[0] * row(), w_.stride[1] * w_.channels, target, depth_, false};
    for (int64_t s = begin; s < end; s += few) {
      m.samples = std::min(few, end - s);
      m.add = s > begin;
      for (int64_t i = 0; i < m.samples; ++i) load(s + i, cotangents + i * rows, images + i * image, sums);
      for (size_t run = 0; run < runs.offsets.size(); ++run) {
        for (int64_t c = 0; c < runs.length; c += wide) {
          const int64_t width = std::min(wide, runs.length - c), from = runs.offsets[run] + c;
          const int64_t place = static_cast<int64_t>(run) * runs.length + c;
          if (width > small::kLanes<T>) {
            direct::gradient_tiles<2>(m, first, last, from, place, width, small::kHeights);
          } else {
            direct::gradient_tiles<1>(m, first, last, from, place, width, small::kHeights);
          }
        }
      }
    }
  }

  // From one row of a padded image to the next.
  int64_t row() const { return (w_.width + 2 * w_.padding[1]) * w_.channels; }

  // Where pixels are written, their channels together: from the row `top` of the tensor on.
  struct Target {
    T* data;
    int64_t h, w, top;
  };

  // The rows of cotangents of sample n, behind the gate, that places q in [begin, end) read.
  const T* cotangent_band(const direct::Phases& phases, const T* g, const Image& at, const Gate<T>& gate, int64_t n,
                          int64_t begin, int64_t end) const {
    const int64_t first = begin - phases.reach, line = w_.out_width * w_.out_channels;
    T* image = thread_memory<direct::Band, T>((end - first) * phases.row);
    direct::copy_rows(g, at, w_.out_channels, w_.out_height, w_.out_width, first, end, phases.left, phases.width, image);
    for (int64_t h = std::max<int64_t>(0, first); h < std::min(end, w_.out_height); ++h) {
      T* row = image + (h - first) * phases.row + phases.left * w_.out_channels;
      gate.apply(row, (n * w_.out_height + h) * line, line);
    }
    return image;
  }

  void vjp_band(const direct::Phases& phases, const std::vector<direct::Panels<T>>& matrices, const T* image,
                int64_t begin, int64_t end, const Target& to) const {
    for (size_t i = 0; i < phases.pairs.size(); ++i) {
      const direct::Phase &h = *phases.pairs[i].h, &w = *phases.pairs[i].w;
      const int64_t q_begin = std::max(begin, h.begin), q_end = std::min(end, h.end);
      const int64_t count = std::max<int64_t>(0, q_end - q_begin) * std::max<int64_t>(0, w.end - w.begin);
      int64_t* places = thread_memory<direct::Pixels, int64_t>(2 * count);
      int64_t p = 0;
      for (int64_t q = q_begin; q < q_end; ++q) {
        const int64_t y = q * w_.stride[0] + h.residue - w_.padding[0] - to.top;
        for (int64_t v = w.begin; v < w.end; ++v, ++p) {
          places[p] = (q - begin + phases.reach) * phases.row + (v + phases.left) * w_.out_channels;
          places[count + p] = y * to.h + (v * w_.stride[1] + w.residue - w_.padding[1]) * to.w;
        }
      }
      direct::multiply(direct::Product<T>{image, places, places + count, count, phases.pairs[i].runs, matrices[i], nullptr,
                                          to.data});
    }
  }

  // Calls f(sample, begin, end) for bands of `rows` rows, each of `width` pixels and `work` multiplications; in parallel.
  template <class F>
  void for_each_band(int64_t rows, int64_t width, int64_t work, const F& f) const {
    const int64_t least = std::max(direct::kTaskProducts / std::max<int64_t>(1, work), direct::kTaskPixels / width);
    const Blocks bands(rows, std::min(rows, least + 1), 1);
    const int64_t each = std::max<int64_t>(1, bands.size * work);
    parallel_for(w_.batch * bands.count(), std::max<int64_t>(1, direct::kTaskProducts / 4 / each),
                 [&](int64_t b, int64_t e) {
                   for (int64_t task = b; task < e; ++task) {
                     const int64_t band = task % bands.count();
                     f(task / bands.count(), bands.begin(band), bands.end(band));
                   }
                 });
  }

  // What a pixel of y reads of the padded image.
  direct::Runs runs_of(int64_t row) const {
    const bool joined = w_.dilation[1] == 1;
    direct::Runs runs{{}, w_.channels * (joined ? w_.kernel[1] : 1)};
    for (int64_t i = 0; i < w_.kernel[0]; ++i) {
      for (int64_t j = 0; j < (joined ? 1 : w_.kernel[1]); ++j) {
        runs.offsets.push_back(i * w_.dilation[0] * row + j * w_.dilation[1] * w_.channels);
      }
    }
    return runs;
  }

  direct::Panels<T> forward_panels(T* memory) const {
    constexpr int64_t wide = direct::kWide<T>;
    const Blocks panels(w_.out_channels, wide, wide);
    parallel_for(panels.count(), std::max<int64_t>(1, kSerialElements / (depth_ * wide)), [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; ++i) {
        const int64_t first = panels.begin(i), count = panels.end(i) - first;
        T* panel = memory + first * depth_;
        if (count < wide) std::fill_n(panel, depth_ * wide, T(0));
        small::transpose(rows_ + first * depth_, depth_, count, depth_, panel, wide);
      }
    });
    return {memory, depth_, w_.out_channels};
  }

  // The weight of each phase, (tap, C') as rows of C.
  std::vector<direct::Panels<T>> reverse_panels(const std::vector<direct::PhasePair>& pairs) const {
    constexpr int64_t wide = direct::kWide<T>;
    T* memory = thread_memory<direct::Weights, T>(direct::Panels<T>::size(area() * w_.out_channels, w_.channels));
    std::vector<direct::Panels<T>> matrices;
    for (const direct::PhasePair& pair : pairs) {
      matrices.push_back({memory, pair.depth(), w_.channels});
      memory += direct::Panels<T>::size(pair.depth(), w_.channels);
    }
    const Blocks panels(w_.channels, wide, wide);
    const int64_t tasks = static_cast<int64_t>(pairs.size()) * panels.count();
    parallel_for(tasks, std::max<int64_t>(1, kSerialElements * tasks / (w_.out_channels * depth_)),
                 [&](int64_t b, int64_t e) {
                   for (int64_t task = b; task < e; ++task) {
                     const int64_t i = task / panels.count(), first = panels.begin(task % panels.count());
                     fill_panel(pairs[i], first, const_cast<T*>(matrices[i].data) + first * matrices[i].depth);
                   }
                 });
    return matrices;
  }

  // Columns of one phase from `first` on.
  void fill_panel(const direct::PhasePair& pair, int64_t first, T* panel) const {
    constexpr int64_t wide = direct::kWide<T>;
    const int64_t count = std::min(wide, w_.channels - first);
    for (const int64_t i : pair.h->taps) {
      for (const int64_t j : pair.w->taps) {
        const T* from = rows_ + (i * w_.kernel[1] + j) * w_.channels + first;
        for (int64_t o = 0; o < w_.out_channels; ++o, panel += wide) {
          std::fill(std::copy_n(from + o * depth_, count, panel), panel + wide, T(0));
        }
      }
    }
  }

  int64_t area() const { return w_.kernel[0] * w_.kernel[1]; }

  Window w_;
  const T* rows_;
  int64_t depth_;
};

}  // namespace
}  // namespace datagrad
