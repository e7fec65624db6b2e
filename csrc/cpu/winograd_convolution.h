// The sweeps of one convolution by minimal filtering: 3×3 kernels, and 4×4 ones of stride 2, each of whose four phases is 2×2. A tile
// of 2×2 outputs takes 16 products instead of 36, or 9 for each phase instead of 16, and one of 4×4 outputs 36 instead of 144, or 25
// instead of 64:
//
//   y = Aᵀ ((G w) ⊙ (Bᵀ x))        x̄ = B ((G w) ⊙ (A g))        w̄ = Gᵀ Σ_tiles (Bᵀ x) ⊙ (A g)
//
// where the products over channels are matrix products, one for each element of a tile.
#pragma once

#include <common/parallel_tasks.h>
#include <cpu/image_products.h>
#include <cpu/rectifier.h>
#include <cpu/winograd_tiles.h>

namespace datagrad {
namespace {
namespace winograd {

constexpr int64_t kTiles = 32, kGradientTiles = 64;  // tiles whose matrices stay in the cache
constexpr int64_t kBandLines = 4;                    // of a band, at least
constexpr int64_t kChannels = 16;                    // channels are multiples of these, so that no vector is cut
constexpr int64_t kTurned = 64;                      // outputs whose weights are turned at a time
constexpr int64_t kLeastTiles = 32;                  // of all samples
constexpr int64_t kManyTiles = 64;                   // of 4×4 outputs
constexpr int64_t kImage = 1 << 18;                  // elements of an image that a task may copy
constexpr int64_t kPartElements = 1 << 20, kMaxParts = 8;

// What the memory of a thread is for.
struct Inputs;
struct Outputs;
struct InputTiles;
struct OutputTiles;
struct Kernels;
struct Turned;
struct Parts;

// Element (o, tap of the kernel, c) is at data[o * (elements of a filter) + tap * … + channel * …].
template <class T>
struct Weight {
  const T* data;
  int64_t tap, channel;
};

// Tile lines [first, last) of sample n.
struct Segment {
  int64_t n, first, last;
};

inline int64_t tiles_along(int64_t pixels, int64_t outputs) { return (pixels + outputs - 1) / outputs; }

// Tiles of outputs × outputs in all samples.
inline int64_t tiles_of(const Window& w, int64_t outputs) {
  return w.batch * tiles_along(w.out_height, outputs) * tiles_along(w.out_width, outputs);
}

// Whether tiles of so many outputs, which take more matrices, are enough, and whole ones.
inline bool pays(const Window& w, int64_t outputs) {
  return w.out_height % outputs == 0 && w.out_width % outputs == 0 && tiles_of(w, outputs) >= kManyTiles;
}

}  // namespace winograd

// Calls f(Outputs, Taps, Stride) if the convolution is one of those, with at most so many outputs; whether it is.
template <class F>
bool with_winograd(const Window& w, int64_t most, const F& f) {
  const auto is = [&](int64_t kernel, int64_t stride) {
    return w.kernel == Pair{kernel, kernel} && w.stride == Pair{stride, stride};
  };
  const bool even = w.channels % winograd::kChannels == 0 && w.out_channels % winograd::kChannels == 0;
  const int64_t padded = (w.height + 2 * w.padding[0] + 4) * (w.width + 2 * w.padding[1] + 4);
  const bool fits = padded * std::max(w.channels, w.out_channels) <= winograd::kImage;
  if (!even || !fits || w.dilation != Pair{1, 1} || winograd::tiles_of(w, 2) < winograd::kLeastTiles) return false;
  const auto run = [&](auto taps, auto stride) {
    if (most >= 4 && winograd::pays(w, 4)) {
      f(std::integral_constant<int, 4>{}, taps, stride);
    } else {
      f(std::integral_constant<int, 2>{}, taps, stride);
    }
  };
  if (is(3, 1)) {
    run(std::integral_constant<int, 3>{}, std::integral_constant<int, 1>{});
  } else if (is(4, 2)) {
    run(std::integral_constant<int, 2>{}, std::integral_constant<int, 2>{});
  } else {
    return false;
  }
  return true;
}

template <class T, int Outputs, int Taps, int Stride>
class WinogradConvolution {
  using Line = winograd::Line<T>;
  using Matrices = winograd::Matrices<T>;
  using Segment = winograd::Segment;
  using Tiles = winograd::Tiles<T, Outputs, Taps, Stride>;
  static constexpr int kSide = Outputs + Taps - 1;
  static constexpr int64_t kElements = kSide * kSide, kKernel = Taps * Stride;
  static constexpr int64_t kOverlap = (Taps - 1) * Stride;  // rows that two lines of tiles have in common
  static constexpr int64_t kLine = Outputs * Stride;              // rows from one line of tiles to the next

