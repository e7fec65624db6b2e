// Tensors that are a part of another one's memory.
#pragma once

#include <common/layout.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace datagrad {
namespace {

inline Tensor view(const Tensor& t, IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, int64_t offset) {
  AtenTensorHandle found = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), static_cast<int64_t>(sizes.size()), sizes.data(),
                                                        strides.data(), offset, &found));
  return Tensor(found);
}

}  // namespace
}  // namespace datagrad
