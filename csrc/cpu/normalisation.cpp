// The normalisation family on the CPU: ops, letters and layouts as in datagrad_ext/ops/normalisation.py.
//
// Every op is sums, coefficients, map (math/normalisation.h). Where a set of common statistics lies in one sample the three
// follow each other while the sample is in the cache; in batch norm, sums over all blocks of the batch come first. Sets of
// single rows with a weight for each element (layer norm) have loops of their own. Blocks depend on sizes alone, never on
// threads.
#include <common/normalisation_ops.h>
#include <common/parallel.h>
#include <cpu/normalisation_loops.h>

#include <cmath>

#if defined(__GNUC__) && !defined(__clang__)
// A chunk's buffer is deliberately not initialised; what is read of it has been written.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace datagrad {
namespace {

constexpr int64_t kMaxBlocks = 128;
constexpr int64_t kBlock = 16384;  // elements of a block of the batch, at least

// Channels first ... last - 1 of samples (or, with channels fastest, of rows) begin ... end - 1.
struct Tile {
  int64_t begin, end, first, last;
};

// What an op computes, in the arithmetic type: operands, numbers of the channels, where results go.
template <class T>
struct Job {
  using A = Acc<T>;

  Sets sets;
  Operands<T> in;
  bool outer = false;
  std::vector<A> weight, bias;  // never empty: ones and zeros if the op has none
  bool has_weight = false;
  const A *mean = nullptr, *rstd = nullptr;  // of each set
  T* out = nullptr;
  A *weight_grad = nullptr, *bias_grad = nullptr;

  Job(const Sets& sets, const Tensor& x, const std::optional<Tensor>& w)
      : sets(sets), weight(sets.c, A(1)), bias(sets.c, A(0)), has_weight(w.has_value()) {
    in.x = data<T>(x);
    if (w) std::copy_n(data<A>(*w), sets.c, weight.begin());
  }

  double count() const { return static_cast<double>(sets.elements()); }
};

// Adds the sums of each channel of the tile to sums[k * stride + channel]; mean has one number a channel.
template <class T>
void tile_sums(const Sets& sets, const Operands<T>& in, const Tile& tile, const Acc<T>* mean, double* sums,
               int64_t stride) {
  if (sets.channels_fastest) {
    const int64_t rows = tile.end - tile.begin;
    RowSums<T>(in, sets.c, mean, rows).add(tile.begin, rows, sums, stride);
    return;
  }
  std::vector<double> of_run(in.n_sums());
  for (int64_t sample = tile.begin; sample < tile.end; ++sample) {
    for (int64_t c = tile.first; c < tile.last; ++c) {
      std::fill(of_run.begin(), of_run.end(), 0.0);
      add_run_sums<T>(in, (sample * sets.c + c) * sets.size, sets.size, mean[c], nullptr, of_run.data());
      for (size_t k = 0; k < of_run.size(); ++k) sums[static_cast<int64_t>(k) * stride + c] += of_run[k];
    }
  }
}

// The coefficients of every channel with its weight and bias in them: rows of one number a channel.
template <class A>
struct ChannelMap {
  int64_t channels;
  std::vector<A> numbers;

  ChannelMap(int64_t channels, size_t pairs) : channels(channels), numbers((4 + 2 * pairs) * channels) {}

  // Every row several times, one after the other.
  ChannelMap repeated(int64_t times) const {
    ChannelMap wide(channels * times, 0);
    wide.numbers.resize(numbers.size() * times);
    for (size_t i = 0; i < numbers.size(); i += channels) {
      for (int64_t k = 0; k < times; ++k) {
        std::copy_n(numbers.begin() + i, channels, wide.numbers.begin() + (i * times + k * channels));
      }
    }
    return wide;
  }

  A* row(int64_t i) { return numbers.data() + i * channels; }
  const A* row(int64_t i) const { return numbers.data() + i * channels; }