 public:
  WinogradConvolution(const Window& window, const winograd::Weight<T>& weight)
      : w_(window),
        weight_(weight),
        depth_(Stride * Stride * w_.channels),
        lines_(winograd::tiles_along(w_.out_height, Outputs)),
        count_(winograd::tiles_along(w_.out_width, Outputs)),
        width_(std::max(kLine * count_ + kOverlap, w_.padding[1] + w_.width)) {}

  // y = w * x + b. done(begin, count) is called when so many elements of y, one run of memory in channels_last, are there.
  template <class Done>
  void forward(const Tensor& x, const T* bias, const Tensor& y, const Done& done) const {
    const Matrices kernels = kernels_by_input();
    const Image from(x), to(y);
    const T* source = data<T>(x);
    T* target = mutable_data<T>(y);
    const bool direct = is_tiled(to);
    for_each_task([&](const std::vector<Segment>& segments) {
      const std::vector<Line> inputs = load_inputs(segments, source, from);
      std::vector<Line> outputs = direct ? std::vector<Line>() : output_lines(segments);
      for (const Segment& s : segments) {
        if (direct) add_lines(s, target + s.n * to.n, to, outputs);
      }
      for_each_chunk(inputs, winograd::kTiles, [&](int64_t first, int64_t last) {
        const Matrices v = input_tiles(first, last), m = output_tiles(first, last);
        Tiles{inputs, first, last, count_}.input(w_.channels, v);
        for (int64_t i = 0; i < kElements; ++i) winograd::multiply<T>({v[i], kernels[i], m[i]});
        Tiles{outputs, first, last, count_}.output(w_.out_channels, m, bias);
      });
      size_t line = 0;
      for (const Segment& s : segments) {
        const int64_t begin = Outputs * s.first, end = std::min(w_.out_height, Outputs * s.last);
        if (!direct) {
          for (int64_t h = begin; h < end; ++h) {
            const Line& from_line = outputs[line + (h - begin) / Outputs];
            put_row(from_line.data + (h - begin) % Outputs * from_line.row, w_.out_channels, h, w_.out_width, target + s.n * to.n, to);
          }
          line += s.last - s.first;
        }
        done(s.n * to.n + begin * to.h, (end - begin) * w_.out_width * w_.out_channels);
      }
    });
  }

  // x̄ of g behind the gate.
  void vjp(const Tensor& g, const Gate<T>& gate, const Tensor& x_bar) const {
    const Matrices kernels = kernels_by_output();
    const Image from(g), to(x_bar);
    const T* source = data<T>(g);
    T* target = mutable_data<T>(x_bar);
    for_each_task([&](const std::vector<Segment>& owned) {
      std::vector<Segment> segments = owned;
      if (segments[0].first > 0) --segments[0].first;  // its last rows are the first that are owned
      const std::vector<Line> outputs = load_outputs(segments, source, from, gate);
      const std::vector<Line> inputs = input_lines(segments);
      std::fill_n(inputs[0].data, input_size(segments), T(0));
      for_each_chunk(inputs, winograd::kTiles, [&](int64_t first, int64_t last) {
        const Matrices v = input_tiles(first, last), m = output_tiles(first, last);
        Tiles{outputs, first, last, count_}.cotangent(w_.out_channels, m);
        for (int64_t i = 0; i < kElements; ++i) winograd::multiply<T>({m[i], kernels[i], v[i]});
        Tiles{inputs, first, last, count_}.add_input(w_.channels, v);
      });
      size_t line = 0;
      for (size_t i = 0; i < owned.size(); ++i) {
        const int64_t top = kLine * segments[i].first - w_.padding[0];
        const int64_t begin = owned[i].first == 0 ? 0 : kLine * owned[i].first - w_.padding[0];
        const int64_t end = owned[i].last == lines_ ? w_.height : std::min(w_.height, kLine * owned[i].last - w_.padding[0]);
        for (int64_t h = std::max<int64_t>(0, begin); h < end; ++h) {
          const T* row = inputs[line].data + (h - top) * width_ * w_.channels + w_.padding[1] * w_.channels;
          put_row(row, w_.channels, h, w_.width, target + owned[i].n * to.n, to);
        }
        line += segments[i].last - segments[i].first;
      }
    });
  }

