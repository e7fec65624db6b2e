// A warp and a block on the device, as math/warp_tiles.h and math/narrow_sweeps.h call them.
#pragma once

#include <cuda/instructions.cuh>
#include <math/narrow_sweeps.h>

namespace datagrad {
namespace {

struct DeviceLanes {
  template <class A>
  struct Value {
    A value;
    DATAGRAD_HD A& operator()(int) { return value; }
    DATAGRAD_HD const A& operator()(int) const { return value; }
  };

  int lane;

  template <class F>
  DATAGRAD_HD void each(const F& f) const {
    f(lane);
    wait_for_warp();
  }

  template <bool Turn, class At>
  DATAGRAD_HD void load(warp::Fragment<DeviceLanes>& to, const At& at) const {
    load_matrices<Turn>(to.pair[0].value, to.pair[1].value, to.pair[2].value, to.pair[3].value, at(lane));
  }

  template <class T>
  DATAGRAD_HD static uint32_t pair_of_ones() {
    return std::is_same_v<T, Half> ? 0x3c003c00u : 0x3f803f80u;
  }

  template <class T>
  DATAGRAD_HD void multiply(warp::Sums<DeviceLanes>& sums, const warp::Fragment<DeviceLanes>& a, const Value<uint32_t>& b0,
                            const Value<uint32_t>& b1) const {
    multiply_pairs<T>(sums.c[0].value, sums.c[1].value, sums.c[2].value, sums.c[3].value,
                      {a.pair[0].value, a.pair[1].value, a.pair[2].value, a.pair[3].value}, {b0.value, b1.value});
  }
};

struct DeviceBlock {
  using Lanes = DeviceLanes;

  int64_t index, blocks;
  int warps, warp, lane;

  template <class F>
  DATAGRAD_HD void alone(const F& f) const {
    f(Lanes{lane}, warp);
  }

  template <class F>
  DATAGRAD_HD void together(const F& f) const {
    wait_for_block();
    f(Lanes{lane}, warp);
    wait_for_block();
  }

  template <class T>
  DATAGRAD_HD T* shared() const {
    return static_cast<T*>(memory_of_block());
  }
};

}  // namespace
}  // namespace datagrad
