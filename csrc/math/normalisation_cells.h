// How GPU threads share out the work of a normalisation: the kernels as functions of block and thread numbers that run on the
// host too. Formulas in math/normalisation.h. No torch header.
//
// A cell is what one channel has of one image: of a sample, or, in batch norm, of the whole batch. Sums over cells take two
// stages, so that their order depends on the shape alone: each block sums its share of a cell into
// partials[split][sum][cell], and whoever reads a sum adds the splits in order. Where every element would be a cell of its own
// (Sets::has_rows), a team of threads has a set instead.
#pragma once

#include <math/activation.h>
#include <math/groups.h>
#include <math/normalisation.h>

namespace datagrad {

constexpr int kMaxNormPairs = 32;  // they travel as kernel arguments

// The mask of the rectifier behind the norm, if any, through which its cotangents come.
template <class A>
struct NormGate {
  const uint8_t* bits = nullptr;
  Rectifier<A> rectifier{0};

  template <class T>
  DATAGRAD_HD A operator()(const T* cotangent, int64_t i) const {
    const A g = static_cast<A>(cotangent[i]);
    return bits == nullptr ? g : rectifier.gate((bits[i / 8] >> (i % 8)) & 1, g);
  }
};

// One operand in each role: u, or a pair (t, delta). `own`: u is x itself, less its pivot.
template <class T>
struct NormSums {
  const T *x = nullptr, *single = nullptr, *tangent = nullptr, *cotangent = nullptr;
  bool own = false;
  NormGate<Acc<T>> gate = {};

  DATAGRAD_HD void add_single(int64_t i, Acc<T> centred, Acc<T> weight, Acc<T>* sums) const {
    const Acc<T> u = own ? centred : weight * gate(single, i);
    sums[0] += u;
    sums[1] += u * centred;
  }

  DATAGRAD_HD void add_pair(int64_t i, Acc<T> centred, Acc<T> weight, Acc<T>* sums) const {
    const Acc<T> t = static_cast<Acc<T>>(tangent[i]), h = weight * gate(cotangent, i);
    sums[0] += h;
    sums[1] += h * centred;
    sums[2] += t;
    sums[3] += t * centred;
    sums[4] += h * t;
  }
};

// The cells of x: `lines` runs (or samples of rows) of `size` for each of `images` images.
struct Cells {
  int64_t images, lines, channels, size;
  bool columns;

  explicit Cells(const Sets& sets)
      : images(sets.groups == 0 ? 1 : sets.n),
        lines(sets.groups == 0 ? sets.n : 1),
        channels(sets.c),
        size(sets.size),
        columns(sets.channels_fastest) {}

  DATAGRAD_HD int64_t count() const { return images * channels; }
  DATAGRAD_HD int64_t elements() const { return lines * size; }

  // Element number j of a cell.
  DATAGRAD_HD int64_t element(int64_t image, int64_t channel, int64_t j) const {
    if (columns) return (image * elements() + j) * channels + channel;
    if (lines == 1) return (image * channels + channel) * size + j;
    const bool short_enough = elements() <= UINT32_MAX;  // a 64-bit division is many instructions
    const int64_t line = short_enough ? static_cast<uint32_t>(j) / static_cast<uint32_t>(size) : j / size;
    return (line * channels + channel) * size + (j - line * size);
  }
};

// How a kernel cuts cells: a block of threads has `width` neighbouring channels of an image, `height` threads each, and every
// splits-th of their elements. Runs of one channel have width 1.
struct CellBlocks {
  int width;
  int64_t splits;

  explicit CellBlocks(const Cells& cells) : width(1) {
    while (cells.columns && width < 32 && width < cells.channels) width *= 2;
    const int64_t blocks = at_least_one(ceil_div(cells.channels, width) * cells.images);
    splits = at_least_one(at_most(cells.elements() / (8 * height()), ceil_div(2048, blocks)));
  }

