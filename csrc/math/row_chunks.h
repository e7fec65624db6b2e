// Rows of `inner` elements cut into chunks: chunk number c is elements begin(c) ... end(c) - 1 of row(c). The cut depends on the
// sizes alone, never on threads or the device, so that sums over chunks are the same everywhere. No torch header.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DATAGRAD_HD __host__ __device__
#else
#define DATAGRAD_HD
#endif

namespace datagrad {

struct RowChunks {
  int64_t rows;
  int64_t inner;
  int64_t size;     // elements of a chunk, all but the last of a row
  int64_t per_row;  // at least one, so that an empty row has a chunk, too

  DATAGRAD_HD RowChunks(int64_t rows, int64_t inner, int64_t size)
      : rows(rows), inner(inner), size(size), per_row(inner > size ? (inner + size - 1) / size : 1) {}

  DATAGRAD_HD int64_t count() const { return rows * per_row; }
  DATAGRAD_HD int64_t row(int64_t chunk) const { return chunk / per_row; }
  DATAGRAD_HD int64_t begin(int64_t chunk) const { return chunk % per_row * size; }
  DATAGRAD_HD int64_t end(int64_t chunk) const {
    const int64_t stop = begin(chunk) + size;
    return stop < inner ? stop : inner;
  }
};

}  // namespace datagrad
