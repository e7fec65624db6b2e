// Argument checks that read as sentences. They throw std::runtime_error, which Python sees as RuntimeError with the
// sentence as its whole text. The PyTorch references in datagrad_ext/ops raise the same sentences.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace datagrad {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

// The parts of the sentence are evaluated only when the condition fails.
#define DATAGRAD_CHECK(condition, ...)                       \
  do {                                                       \
    if (!(condition)) [[unlikely]] datagrad::fail(__VA_ARGS__); \
  } while (false)

inline std::string text(IntHeaderOnlyArrayRef shape) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  out << ']';
  return out.str();
}

inline const char* text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return torch::headeronly::toString(dtype);
  }
}

inline std::string device_text(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  if (t.is_cuda()) return "cuda:" + std::to_string(t.get_device_index());
  return "another device";
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline bool same_shape(IntHeaderOnlyArrayRef a, IntHeaderOnlyArrayRef b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i]) return false;
  }
  return true;
}

inline void check_floating(const char* op, const char* name, const Tensor& t) {
  DATAGRAD_CHECK(is_floating(t.scalar_type()), op, ": ", name,
                 " must be float32, float64, bfloat16 or float16, got ", text(t.scalar_type()), "; convert it first");
}

inline void check_device(const char* op, const char* name, const Tensor& t, const char* other_name,
                         const Tensor& other) {
  DATAGRAD_CHECK(same_device(t, other), op, ": ", name, " must be on ", other_name, "'s device ",
                 device_text(other), ", got ", device_text(t));
}

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType expected) {
  DATAGRAD_CHECK(t.scalar_type() == expected, op, ": ", name, " must have dtype ", text(expected), ", got ",
                 text(t.scalar_type()));
}

// t must have the dtype and device of other.
inline void check_alike(const char* op, const char* name, const Tensor& t, const char* other_name,
                        const Tensor& other) {
  DATAGRAD_CHECK(t.scalar_type() == other.scalar_type(), op, ": ", name, " must have ", other_name, "'s dtype ",
                 text(other.scalar_type()), ", got ", text(t.scalar_type()));
  check_device(op, name, t, other_name, other);
}

inline void check_shape(const char* op, const char* name, const Tensor& t, IntHeaderOnlyArrayRef expected) {
  DATAGRAD_CHECK(same_shape(t.sizes(), expected), op, ": ", name, " must have shape ", text(expected), ", got ",
                 text(t.sizes()));
}

}  // namespace datagrad