  template <class M, class At>
  M at(size_t pairs, const At& number) const {
    M map{number(row(0)), number(row(1)), number(row(2)), number(row(3)), {}};
    for (size_t p = 0; p < pairs; ++p) {
      const int64_t i = 4 + 2 * static_cast<int64_t>(p);
      map.pairs.emplace_back(number(row(i)), number(row(i + 1)));
    }
    return map;
  }
};

template <class T>
void tile_map(const Job<T>& job, const Tile& tile, const ChannelMap<Acc<T>>& channels) {
  using A = Acc<T>;
  const Sets& sets = job.sets;
  const size_t pairs = job.in.pairs.size();
  if (sets.channels_fastest) {
    const int64_t end = tile.end * sets.c;
    const auto wide = channels.repeated(repeats(sets.c, tile.end - tile.begin));
    const auto map = wide.template at<RowMap<A>>(pairs, [](const A* row) { return row; });
    for (int64_t i = tile.begin * sets.c; i < end; i += wide.channels) {
      map_run<T>(job.in, i, std::min(wide.channels, end - i), map, job.out);
    }
    return;
  }
  for (int64_t c = tile.first; c < tile.last; ++c) {
    const auto map = channels.template at<RunMap<A>>(pairs, [c](const A* row) { return One<A>{row[c]}; });
    for (int64_t sample = tile.begin; sample < tile.end; ++sample) {
      map_run<T>(job.in, (sample * sets.c + c) * sets.size, sets.size, map, job.out);
    }
  }
}

// The coefficients of one set after another; the storage is used again.
class SetMap {
 public:
  Coefficients total;
  std::vector<PairOfSet> pairs;

  template <class T>
  explicit SetMap(const Job<T>& job)
      : pairs(job.in.pairs.size()), has_single_(job.in.has_single()), is_value_(job.outer && !has_single_),
        count_(job.count()), sums_(job.in.n_sums()) {}

  // The sums of the set, to be filled in.
  double* clear() {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    return sums_.data();
  }

  void set(double r) {
    total = has_single_ ? projection(sums_.data(), r, count_) : Coefficients{0, is_value_ ? r : 0, 0};
    for (size_t p = 0; p < pairs.size(); ++p) {
      pairs[p] = add_curvature(sums_.data() + kSingleSums + kPairSums * p, r, count_, total);
    }
  }

  // From the sums of each of its channels first ... last - 1: weighted ones where the weight is inside.
  template <class T>
  void set(const Job<T>& job, const double* sums, int64_t stride, int64_t first, int64_t last, double r) {
    for (size_t k = 0; k < sums_.size(); ++k) {
      const size_t of_pair = (k + kPairSums - kSingleSums) % kPairSums;
      const bool with_weight = !job.outer && (k < kSingleSums || (of_pair != 2 && of_pair != 3));
      const double* of_channel = sums + static_cast<int64_t>(k) * stride;
      double of_set = 0;
      for (int64_t c = first; c < last; ++c) {
        of_set += with_weight ? of_channel[c] * static_cast<double>(job.weight[c]) : of_channel[c];
      }
      sums_[k] = of_set;
    }
    set(r);
  }

 private:
  bool has_single_, is_value_;
  double count_;
  std::vector<double> sums_;
};

// Adds the gradients of the weight and the bias of channels first ... last - 1 of one set to grads[channel], grads[c + channel].
template <class T>
void add_param_grads(const Job<T>& job, const SetMap& map, double r, const double* sums, int64_t stride, int64_t first,
                     int64_t last, double* grads) {
  for (int64_t c = first; c < last; ++c) {
    const double* s = sums + c;
    grads[c] += r * s[stride];
    grads[job.sets.c + c] += s[0];
    s += kSingleSums * stride;
    for (const PairOfSet& pair : map.pairs) {
      grads[c] += pair_weight_grad(pair, r, s[0], s[stride], s[4 * stride]);
      s += kPairSums * stride;
    }
  }
}

template <class T>
void fill_channels(const Job<T>& job, const SetMap& map, Acc<T> mean, int64_t first, int64_t last,
                   ChannelMap<Acc<T>>& channels) {
  using A = Acc<T>;
  for (int64_t c = first; c < last; ++c) {
    const double w = job.weight[c], inner = job.outer ? w : 1.0;
    channels.row(0)[c] = mean;
    channels.row(1)[c] = static_cast<A>(w * map.total.alpha);
    channels.row(2)[c] = static_cast<A>(inner * map.total.kappa);
    channels.row(3)[c] = static_cast<A>(inner * map.total.lambda + job.bias[c]);
    for (size_t p = 0; p < map.pairs.size(); ++p) {
      channels.row(4 + 2 * p)[c] = static_cast<A>(w * map.pairs[p].beta);
      channels.row(5 + 2 * p)[c] = static_cast<A>(map.pairs[p].gamma);
    }
  }
}

template <class T>
void store_param_grads(const Job<T>& job, const double* grads) {
  for (int64_t c = 0; c < job.sets.c && job.weight_grad != nullptr; ++c) {
    job.weight_grad[c] = static_cast<Acc<T>>(grads[c]);
    job.bias_grad[c] = static_cast<Acc<T>>(grads[job.sets.c + c]);
  }
}

// How a batch is cut: blocks of samples (or rows), and, where there are few samples, of channels too.
struct BatchTiles {
  int64_t lines, channels, step, channel_step;

