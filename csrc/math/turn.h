// Transposition of a matrix by tiles that lie in shared memory, by itself or along with the pass that makes the matrix, as functions
// of thread numbers that run on the host too.
#pragma once

#include <math/groups.h>

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

// A pass over a matrix of float32 (rows, columns), columns a multiple of kGroup: a group op (math/groups.h) stores the matrix, and its
// values go to the transposed copy `turned` (columns, rows) and to sums over rows. Block (x, split) goes over every splits-th tile
// of its columns. A column of a tile in shared memory is one element longer, and the threads of a warp have eight rows of four
// groups, so that they meet all banks in both directions. Sums take two stages, as those of `Columns`.
struct TurnedPass {
  static constexpr int kWidth = 4, kColumns = kWidth * kGroup, kRows = kBlockThreads / kWidth;  // of a tile; a thread has a group
  static constexpr int kColumn = kRows + 1, kShared = kColumns * kColumn;

  int64_t rows, columns;
  float* turned;

  DATAGRAD_HD int64_t blocks() const { return ceil_div(columns, kColumns); }
  DATAGRAD_HD int64_t tiles() const { return ceil_div(rows, kRows); }
  DATAGRAD_HD int64_t splits() const { return at_least_one(at_most(ceil_div(tiles(), 4), 2048 / at_least_one(blocks()))); }

  // What thread `thread` does of a tile: its group of a row, whose values it adds to `sums`.
  template <class Op>
  DATAGRAD_HD void compute(const Op& op, int64_t block, int64_t tile, int thread, float* sums, float* shared) const {
    const int64_t row = tile * kRows + thread / kWidth, column = block * kColumns + thread % kWidth * kGroup;
    if (row >= rows || column >= columns) return;
    float values[kGroup];
    op(row * columns + column, kGroup, values);
    for (int k = 0; k < kGroup; ++k) sums[k] += values[k];
    put(thread, values, shared);
  }

  // After all threads of the block: a thread writes runs of columns of the tile.
  DATAGRAD_HD void write(int64_t block, int64_t tile, int thread, const float* shared) const {
    const int64_t row = tile * kRows + thread % kRows, first = block * kColumns;
    if (row >= rows) return;
    for (int c = thread / kRows; c < at_most(kColumns, columns - first); c += kWidth) {
      turned[(first + c) * rows + row] = shared[c * kColumn + thread % kRows];
    }
  }

  // A group of the thread in shared memory: of a tile, or, after the last one, of its sums.
  DATAGRAD_HD static void put(int thread, const float* values, float* shared) {
    for (int k = 0; k < kGroup; ++k) shared[(thread % kWidth * kGroup + k) * kColumn + thread / kWidth] = values[k];
  }

  // After all threads have put their sums.
  DATAGRAD_HD void reduce(int64_t block, int64_t split, int thread, const float* shared, float* partials) const {
    const int64_t column = block * kColumns + thread;
    if (thread >= kColumns || column >= columns) return;
    float sum = 0;
    for (int y = 0; y < kRows; ++y) sum += shared[thread * kColumn + y];
    partials[split * columns + column] = sum;
  }
};

}  // namespace datagrad
