// A warp and a block on the device, as math/warp_tiles.h and math/narrow_sweeps.h call them. ldmatrix and mma of bfloat16 need
// compute capability 8.0.
#pragma once

#include <common/dtype.h>
#include <math/narrow_sweeps.h>

namespace datagrad {
namespace {

// The functions are the device's; the host only has to be able to name them.
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
#ifdef __CUDA_ARCH__
    __syncwarp();
#endif
  }

  template <bool Turn, class At>
  DATAGRAD_HD void load([[maybe_unused]] warp::Fragment<DeviceLanes>& fragment, [[maybe_unused]] const At& at) const {
#ifdef __CUDA_ARCH__
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(at(lane)));
    uint32_t &a = fragment.pair[0].value, &b = fragment.pair[1].value, &c = fragment.pair[2].value, &d = fragment.pair[3].value;
    if (Turn) {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                   : "r"(address)
                   : "memory");
    } else {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                   : "r"(address)
                   : "memory");
    }
#endif
  }

  template <class T>
  DATAGRAD_HD static uint32_t pair_of_ones() {
    return std::is_same_v<T, Half> ? 0x3c003c00u : 0x3f803f80u;
  }

  template <class T>
  DATAGRAD_HD void multiply([[maybe_unused]] warp::Sums<DeviceLanes>& sums,
                            [[maybe_unused]] const warp::Fragment<DeviceLanes>& a,
                            [[maybe_unused]] const Value<uint32_t>& b0, [[maybe_unused]] const Value<uint32_t>& b1) const {
#ifdef __CUDA_ARCH__
#define DATAGRAD_MMA(type)                                                                                    \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
      "{%0, %1, %2, %3};"                                                                                     \
      : "+f"(sums.c[0].value), "+f"(sums.c[1].value), "+f"(sums.c[2].value), "+f"(sums.c[3].value)            \
      : "r"(a.pair[0].value), "r"(a.pair[1].value), "r"(a.pair[2].value), "r"(a.pair[3].value), "r"(b0.value), \
        "r"(b1.value))
    if (std::is_same_v<T, Half>) {
      DATAGRAD_MMA("f16");
    } else {
      DATAGRAD_MMA("bf16");
    }
#undef DATAGRAD_MMA
#endif
  }
};

struct DeviceBlock {
  using Lanes = DeviceLanes;

  int64_t index, blocks;
  int warps, warp, lane;

  template <class F>
  DATAGRAD_HD void alone([[maybe_unused]] const F& f) const {
    f(Lanes{lane}, warp);
  }

  template <class F>
  DATAGRAD_HD void together([[maybe_unused]] const F& f) const {
#ifdef __CUDA_ARCH__
    __syncthreads();
    f(Lanes{lane}, warp);
    __syncthreads();
#endif
  }

  template <class T>
  DATAGRAD_HD T* shared() const {
#ifdef __CUDA_ARCH__
    extern __shared__ __align__(16) unsigned char memory[];
    return reinterpret_cast<T*>(memory);
#else
    return nullptr;
#endif
  }
};

}  // namespace
}  // namespace datagrad