  explicit BatchTiles(const Sets& sets)
      : lines(sets.channels_fastest ? sets.n * sets.size : sets.n), channels(std::max<int64_t>(1, sets.c)) {
    const int64_t of_line = std::max<int64_t>(1, sets.channels_fastest ? sets.c : sets.c * sets.size);
    step = std::max({int64_t{1}, kBlock / of_line, (lines + kMaxBlocks - 1) / kMaxBlocks});
    const int64_t blocks = std::max<int64_t>(1, (lines + step - 1) / step);
    const int64_t split = sets.channels_fastest ? 1 : std::clamp<int64_t>(16 / blocks, 1, channels);
    channel_step = (channels + split - 1) / split;
  }

  int64_t line_blocks() const { return (lines + step - 1) / step; }
  int64_t channel_blocks() const { return (channels + channel_step - 1) / channel_step; }

  // Calls f(block of lines, tile) for all tiles, in parallel.
  template <class F>
  void for_each(int64_t elements, const F& f) const {
    const int64_t tiles = line_blocks() * channel_blocks();
    const int64_t grain = std::max<int64_t>(1, kSerialElements * tiles / std::max<int64_t>(1, elements));
    parallel_for(tiles, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t line = i / channel_blocks() * step, c = i % channel_blocks() * channel_step;
        f(i / channel_blocks(), Tile{line, std::min(lines, line + step), c, std::min(channels, c + channel_step)});
      }
    });
  }
};

// The sums of every channel of the whole batch.
template <class T>
std::vector<double> batch_sums(const Sets& sets, const Operands<T>& in, const Acc<T>* mean) {
  const BatchTiles tiles(sets);
  const int64_t n = in.n_sums() * sets.c;
  std::vector<double> partial(tiles.line_blocks() * n, 0.0), total(n, 0.0);
  tiles.for_each(sets.numel(), [&](int64_t block, const Tile& tile) {
    tile_sums(sets, in, tile, mean, partial.data() + block * n, sets.c);
  });
  for (int64_t block = 0; block < tiles.line_blocks(); ++block) {
    for (int64_t k = 0; k < n; ++k) total[k] += partial[block * n + k];
  }
  return total;
}

// Sums of channels and what follows from them, for one set after another.
template <class T>
struct Scratch {
  std::vector<Acc<T>> mean;
  std::vector<double> sums;
  SetMap map;
  ChannelMap<Acc<T>> channels;

  explicit Scratch(const Job<T>& job)
      : mean(job.sets.c), sums(job.in.n_sums() * job.sets.c), map(job), channels(job.sets.c, job.in.pairs.size()) {}
};

template <class T>
void map_batch(const Job<T>& job, const std::vector<double>& sums) {
  const int64_t c = job.sets.c;
  Scratch<T> scratch(job);
  std::vector<double> grads(2 * c, 0.0);
  for (int64_t i = 0; i < c; ++i) {
    const double r = job.rstd[i];
    scratch.map.set(job, sums.data(), c, i, i + 1, r);
    fill_channels(job, scratch.map, job.mean[i], i, i + 1, scratch.channels);
    add_param_grads(job, scratch.map, r, sums.data(), c, i, i + 1, grads.data());
  }
  store_param_grads(job, grads.data());
  if (job.out == nullptr) return;
  BatchTiles(job.sets).for_each(job.sets.numel(),
                                [&](int64_t, const Tile& tile) { tile_map(job, tile, scratch.channels); });
}

