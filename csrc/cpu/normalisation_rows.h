// Sums and maps of a normalisation over rows of all channels on the CPU, `run` elements side by side of each. Strips of some columns
// and rows, whose operands the first-level cache holds, are walked down the columns: a vector of them has its sums, or its
// coefficients, in registers.
#pragma once

#include <cpu/normalisation_loops.h>

#include <numeric>

namespace datagrad {
namespace {

constexpr int64_t kNarrowRows = 32;                             // rows summed in the arithmetic type before double takes over
constexpr int64_t kStripElements = 1024, kStripColumns = 128;  // columns are whole vectors

// How often short rows are repeated, so that a row is whole vectors.
inline int64_t repeats(int64_t columns, int64_t rows) {
  constexpr int64_t kWhole = small::kLanes<float>;
  return std::min(kWhole / std::gcd(columns, kWhole), rows);
}

// One number a channel as one a column: each `run` times, and the row of these `times` times.
template <class A>
void spread(const A* numbers, int64_t channels, int64_t run, int64_t times, A* columns) {
  const int64_t row = channels * run;
  if (run == 1) {
    std::copy_n(numbers, channels, columns);
  } else {
    for (int64_t c = 0; c < channels; ++c) std::fill_n(columns + c * run, run, numbers[c]);
  }
  for (int64_t k = 1; k < times; ++k) std::copy_n(columns, row, columns + k * row);
}

// Some columns of some rows: the first element, and from one row to the next.
struct Strip {
  int64_t begin, step, rows, columns;
};

// Calls f(first column, strip) for strips that cover the elements [begin, end), rows of `width` of which the last may be shorter.
template <class F>
void for_each_strip(int64_t begin, int64_t end, int64_t width, const F& f) {
  const int64_t whole = (end - begin) / width, wide = std::min(width, kStripColumns);
  const int64_t rows = std::min(kNarrowRows, kStripElements / wide);
  for (int64_t r = 0; r < whole; r += rows) {
    for (int64_t c = 0; c < width; c += wide) {
      f(c, Strip{begin + r * width + c, width, std::min(rows, whole - r), std::min(wide, width - c)});
    }
  }
  const int64_t rest = begin + whole * width;
  for (int64_t c = 0; rest + c < end; c += wide) f(c, Strip{rest + c, width, 1, std::min(wide, end - rest - c)});
}

// The elements of a strip in the arithmetic type, as they are in memory or in a buffer.
template <class A>
struct StripOf {
  const A* data = nullptr;
  int64_t step = 0;

  template <class L>
  DATAGRAD_ALWAYS_INLINE typename L::Vector load(int64_t row, int64_t column) const {
    return L::load(data + row * step + column);
  }
};

// The same behind a gate, by the bits that are masks of vectors.
template <class A>
struct GatedStrip {
  const A* data;
  int64_t step;
  const uint8_t* bits;
  Rectifier<A> rectifier;

  template <class L>
  DATAGRAD_ALWAYS_INLINE typename L::Vector load(int64_t row, int64_t column) const {
    const int64_t i = row * step + column;
    if constexpr (L::kCount == 1) {
      return rectifier.gate((bits[i / 8] >> i % 8 & 1) != 0, data[i]);
    } else {
      return masked::gate(data + i, bits + i / 8, rectifier);
    }
  }
};

template <class T>
StripOf<Acc<T>> strip_of(const T* source, const Strip& s, Acc<T>* buffer) {
  if constexpr (std::is_same_v<T, Acc<T>>) {
    return {source + s.begin, s.step};
  } else {
    for (int64_t r = 0; r < s.rows; ++r) widen(source + s.begin + r * s.step, buffer + r * s.columns, s.columns);
    return {buffer, s.columns};
  }
}

// Calls f(of), where of(source, buffer) is the strip of a cotangent as the norm gets it.
template <class T, class F>
void with_cotangents(const Operands<T>& in, const Strip& s, const F& f) {
  using A = Acc<T>;
  if (in.bits == nullptr) return f([&](const T* source, A* buffer) { return strip_of(source, s, buffer); });
  if constexpr (std::is_same_v<T, A> && masked::kHasMasks) {
    if (s.begin % 8 == 0 && s.step % 8 == 0) {
      return f([&](const T* source, A*) {
        return GatedStrip<A>{source + s.begin, s.step, in.bits + s.begin / 8, in.rectifier};
      });
    }
  }
  f([&](const T* source, A* buffer) {
    for (int64_t r = 0; r < s.rows; ++r) in.cotangent(source, s.begin + r * s.step, s.columns, buffer + r * s.columns);
    return StripOf<A>{buffer, s.columns};
  });
}

// Calls f(lanes, column) for the columns, a whole vector at a time while there is one.
template <class A, class F>
DATAGRAD_ALWAYS_INLINE void for_each_vector(int64_t columns, const F& f) {
  using L = small::Lanes<A>;
  int64_t c = 0;
  for (; c + L::kCount <= columns; c += L::kCount) f(L{}, c);
  for (; c < columns; ++c) f(OneLane<A>{}, c);
}

// Sums per channel: for each column in the arithmetic type for a few rows, then added to sums[k * stride + channel]. Several short
// rows are one wide row, whose parts are added up at last.
template <class T>
class RowSums {
  using A = Acc<T>;

