// From a run-time dtype to a compile-time type.
#pragma once

#include <common/check.h>
#include <math/scalar.h>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace datagrad {

using Half = torch::headeronly::Half;
using BFloat16 = torch::headeronly::BFloat16;

inline ScalarType accumulation_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class T>
struct Tag {
  using type = T;
};

// Calls f(Tag<T>{}) with the element type of `dtype`, which has passed check_floating.
template <class F>
decltype(auto) dispatch_floating(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float: return f(Tag<float>{});
    case ScalarType::Double: return f(Tag<double>{});
    case ScalarType::BFloat16: return f(Tag<BFloat16>{});
    case ScalarType::Half: return f(Tag<Half>{});
    default: fail("no kernel for dtype ", text(dtype));
  }
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

}  // namespace datagrad