// Calls f(begin, end, gradients) for blocks of samples in parallel; the gradients of parameters of each block are added in order.
template <class T, class F>
void for_each_sample_block(const Job<T>& job, const F& f) {
  const int64_t n = job.sets.n, of_sample = std::max<int64_t>(1, job.sets.c * job.sets.size);
  const int64_t step = std::max({int64_t{1}, kBlock / of_sample, (n + kMaxBlocks - 1) / kMaxBlocks});
  const int64_t blocks = (n + step - 1) / step, width = 2 * job.sets.c;
  const bool wanted = job.weight_grad != nullptr;
  std::vector<double> partial(wanted ? blocks * width : 0, 0.0), total(wanted ? width : 0, 0.0);
  const int64_t grain = std::max<int64_t>(1, kSerialElements / (of_sample * step));
  parallel_for(blocks, grain, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      f(b * step, std::min(n, (b + 1) * step), wanted ? partial.data() + b * width : nullptr);
    }
  });
  for (int64_t b = 0; b < blocks && wanted; ++b) {
    for (int64_t k = 0; k < width; ++k) total[k] += partial[b * width + k];
  }
  store_param_grads(job, total.data());
}

// The sets of the channels first ... last - 1 of one sample: sums, coefficients, map.
template <class T>
void map_channels(const Job<T>& job, int64_t sample, int64_t first, int64_t last, Scratch<T>& scratch, double* grads) {
  const Sets& sets = job.sets;
  const int64_t c = sets.c, of_set = sets.channels();
  const Tile tile = sets.channels_fastest ? Tile{sample * sets.size, (sample + 1) * sets.size, first, last}
                                          : Tile{sample, sample + 1, first, last};
  if (job.in.has_single() || !job.in.pairs.empty()) {
    for (int64_t k = 0; k < job.in.n_sums(); ++k) {
      std::fill_n(scratch.sums.begin() + k * c + first, last - first, 0.0);
    }
    for (int64_t i = first; i < last; ++i) scratch.mean[i] = job.mean[job.sets.of(sample, i)];
    tile_sums(sets, job.in, tile, scratch.mean.data(), scratch.sums.data(), c);
  }
  for (int64_t i = first; i < last; i += of_set) {
    const int64_t set = job.sets.of(sample, i);
    const double r = job.rstd[set];
    scratch.map.set(job, scratch.sums.data(), c, i, i + of_set, r);
    fill_channels(job, scratch.map, job.mean[set], i, i + of_set, scratch.channels);
    if (grads != nullptr) add_param_grads(job, scratch.map, r, scratch.sums.data(), c, i, i + of_set, grads);
  }
  if (job.out != nullptr) tile_map(job, tile, scratch.channels);
}

// Gradients of parameters of rows: in the arithmetic type for a few rows, then added to grads[channel], grads[c + channel].
template <class T>
class RowGrads {
  using A = Acc<T>;

 public:
  RowGrads(const Job<T>& job, double* grads) : job_(job), grads_(grads), narrow_(grads ? 2 * job.sets.c : 0, A(0)) {}
  ~RowGrads() { flush(); }

  // The set of channels first ... first + n - 1 at element `begin`.
  void add(int64_t begin, int64_t first, int64_t n, A mean, A r, const SetMap& map) {
    if (grads_ == nullptr) return;
    for (int64_t i = 0; i < n; i += kChunk) add_chunk(begin + i, first + i, std::min(kChunk, n - i), mean, r, map);
  }

  void end_of_row() {
    if (++rows_ == kNarrowRows) flush();
  }