 public:
  RowSums(const Operands<T>& in, int64_t channels, int64_t run, const A* mean, int64_t rows)
      : in_(in), channels_(channels), run_(run), times_(repeats(channels * run, rows)),
        width_(channels * run * times_), mean_(width_), narrow_(in.n_sums() * width_) {
    spread(mean, channels, run, times_, mean_.data());
  }

  void add(int64_t first_row, int64_t rows, double* sums, int64_t stride) {
    const int64_t begin = first_row * channels_ * run_, end = begin + rows * channels_ * run_;
    for (int64_t block = begin; block < end; block += kNarrowRows * width_) {
      const int64_t stop = std::min(end, block + kNarrowRows * width_);
      std::fill(narrow_.begin(), narrow_.end(), A(0));
      for_each_strip(block, stop, width_, [&](int64_t column, const Strip& strip) { add_strip(column, strip); });
      for (int64_t s = 0; s < in_.n_sums(); ++s) flush(narrow_.data() + s * width_, sums + s * stride);
    }
  }

 private:
  void add_strip(int64_t column, const Strip& s) {
    A first[kStripElements], second[kStripElements], third[kStripElements], fourth[kStripElements];
    const StripOf<A> x = strip_of(in_.x, s, first);
    with_cotangents(in_, s, [&](const auto& of) {
      const auto u = of(in_.single == nullptr ? in_.x : in_.single, second);
      for_each_pair(in_, [&](int64_t p, int64_t sum, auto single, auto own, auto pair) {
        if constexpr (pair()) {
          const auto [tangent, cotangent] = in_.pairs[p];
          add_columns<single(), own(), true>(s, x, u, strip_of(tangent, s, third), of(cotangent, fourth), sum, column);
        } else {
          add_columns<single(), own(), false>(s, x, u, x, x, sum, column);
        }
      });
    });
  }

  template <bool kSingle, bool kOwn, bool kPair, class X, class U, class D>
  void add_columns(const Strip s, const X x, const U u, const X t, const D delta, int64_t sum, int64_t column) {
    for_each_vector<A>(s.columns, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
      using L = decltype(lanes);
      RunningSums<L, kSingle, kOwn, kPair> sums;
      const typename L::Vector mean = L::load(mean_.data() + column + c);
      int64_t r = 0;
      const auto at = [&](const auto& strip) { return [&] { return strip.template load<L>(r, c); }; };
      for (; r < s.rows; ++r) sums.add(at(x), at(u), at(t), at(delta), mean);
      A* narrow = narrow_.data() + sum * width_ + column + c;
      for (int k = 0; k < sums.kCount; ++k, narrow += width_) L::store(L::load(narrow) + sums.sum[k], narrow);
    });
  }

  // Adds the sums of columns to those of their channels.
  void flush(const A* columns, double* sums) const {
    for (int64_t k = 0; k < times_; ++k, columns += channels_ * run_) {
      if (run_ == 1) {
        for (int64_t c = 0; c < channels_; ++c) sums[c] += static_cast<double>(columns[c]);
        continue;
      }
      for (int64_t c = 0; c < channels_; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < run_; ++i) sum += static_cast<double>(columns[c * run_ + i]);
        sums[c] += sum;
      }
    }
  }