  DATAGRAD_HD int height() const { return kBlockThreads / width; }
  DATAGRAD_HD int64_t blocks(const Cells& cells) const { return ceil_div(cells.channels, width) * cells.images; }
};

// Calls op(element, image, channel, sum) for the elements of thread `thread` of block (block, split); the thread's sums are
// those of channel block % (blocks of an image) * width + thread % width.
template <class A, class Op>
DATAGRAD_HD void accumulate_cell(const Op& op, const Cells& cells, const CellBlocks& cut, int64_t block, int64_t split,
                                 int thread, A* sum) {
  const int64_t per_image = ceil_div(cells.channels, cut.width), image = block / per_image;
  const int64_t channel = block % per_image * cut.width + thread % cut.width;
  if (channel >= cells.channels) return;
  const int64_t stride = cut.splits * cut.height();
  for (int64_t j = split * cut.height() + thread / cut.width; j < cells.elements(); j += stride) {
    op(cells.element(image, channel, j), image, channel, sum);
  }
}

// Where the sum of a block's channel goes; -1 for no channel.
DATAGRAD_HD inline int64_t cell_of(const Cells& cells, const CellBlocks& cut, int64_t block, int column) {
  const int64_t per_image = ceil_div(cells.channels, cut.width);
  const int64_t channel = block % per_image * cut.width + column;
  return channel < cells.channels ? block / per_image * cells.channels + channel : -1;
}

// The sums of one role: partials[split * stride + k * cells + cell].
template <class A>
struct CellSums {
  const A* partials = nullptr;
  int64_t splits = 0, stride = 0, cells = 0;

  DATAGRAD_HD double sum(int k, int64_t cell) const {
    double total = 0;
    for (int64_t split = 0; split < splits; ++split) {
      total += static_cast<double>(partials[split * stride + k * cells + cell]);
    }
    return total;
  }
};

// Sums, as a team's Reduction merges them.
template <class A, int kSums>
struct TeamSums {
  A sum[kSums];

  DATAGRAD_HD static void merge(TeamSums& a, const TeamSums& b) {
    for (int k = 0; k < kSums; ++k) a.sum[k] += b.sum[k];
  }
};

// The sums over n cells from `first` on, by a team; those of h (see kPairSums) with a weight for each cell.
template <int kSums, class A, class Team, class Weight>
DATAGRAD_HD void sum_set(const Team& team, const CellSums<A>& of, int64_t first, int64_t n, const Weight& weight,
                         double* sums) {
  TeamSums<double, kSums> share = {};
  for (int64_t cell = first + team.lane(); cell < first + n; cell += team.lanes) {
    const double w = weight(cell);
    for (int k = 0; k < kSums; ++k) share.sum[k] += (k == 2 || k == 3 ? 1.0 : w) * of.sum(k, cell);
  }
  share = team.template reduce<TeamSums<double, kSums>>(share);
  for (int k = 0; k < kSums; ++k) sums[k] = share.sum[k];
}

// Sums over the elements of cells: those of u, of a pair, or of both one after the other.
template <class T, bool kSingle, bool kPair>
struct SumCells {
  static constexpr int kSums = (kSingle ? kSingleSums : 0) + (kPair ? kPairSums : 0);
  NormSums<T> in;
  const Acc<T>* mean;  // of each set
  Sets sets;

  DATAGRAD_HD void operator()(int64_t i, int64_t image, int64_t channel, Acc<T>* sums) const {
    const Acc<T> centred = static_cast<Acc<T>>(in.x[i]) - mean[sets.of(image, channel)];
    if (kSingle) in.add_single(i, centred, Acc<T>(1), sums);
    if (kPair) in.add_pair(i, centred, Acc<T>(1), sums + (kSingle ? kSingleSums : 0));
  }
};

// Coefficients of a set as a kernel keeps them.
template <class A>
struct KeptPair {
  A beta, gamma, mean_t, slope_t;
};

// What every kernel of a map knows: numbers of the sets and channels, operands, where results go.
template <class T>
struct NormMap {
  using A = Acc<T>;

  Sets sets;
  const T *x = nullptr, *single = nullptr;
  const T *tangents[kMaxNormPairs] = {}, *cotangents[kMaxNormPairs] = {};
  int pairs = 0;
  bool outer = false;
  NormGate<A> gate = {};
  const A *weight = nullptr, *bias = nullptr;  // of each channel; null for none
  const A *mean = nullptr, *rstd = nullptr;    // of each set
  T* out = nullptr;

  DATAGRAD_HD A weight_of(int64_t channel) const { return weight == nullptr ? A(1) : weight[channel]; }

  // The coefficients without the pairs: r P u, or, for the value, r x_c.
  DATAGRAD_HD Coefficients start(const double* sums, double r) const {
    if (single != nullptr) return projection(sums, r, static_cast<double>(sets.elements()));
    return {0, outer ? r : 0, 0};
  }

  DATAGRAD_HD NormSums<T> pair(int p) const { return {x, nullptr, tangents[p], cotangents[p], false, gate}; }