 private:
  void add_chunk(int64_t begin, int64_t channel, int64_t n, A mean, A r, const SetMap& map) {
    A centred[kChunk], a[kChunk], b[kChunk];
    A *weight = narrow_.data() + channel, *bias = weight + job_.sets.c;
    const A* x = widened(job_.in.x + begin, a, n);
    for (int64_t k = 0; k < n; ++k) centred[k] = x[k] - mean;
    if (job_.in.single != nullptr) {
      const A* zeta = job_.in.cotangent(job_.in.single, begin, n, a);
      for (int64_t k = 0; k < n; ++k) weight[k] += r * zeta[k] * centred[k];
      for (int64_t k = 0; k < n; ++k) bias[k] += zeta[k];
    }
    for (size_t p = 0; p < map.pairs.size(); ++p) {
      const A* t = widened(job_.in.pairs[p].first + begin, a, n);
      const A* delta = job_.in.cotangent(job_.in.pairs[p].second, begin, n, b);
      const A mean_t = static_cast<A>(map.pairs[p].mean_t), slope_t = static_cast<A>(map.pairs[p].slope_t);
      for (int64_t k = 0; k < n; ++k) weight[k] += r * delta[k] * (t[k] - mean_t - slope_t * centred[k]);
    }
  }

  void flush() {
    for (size_t k = 0; k < narrow_.size(); ++k) grads_[k] += static_cast<double>(narrow_[k]);
    std::fill(narrow_.begin(), narrow_.end(), A(0));
    rows_ = 0;
  }

  const Job<T>& job_;
  double* grads_;
  std::vector<A> narrow_;
  int rows_ = 0;
};

// Sets that are runs with a weight for each element: sums, coefficients, map of one after the other.
template <class T>
void map_rows(const Job<T>& job, int64_t begin, int64_t end, double* grads) {
  using A = Acc<T>;
  const int64_t c = job.sets.c, n = job.sets.channels();
  SetMap map(job);
  RowGrads<T> row_grads(job, grads);
  InnerMap<A> inner;
  inner.pairs.resize(map.pairs.size());
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t first = 0; first < c; first += n) {
      const int64_t at = row * c + first, set = job.sets.of(row, first);
      const A mean = job.mean[set], r = job.rstd[set];
      const A *weight = job.weight.data() + first, *bias = job.bias.data() + first;
      double* sums = map.clear();
      if (job.in.has_single() || !map.pairs.empty()) {
        add_run_sums<T>(job.in, at, n, mean, job.outer || !job.has_weight ? nullptr : weight, sums);
      }
      map.set(r);
      row_grads.add(at, first, n, mean, r, map);
      if (job.out == nullptr) continue;
      const A alpha = static_cast<A>(map.total.alpha), kappa = static_cast<A>(map.total.kappa);
      const A lambda = static_cast<A>(map.total.lambda);
      if (job.outer) {
        const OuterMap<A> outer{{mean}, {alpha, weight}, {kappa, weight}, {lambda, weight, bias}, {}};
        map_run<T>(job.in, at, n, outer, job.out);
        continue;
      }
      inner.mean = {mean}, inner.alpha = {alpha, weight}, inner.kappa = {kappa}, inner.lambda = {lambda};
      for (size_t p = 0; p < map.pairs.size(); ++p) {
        inner.pairs[p] = {{static_cast<A>(map.pairs[p].beta), weight}, {static_cast<A>(map.pairs[p].gamma)}};
      }
      map_run<T>(job.in, at, n, inner, job.out);
    }
    row_grads.end_of_row();
  }
}

// Samples begin ... end - 1, whose sets are their own.
template <class T>
void map_samples(const Job<T>& job, int64_t begin, int64_t end, double* grads) {
  if (job.sets.has_rows()) return map_rows(job, begin, end, grads);
  const int64_t step = job.sets.channels_fastest ? job.sets.c : job.sets.channels();
  Scratch<T> scratch(job);
  for (int64_t sample = begin; sample < end; ++sample) {
    for (int64_t first = 0; first < job.sets.c; first += step) {
      map_channels(job, sample, first, first + step, scratch, grads);
    }
  }
}

// ------------------------------------------------------------------------------------------------ statistics

template <class T>
struct StatisticsOut {
  Acc<T>*mean, *rstd;
  std::vector<double> var;
  double eps;

