// One op of the normalisation family on the CPU, and its three steps on a tile: sums, coefficients, map.
#pragma once

#include <common/normalisation_arguments.h>
#include <cpu/normalisation_rows.h>

#include <numeric>

namespace datagrad {
namespace {

// Channels first ... last - 1 of samples (or, with channels fastest, of rows) begin ... end - 1.
struct Tile {
  int64_t begin, end, first, last;
};

constexpr int64_t kShortRun = 64, kShortRows = 16;

// Elements side by side of each channel in the rows of all channels that memory is walked in: one where channels are the
// fastest dimension, a run where a batch has many short ones. 0: it is walked run by run.
inline int64_t run_of_rows(const Sets& sets) {
  if (sets.channels_fastest) return 1;
  return sets.groups == 0 && sets.size <= kShortRun && sets.n >= kShortRows ? sets.size : 0;
}

// How often a channel's weight stands in the rows of `simplified` sets.
inline int64_t run_of_weights(const Sets& sets) {
  const bool short_runs = !sets.channels_fastest && sets.size <= kShortRun;
  return sets.groups > 0 && sets.channels() > 1 && short_runs ? std::max<int64_t>(1, sets.size) : 1;
}

// A view with longer runs: a batch of one channel is one run, and a group of channels with short runs a row of elements with a
// weight each.
inline Sets simplified(Sets sets) {
  if (sets.groups == 0 && sets.c == 1) sets = {1, 1, sets.n * sets.size, 0, false};
  if (sets.c == 1) sets.channels_fastest = sets.size == 1;
  if (run_of_weights(sets) > 1) sets = {sets.n, sets.c * sets.size, 1, sets.groups, true};
  return sets;
}

// What an op computes, in the arithmetic type: operands, numbers of the channels, where results go.
template <class T>
struct Job {
  using A = Acc<T>;

  Sets sets;
  int64_t run;  // elements side by side with one weight, which count as channels
  Operands<T> in;
  bool outer = false;
  std::vector<A> weight, bias;  // never empty: ones and zeros if the op has none
  bool has_weight = false;
  const A *mean = nullptr, *rstd = nullptr;  // of each set
  T* out = nullptr;
  A *weight_grad = nullptr, *bias_grad = nullptr;

  Job(const Sets& given, const Tensor& x, const std::optional<Tensor>& w, const std::optional<Tensor>& b = std::nullopt)
      : sets(simplified(given)), run(run_of_weights(given)), weight(sets.c, A(1)), bias(sets.c, A(0)),
        has_weight(w.has_value()) {
    in.x = data<T>(x);
    if (w) spread(data<A>(*w), sets.c / run, run, 1, weight.data());
    if (b) spread(data<A>(*b), sets.c / run, run, 1, bias.data());
  }

  double count() const { return static_cast<double>(sets.elements()); }
};

// Adds the sums of each channel of the tile to sums[k * stride + channel]; mean has one number a channel.
template <class T>
void tile_sums(const Sets& sets, const Operands<T>& in, const Tile& tile, const Acc<T>* mean, double* sums,
               int64_t stride) {
  if (const int64_t run = run_of_rows(sets); run > 0) {
    const int64_t rows = tile.end - tile.begin;
    RowSums<T>(in, sets.c, run, mean, rows).add(tile.begin, rows, sums, stride);
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

  // Every number `run` times, and every row of these several times, one after the other.
  ChannelMap repeated(int64_t run, int64_t times) const {
    ChannelMap wide(channels * run * times, 0);
    wide.numbers.resize(numbers.size() * run * times);
    for (size_t i = 0; i < numbers.size(); i += channels) {
      spread(numbers.data() + i, channels, run, times, wide.numbers.data() + i * run * times);
    }
    return wide;
  }

  A* row(int64_t i) { return numbers.data() + i * channels; }
  const A* row(int64_t i) const { return numbers.data() + i * channels; }

  // The numbers of one channel.
  void copy_to(RunMap<A>& map, int64_t channel) const {
    const auto number = [&](int64_t i) { return One<A>{row(i)[channel]}; };
    map.mean = number(0), map.alpha = number(1), map.kappa = number(2), map.lambda = number(3);
    for (size_t p = 0; p < map.pairs.size(); ++p) map.pairs[p] = {number(4 + 2 * p), number(5 + 2 * p)};
  }
};

template <class T>
void tile_map(const Job<T>& job, const Tile& tile, const ChannelMap<Acc<T>>& channels) {
  using A = Acc<T>;
  const Sets& sets = job.sets;
  if (const int64_t run = run_of_rows(sets); run > 0) {
    const int64_t columns = sets.c * run, times = repeats(columns, tile.end - tile.begin);
    const auto map = [&](const ChannelMap<A>& wide) {
      map_strips<T>(job.in, tile.begin * columns, tile.end * columns, {wide.row(0), wide.channels}, job.out);
    };
    run * times == 1 ? map(channels) : map(channels.repeated(run, times));
    return;
  }
  RunMap<A> map;
  map.pairs.resize(job.in.pairs.size());
  for (int64_t c = tile.first; c < tile.last; ++c) {
    channels.copy_to(map, c);
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
  const auto sum = [&](const double* of_elements) {
    return static_cast<Acc<T>>(std::accumulate(of_elements, of_elements + job.run, 0.0));
  };
  for (int64_t c = 0; c < job.sets.c / job.run && job.weight_grad != nullptr; ++c) {
    job.weight_grad[c] = sum(grads + c * job.run);
    job.bias_grad[c] = sum(grads + job.sets.c + c * job.run);
  }
}

}  // namespace
}  // namespace datagrad