  DATAGRAD_HD void store(int64_t i, int64_t channel, A mean_of_set, A alpha, A kappa, A lambda,
                         const KeptPair<A>* kept) const {
    const A w = weight_of(channel), u = single == nullptr ? A(0) : gate(single, i);
    const A plain = kappa * (static_cast<A>(x[i]) - mean_of_set) + lambda;
    if (outer) {
      const A value = w * (alpha * u + plain);
      out[i] = static_cast<T>(bias == nullptr ? value : value + bias[channel]);
      return;
    }
    A inner = alpha * u, rest = plain;
    for (int p = 0; p < pairs; ++p) {
      inner += kept[p].beta * gate(cotangents[p], i);
      rest += kept[p].gamma * static_cast<A>(tangents[p][i]);
    }
    out[i] = static_cast<T>(w * inner + rest);
  }
};

template <class A>
DATAGRAD_HD KeptPair<A> keep(const PairOfSet& pair) {
  return {static_cast<A>(pair.beta), static_cast<A>(pair.gamma), static_cast<A>(pair.mean_t),
          static_cast<A>(pair.slope_t)};
}

// The coefficients of all sets: total[set * 3 ...], pairs[set * map.pairs ...].
template <class T>
struct SetCoefficients {
  using A = Acc<T>;

  NormMap<T> map;
  CellSums<A> single, pair[kMaxNormPairs];
  A* total;
  KeptPair<A>* pairs;

  // The coefficients of one set, by a team.
  template <class Team>
  DATAGRAD_HD void operator()(const Team& team, int64_t set, bool has_set) const {
    const Sets& sets = map.sets;
    const int64_t n = has_set ? sets.channels() : 0, first = set * n;  // a set's cells are neighbours
    const double r = has_set ? static_cast<double>(map.rstd[set]) : 0, count = static_cast<double>(sets.elements());
    const auto weight = [&](int64_t cell) {
      return map.outer ? 1.0 : static_cast<double>(map.weight_of(cell % sets.c));
    };
    double sums[kPairSums] = {};
    if (map.single != nullptr) sum_set<kSingleSums>(team, single, first, n, weight, sums);
    Coefficients all = map.start(sums, r);
    for (int p = 0; p < map.pairs; ++p) {
      sum_set<kPairSums>(team, pair[p], first, n, weight, sums);
      const PairOfSet found = add_curvature(sums, r, count, all);
      if (has_set && team.lane() == 0) pairs[set * map.pairs + p] = keep<A>(found);
    }
    if (!has_set || team.lane() != 0) return;
    total[set * 3] = static_cast<A>(all.alpha);
    total[set * 3 + 1] = static_cast<A>(all.kappa);
    total[set * 3 + 2] = static_cast<A>(all.lambda);
  }
};

// The statistics of all sets from sums about their pivots, and the coefficients of the value.
template <class T>
struct SetStatistics {
  using A = Acc<T>;

  Sets sets;
  CellSums<A> sums;
  const A* pivot;
  double eps;
  A *mean, *rstd, *var;  // var may be null
  A* total;

  template <class Team>
  DATAGRAD_HD void operator()(const Team& team, int64_t set, bool has_set) const {
    const int64_t n = has_set ? sets.channels() : 0;
    double found[kSingleSums];
    sum_set<kSingleSums>(team, sums, set * n, n, [](int64_t) { return 1.0; }, found);
    if (!has_set || team.lane() != 0) return;
    const Moments moments(static_cast<double>(pivot[set]), found[0], found[1], static_cast<double>(sets.elements()));
    mean[set] = static_cast<A>(moments.mean);
    rstd[set] = static_cast<A>(1.0 / ::sqrt(moments.var + eps));
    if (var != nullptr) var[set] = static_cast<A>(moments.var);
    total[set * 3] = total[set * 3 + 2] = A(0);
    total[set * 3 + 1] = rstd[set];
  }
};

// running = (1 - momentum) running + momentum scale new, the new one averaged over the samples' sets of a channel.
template <class A, class R>
DATAGRAD_HD void update_running(const Sets& sets, const A* of_set, double scale, double momentum, int64_t channel,
                                R* running) {
  const int64_t samples = sets.groups == 0 ? 1 : sets.n;
  double sum = 0;
  for (int64_t sample = 0; sample < samples; ++sample) sum += static_cast<double>(of_set[sample * sets.c + channel]);
  const double old = static_cast<double>(static_cast<A>(running[channel]));
  const double now = (1 - momentum) * old + momentum * scale * sum / static_cast<double>(samples);
  running[channel] = static_cast<R>(static_cast<A>(now));
}

// The gradients of weight and bias of a channel, from the sums of its cells.
template <class T>
DATAGRAD_HD void channel_grads(const SetCoefficients<T>& of, int64_t channel, Acc<T>* weight_grad, Acc<T>* bias_grad) {
  const Sets& sets = of.map.sets;
  double w = 0, b = 0;
  const int64_t images = sets.groups == 0 ? 1 : sets.n;
  for (int64_t image = 0; image < images; ++image) {
    const int64_t cell = image * sets.c + channel, set = sets.of(image, channel);
    const double r = static_cast<double>(of.map.rstd[set]);
    if (of.map.single != nullptr) {
      w += r * of.single.sum(1, cell);
      b += of.single.sum(0, cell);
    }
    for (int p = 0; p < of.map.pairs; ++p) {
      const KeptPair<Acc<T>>& kept = of.pairs[set * of.map.pairs + p];
      const PairOfSet pair{0, 0, static_cast<double>(kept.mean_t), static_cast<double>(kept.slope_t)};
      w += pair_weight_grad(pair, r, of.pair[p].sum(0, cell), of.pair[p].sum(1, cell), of.pair[p].sum(4, cell));
    }
  }
  weight_grad[channel] = static_cast<Acc<T>>(w);
  bias_grad[channel] = static_cast<Acc<T>>(b);
}

// Sample, channel and position of an element and of those after it, one division for the first only.
class CellCursor {
 public:
  DATAGRAD_HD CellCursor(const Sets& sets, int64_t element) : sets_(sets) {
    const int64_t row = element / fast(), rows = slow();
    fast_ = element % fast();
    slow_ = row % rows;
    sample_ = row / rows;
  }