  // target (C', kh, kw, C) = Σ gᵀ x over all pairs, each g behind the gate; then done(o) for every filter o, in parallel. Unless
  // `bias` is null, bias = Σ of the last g over all pixels. The parts that are added at last do not depend on the number of threads.
  template <class Done>
  void weight_gradient(const std::vector<Tensor>& gs, const std::vector<Tensor>& xs, const Gate<T>& gate, T* target, T* bias,
                       const Done& done) const {
    const int64_t samples = static_cast<int64_t>(gs.size()) * w_.batch, size = Matrices::step(w_.out_channels, depth_) * kElements;
    const int64_t least = (winograd::kGradientTiles + lines_ * count_ - 1) / (lines_ * count_);
    const int64_t most = halved_parts(winograd::kMaxParts, winograd::kPartElements / size);
    const Blocks parts(samples, std::max(least, (samples + most - 1) / most), 1);
    T* memory = thread_memory<winograd::Parts, T>(parts.count() * size);
    const auto part = [&](int64_t i) { return Matrices{memory + i * size, w_.out_channels, depth_}; };
    std::vector<double> sums(bias == nullptr ? 0 : parts.count() * w_.out_channels);
    const int64_t panels = (w_.out_channels + kWide - 1) / kWide;
    const int64_t shares = std::clamp<int64_t>(num_threads() / parts.count(), 1, panels);
    const Blocks channels(w_.out_channels, (w_.out_channels + shares - 1) / shares, kWide);
    parallel_tasks(parts.count() * channels.count(), [&](int64_t task) {
      const int64_t i = task % parts.count(), share = task / parts.count();
      double* own = bias == nullptr || share > 0 ? nullptr : sums.data() + i * w_.out_channels;
      add_samples(gs, xs, gate, parts.begin(i), parts.end(i), channels.begin(share), channels.end(share), part(i), own);
    });
    for (int64_t o = 0; bias != nullptr && o < w_.out_channels; ++o) {
      double total = 0;
      for (int64_t i = 0; i < parts.count(); ++i) total += sums[i * w_.out_channels + o];
      bias[o] = static_cast<T>(total);
    }
    parallel_for(w_.out_channels, std::max<int64_t>(1, kSerialElements / (depth_ * kElements)), [&](int64_t b, int64_t e) {
      for (int64_t o = b; o < e; ++o) {
        gradient_of_filter(memory, parts.count(), size, o, target + o * filter());
        done(o);
      }
    });
  }

 private:
  static constexpr int64_t kWide = winograd::Matrix<T>::kWide;
  using L = small::Lanes<T>;
  using Registers = Square<Outputs, Taps, typename L::Vector>;

  int64_t filter() const { return kKernel * kKernel * w_.channels; }

  // Calls f(segments) in parallel: some samples, or a band of one where there are fewer samples than threads.
  template <class F>
  void for_each_task(const F& f) const {
    const int64_t threads = num_threads(), few = std::max<int64_t>(1, winograd::kTiles / (lines_ * count_));
    const Blocks samples(w_.batch, std::min(few, (w_.batch + threads - 1) / threads), 1);
    const int64_t split = std::max<int64_t>(1, threads / w_.batch);
    const Blocks bands(lines_, std::max(winograd::kBandLines, (lines_ + split - 1) / split), 1);
    parallel_tasks(samples.count() * bands.count(), [&](int64_t task) {
      const int64_t block = task / bands.count(), band = task % bands.count();
      std::vector<Segment> segments;
      for (int64_t n = samples.begin(block); n < samples.end(block); ++n) {
        segments.push_back({n, bands.begin(band), bands.end(band)});
      }
      f(segments);
    });
  }

  // Calls f(first, last) for chunks of the lines with about so many tiles.
  template <class F>
  void for_each_chunk(const std::vector<Line>& lines, int64_t tiles, const F& f) const {
    const int64_t all = static_cast<int64_t>(lines.size());
    const Blocks chunks(all, std::max<int64_t>(1, tiles / count_), 1);
    for (int64_t i = 0; i < chunks.count(); ++i) f(chunks.begin(i), chunks.end(i));
  }

