// The batch, or the samples, of a normalisation on the CPU cut into tiles and rows, in parallel. Blocks depend on sizes alone,
// never on threads.
#pragma once

#include <common/parallel.h>
#include <cpu/normalisation_job.h>

namespace datagrad {
namespace {

constexpr int64_t kMaxBlocks = 128;
constexpr int64_t kBlock = 16384;  // elements of a block of the batch, at least
constexpr int64_t kSumRows = 8;    // rows of a block that has sums of its own for each column, at least

// How a batch is cut: blocks of samples (or rows), and, where there are few samples, of channels too.
struct BatchTiles {
  int64_t lines, channels, step, channel_step;

  explicit BatchTiles(const Sets& sets)
      : lines(sets.channels_fastest ? sets.n * sets.size : sets.n), channels(std::max<int64_t>(1, sets.c)) {
    const int64_t of_line = std::max<int64_t>(1, sets.channels_fastest ? sets.c : sets.c * sets.size);
    const bool rows = run_of_rows(sets) > 0;
    const int64_t many = sets.channels_fastest ? kNarrowRows : kShortRows;
    const int64_t least = rows ? many : 1;  // the sums of a block are small beside its rows
    step = std::max({least, kBlock / of_line, (lines + kMaxBlocks - 1) / kMaxBlocks});
    const int64_t blocks = std::max<int64_t>(1, (lines + step - 1) / step);
    const int64_t split = rows ? 1 : std::clamp<int64_t>(16 / blocks, 1, channels);
    channel_step = (channels + split - 1) / split;
  }

  int64_t line_blocks() const { return (lines + step - 1) / step; }
  int64_t channel_blocks() const { return (channels + channel_step - 1) / channel_step; }

  // Calls f(block of lines, tile) for all tiles, in parallel.
  template <class F>
  void for_each(int64_t elements, const F& f) const {
    in_parallel(elements, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) f(i / channel_blocks(), tile(i));
    });
  }

  // Calls f(tile) for all tiles, those of a thread from last to first: what it has read last is still in its cache.
  template <class F>
  void for_each_backwards(int64_t elements, const F& f) const {
    in_parallel(elements, [&](int64_t first, int64_t last) {
      for (int64_t i = last - 1; i >= first; --i) f(tile(i));
    });
  }

 private:
  Tile tile(int64_t i) const {
    const int64_t line = i / channel_blocks() * step, c = i % channel_blocks() * channel_step;
    return {line, std::min(lines, line + step), c, std::min(channels, c + channel_step)};
  }

  template <class F>
  void in_parallel(int64_t elements, const F& f) const {
    const int64_t tiles = line_blocks() * channel_blocks();
    parallel_for(tiles, std::max<int64_t>(1, kSerialElements * tiles / std::max<int64_t>(1, elements)), f);
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
  BatchTiles(job.sets).for_each_backwards(job.sets.numel(),
                                          [&](const Tile& tile) { tile_map(job, tile, scratch.channels); });
}

// Calls f(begin, end, gradients) for blocks of samples in parallel; the gradients of parameters of each block are added in order.
template <class T, class F>
void for_each_sample_block(const Job<T>& job, const F& f) {
  const int64_t n = job.sets.n, of_sample = std::max<int64_t>(1, job.sets.c * job.sets.size);
  const int64_t least = job.weight_grad != nullptr && job.sets.has_rows() ? kSumRows : 1;
  const int64_t step = std::max({least, kBlock / of_sample, (n + kMaxBlocks - 1) / kMaxBlocks});
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

}  // namespace
}  // namespace datagrad
