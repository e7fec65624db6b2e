// A warp and a block on the host, for the code of math/warp_tiles.h and math/narrow_sweeps.h: 32 lanes in a loop, ldmatrix and
// mma.sync m16n8k16 as the PTX manual defines them.
#pragma once

#include <math/narrow_sweeps.h>

#include <cstring>
#include <vector>

namespace datagrad {

// A 16-bit float with 8 bits of exponent, rounded to nearest even.
struct Brain {
  uint16_t bits = 0;

  Brain() = default;
  explicit Brain(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    bits = static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};

struct HostLanes {
  template <class A>
  struct Value {
    A of[warp::kLanes];
    A& operator()(int lane) { return of[lane]; }
    const A& operator()(int lane) const { return of[lane]; }
  };

  template <class F>
  void each(const F& f) const {
    for (int lane = 0; lane < warp::kLanes; ++lane) f(lane);
  }

  // Register k of a lane: elements (lane / 4, 2 (lane % 4)) and the next of matrix k, whose row r lane 8 k + r points at.
  template <bool Turn, class At>
  void load(warp::Fragment<HostLanes>& fragment, const At& at) const {
    for (int k = 0; k < 4; ++k) {
      for (int lane = 0; lane < warp::kLanes; ++lane) {
        uint16_t pair[2];
        for (int e = 0; e < 2; ++e) {
          const int row = Turn ? lane % 4 * 2 + e : lane / 4, column = Turn ? lane / 4 : lane % 4 * 2 + e;
          std::memcpy(&pair[e], at(8 * k + row) + column, 2);
        }
        std::memcpy(&fragment.pair[k](lane), pair, 4);
      }
    }
  }

  template <class T>
  static uint32_t pair_of_ones() {
    const T ones[2] = {T(1.0f), T(1.0f)};
    uint32_t pair;
    std::memcpy(&pair, ones, 4);
    return pair;
  }

  template <class T>
  void multiply(warp::Sums<HostLanes>& sums, const warp::Fragment<HostLanes>& a, const Value<uint32_t>& b0,
                const Value<uint32_t>& b1) const {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < warp::kLanes; ++lane) {
      for (int e = 0; e < 2; ++e) {
        for (int k = 0; k < 4; ++k) left[lane / 4 + k % 2 * 8][lane % 4 * 2 + e + k / 2 * 8] = element<T>(a.pair[k](lane), e);
        right[lane % 4 * 2 + e][lane / 4] = element<T>(b0(lane), e);
        right[lane % 4 * 2 + e + 8][lane / 4] = element<T>(b1(lane), e);
      }
    }
    for (int lane = 0; lane < warp::kLanes; ++lane) {
      for (int c = 0; c < 4; ++c) {
        const int row = lane / 4 + c / 2 * 8, column = lane % 4 * 2 + c % 2;
        float sum = sums.c[c](lane);
        for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
        sums.c[c](lane) = sum;
      }
    }
  }

  template <class T>
  static float element(uint32_t pair, int e) {
    T value[2];
    std::memcpy(static_cast<void*>(value), &pair, 4);
    return static_cast<float>(value[e]);
  }
};

// Runs the warps one after the other, forwards or backwards: what depends on the order lacks a barrier.
class HostBlock {
 public:
  using Lanes = HostLanes;

  HostBlock(int64_t index, int64_t blocks, int warps, bool backwards, std::vector<uint16_t>& memory)
      : index(index), blocks(blocks), warps(warps), backwards_(backwards), memory_(memory) {}

  template <class F>
  void alone(const F& f) {
    for (int k = 0; k < warps; ++k) f(Lanes(), backwards_ ? warps - 1 - k : k);
  }

  template <class F>
  void together(const F& f) {
    alone(f);
  }

  template <class T>
  T* shared() const {
    return reinterpret_cast<T*>(memory_.data());
  }

  int64_t index, blocks;
  int warps;

 private:
  bool backwards_;
  std::vector<uint16_t>& memory_;
};

}  // namespace datagrad