  void store(int64_t set, const Moments& m) {
    mean[set] = static_cast<Acc<T>>(m.mean);
    rstd[set] = static_cast<Acc<T>>(1.0 / std::sqrt(m.var + eps));
    var[set] = m.var;
  }
};

// Statistics of the batch; the pivot of a channel is its mean over the first block.
template <class T>
void batch_statistics(const Job<T>& job, StatisticsOut<T>& out) {
  const Sets& sets = job.sets;
  std::vector<Acc<T>> pivot(sets.c, Acc<T>(0));
  Sets head = sets;
  head.n = std::min<int64_t>(sets.n, std::max<int64_t>(1, 64 / std::max<int64_t>(1, sets.size)));
  const auto first = batch_sums<T>(head, job.in, pivot.data());
  for (int64_t c = 0; c < sets.c; ++c) {
    pivot[c] = static_cast<Acc<T>>(pivot_of(first[c] / static_cast<double>(head.elements())));
  }
  const auto sums = batch_sums<T>(sets, job.in, pivot.data());
  for (int64_t c = 0; c < sets.c; ++c) out.store(c, Moments(pivot[c], sums[c], sums[sets.c + c], job.count()));
}

// Statistics of the sets of one sample, by two passes over it.
template <class T>
void sample_statistics(const Job<T>& job, int64_t sample, std::vector<Acc<T>>& pivot, std::vector<double>& sums,
                       StatisticsOut<T>& out) {
  const Sets& sets = job.sets;
  const int64_t c = sets.c, n = sets.channels();
  const Tile tile = sets.channels_fastest ? Tile{sample * sets.size, (sample + 1) * sets.size, 0, c}
                                          : Tile{sample, sample + 1, 0, c};
  std::fill(pivot.begin(), pivot.end(), Acc<T>(0));
  for (const bool second : {false, true}) {
    std::fill(sums.begin(), sums.end(), 0.0);
    tile_sums(sets, job.in, tile, pivot.data(), sums.data(), c);
    for (int64_t first = 0; first < c; first += n) {
      double s0 = 0, s1 = 0;
      for (int64_t i = first; i < first + n; ++i) s0 += sums[i], s1 += sums[c + i];
      if (second) {
        out.store(job.sets.of(sample, first), Moments(pivot[first], s0, s1, job.count()));
      } else {
        std::fill_n(pivot.begin() + first, n, static_cast<Acc<T>>(pivot_of(s0 / job.count())));
      }
    }
  }
}

template <class T>
void row_statistics(const Job<T>& job, int64_t row, StatisticsOut<T>& out) {
  const int64_t n = job.sets.channels();
  for (int64_t first = 0; first < job.sets.c; first += n) {
    const int64_t at = row * job.sets.c + first;
    double head[kSingleSums] = {}, sums[kSingleSums] = {};
    add_run_sums<T>(job.in, at, n, Acc<T>(0), nullptr, head);
    const auto pivot = static_cast<Acc<T>>(pivot_of(head[0] / job.count()));
    add_run_sums<T>(job.in, at, n, pivot, nullptr, sums);
    out.store(job.sets.of(row, first), Moments(pivot, sums[0], sums[1], job.count()));
  }
}

template <class T>
void samples_statistics(const Job<T>& job, int64_t begin, int64_t end, StatisticsOut<T>& out) {
  std::vector<Acc<T>> pivot(job.sets.c);
  std::vector<double> sums(kSingleSums * job.sets.c);
  for (int64_t sample = begin; sample < end; ++sample) {
    if (job.sets.has_rows()) {
      row_statistics(job, sample, out);
    } else {
      sample_statistics(job, sample, pivot, sums, out);
    }
  }
}

