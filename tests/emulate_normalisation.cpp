// Runs the thread functions of the CUDA normalisation kernels on the host, thread by thread as a grid would, and compares with
// plain loops over the definition: statistics, values, maps and the gradients of parameters, for every way to cut the work.
#include <math/normalisation_cells.h>

#include <cmath>
#include <cstdio>
#include <vector>

using namespace datagrad;

namespace {

using Numbers = std::vector<double>;
constexpr double kEps = 0.01;
int failures = 0;

Numbers numbers(int64_t n, unsigned seed) {
  Numbers values(n);
  for (double& v : values) v = (seed = seed * 1664525u + 1013904223u) / 4294967296.0 * 2 - 0.7;
  return values;
}

void expect_close(const Numbers& a, const Numbers& b, const char* what, const Sets& s, int pairs) {
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < a.size() && worst < INFINITY; ++i) {
    const double error = std::fabs(a[i] - b[i]) / (1 + std::fabs(b[i]));
    worst = error <= 1e-10 ? std::max(worst, error) : INFINITY;
  }
  if (worst < INFINITY) return;
  ++failures;
  std::printf("%s: n %ld c %ld size %ld groups %ld channels_fastest %d pairs %d\n", what, long(s.n), long(s.c), long(s.size),
              long(s.groups), int(s.channels_fastest), pairs);
}

struct SerialTeam {
  static constexpr int lanes = 1;
  int lane() const { return 0; }
  template <class Reduction, class S>
  S reduce(S sum) const {
    return sum;
  }
};

template <int kSums, class Op>
CellSums<double> sum_cells(const Op& op, const Cells& cells, Numbers& partials) {
  const CellBlocks cut(cells);
  partials.assign(cut.splits * kSums * cells.count(), NAN);
  for (int64_t block = 0; block < cut.blocks(cells); ++block) {
    for (int64_t split = 0; split < cut.splits; ++split) {
      Numbers sums(cut.width * kSums, 0.0);
      for (int t = 0; t < kBlockThreads; ++t) {
        double sum[kSums] = {};
        accumulate_cell(op, cells, cut, block, split, t, sum);
        for (int k = 0; k < kSums; ++k) sums[t % cut.width * kSums + k] += sum[k];
      }
      for (int column = 0; column < cut.width; ++column) {
        const int64_t cell = cell_of(cells, cut, block, column);
        for (int k = 0; k < kSums && cell >= 0; ++k) {
          partials[(split * kSums + k) * cells.count() + cell] = sums[column * kSums + k];
        }
      }
    }
  }
  return {partials.data(), cut.splits, kSums * cells.count(), cells.count()};
}

// The definition, element by element.
struct Plain {
  Sets s;
  Numbers x, w, mean, rstd;
  std::vector<int64_t> set, channel;

  Plain(const Sets& sets, const Numbers& x, const Numbers& w)
      : s(sets), x(x), w(w), mean(s.count(), 0.0), rstd(s.count(), 0.0), set(x.size()), channel(x.size()) {
    for (int64_t i = 0; i < s.numel(); ++i) {
      const int64_t inside = i % (s.c * s.size);
      channel[i] = s.channels_fastest ? inside % s.c : inside / s.size;
      set[i] = s.of(i / (s.c * s.size), channel[i]);
    }
    mean = average(x);
    Numbers squares(x.size());
    for (size_t i = 0; i < x.size(); ++i) squares[i] = (x[i] - mean[set[i]]) * (x[i] - mean[set[i]]);
    rstd = average(squares);
    for (double& r : rstd) r = 1 / std::sqrt(r + kEps);
  }

  double hat(size_t i) const { return (x[i] - mean[set[i]]) * rstd[set[i]]; }

  Numbers average(const Numbers& u) const {
    Numbers sum(s.count(), 0.0);
    for (size_t i = 0; i < u.size(); ++i) sum[set[i]] += u[i] / static_cast<double>(s.elements());
    return sum;
  }

  Numbers times(const Numbers& a, const Numbers& b) const {
    Numbers product(a.size());
    for (size_t i = 0; i < a.size(); ++i) product[i] = a[i] * b[i];
    return product;
  }