  const Operands<T>& in_;
  int64_t channels_, run_, times_, width_;
  std::vector<A> mean_, narrow_;
};

// The coefficients of a map for each column, rows of `width` numbers: mean, alpha, kappa, lambda, and beta, gamma of every pair.
template <class A>
struct RowMap {
  const A* numbers;
  int64_t width;

  template <class L>
  typename L::Vector load(int64_t row, int64_t column) const {
    return L::load(numbers + row * width + column);
  }
};

// alpha u + kappa (x - mean) + lambda + beta delta + gamma t, its terms as the flags say; kAdd: in the place of those of u and x
// what is in the target.
template <bool kSingle, bool kPair, bool kAdd, class A, class U, class D>
void map_columns(const Strip s, const StripOf<A> x, const U u, const StripOf<A> t, const D delta, const RowMap<A> map,
                 int64_t pair, int64_t column, A* target, int64_t step) {
  for_each_vector<A>(s.columns, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
    using L = decltype(lanes);
    using V = typename L::Vector;
    const auto number = [&](int64_t row) { return map.template load<L>(row, column + c); };
    const V mean = number(0), alpha = number(1), kappa = number(2), lambda = number(3);
    V beta = mean, gamma = mean;
    if constexpr (kPair) beta = number(4 + 2 * pair), gamma = number(5 + 2 * pair);
    for (int64_t r = 0; r < s.rows; ++r) {
      A* to = target + r * step + c;
      V total;
      if constexpr (kAdd) {
        total = L::load(to);
      } else {
        total = kappa * (x.template load<L>(r, c) - mean) + lambda;
      }
      if constexpr (kSingle) total += alpha * u.template load<L>(r, c);
      if constexpr (kPair) total += beta * delta.template load<L>(r, c) + gamma * t.template load<L>(r, c);
      L::store(total, to);
    }
  });
}

template <class T>
void map_strip(const Operands<T>& in, const Strip& s, int64_t column, const RowMap<Acc<T>>& map, T* out) {
  using A = Acc<T>;
  constexpr bool kNarrows = !std::is_same_v<T, A>;
  A first[kStripElements], second[kStripElements], third[kStripElements], fourth[kStripElements], buffer[kStripElements];
  A* target = wide_target(out + s.begin, buffer);
  const int64_t step = kNarrows ? s.columns : s.step;
  const StripOf<A> x = strip_of(in.x, s, first);
  with_cotangents(in, s, [&](const auto& of) {
    const auto u = of(in.single == nullptr ? in.x : in.single, second);
    if (in.pairs.empty()) {
      in.single != nullptr ? map_columns<true, false, false>(s, x, u, x, x, map, 0, column, target, step)
                           : map_columns<false, false, false>(s, x, u, x, x, map, 0, column, target, step);
    }
    for (int64_t p = 0; p < static_cast<int64_t>(in.pairs.size()); ++p) {
      const StripOf<A> t = strip_of(in.pairs[p].first, s, third);
      const auto delta = of(in.pairs[p].second, fourth);
      if (p > 0) {
        map_columns<false, true, true>(s, x, u, t, delta, map, p, column, target, step);
      } else if (in.single != nullptr) {
        map_columns<true, true, false>(s, x, u, t, delta, map, p, column, target, step);
      } else {
        map_columns<false, true, false>(s, x, u, t, delta, map, p, column, target, step);
      }
    }
  });
  if constexpr (kNarrows) {
    for (int64_t r = 0; r < s.rows; ++r) store(buffer + r * s.columns, out + s.begin + r * s.step, s.columns);
  }
}

// The map of elements [begin, end), whole rows.
template <class T>
void map_strips(const Operands<T>& in, int64_t begin, int64_t end, const RowMap<Acc<T>>& map, T* out) {
  for_each_strip(begin, end, map.width, [&](int64_t column, const Strip& strip) { map_strip<T>(in, strip, column, map, out); });
}

}  // namespace
}  // namespace datagrad