  Matrices input_tiles(int64_t first, int64_t last) const {
    return matrices<winograd::InputTiles>((last - first) * count_, depth_);
  }
  Matrices output_tiles(int64_t first, int64_t last) const {
    return matrices<winograd::OutputTiles>((last - first) * count_, w_.out_channels);
  }

  template <class Use>
  static Matrices matrices(int64_t rows, int64_t columns) {
    return {thread_memory<Use, T>(kElements * Matrices::step(rows, columns)), rows, columns};
  }

  int64_t input_rows(const Segment& s) const {
    const int64_t rows = kLine * (s.last - s.first) + kOverlap;
    return s.last < lines_ ? rows : std::max(rows, w_.height + w_.padding[0] - kLine * s.first);
  }

  int64_t input_size(const std::vector<Segment>& segments) const {
    int64_t rows = 0;
    for (const Segment& s : segments) rows += input_rows(s);
    return rows * width_ * w_.channels;
  }

  // The lines of tiles of padded images in the thread's memory.
  std::vector<Line> input_lines(const std::vector<Segment>& segments) const {
    const int64_t row = width_ * w_.channels;
    T* image = thread_memory<winograd::Inputs, T>(input_size(segments));
    std::vector<Line> lines;
    for (const Segment& s : segments) {
      for (int64_t l = s.first; l < s.last; ++l) lines.push_back({image + (l - s.first) * kLine * row, row, w_.channels});
      image += input_rows(s) * row;
    }
    return lines;
  }

  std::vector<Line> output_lines(const std::vector<Segment>& segments) const {
    const int64_t row = Outputs * count_ * w_.out_channels;
    int64_t all = 0;
    for (const Segment& s : segments) all += s.last - s.first;
    T* image = thread_memory<winograd::Outputs, T>(Outputs * all * row);
    std::vector<Line> lines;
    for (int64_t l = 0; l < all; ++l) lines.push_back({image + Outputs * l * row, row, w_.out_channels});
    return lines;
  }

  // Whether whole tiles lie in a tensor of the output's shape, their channels together.
  bool is_tiled(const Image& at) const { return at.c == 1 && w_.out_height % Outputs == 0 && w_.out_width % Outputs == 0; }

  // The lines of tiles of a sample where they lie; of a tensor that is const they are only read.
  static void add_lines(const Segment& s, const T* sample, const Image& at, std::vector<Line>& lines) {
    for (int64_t l = s.first; l < s.last; ++l) lines.push_back({const_cast<T*>(sample) + Outputs * l * at.h, at.h, at.w});
  }

  std::vector<Line> load_inputs(const std::vector<Segment>& segments, const T* x, const Image& at) const {
    const std::vector<Line> lines = input_lines(segments);
    T* image = lines[0].data;
    for (const Segment& s : segments) {
      image = load_input(s, x + s.n * at.n, at, image);
    }
    return lines;
  }

  T* load_input(const Segment& s, const T* x, const Image& at, T* image) const {
    const int64_t top = kLine * s.first - w_.padding[0], rows = input_rows(s);
    direct::copy_rows(x, at, w_.channels, w_.height, w_.width, top, top + rows, w_.padding[1], width_, image);
    return image + rows * width_ * w_.channels;
  }

  std::vector<Line> load_outputs(const std::vector<Segment>& segments, const T* g, const Image& at, const Gate<T>& gate) const {
    std::vector<Line> lines;
    if (gate.bits == nullptr && is_tiled(at)) {
      for (const Segment& s : segments) add_lines(s, g + s.n * at.n, at, lines);
      return lines;
    }
    lines = output_lines(segments);
    T* image = lines[0].data;
    for (const Segment& s : segments) image = load_output(s, g + s.n * at.n, at, gate, image);
    return lines;
  }

  T* load_output(const Segment& s, const T* g, const Image& at, const Gate<T>& gate, T* image) const {
    const int64_t row = Outputs * count_ * w_.out_channels, used = w_.out_width * w_.out_channels;
    direct::copy_rows(g, at, w_.out_channels, w_.out_height, w_.out_width, Outputs * s.first, Outputs * s.last, 0, Outputs * count_, image);
    for (int64_t h = Outputs * s.first; h < std::min(w_.out_height, Outputs * s.last); ++h) {
      gate.apply(image + (h - Outputs * s.first) * row, (s.n * w_.out_height + h) * used, used);
    }
    return image + Outputs * (s.last - s.first) * row;
  }

