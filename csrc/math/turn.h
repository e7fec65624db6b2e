// Transposition of a matrix by tiles that lie in shared memory, as functions of thread numbers that run on the host too.
#pragma once

#include <math/scalar.h>

#include <cstdint>

namespace datagrad {

// `out` (columns, rows) is the transpose of `in` (rows, columns). A block has one tile; its threads read rows of the tile
// and write columns of it. The rows of the tile in shared memory are one element longer, so that a column meets all banks.
template <class T>
struct Turn {
  static constexpr int kTile = 32, kRow = kTile + 1, kThreads = 256, kShared = kTile * kRow;

  const T* in;
  T* out;
  int64_t rows, columns;

  DATAGRAD_HD int64_t tiles_across() const { return (columns + kTile - 1) / kTile; }
  DATAGRAD_HD int64_t tiles() const { return tiles_across() * ((rows + kTile - 1) / kTile); }

  DATAGRAD_HD void read(int64_t tile, int thread, T* shared) const {
    const int64_t row = tile / tiles_across() * kTile, column = tile % tiles_across() * kTile + thread % kTile;
    for (int r = thread / kTile; r < kTile; r += kThreads / kTile) {
      if (row + r < rows && column < columns) shared[r * kRow + thread % kTile] = in[(row + r) * columns + column];
    }
  }

  // After all threads of the block have read.
  DATAGRAD_HD void write(int64_t tile, int thread, const T* shared) const {
    const int64_t row = tile / tiles_across() * kTile + thread % kTile, column = tile % tiles_across() * kTile;
    for (int c = thread / kTile; c < kTile; c += kThreads / kTile) {
      if (row < rows && column + c < columns) out[(column + c) * rows + row] = shared[thread % kTile * kRow + c];
    }
  }
};

}  // namespace datagrad
