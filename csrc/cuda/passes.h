// Passes over matrices that only CUDA has, for what chains do beside products there (cuda/epilogues.cuh).
#pragma once

#include <common/activation_arguments.h>

namespace datagrad {

// The bits of a relu whose result is y (cuda/activation.cu).
void relu_bits_into(const Tensor& y, const Tensor& bits);

// A dense copy of the transpose of a dense matrix of float32 (cuda/turned.cu).
Tensor turned_copy_of(const Tensor& t);

// relu_gate_into, relu_reverse_into or smooth_reverse_into, and the transposed copy of `out`: whether it was done. Matrices of
// float32, whose columns are a multiple of kGroup, are (cuda/turned.cu).
bool relu_turned_into(const Gated& in, double slope, const Tensor& out, const Tensor* sums, const Tensor& turned);
bool smooth_turned_into(const char* op, const Curved& in, const std::string& kind, const std::vector<double>& constants,
                        const Tensor& out, const Tensor* sums, const Tensor& turned);

}  // namespace datagrad
