// A convolution as a product of matrices. A patch is what the kernel sees at one output pixel, K = C kh kw numbers in one
// of two orders: (C, kh, kw), in which a contiguous weight lies, or (kh, kw, C), channels_last. With one patch a row,
//
//   y = patches Wᵀ        x̄ = the patches g W, added up where they overlap        w̄ = gᵀ patches
//
// Rows of patches are as long as whole steps of columns; those from K on are zero.
#pragma once

#include <common/convolution_arguments.h>
#include <common/dtype.h>
#include <common/parallel.h>
#include <cpu/small_products.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace datagrad {
namespace {

constexpr int64_t kStep = small::kColumns;

inline int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Where an element (n, c, h, w) of a tensor lies.
struct Image {
  int64_t n, c, h, w;

  explicit Image(const Tensor& t) : n(t.stride(0)), c(t.stride(1)), h(t.stride(2)), w(t.stride(3)) {}
};

// Patches of one convolution: images of samples in zero padding, and the runs of memory that make up a patch there.
class Patches {
 public:
  explicit Patches(const Window& window)
      : w_(window),
        height_(w_.height + 2 * w_.padding[0]),
        width_(w_.width + 2 * w_.padding[1]),
        column_(w_.channels_last ? w_.channels : 1),
        row_(width_ * column_),
        channel_(w_.channels_last ? 1 : height_ * width_),
        depth_(w_.channels * w_.kernel[0] * w_.kernel[1]),
        stride_(rounded_up(depth_, kStep)) {
    const int64_t wide = w_.dilation[1] == 1 ? w_.kernel[1] : 1, pieces = w_.kernel[1] / wide;
    run_ = wide * column_;
    for (int64_t c = 0; c < planes(); ++c) {
      for (int64_t i = 0; i < w_.kernel[0]; ++i) {
        for (int64_t j = 0; j < pieces; ++j) {
          runs_.push_back(c * channel_ + i * w_.dilation[0] * row_ + j * w_.dilation[1] * column_);
        }
      }
    }
  }

  int64_t depth() const { return depth_; }
  int64_t stride() const { return stride_; }
  int64_t image_size() const { return w_.channels * height_ * width_; }
  int64_t pixels() const { return w_.out_height * w_.out_width; }
  int64_t planes() const { return w_.channels_last ? 1 : w_.channels; }  // of an image: all channels in one, or one each

  // One sample into its padded image.
  template <class T>
  void pad(const T* x, const Image& at, T* image) const {
    std::fill_n(image, image_size(), T(0));
    for_each_line(at, 0, planes(), [&](int64_t outside, int64_t inside) {
      if (w_.channels_last && at.w == 1) {
        small::transpose(x + outside, at.c, w_.channels, w_.width, image + inside, column_);
      } else {
        line(at, [&](int64_t i, int64_t j) { image[inside + j] = x[outside + i]; });
      }
    });
  }

  // Planes [first, last) of the sample that the padded image holds.
  template <class T>
  void crop(const T* image, T* x, const Image& at, int64_t first, int64_t last) const {
    for_each_line(at, first, last, [&](int64_t outside, int64_t inside) {
      if (w_.channels_last && at.w == 1) {
        small::transpose(image + inside, column_, w_.width, w_.channels, x + outside, at.c);
      } else {
        line(at, [&](int64_t i, int64_t j) { x[outside + i] = image[inside + j]; });
      }
    });
  }

  // The patches of pixels [begin, end) of one image.
  template <class T>
  void gather(const T* image, int64_t begin, int64_t end, T* patches) const {
    with_run([&](auto length) {
      for_each_pixel(begin, end, [&](int64_t pixel, int64_t base) {
        T* patch = patches + pixel * stride_;
        for (const int64_t run : runs_) {
          const T* source = image + base + run;
          for (int64_t i = 0; i < length(); ++i) patch[i] = source[i];
          patch += length();
        }
        for (int64_t k = depth_; k < stride_; ++k) *patch++ = T(0);
      });
    });
  }

  // Planes [first, last) of one image as the sum of the patches of all pixels.
  template <class T>
  void scatter(const T* patches, T* image, int64_t first, int64_t last) const {
    std::fill(image + first * plane(), image + last * plane(), T(0));
    const int64_t of_plane = static_cast<int64_t>(runs_.size()) / planes();
    with_run([&](auto length) {
      for_each_apart([&](int64_t pixel, int64_t base) {
        const T* patch = patches + pixel * stride_ + first * of_plane * length();
        for (int64_t k = first * of_plane; k < last * of_plane; ++k) {
          T* __restrict target = image + base + runs_[k];
          for (int64_t i = 0; i < length(); ++i) target[i] += patch[i];
          patch += length();
        }
      });
    });
  }

 private:
  int64_t plane() const { return image_size() / planes(); }

  // Calls f(offset in x, offset in the image) for the elements of one h of planes [first, last).
  template <class F>
  void for_each_line(const Image& at, int64_t first, int64_t last, const F& f) const {
    const int64_t corner = w_.padding[0] * row_ + w_.padding[1] * column_;
    for (int64_t c = first; c < last; ++c) {
      for (int64_t h = 0; h < w_.height; ++h) f(c * at.c + h * at.h, c * channel_ + corner + h * row_);
    }
  }

  // Calls f(offset in x, offset in the image) for the elements of a line, in the order of the image.
  template <class F>
  void line(const Image& at, const F& f) const {
    const int64_t channels = w_.channels_last ? w_.channels : 1;
    if (w_.channels_last ? at.c == 1 && at.w == channels : at.w == 1) {
      for (int64_t i = 0; i < w_.width * channels; ++i) f(i, i);
      return;
    }
    for (int64_t w = 0; w < w_.width; ++w) {
      for (int64_t c = 0; c < channels; ++c) f(w * at.w + c * at.c, w * channels + c);
    }
  }

  template <class F>
  void for_each_pixel(int64_t begin, int64_t end, const F& f) const {
    int64_t h = begin / w_.out_width, w = begin % w_.out_width;
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      f(pixel, h * w_.stride[0] * row_ + w * w_.stride[1] * column_);
      if (++w == w_.out_width) {
        w = 0;
        ++h;
      }
    }
  }

  // All pixels, row by row; those of a row so that no patch overlaps the one before: what was just written is slow to read.
  template <class F>
  void for_each_apart(const F& f) const {
    const int64_t step = (w_.dilation[1] * (w_.kernel[1] - 1) + w_.stride[1]) / w_.stride[1];
    for (int64_t h = 0; h < w_.out_height; ++h) {
      for (int64_t first = 0; first < std::min(step, w_.out_width); ++first) {
        for (int64_t w = first; w < w_.out_width; w += step) {
          f(h * w_.out_width + w, h * w_.stride[0] * row_ + w * w_.stride[1] * column_);
        }
      }
    }
  }

  // Calls f with the length of runs, known at compile time for the usual kernels.
  template <class F>
  void with_run(const F& f) const {
    switch (run_) {
      case 1: return f([] { return int64_t(1); });
      case 3: return f([] { return int64_t(3); });
      case 4: return f([] { return int64_t(4); });
      case 9: return f([] { return int64_t(9); });
      case 12: return f([] { return int64_t(12); });
      default: return f([n = run_] { return n; });
    }
  }

  Window w_;
  int64_t height_, width_, column_, row_, channel_, depth_, stride_, run_;
  std::vector<int64_t> runs_;  // offsets from the first element of a patch
};

}  // namespace
}  // namespace datagrad
