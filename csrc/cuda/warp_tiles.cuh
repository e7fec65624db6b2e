// Matrix products of one warp on 16-bit tiles in shared memory, by ldmatrix and mma.sync m16n8k16, and sums over rows of a block.
//
// Row-major matrices have rows `row` elements apart, a multiple of 8 that is no multiple of 64, so that eight rows lie in
// different banks. Sizes are padded to multiples of 16, with zeros.
#pragma once

#include <cuda/instructions.cuh>

namespace datagrad::warp {

constexpr int kLanes = 32;
constexpr int kStrip = 16;  // rows that one warp owns

constexpr int padded(int width) { return (width + 15) / 16 * 16; }

// How far apart the rows of a matrix in shared memory are.
constexpr int row_of(int width) { return padded(width) + 8; }

// An operand of mma, or what ldmatrix.x4 loads: a lane's part of it.
struct Fragment {
  uint32_t pair[4];
};

// A lane's part of a 16 x 8 result. c0, c1: row lane / 4, columns 2 (lane % 4) and the next; c2, c3: eight rows below.
struct Sums {
  float c[4] = {};

  __device__ static int row(int lane, int k) { return lane / 4 + k / 2 * 8; }
  __device__ static int column(int lane, int k) { return lane % 4 * 2 + k % 2; }
};

// Where in a 16 x 16 block the row lies whose address `lane` gives.
struct Corner {
  int row, column;

  // Matrices 0 and 1 below each other, 2 and 3 to their right: A as stored, and B (k, n) stored as k rows, turned.
  __device__ static Corner down(int lane) { return {lane % 16, lane / 16 * 8}; }
  // Matrices 0 and 1 beside each other, 2 and 3 below: B stored as n rows, and A (m, k) stored as k rows, turned.
  __device__ static Corner across(int lane) { return {lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8}; }
};

// A matrix in shared memory.
template <class T>
struct Matrix {
  T* data;
  int row;

  __device__ T* at(int r, int c) const { return data + r * row + c; }
  __device__ Matrix from_row(int r) const { return {data + r * row, row}; }
};

// Neighbours that are read and written at once.
template <class T>
struct alignas(2 * sizeof(T)) Two {
  T first, second;
};

constexpr int kTiles = 4;  // of 8 columns, in registers at once

// out = a W, or with `Transposed` out = a Wᵀ + bias, for the 16 rows of one warp; W is (depth, columns), or with `Transposed`
// (columns, depth). Columns of padding are zeros, also where a row of a has an infinity; a null bias is none.
template <bool Transposed, class T>
__device__ void product(int lane, Matrix<T> a, Matrix<T> w, int depth, int columns, const T* bias, Matrix<T> out) {
  for (int n0 = 0; n0 < padded(columns); n0 += 8 * kTiles) {
    Sums sums[kTiles];
    for (int k = 0; k < padded(depth); k += 16) {
      Fragment left;
      load_matrices<false>(left.pair, a.at(Corner::down(lane).row, k + Corner::down(lane).column));
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        const int n = n0 + 8 * j;
        if (n >= padded(columns)) continue;
        Fragment right;
        if (Transposed) {
          load_matrices<false>(right.pair, w.at(n + Corner::across(lane).row, k + Corner::across(lane).column));
        } else {
          load_matrices<true>(right.pair, w.at(k + Corner::down(lane).row, n + Corner::down(lane).column));
        }
        multiply_pairs<T>(sums[j].c, left.pair, right.pair[0], right.pair[1]);
        multiply_pairs<T>(sums[j + 1].c, left.pair, right.pair[2], right.pair[3]);
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (n0 + 8 * j >= padded(columns)) continue;
      const int column = n0 + 8 * j + Sums::column(lane, 0);
      for (int k = 0; k < 4; k += 2) {
        float value[2];
        for (int c = 0; c < 2; ++c) {
          const float plus = bias != nullptr && column + c < columns ? static_cast<float>(bias[column + c]) : 0.0f;
          value[c] = column + c < columns ? sums[j].c[k + c] + plus : 0.0f;
        }
        const Two<T> two = {static_cast<T>(value[0]), static_cast<T>(value[1])};
        *reinterpret_cast<Two<T>*>(out.at(Sums::row(lane, k), column)) = two;
      }
    }
  }
  __syncwarp();
}

// sum (m, n), rows `n padded` apart, += dᵀ t for `rows` rows, a multiple of 16: the part of one of `warps` warps.
template <class T>
__device__ void add_outer(int lane, int warp, int warps, Matrix<T> d, Matrix<T> t, int rows, int m, int n, float* sum) {
  const int across = (padded(n) + 8 * kTiles - 1) / (8 * kTiles);
  for (int unit = warp; unit < padded(m) / 16 * across; unit += warps) {
    const int m0 = unit / across * 16, n0 = unit % across * 8 * kTiles;
    Sums sums[kTiles];
    for (int k = 0; k < rows; k += 16) {
      Fragment left;
      load_matrices<true>(left.pair, d.at(k + Corner::across(lane).row, m0 + Corner::across(lane).column));
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        if (n0 + 8 * j >= padded(n)) continue;
        Fragment right;
        load_matrices<true>(right.pair, t.at(k + Corner::down(lane).row, n0 + 8 * j + Corner::down(lane).column));
        multiply_pairs<T>(sums[j].c, left.pair, right.pair[0], right.pair[1]);
        multiply_pairs<T>(sums[j + 1].c, left.pair, right.pair[2], right.pair[3]);
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (n0 + 8 * j >= padded(n)) continue;
      for (int k = 0; k < 4; k += 2) {
        const int r = m0 + Sums::row(lane, k), c = n0 + 8 * j + Sums::column(lane, k);
        auto* place = reinterpret_cast<Two<float>*>(sum + r * padded(n) + c);
        *place = {place->first + sums[j].c[k], place->second + sums[j].c[k + 1]};
      }
    }
  }
}

// sum (m) += the column sums of d: the part of one of `warps` warps. They are dᵀ 1: pairs of ones in the column n = 0 of B.
template <class T>
__device__ void add_rows(int lane, int warp, int warps, Matrix<T> d, int rows, int m, float* sum) {
  const uint32_t ones = lane / 4 == 0 ? pair_of_ones<T>() : 0u;
  for (int m0 = warp * 16; m0 < padded(m); m0 += warps * 16) {
    Sums sums;
    for (int k = 0; k < rows; k += 16) {
      Fragment left;
      load_matrices<true>(left.pair, d.at(k + Corner::across(lane).row, m0 + Corner::across(lane).column));
      multiply_pairs<T>(sums.c, left.pair, ones, ones);
    }
    for (int k = 0; k < 4; k += 2) {
      if (Sums::column(lane, k) == 0) sum[m0 + Sums::row(lane, k)] += sums.c[k];
    }
  }
}

}  // namespace datagrad::warp