  Numbers weighted(const Numbers& u) const {
    Numbers h(u.size());
    for (size_t i = 0; i < u.size(); ++i) h[i] = w[channel[i]] * u[i];
    return h;
  }

  Numbers hats() const {
    Numbers h(x.size());
    for (size_t i = 0; i < x.size(); ++i) h[i] = hat(i);
    return h;
  }

  Numbers projected(const Numbers& u) const {
    const Numbers a = average(u), b = average(times(u, hats()));
    Numbers p(u.size());
    for (size_t i = 0; i < u.size(); ++i) p[i] = u[i] - a[set[i]] - hat(i) * b[set[i]];
    return p;
  }
};

void check(const Sets& sets, int n_pairs, bool has_single, bool outer, bool rectified = false) {
  const Numbers x = numbers(sets.numel(), 1), w = numbers(sets.c, 2), bias = numbers(sets.c, 3);
  Numbers single = numbers(sets.numel(), 4);
  std::vector<uint8_t> bits;
  for (const double b : numbers(sets.numel() / 8 + 1, 30)) bits.push_back(static_cast<uint8_t>(b * 97 + 80));
  std::vector<Numbers> t, d;
  for (int p = 0; p < n_pairs; ++p) {
    t.push_back(numbers(sets.numel(), 5 + p));
    d.push_back(numbers(sets.numel(), 15 + p));
  }
  const Plain plain(sets, x, w);
  Numbers out(x.size(), NAN), mean(sets.count(), NAN), rstd(sets.count(), NAN), partials, total(3 * sets.count(), NAN);

  NormMap<double> map;
  map.sets = sets, map.x = x.data(), map.weight = w.data(), map.mean = mean.data(), map.rstd = rstd.data();
  NormMap<double> value = map;
  value.outer = true, value.bias = bias.data(), value.out = out.data();
  const Cells cells(sets);
  const auto run_map = [&](const NormMap<double>& m, const KeptPair<double>* kept) {
    const MapCells<double> op{m, total.data(), kept};
    for (int64_t thread = 0; thread < 7; ++thread) map_thread<double>(op, sets.numel(), thread, 7);
  };
  if (sets.has_rows()) {
    for (int64_t set = 0; set < sets.count(); ++set) {
      MapRows<double>{value, nullptr}.statistics(SerialTeam{}, set, true, kEps, mean.data(), rstd.data(), nullptr);
    }
  } else {
    Numbers pivot(sets.count());
    for (int64_t set = 0; set < sets.count(); ++set) pivot[set] = pivot_of_set(x.data(), sets, cells, set);
    const NormSums<double> own{x.data(), nullptr, nullptr, nullptr, true, {}};
    const SumCells<double, true, false> op{own, pivot.data(), sets};
    const auto sums = sum_cells<kSingleSums>(op, cells, partials);
    const SetStatistics<double> statistics{sets,        sums,        pivot.data(), kEps,
                                           mean.data(), rstd.data(), nullptr,      total.data()};
    for (int64_t set = 0; set < sets.count(); ++set) statistics(SerialTeam{}, set, true);
    run_map(value, nullptr);
  }
  Numbers expected(x.size());
  for (size_t i = 0; i < x.size(); ++i) expected[i] = w[plain.channel[i]] * plain.hat(i) + bias[plain.channel[i]];
  expect_close(mean, plain.mean, "mean", sets, n_pairs);
  expect_close(rstd, plain.rstd, "rstd", sets, n_pairs);
  expect_close(out, expected, "value", sets, n_pairs);

  map.outer = outer, map.single = has_single ? single.data() : nullptr, map.pairs = n_pairs, map.out = out.data();
  if (rectified) map.gate = {bits.data(), {0.3}};
  for (int p = 0; p < n_pairs; ++p) map.tangents[p] = t[p].data(), map.cotangents[p] = d[p].data();
  std::vector<KeptPair<double>> kept(n_pairs * sets.count());
  Numbers weight_grad(sets.c, NAN), bias_grad(sets.c, NAN);
  std::vector<Numbers> memory(n_pairs + 1);
  if (sets.has_rows()) {
    for (int64_t set = 0; set < sets.count(); ++set) MapRows<double>{map, kept.data()}(SerialTeam{}, set, true);
    Sets columns = sets;
    columns.groups = 0;
    const auto sums = sum_cells<2>(SumRowGrads<double>{map, kept.data()}, Cells(columns), memory[0]);
    for (int64_t c = 0; c < sets.c; ++c) weight_grad[c] = sums.sum(0, c), bias_grad[c] = sums.sum(1, c);
  } else {
    SetCoefficients<double> of{map, {}, {}, total.data(), kept.data()};
    if (has_single) {
      const NormSums<double> in{x.data(), single.data(), nullptr, nullptr, false, map.gate};
      of.single = sum_cells<kSingleSums>(SumCells<double, true, false>{in, mean.data(), sets}, cells, memory[n_pairs]);
    }
    for (int p = 0; p < n_pairs; ++p) {
      const SumCells<double, false, true> op{map.pair(p), mean.data(), sets};
      of.pair[p] = sum_cells<kPairSums>(op, cells, memory[p]);
    }
    for (int64_t set = 0; set < sets.count(); ++set) of(SerialTeam{}, set, true);
    for (int64_t c = 0; c < sets.c; ++c) channel_grads(of, c, weight_grad.data(), bias_grad.data());
    run_map(map, kept.data());
  }

  for (size_t i = 0; i < x.size() && rectified; ++i) {  // from here on cotangents are as the norm gets them
    const double slope = (bits[i / 8] >> (i % 8)) & 1 ? 1 : 0.3;
    single[i] *= slope;
    for (Numbers& delta : d) delta[i] *= slope;
  }
  expected.assign(x.size(), 0.0);
  Numbers expected_weight(sets.c, 0.0), expected_bias(sets.c, 0.0);
  if (has_single) {
    const Numbers p = plain.projected(outer ? single : plain.weighted(single));
    for (size_t i = 0; i < x.size(); ++i) {
      expected[i] = plain.rstd[plain.set[i]] * p[i] * (outer ? w[plain.channel[i]] : 1.0);
      expected_weight[plain.channel[i]] += single[i] * plain.hat(i);
      expected_bias[plain.channel[i]] += single[i];
    }
  }
  for (int k = 0; k < n_pairs; ++k) {
    const Numbers h = plain.weighted(d[k]), ph = plain.projected(h), pt = plain.projected(t[k]);
    const Numbers a = plain.average(plain.times(h, plain.hats())), b = plain.average(plain.times(t[k], plain.hats()));
    const Numbers mh = plain.average(h), mt = plain.average(t[k]), ht = plain.average(plain.times(h, t[k]));
    for (size_t i = 0; i < x.size(); ++i) {
      const int64_t s = plain.set[i];
      const double c = ht[s] - mh[s] * mt[s] - a[s] * b[s], r = plain.rstd[s];
      expected[i] -= r * r * (c * plain.hat(i) + b[s] * ph[i] + a[s] * pt[i]);
      expected_weight[plain.channel[i]] += d[k][i] * r * pt[i];
    }
  }
  expect_close(out, expected, "map", sets, n_pairs);
  if (outer) return;
  expect_close(weight_grad, expected_weight, "weight gradient", sets, n_pairs);
  expect_close(bias_grad, expected_bias, "bias gradient", sets, n_pairs);
}

}  // namespace

int main() {
  for (const bool fastest : {false, true}) {
    for (const int64_t n : {1, 3, 70}) {
      for (const int64_t c : {1, 6, 48}) {
        for (const int64_t size : {1, 5, 64}) {
          for (const int64_t groups : {0, 1, 3, 6}) {
            if ((groups > 0 && c % groups != 0) || (size == 1 && !fastest)) continue;
            const Sets sets{n, c, size, groups, fastest};
            check(sets, 0, true, false);
            check(sets, 0, true, true);
            check(sets, 1, true, false);
            check(sets, 2, false, false);
            check(sets, 1, true, false, true);
          }
        }
      }
    }
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
