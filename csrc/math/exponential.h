// exp of a double without a branch, so that host loops over it vectorise; within 2 ulp. On the device, and for float,
// math/scalar.h has what is needed. No torch header.
#pragma once

#include <math/scalar.h>

namespace datagrad::math {

// x = k ln 2 + r, |r| <= ln 2 / 2, and the Taylor polynomial of exp(r) to r^13, whose remainder is below 1e-17.
inline double exp_branch_free(double x) {
  constexpr double kRound = 0x1.8p52;  // adding it leaves an integer in the last bits
  x = x < -746.0 ? -746.0 : x;
  x = x > 710.0 ? 710.0 : x;
  const double shifted = x * 1.4426950408889634074 + kRound;
  const double n = shifted - kRound;
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  uint64_t bits, round_bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  std::memcpy(&round_bits, &kRound, sizeof round_bits);
  // 2^k in two factors, k + 2048 = 2 h or 2 h + 1: k reaches beyond the normal exponents.
  const uint64_t k = bits - round_bits + 2048, half = k >> 1;
  const uint64_t low_bits = (half - 1) << 52, high_bits = (k - half - 1) << 52;
  double low, high;
  std::memcpy(&low, &low_bits, sizeof low);
  std::memcpy(&high, &high_bits, sizeof high);
  return p * low * high;
}

}  // namespace datagrad::math