  DATAGRAD_HD int64_t channel() const { return sets_.channels_fastest ? fast_ : slow_; }
  DATAGRAD_HD int64_t set() const { return sets_.of(sample_, channel()); }

  DATAGRAD_HD void next() {
    if (++fast_ < fast()) return;
    fast_ = 0;
    if (++slow_ < slow()) return;
    slow_ = 0;
    ++sample_;
  }

 private:
  DATAGRAD_HD int64_t fast() const { return sets_.channels_fastest ? sets_.c : sets_.size; }
  DATAGRAD_HD int64_t slow() const { return sets_.channels_fastest ? sets_.size : sets_.c; }

  Sets sets_;
  int64_t fast_, slow_, sample_;
};

// The map over elements first ... first + count - 1, as map_thread calls it.
template <class T>
struct MapCells {
  using A = Acc<T>;

  NormMap<T> map;
  const A* total;
  const KeptPair<A>* pairs;

  DATAGRAD_HD void operator()(int64_t first, int count, A*) const {
    CellCursor cursor(map.sets, first);
    for (int k = 0; k < count; ++k, cursor.next()) {
      const int64_t set = cursor.set();
      const A* of_set = total + set * 3;
      map.store(first + k, cursor.channel(), map.mean[set], of_set[0], of_set[1], of_set[2], pairs + set * map.pairs);
    }
  }
};

// One set that is a run of n elements of different channels, by a team of threads.
template <class T>
struct MapRows {
  using A = Acc<T>;

  NormMap<T> map;
  KeptPair<A>* kept = nullptr;  // for the gradients of parameters

  // Adds up op(element, centred, weight, sums) over the team's elements; all threads of the team get the whole.
  template <int kSums, class Team, class Op>
  DATAGRAD_HD void reduce(const Team& team, int64_t set, int64_t n, A mean, const Op& op, double* sums) const {
    TeamSums<A, kSums> share = {};
    const int64_t first = set * map.sets.channels(), channel = set % at_least_one(map.sets.groups) * map.sets.channels();
    for (int64_t i = team.lane(); i < n; i += team.lanes) {
      const A weight = map.outer ? A(1) : map.weight_of(channel + i);
      op(first + i, static_cast<A>(map.x[first + i]) - mean, weight, share.sum);
    }
    share = team.template reduce<TeamSums<A, kSums>>(share);
    for (int k = 0; k < kSums; ++k) sums[k] = static_cast<double>(share.sum[k]);
  }

