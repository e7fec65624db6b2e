// What a set of elements with common statistics adds to the sweeps of a normalisation; letters as in
// datagrad_ext/ops/normalisation.py. No torch header; host and device.
//
// All sums are over the set, with x_c = x - mean, h = w delta (or w zeta), M its number of elements. A result is
//   inner weight (vjp, reverse)   w (alpha zeta + sum of beta delta) + sum of gamma t + kappa x_c + lambda
//   outer weight (forward, jvp)   w (alpha t + kappa x_c + lambda) + bias
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DATAGRAD_HD __host__ __device__
#else
#define DATAGRAD_HD
#endif

namespace datagrad {

// x (N, C, size) in memory order, or (N, size, C) if `channels_fastest`, and its sets of common statistics: `groups` of
// channels of a sample, or, for groups == 0, a channel of all samples.
struct Sets {
  int64_t n = 0, c = 0, size = 1, groups = 0;
  bool channels_fastest = false;

  DATAGRAD_HD int64_t count() const { return groups == 0 ? c : n * groups; }
  DATAGRAD_HD int64_t channels() const { return groups == 0 ? 1 : c / groups; }
  DATAGRAD_HD int64_t numel() const { return n * c * size; }
  DATAGRAD_HD int64_t of(int64_t sample, int64_t channel) const {
    return groups == 0 ? channel : sample * groups + channel / channels();
  }
  // Elements of a set, at least one.
  DATAGRAD_HD int64_t elements() const {
    const int64_t all = groups == 0 ? n * size : c / groups * size;
    return all > 1 ? all : 1;
  }
  // Whether every set is a run of elements of different channels.
  DATAGRAD_HD bool has_rows() const { return groups > 0 && size == 1; }
};

// Sums of one cotangent or tangent u, and of a pair (t, delta); as arrays they have these numbers in this order.
constexpr int kSingleSums = 2;  // sum of u, sum of u x_c
constexpr int kPairSums = 5;    // sums of h, h x_c, t, t x_c, h t

struct PairOfSet {
  double beta, gamma, mean_t, slope_t;  // slope_t x_c + mean_t is the part of t that P takes away
};

struct Coefficients {
  double alpha = 0, kappa = 0, lambda = 0;
};

// alpha u + kappa x_c + lambda = r P u of the sums of u.
DATAGRAD_HD inline Coefficients projection(const double* sums, double r, double count) {
  return {r, -r * r * r * sums[1] / count, -r * sums[0] / count};
}

// Adds minus the curvature of a pair to kappa and lambda.
DATAGRAD_HD inline PairOfSet add_curvature(const double* sums, double r, double count, Coefficients& total) {
  const double h = sums[0] / count, t = sums[2] / count, r2 = r * r;
  const double a = r * sums[1] / count, b = r * sums[3] / count;
  const double c = sums[4] / count - h * t - a * b;
  total.kappa -= r2 * r * (c - 2 * a * b);
  total.lambda += r2 * (b * h + a * t);
  return {-r2 * b, -r2 * a, t, r * b};
}

// The gradient of the weight from sums of delta, delta x_c and delta t over one channel's elements of the set.
DATAGRAD_HD inline double pair_weight_grad(const PairOfSet& pair, double r, double delta, double delta_x, double delta_t) {
  return r * (delta_t - pair.mean_t * delta - pair.slope_t * delta_x);
}

// Mean and variance of a set, from the sums of x - pivot and of its square, for a pivot near the mean.
struct Moments {
  double mean, var;

  DATAGRAD_HD Moments(double pivot, double first, double second, double count) {
    const double shift = first / count;
    mean = pivot + shift;
    var = second / count - shift * shift;
    if (var < 0) var = 0;  // a NaN stays
  }
};

// What to subtract from x before it is summed: nothing where an infinity is among the values, so that the mean becomes it.
DATAGRAD_HD inline double pivot_of(double mean) { return mean - mean == 0 ? mean : 0; }

}  // namespace datagrad
