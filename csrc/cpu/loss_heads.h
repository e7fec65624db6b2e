// Losses as heads of a network on the CPU, some rows at a time: Σ of their losses, δ and Hessian-vector product by the output.
// Letters and names as in datagrad_ext/ops/_heads.py.
#pragma once

#include <cpu/cross_entropy_rows.h>
#include <math/pointwise_loss.h>

namespace datagrad {
namespace {

template <class T>
struct Head {
  bool curved = false;  // whether the Hessian is not zero
  double share = 0;     // mean = share Σ

  virtual ~Head() = default;
  // δ of rows [begin, end), and Σ of their losses.
  virtual double forward(int64_t begin, int64_t end, T* delta) const = 0;
  // ∂⟨δ, t⟩/∂y of these rows; only for a curved head, and after their forward.
  virtual void hvp(int64_t begin, int64_t end, const T* t, T* out) const = 0;
};

template <class T>
class CrossEntropyHead final : public Head<T> {
 public:
  // `over_counted`: the mean is over the rows that are not ignored.
  CrossEntropyHead(const char* op, const Tensor& y, const Tensor& target, double label_smoothing, int64_t ignore_index,
                   bool over_counted)
      : in_(op, y, target, label_smoothing, ignore_index), of_(in_), lse_(new T[in_.rows]) {
    const double weight = over_counted ? of_.targets.weight(in_.rows) : 1;
    this->curved = true;
    this->share = weight / static_cast<double>(in_.rows);
    weight_ = static_cast<T>(weight);
  }

  double forward(int64_t begin, int64_t end, T* delta) const override {
    double total = 0;
    std::vector<T> loss(end - begin);
    for_each_run(begin, end, [&](LogitTile<T>& tile, int64_t first, int64_t last) {
      forward_tile(of_, tile, first, last, loss.data() - begin, lse_.get());
      with_softmax(tile, first, last, [&](int64_t row, const T* e, const T* y) {
        of_.gradient(row, e, y, weight_, delta + (row - begin) * in_.classes);
      });
    });
    for (const T each : loss) total += static_cast<double>(each);
    return total;
  }

  void hvp(int64_t begin, int64_t end, const T* t, T* out) const override {
    for_each_run(begin, end, [&](LogitTile<T>& tile, int64_t first, int64_t last) {
      with_softmax(tile, first, last, [&](int64_t row, const T* e, const T* y) {
        const int64_t place = (row - begin) * in_.classes;
        of_.hessian(row, e, y, weight_, t + place, out + place);
      });
    });
  }

 private:
  // Calls f(tile, first, last) for runs of rows that fit into a tile of logits.
  template <class F>
  void for_each_run(int64_t begin, int64_t end, const F& f) const {
    LogitTile<T> tile(in_.classes);
    const int64_t rows = std::max<int64_t>(1, kLogitTile / in_.classes);
    for (int64_t row = begin; row < end; row += rows) f(tile, row, std::min(row + rows, end));
  }

  // Calls f(row, its exponentials, its probabilities or nullptr).
  template <class F>
  void with_softmax(LogitTile<T>& tile, int64_t first, int64_t last, const F& f) const {
    const T *e = of_.exponentials(tile, lse_.get(), first, last), *y = of_.target(tile, first, last);
    for (int64_t row = first; row < last; ++row) {
      const int64_t offset = (row - first) * in_.classes;
      f(row, e + offset, y == nullptr ? nullptr : y + offset);
    }
  }

  Classified in_;
  CrossEntropyRows<T> of_;
  std::unique_ptr<T[]> lse_;  // of all rows
  T weight_;
};

// The mean over all entries.
template <class T, class Row>
class PointwiseHead final : public Head<T> {
 public:
  PointwiseHead(const char* op, const Tensor& y, const Tensor& target_in)
      : target_(in_layout(target_in, Layout::contiguous)), columns_(y.size(1)), y_(data<T>(y)) {
    check_alike(op, "target", target_in, "y", y);
    check_shape(op, "target", target_in, y.sizes());
    t_ = data<T>(target_);
    this->curved = Row::curved;
    this->share = 1 / static_cast<double>(y.numel());
    factor_ = T(1) / static_cast<T>(columns_);
  }

  double forward(int64_t begin, int64_t end, T* delta) const override {
    const T *y = y_ + begin * columns_, *t = t_ + begin * columns_;
    const int64_t n = (end - begin) * columns_;
    for (int64_t k = 0; k < n; ++k) delta[k] = factor_ * Row::first(y[k], t[k]);
    return lane_sum(n, [&](int64_t k) { return Row::value(y[k], t[k]); });
  }

  void hvp(int64_t begin, int64_t end, const T* tangent, T* out) const override {
    const T *y = y_ + begin * columns_, *t = t_ + begin * columns_;
    const int64_t n = (end - begin) * columns_;
    for (int64_t k = 0; k < n; ++k) out[k] = factor_ * Row::second(y[k], t[k]) * tangent[k];
  }

 private:
  Tensor target_;
  int64_t columns_;
  const T *y_, *t_;
  T factor_;
};

// The sum of each sample's outputs.
template <class T>
class ScoreHead final : public Head<T> {
 public:
  explicit ScoreHead(const Tensor& y) : columns_(y.size(1)), y_(data<T>(y)) {
    this->share = 1 / static_cast<double>(y.size(0));
  }

  double forward(int64_t begin, int64_t end, T* delta) const override {
    const T* y = y_ + begin * columns_;
    const int64_t n = (end - begin) * columns_;
    std::fill_n(delta, n, T(1));
    return lane_sum(n, [&](int64_t k) { return y[k]; });
  }

  void hvp(int64_t, int64_t, const T*, T*) const override {}

 private:
  int64_t columns_;
  const T* y_;
};

// The head that `name` and `constants` name, at y and the target.
template <class T>
std::unique_ptr<const Head<T>> head_of(const char* op, const std::string& name, const std::vector<double>& constants,
                                       const Tensor& y, const std::optional<Tensor>& target) {
  const auto check_constants = [&](size_t expected) {
    DATAGRAD_CHECK(constants.size() == expected, op, ": ", name, " has ", expected, " constants, got ", constants.size());
  };
  if (name == "score") {
    check_constants(0);
    return std::make_unique<ScoreHead<T>>(y);
  }
  std::unique_ptr<const Head<T>> head;
  const auto check_target = [&] { DATAGRAD_CHECK(target, op, ": ", name, " needs a target"); };
  if (name == "cross_entropy") {
    check_constants(3);
    check_target();
    return std::make_unique<CrossEntropyHead<T>>(op, y, *target, constants[0], static_cast<int64_t>(constants[1]),
                                                 constants[2] != 0);
  }
  const bool known = visit_pointwise<T>(PointwiseLosses{}, name, [&](auto row) {
    check_constants(0);
    check_target();
    head = std::make_unique<PointwiseHead<T, decltype(row)>>(op, y, *target);
  });
  DATAGRAD_CHECK(known, op, ": a loss must be one of cross_entropy, squared, absolute, logistic, score, got '", name, "'");
  return head;
}

}  // namespace
}  // namespace datagrad
