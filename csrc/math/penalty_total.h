// The mean of a loss, the means of penalties R = f(‖J‖), and their weighted sum, from lists of one number a sample. Host and
// device; no torch header.
#pragma once

#include <math/penalty.h>

namespace datagrad {

// The row of NormFunctions with this number, where it is known at run time only.
template <class A, template <class> class... Rows, class F>
DATAGRAD_HD void with_function(NormRows<Rows...>, int number, const F& f) {
  int row = 0;
  ((row++ == number ? f(Rows<A>{}) : void()), ...);
}

// The number of a row by its name; -1 if there is none.
template <template <class> class... Rows>
int function_number(NormRows<Rows...>, std::string_view name) {
  int number = 0;
  const bool known = ((name == Rows<float>::name || (++number, false)) || ...);
  return known ? number : -1;
}

// The weight of a row's seed: given for each row, or c share f'(norm) with a number c in memory.
template <class A>
struct SeedWeight {
  const A* given;
  const A* c;
  A share, constant;
  int function;

  DATAGRAD_HD A operator()(int64_t row, A norm) const {
    if (given != nullptr) return given[row];
    A first = A(0);
    with_function<A>(NormFunctions{}, function, [&](auto f) { first = f.first(norm, constant); });
    return *c * share * first;
  }
};

template <class A>
struct PenaltyTotal {
  static constexpr int kMost = 64;  // they travel as kernel arguments

  struct List {
    const A* values;
    int64_t size;
    double weight;
    A constant;
    int function;  // of NormFunctions
  };

  List list[kMost];
  int lists = 0;
  A *total, *means;

  // Σ f over elements first, first + stride, ... of a list.
  DATAGRAD_HD double share(int i, int64_t first, int64_t stride) const {
    const List& of = list[i];
    double sum = 0;
    with_function<A>(NormFunctions{}, of.function, [&](auto f) {
      for (int64_t k = first; k < of.size; k += stride) sum += static_cast<double>(f.value(of.values[k], of.constant));
    });
    return sum;
  }

  // The results, from the parts of each list's sum, in their order.
  DATAGRAD_HD void finish(const double* part, int64_t parts) const {
    double weighted = 0;
    for (int i = 0; i < lists; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < parts; ++k) sum += part[i * parts + k];
      const double mean = sum / static_cast<double>(list[i].size);
      means[i] = static_cast<A>(mean);
      weighted += list[i].weight * mean;
    }
    *total = static_cast<A>(weighted);
  }
};

}  // namespace datagrad