  static void put_row(const T* row, int64_t channels, int64_t h, int64_t width, T* x, const Image& at) {
    if (at.c == 1 && at.w == channels) {
      std::copy_n(row, width * channels, x + h * at.h);
    } else {
      direct::put_rows(row, channels, h, h + 1, width, x, at);
    }
  }

  // Rows [first, last) of the matrices of samples [begin, end) of all pairs.
  void add_samples(const std::vector<Tensor>& gs, const std::vector<Tensor>& xs, const Gate<T>& gate, int64_t begin,
                   int64_t end, int64_t first, int64_t last, const Matrices& sum, double* sums) const {
    const int64_t few = winograd::kGradientTiles / (lines_ * count_) + 1;
    bool add = false;
    std::vector<Segment> segments;
    for (int64_t v = begin; v < end; v += few) {
      segments.clear();
      for (int64_t s = v; s < std::min(end, v + few); ++s) segments.push_back({s, 0, lines_});
      const std::vector<Line> inputs = input_lines(segments), buffers = output_lines(segments);
      std::vector<Line> outputs;
      T* x = inputs[0].data;
      for (const Segment& s : segments) {
        const size_t pair = s.n / w_.batch;
        const Segment own{s.n % w_.batch, 0, lines_};
        const Image from(gs[pair]), at(xs[pair]);
        const T* sample = data<T>(gs[pair]) + own.n * from.n;
        if (gate.bits == nullptr && sums == nullptr && is_tiled(from)) {
          add_lines(own, sample, from, outputs);
        } else {
          const auto own_lines = buffers.begin() + outputs.size();
          T* cotangents = own_lines->data;
          const T* end = load_output(own, sample, from, gate, cotangents);
          if (sums != nullptr && pair + 1 == gs.size()) add_pixels(cotangents, end, sums);
          outputs.insert(outputs.end(), own_lines, own_lines + lines_);
        }
        x = load_input(own, data<T>(xs[pair]) + own.n * at.n, at, x);
      }
      for_each_chunk(inputs, winograd::kGradientTiles, [&](int64_t b, int64_t e) {
        const Matrices tiles = input_tiles(b, e), m = output_tiles(b, e);
        Tiles{inputs, b, e, count_}.input(w_.channels, tiles);
        Tiles{outputs, b, e, count_}.cotangent(w_.out_channels, m);
        for (int64_t i = 0; i < kElements; ++i) winograd::gradient<T>({m[i], tiles[i], sum[i]}, first, last, add);
        add = true;
      });
    }
  }

  // Adds rows of pixels; few at a time before they are widened.
  void add_pixels(const T* begin, const T* end, double* sums) const {
    const int64_t channels = w_.out_channels, step = 8 * channels;
    for (; begin < end; begin += step) {
      const int64_t count = std::min<int64_t>(8, (end - begin) / channels);
      for (int64_t c = 0; c < channels; ++c) {
        T sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += begin[i * channels + c];
        sums[c] += static_cast<double>(sum);
      }
    }
  }

  // w̄ of one output channel from the parts of its matrices.
  void gradient_of_filter(const T* memory, int64_t parts, int64_t size, int64_t o, T* target) const {
    const int64_t step = Matrices::step(w_.out_channels, depth_);
    const winograd::Matrix<const T> first{memory, w_.out_channels, depth_};
    for (int64_t phase = 0; phase < Stride * Stride; ++phase) {
      for (int64_t c = 0; c < w_.channels; c += small::kLanes<T>) {
        const T* element = first.at(o, phase * w_.channels + c);
        T* to = target + (phase / Stride * kKernel + phase % Stride) * w_.channels + c;
        Registers s;
        s.template each<kSide, kSide>([&](int i, int j, auto& d) __attribute__((always_inline)) {
          const T* from = element + (i * kSide + j) * step;
          d = L::load(from);
          for (int64_t p = 1; p < parts; ++p) d += L::load(from + p * size);
        });
        s.kernel_transposed();
        s.template each<Taps, Taps>([&](int i, int j, auto& d) __attribute__((always_inline)) {
          L::store(d, to + (i * kKernel + j) * Stride * w_.channels);
        });
      }
    }
  }

