// The activation family on a group of up to eight elements, as math/groups.h calls it. Letters as in
// datagrad_ext/ops/activation.py; `vector`: all pointers are aligned to 16 bytes.
#pragma once

#include <math/activation.h>
#include <math/groups.h>

namespace datagrad {

// values + other; other may be null.
template <class T>
DATAGRAD_HD void add_group(const T* other, int64_t first, int count, bool vector, Acc<T>* values) {
  if (other == nullptr) return;
  Acc<T> terms[kGroup];
  load_group(other, first, count, vector, terms);
  for (int k = 0; k < count; ++k) values[k] += terms[k];
}

// z = x + bias + other; bias and other may be null.
template <class T>
struct BiasedInput {
  const T* x;
  const T* bias;
  const T* other;
  ChannelView view;

  DATAGRAD_HD void load(int64_t first, int count, bool vector, Acc<T>* z) const {
    load_group(x, first, count, vector, z);
    if (bias != nullptr) {
      ChannelCursor cursor(view, first);
      for (int k = 0; k < count; ++k, cursor.next()) z[k] += static_cast<Acc<T>>(bias[cursor.channel()]);
    }
    add_group(other, first, count, vector, z);
  }
};

template <class T>
struct ReluForward {  // first is a multiple of 8
  BiasedInput<T> z;
  Rectifier<Acc<T>> relu;
  T* y;
  uint8_t* bits;
  bool vector;

  DATAGRAD_HD void operator()(int64_t first, int count, Acc<T>* values) const {
    z.load(first, count, vector, values);
    unsigned octet = 0;
    for (int k = 0; k < count; ++k) {
      const bool bit = relu.bit(values[k]);
      octet |= (bit ? 1u : 0u) << k;
      values[k] = relu.gate(bit, values[k]);
    }
    bits[first / 8] = static_cast<uint8_t>(octet);
    store_group(y, first, count, vector, values);
  }
};

template <class T>
struct ReluBits {  // of a relu's result, where its argument is gone; first is a multiple of 8
  const T* y;
  uint8_t* bits;
  bool vector;

  DATAGRAD_HD void operator()(int64_t first, int count, Acc<T>* values) const {
    load_group(y, first, count, vector, values);
    unsigned octet = 0;
    for (int k = 0; k < count; ++k) octet |= (Rectifier<Acc<T>>{}.bit(values[k]) ? 1u : 0u) << k;
    bits[first / 8] = static_cast<uint8_t>(octet);
  }
};

template <class T>
struct ReluGate {  // of g + other; other may be null
  const T* g;
  const T* other;
  const uint8_t* bits;
  Rectifier<Acc<T>> relu;
  T* out;
  bool vector;

  // A group of eight begins at a byte; a single element may lie anywhere in one.
  DATAGRAD_HD void operator()(int64_t first, int count, Acc<T>* values) const {
    load_group(g, first, count, vector, values);
    add_group(other, first, count, vector, values);
    const unsigned octet = static_cast<unsigned>(bits[first / 8]) >> (first % 8);
    for (int k = 0; k < count; ++k) values[k] = relu.gate((octet >> k) & 1u, values[k]);
    store_group(out, first, count, vector, values);
  }
};

template <class T, class Activation>
struct SmoothForward {
  BiasedInput<T> z;
  Activation activation;
  T* y;
  bool vector;

  DATAGRAD_HD void operator()(int64_t first, int count, Acc<T>* values) const {
    z.load(first, count, vector, values);
    for (int k = 0; k < count; ++k) values[k] = activation.f(values[k]);
    store_group(y, first, count, vector, values);
  }
};

// f'(z) zeta + f''(z) sum of tangents[i] * cotangents[i]; zeta may be null, pairs may be 0.
template <class T, class Activation>
struct SmoothReverse {
  static constexpr int kMaxPairs = 64;  // they travel as kernel arguments

  BiasedInput<T> z;
  Activation activation;
  const T* zeta = nullptr;
  const T* tangents[kMaxPairs] = {};
  const T* cotangents[kMaxPairs] = {};
  int pairs = 0;
  T* out = nullptr;
  bool vector = false;

  DATAGRAD_HD void operator()(int64_t first, int count, Acc<T>* values) const {
    using A = Acc<T>;
    A position[kGroup], operand[kGroup], other[kGroup], products[kGroup];
    z.load(first, count, vector, position);
    for (int k = 0; k < count; ++k) values[k] = A(0);
    if (zeta != nullptr) {
      load_group(zeta, first, count, vector, operand);
      for (int k = 0; k < count; ++k) values[k] = activation.first(position[k]) * operand[k];
    }
    if (pairs > 0) {
      for (int k = 0; k < count; ++k) products[k] = A(0);
      for (int i = 0; i < pairs; ++i) {
        load_group(tangents[i], first, count, vector, operand);
        load_group(cotangents[i], first, count, vector, other);
        for (int k = 0; k < count; ++k) products[k] += operand[k] * other[k];
      }
      for (int k = 0; k < count; ++k) values[k] += activation.second(position[k]) * products[k];
    }
    store_group(out, first, count, vector, values);
  }
};

}  // namespace datagrad
