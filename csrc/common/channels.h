// A tensor in memory order, seen from its channel dimension: (outer, channels, inner). No torch header; host and device.
//   element i belongs to channel (i / inner) % channels
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DATAGRAD_HD __host__ __device__
#else
#define DATAGRAD_HD
#endif

namespace datagrad {

struct ChannelView {
  int64_t outer = 1;
  int64_t channels = 1;
  int64_t inner = 1;

  DATAGRAD_HD int64_t numel() const { return outer * channels * inner; }
};

// The channel of an element and of those after it, one division for the first only.
class ChannelCursor {
 public:
  DATAGRAD_HD ChannelCursor(const ChannelView& view, int64_t element)
      : view_(view), channel_(element / view.inner % view.channels), position_(element % view.inner) {}

  DATAGRAD_HD int64_t channel() const { return channel_; }

  DATAGRAD_HD void next() {
    if (++position_ < view_.inner) return;
    position_ = 0;
    if (++channel_ == view_.channels) channel_ = 0;
  }

 private:
  ChannelView view_;
  int64_t channel_, position_;
};

// Calls visit(channel, begin, count) for the runs of one channel that make up [begin, end).
template <class Visit>
void for_each_run(const ChannelView& view, int64_t begin, int64_t end, const Visit& visit) {
  int64_t run = begin / view.inner;
  int64_t channel = run % view.channels;
  for (int64_t i = begin; i < end; ++run) {
    const int64_t stop = (run + 1) * view.inner < end ? (run + 1) * view.inner : end;
    visit(channel, i, stop - i);
    i = stop;
    if (++channel == view.channels) channel = 0;
  }
}

}  // namespace datagrad