  // The statistics of a set, and its value.
  template <class Team>
  DATAGRAD_HD void statistics(const Team& team, int64_t set, bool has_set, double eps, A* mean, A* rstd,
                              A* var) const {
    const int64_t n = has_set ? map.sets.channels() : 0;
    const double count = static_cast<double>(map.sets.elements());
    const NormSums<T> own{map.x, nullptr, nullptr, nullptr, true, {}};
    const auto add = [&](int64_t i, A centred, A, A* sums) { own.add_single(i, centred, A(1), sums); };
    double sums[kSingleSums];
    reduce<kSingleSums>(team, set, n, A(0), add, sums);
    const A pivot = static_cast<A>(pivot_of(sums[0] / count));
    reduce<kSingleSums>(team, set, n, pivot, add, sums);
    if (!has_set) return;
    const Moments moments(static_cast<double>(pivot), sums[0], sums[1], count);
    const A found_mean = static_cast<A>(moments.mean), found_rstd = static_cast<A>(1.0 / ::sqrt(moments.var + eps));
    if (team.lane() == 0) {
      mean[set] = found_mean;
      rstd[set] = found_rstd;
      if (var != nullptr) var[set] = static_cast<A>(moments.var);
    }
    map_set(team, set, n, found_mean, {0, static_cast<double>(found_rstd), 0}, nullptr);
  }

  template <class Team>
  DATAGRAD_HD void operator()(const Team& team, int64_t set, bool has_set) const {
    const int64_t n = has_set ? map.sets.channels() : 0;
    const A mean = has_set ? map.mean[set] : A(0);
    const double r = has_set ? static_cast<double>(map.rstd[set]) : 0, count = static_cast<double>(map.sets.elements());
    double sums[kPairSums] = {};
    if (map.single != nullptr) {
      const NormSums<T> in{map.x, map.single, nullptr, nullptr, false, map.gate};
      reduce<kSingleSums>(
          team, set, n, mean, [&](int64_t i, A centred, A w, A* s) { in.add_single(i, centred, w, s); }, sums);
    }
    Coefficients total = map.start(sums, r);
    KeptPair<A> pairs[kMaxNormPairs];
    for (int p = 0; p < map.pairs; ++p) {
      const NormSums<T> in = map.pair(p);
      reduce<kPairSums>(
          team, set, n, mean, [&](int64_t i, A centred, A w, A* s) { in.add_pair(i, centred, w, s); }, sums);
      pairs[p] = keep<A>(add_curvature(sums, r, count, total));
      if (kept != nullptr && has_set && team.lane() == 0) kept[set * map.pairs + p] = pairs[p];
    }
    if (map.out != nullptr && has_set) map_set(team, set, n, mean, total, pairs);
  }

 private:
  template <class Team>
  DATAGRAD_HD void map_set(const Team& team, int64_t set, int64_t n, A mean, const Coefficients& total,
                           const KeptPair<A>* pairs) const {
    const int64_t first = set * map.sets.channels(), channel = set % at_least_one(map.sets.groups) * map.sets.channels();
    const A alpha = static_cast<A>(total.alpha), kappa = static_cast<A>(total.kappa);
    const A lambda = static_cast<A>(total.lambda);
    for (int64_t i = team.lane(); i < n; i += team.lanes) {
      map.store(first + i, channel + i, mean, alpha, kappa, lambda, pairs);
    }
  }
};

// Gradients of weight and bias where sets are runs: sums over the rows of (weight's, bias's) terms, as cells of one image.
template <class T>
struct SumRowGrads {
  static constexpr int kSums = 2;
  NormMap<T> map;
  const KeptPair<Acc<T>>* kept;

  DATAGRAD_HD void operator()(int64_t i, int64_t, int64_t channel, Acc<T>* sums) const {
    using A = Acc<T>;
    const int64_t set = map.sets.of(i / map.sets.c, channel);
    const A centred = static_cast<A>(map.x[i]) - map.mean[set];
    A weight = A(0);
    if (map.single != nullptr) {
      const A zeta = map.gate(map.single, i);
      weight = zeta * centred;
      sums[1] += zeta;
    }
    for (int p = 0; p < map.pairs; ++p) {
      const KeptPair<A>& pair = kept[set * map.pairs + p];
      const A t = static_cast<A>(map.tangents[p][i]) - pair.mean_t - pair.slope_t * centred;
      weight += map.gate(map.cotangents[p], i) * t;
    }
    sums[0] += map.rstd[set] * weight;
  }
};

// The mean of up to 16 elements of a set, near enough to its mean to take sums about it.
template <class T>
DATAGRAD_HD Acc<T> pivot_of_set(const T* x, const Sets& sets, const Cells& cells, int64_t set) {
  const int64_t channel = sets.groups == 0 ? set : set % sets.groups * sets.channels();
  const int64_t image = sets.groups == 0 ? 0 : set / sets.groups, n = at_most(cells.elements(), 16);
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) sum += static_cast<double>(static_cast<Acc<T>>(x[cells.element(image, channel, j)]));
  return static_cast<Acc<T>>(pivot_of(sum / static_cast<double>(at_least_one(n))));
}

}  // namespace datagrad