// running = (1 - momentum) running + momentum new, the new one averaged over the samples' sets of the channel.
template <class T, class Of>
void update_running(const Running& running, const Sets& sets, double momentum, const Of& of_set) {
  const auto update = [&](auto* values) {
    const int64_t samples = sets.groups == 0 ? 1 : sets.n;
    for (int64_t c = 0; c < sets.c; ++c) {
      double sum = 0;
      for (int64_t sample = 0; sample < samples; ++sample) sum += of_set(sample * sets.c + c);
      const double old = widen(values[c]), now = (1 - momentum) * old + momentum * sum / static_cast<double>(samples);
      values[c] = static_cast<std::decay_t<decltype(values[c])>>(static_cast<Acc<T>>(now));
    }
  };
  if (running.values->scalar_type() == accumulation_dtype(running.values->scalar_type())) {
    update(mutable_data<Acc<T>>(*running.values));
  } else {
    update(mutable_data<T>(*running.values));
  }
}

// A view in which a batch of one channel is one long run.
Sets simplified(Sets sets) {
  if (sets.groups == 0 && sets.c == 1) sets = {1, 1, sets.n * sets.size, 0, false};
  if (sets.c == 1) sets.channels_fastest = sets.size == 1;
  return sets;
}

}  // namespace

void normalise_forward_into(const Normalised& in, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                            const Running& running_mean, const Running& running_var, double momentum, double eps,
                            const Tensor& y, const Tensor& mean, const Tensor& rstd) {
  dispatch_floating(in.x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    Job<T> job(simplified(in.sets), in.x, weight);
    if (bias) std::copy_n(data<A>(*bias), in.sets.c, job.bias.begin());
    job.outer = true;
    job.mean = data<A>(mean), job.rstd = data<A>(rstd), job.out = mutable_data<T>(y);
    StatisticsOut<T> out{mutable_data<A>(mean), mutable_data<A>(rstd), std::vector<double>(job.sets.count()), eps};
    if (in.sets.numel() == 0) {
      for (int64_t set = 0; set < in.sets.count(); ++set) out.store(set, Moments(0, 0, 0, 1));
      return;
    }
    Job<T> own = job;
    own.in.own = true;
    if (job.sets.groups == 0) {
      batch_statistics(own, out);
      map_batch(job, std::vector<double>(kSingleSums * job.sets.c, 0.0));
    } else {
      for_each_sample_block(job, [&](int64_t begin, int64_t end, double* grads) {
        samples_statistics(own, begin, end, out);
        map_samples(job, begin, end, grads);
      });
    }
    if (!running_mean.values) return;
    const double unbiased = job.count() / std::max(1.0, job.count() - 1);
    update_running<T>(running_mean, in.sets, momentum, [&](int64_t set) { return static_cast<double>(job.mean[set]); });
    update_running<T>(running_var, in.sets, momentum, [&](int64_t set) { return out.var[set] * unbiased; });
  });
}

void normalise_map_into(const Linearised& at, const Terms& terms, bool outer, const Tensor* out,
                        const Tensor* weight_grad, const Tensor* bias_grad) {
  dispatch_floating(at.in.x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    Job<T> job(simplified(at.in.sets), at.in.x, at.weight);
    job.outer = outer;
    job.mean = data<A>(at.mean), job.rstd = data<A>(at.rstd);
    if (terms.single) job.in.single = data<T>(*terms.single);
    for (size_t i = 0; i < terms.tangents.size(); ++i) {
      job.in.pairs.emplace_back(data<T>(terms.tangents[i]), data<T>(terms.cotangents[i]));
    }
    if (terms.rectified.bits) {
      job.in.bits = data<uint8_t>(*terms.rectified.bits);
      job.in.rectifier = {static_cast<A>(terms.rectified.slope)};
    }
    if (out != nullptr) job.out = mutable_data<T>(*out);
    if (weight_grad != nullptr) {
      job.weight_grad = mutable_data<A>(*weight_grad), job.bias_grad = mutable_data<A>(*bias_grad);
    }
    if (job.sets.numel() == 0) {
      store_param_grads(job, std::vector<double>(2 * job.sets.c, 0.0).data());
    } else if (job.sets.groups == 0) {
      map_batch(job, batch_sums<T>(job.sets, job.in, job.mean));
    } else {
      for_each_sample_block(job, [&](int64_t begin, int64_t end, double* grads) { map_samples(job, begin, end, grads); });
    }
  });
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) { datagrad::register_normalisation(m); }