  // G w as matrices (C', (phase, C)).
  Matrices kernels_by_output() const {
    const Matrices to = matrices<winograd::Kernels>(w_.out_channels, depth_);
    parallel_for(w_.out_channels, std::max<int64_t>(1, kSerialElements / (depth_ * kElements)), [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) {
        const T* rows = rows_of_filter(o);
        for (int64_t phase = 0; phase < Stride * Stride; ++phase) {
          for (int64_t c = 0; c < w_.channels; c += small::kLanes<T>) {
            transform_kernel(rows + first_tap(phase) * w_.channels + c, w_.channels, to[0].at(o, phase * w_.channels + c), to.step());
          }
        }
      }
    });
    return to;
  }

  // The same as ((phase, C), C').
  Matrices kernels_by_input() const {
    const Matrices to = matrices<winograd::Kernels>(depth_, w_.out_channels);
    const Blocks channels(w_.channels, winograd::kChannels, 1), outputs(w_.out_channels, winograd::kTurned, 1);
    const int64_t each = channels.size * outputs.size * Stride * Stride * kElements;
    parallel_for(channels.count() * outputs.count(), std::max<int64_t>(1, kSerialElements / each), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t c = i % channels.count(), o = i / channels.count();
        transform_turned(channels.begin(c), channels.end(c), outputs.begin(o), outputs.end(o), to);
      }
    });
    return to;
  }

  // The kernels of channels [first, last) and outputs [begin, end) of that.
  void transform_turned(int64_t first, int64_t last, int64_t begin, int64_t end, const Matrices& to) const {
    const int64_t outputs = end - begin, channels = last - first;
    T* turned = thread_memory<winograd::Turned, T>(channels * kKernel * kKernel * outputs);
    const winograd::Weight<T> own = turn(first, channels, begin, outputs, turned);
    for (int64_t phase = 0; phase < Stride * Stride; ++phase) {
      for (int64_t c = 0; c < channels; ++c) {
        const T* from = own.data + first_tap(phase) * own.tap + c * own.channel;
        for (int64_t o = 0; o < outputs; o += small::kLanes<T>) {
          transform_kernel(from + o, own.tap, to[0].at(phase * w_.channels + first + c, begin + o), to.step());
        }
      }
    }
  }

  // Some channels and outputs of the weight with the outputs fastest.
  winograd::Weight<T> turn(int64_t first, int64_t channels, int64_t begin, int64_t outputs, T* turned) const {
    const T* from = weight_.data + begin * filter() + first * weight_.channel;
    const bool together = weight_.channel == 1;
    const int64_t pieces = together ? kKernel * kKernel : 1, piece = filter() / w_.channels / pieces * channels;
    for (int64_t i = 0; i < pieces; ++i) {
      small::transpose(from + i * weight_.tap, filter(), outputs, piece, turned + i * piece * outputs, outputs);
    }
    return {turned, together ? channels * outputs : outputs, together ? outputs : kKernel * kKernel * outputs};
  }

  // One filter as (kh, kw, C).
  const T* rows_of_filter(int64_t o) const {
    const T* from = weight_.data + o * filter();
    if (weight_.channel == 1) return from;
    T* rows = thread_memory<winograd::Turned, T>(filter());
    small::transpose(from, w_.channels, kKernel * kKernel, rows);
    return rows;
  }

  static int64_t first_tap(int64_t phase) { return phase / Stride * kKernel + phase % Stride; }

  // G of the vectors at the taps of one phase, `tap` from one to the next of the kernel.
  static void transform_kernel(const T* from, int64_t tap, T* to, int64_t step) {
    Registers s;
    s.template each<Taps, Taps>([&](int i, int j, auto& d) __attribute__((always_inline)) {
      d = L::load(from + (i * kKernel + j) * Stride * tap);
    });
    s.kernel();
    s.template each<kSide, kSide>([&](int i, int j, auto& d) __attribute__((always_inline)) {
      L::store(d, to + (i * kSide + j) * step);
    });
  }

  Window w_;
  winograd::Weight<T> weight_;
  int64_t depth_, lines_, count_, width_;
};

}  // namespace
}  // namespace datagrad
