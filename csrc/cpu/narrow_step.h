// A whole penalty step of a narrow chain: each tile of rows walks through all four sweeps, the loss and the penalties, and
// leaves the cache once. Op and letters as in datagrad_ext/ops/penalty_step.py.
#pragma once

#include <cpu/loss_heads.h>
#include <cpu/narrow_chain.h>
#include <cpu/penalty_seeds.h>

namespace datagrad {
namespace {

// What a step differentiates. `main` may be `loss` itself, or null.
template <class T>
struct StepObjective {
  const Head<T>*loss, *main;
  double main_weight;
  const std::vector<std::unique_ptr<const Penalty<T>>>& penalties;
  const std::vector<double>& weights;
};

// Where a step reads and writes all rows; x_bar may be null.
template <class T>
struct StepRows {
  const T* x;
  T *y, *J, *x_bar;
};

// Memory of the thread for one tile: what the sweeps keep, and what flows between them.
template <class T>
class StepMemory {
 public:
  StepMemory(const ChainPlan& plan, const Places& tangents) {
    const int64_t matrix = plan.rows * widest(plan);
    int64_t size = 5 * matrix;
    for (const Places* places : {&plan.values, &plan.cotangents, &tangents}) {
      for (const int64_t n : places->sizes) size += n;
    }
    next_ = thread_memory<StepMemory, T>(size);
    bits = thread_memory<StepMemory, uint8_t>(plan.bit_bytes());
    values = take(plan.values);
    cotangents = take(plan.cotangents);
    kept = take(tangents);
    for (T** each : {&delta, &main_delta, &v, &t, &zeta}) *each = take(matrix);
  }

  std::vector<T*> values, cotangents, kept;
  uint8_t* bits;
  T *delta, *main_delta, *v, *t, *zeta;

 private:
  T* take(int64_t n) {
    T* found = next_;
    next_ += n;
    return found;
  }

  std::vector<T*> take(const Places& places) {
    std::vector<T*> found;
    for (const int64_t n : places.sizes) found.push_back(take(n));
    return found;
  }

  T* next_;
};

template <class T>
class NarrowStep {
 public:
  // `plan` is laid out for one tile; `wanted`: parameters with a gradient.
  NarrowStep(const ChainPlan& plan, int64_t rows, const StepObjective<T>& objective, const StepRows<T>& at,
             const Flags& wanted)
      : p_(plan),
        rows_(rows),
        o_(objective),
        at_(at),
        sweeps_back_(at.x_bar != nullptr || plan.first_wanted(wanted) < plan.size()),
        stop_(at.x_bar != nullptr ? 0 : plan.first_wanted(wanted)),
        end_(plan.tangent_end(wanted, objective.loss->curved)),
        tangents_(plan.tangents()) {}

  // Σ of the losses of `main`, and Σ of the values of each penalty; gradients into `sums`.
  std::vector<double> run(Sums<T>& sums) const {
    const Blocks blocks = blocks_of(rows_);
    std::vector<double> found(figures()), of_blocks(blocks.count() * figures());
    const NarrowLinks<T> links(p_, rows_);
    sums.over(blocks.count(), [&](int64_t block, Part<T>& part) {
      StepMemory<T> memory(p_, tangents_);
      Scratch<T> scratch(p_.rows * widest(p_));
      const NarrowTile<T> tile(p_, links, memory.values, memory.bits);
      for_each_tile(blocks, block, [&](const Rows& rows) {
        one_tile(tile, rows, memory, scratch, part, of_blocks.data() + block * figures());
      });
    });
    sums.complete();
    for (size_t k = 0; k < of_blocks.size(); ++k) found[k % figures()] += of_blocks[k];
    return found;
  }

 private:
  size_t figures() const { return 1 + o_.penalties.size(); }

  void one_tile(const NarrowTile<T>& tile, const Rows& rows, StepMemory<T>& m, Scratch<T>& scratch, Part<T>& part,
                double* figures) const {
    const Rows here{0, rows.count};
    const int64_t end = rows.first + rows.count, inner = p_.width[0], n = rows.count * p_.width.back();
    const T* x = at_.x + rows.first * inner;
    T* J = at_.J + rows.first * inner;
    tile.forward(here, x, at_.y + rows.first * p_.width.back());
    const double loss = o_.loss->forward(rows.first, end, m.delta);
    const bool same = o_.main == o_.loss;
    if (o_.main != nullptr) figures[0] += same ? loss : o_.main->forward(rows.first, end, m.main_delta);
    const std::vector<Cotangents<T>> deltas{{p_, m.delta, m.cotangents}};
    tile.data_vjp(here, deltas[0], J, scratch);
    if (o_.penalties.empty()) std::fill_n(m.v, rows.count * inner, T(0));
    for (size_t k = 0; k < o_.penalties.size(); ++k) {
      const T weight = static_cast<T>(o_.weights[k] / static_cast<double>(rows_));
      figures[1 + k] += o_.penalties[k]->add(J, rows.count, inner, weight, sweeps_back_ ? m.v : nullptr, k > 0);
    }
    if (!sweeps_back_) return;
    const std::vector<Tangents<T>> tangents{{p_, tangents_, m.v, m.kept}};
    const bool curved = o_.loss->curved;
    tile.data_jvp(here, deltas[0], tangents[0], end_, curved ? m.t : nullptr, part, scratch);
    if (curved) o_.loss->hvp(rows.first, end, m.t, m.zeta);
    if (o_.main != nullptr) add_main(same ? m.delta : m.main_delta, n, curved, m.zeta);
    const bool arrives = curved || o_.main != nullptr;
    T* x_bar = at_.x_bar == nullptr ? nullptr : at_.x_bar + rows.first * inner;
    tile.reverse(here, arrives ? m.zeta : nullptr, deltas, tangents, x, x_bar, stop_, part, scratch);
    if (x_bar != nullptr && !arrives && p_.last_curve() < 0) std::fill_n(x_bar, rows.count * inner, T(0));
  }

  // ζ (+)= λ0/N δ of the loss of the objective itself.
  void add_main(const T* delta, int64_t n, bool more, T* zeta) const {
    const T share = static_cast<T>(o_.main_weight / static_cast<double>(rows_));
    for (int64_t k = 0; k < n; ++k) zeta[k] = more ? zeta[k] + share * delta[k] : share * delta[k];
  }

  const ChainPlan& p_;
  int64_t rows_;
  const StepObjective<T>& o_;
  const StepRows<T>& at_;
  bool sweeps_back_;
  int64_t stop_, end_;
  Places tangents_;
};

}  // namespace
}  // namespace datagrad
