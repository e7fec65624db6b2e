// What the four sweeps of a chain of images share: its units, the sizes of what flows, where in a list its tensors stand, and the
// checks. Ops and letters as in datagrad_ext/ops/image_chain.py.
#pragma once

#include <cpu/image_links.h>

#include <algorithm>
#include <utility>

namespace datagrad {
namespace {

class ImagePlan {
 public:
  using Kind = Link::Kind;

  ImagePlan(const char* op, const std::string& text, const Tensors& params, const Tensor& x)
      : op(op),
        params(params),
        links_(links_of<ImageLinks>(text)),
        outer(layout_of(x)),
        layout(links_.link[0].marked('l') ? Layout::channels_last : outer) {
    check_count("parameters", params.size(), links_.params);
    DATAGRAD_CHECK(x.dim() == 4, op, ": x must be (N, C, H, W), got shape ", text_of(x));
    DATAGRAD_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, op,
                   ": x must be float32 or float64, got ", datagrad::text(x.scalar_type()), "; convert it first");
    for (const Tensor& parameter : params) check_alike(op, "every parameter", parameter, "x", x);
    std::vector<Numbers> sizes(links_.readers.size());
    std::vector<int64_t> inputs(sizes.size(), -1);
    sizes[0].assign(x.sizes().begin(), x.sizes().end());
    units.reserve(links_.link.size());
    for (int64_t i = 0; i < links_.size(); ++i) {
      const Link& link = links_.link[i];
      Unit unit{&link, links_.takes_next(i) ? &links_.link[++i] : nullptr, i + 1, sizes[link.reads[0]], {}};
      unit.out = sizes[unit.output] = output_of(unit, sizes[link.reads.back()]);
      place(unit, inputs[link.reads[0]]);
      units.push_back(std::move(unit));
    }
  }

  int64_t size() const { return static_cast<int64_t>(units.size()); }
  const Unit& last() const { return units.back(); }
  int64_t samples() const { return units[0].in[0]; }

  // How many read each value.
  const std::vector<int64_t>& readers() const { return links_.readers; }

  const Tensor& weight(const Unit& unit) const { return params[unit.link->weight]; }

  // The weight of a norm, if it has one.
  std::optional<Tensor> scale(const Unit& unit) const {
    return unit.has_weight() ? std::optional<Tensor>(weight(unit)) : std::nullopt;
  }

  std::optional<Tensor> bias(const Unit& unit) const {
    return unit.bias() < 0 ? std::nullopt : std::optional<Tensor>(params[unit.bias()]);
  }

  // Tensors of a record that sweep 2 returns: that of the last unit is what it began with.
  int64_t made() const { return records - (last().record >= 0 ? 1 : 0); }

  // The layout of what flows there: images are in the chain's.
  Layout layout_at(const Numbers& sizes) const { return sizes.size() == 4 ? layout : Layout::contiguous; }

  Tensor empty(const Tensor& like, const Numbers& sizes) const {
    return empty_dense(like, sizes, like.scalar_type(), layout_at(sizes));
  }

  // A cotangent of y in the chain's layout.
  Tensor entering(const char* name, const Tensor& t) const {
    check(name, t, last().out);
    return in_layout(t, layout_at(last().out));
  }

  void check(const char* name, const Tensor& t, const Numbers& sizes) const {
    check_alike(op, name, t, "the weight", params[0]);
    check_shape(op, name, t, sizes);
  }

  void check_running(const Tensors& running, const std::vector<double>& momenta) const {
    const auto updating = std::count_if(units.begin(), units.end(), [](const Unit& u) { return u.updates(); });
    check_count("momenta", momenta.size(), updating);
    check_count("running statistics", running.size(), 2 * updating);
  }

  void check_flags(const Flags& wanted) const { check_count("flags", wanted.size(), links_.params); }

  void check_saved(const Tensors& tensors) const {
    check_count("saved tensors", tensors.size(), saved);
    for (const Unit& unit : units) {
      if (unit.saves_input) check_dense("saved input", tensors[unit.input], unit.in);
      if (unit.is(Kind::max_pool)) {
        check_dtype(op, "saved places", tensors[unit.extra], ScalarType::Long);
        check_shape(op, "saved places", tensors[unit.extra], unit.out);
      }
    }
  }

  void check_record(const Tensors& record) const {
    check_count("tensors in a record", record.size(), records);
    for (const Unit& unit : units) {
      if (unit.record >= 0) check_dense("record", record[unit.record], unit.out);
    }
  }

  // No sums, or one for each wanted weight whose products sweep 3 takes.
  void check_sums(const Tensors& sums, const Flags& wanted) const {
    if (sums.empty()) return;
    size_t place = 0;
    for (const Unit& unit : units) {
      if (!unit.wants_weight(wanted) || unit.keeps(wanted)) continue;
      DATAGRAD_CHECK(place < sums.size(), op, ": needs a sum for every wanted weight, got ", sums.size());
      const Tensor& sum = sums[place++];
      check_alike(op, "sum", sum, "the weight", weight(unit));
      check_shape(op, "sum", sum, weight(unit).sizes());
      DATAGRAD_CHECK(is_dense(sum, layout_of(weight(unit))), op, ": sum must be dense in its weight's layout");
    }
    DATAGRAD_CHECK(place == sums.size(), op, ": needs a sum for every wanted weight, got ", sums.size());
  }

  // Pairs of the units that keep them, data gradient after data gradient; how many of those there are.
  size_t check_pairs(const Tensors& deltas, const Tensors& tangents, const Flags& wanted) const {
    const auto keeping = std::count_if(units.begin(), units.end(), [&](const Unit& u) { return u.keeps(wanted); });
    DATAGRAD_CHECK(deltas.size() == tangents.size() && (keeping > 0 ? deltas.size() % keeping == 0 : deltas.empty()), op,
                   ": needs pairs of ", keeping, " links, got ", deltas.size(), " records and ", tangents.size(), " tangents");
    size_t place = 0;
    while (place < deltas.size()) {
      for (const Unit& unit : units) {
        if (!unit.keeps(wanted)) continue;
        check_dense("record", deltas[place], unit.out);
        unit.input < 0 ? check("tangent", tangents[place], unit.in) : check_dense("tangent", tangents[place], unit.in);
        ++place;
      }
    }
    return keeping > 0 ? deltas.size() / keeping : 0;
  }

  const char* op;
  const Tensors& params;

 private:
  const ImageLinks& links_;

 public:
  Layout outer, layout;  // of x, its tangents and its cotangents; of everything between
  std::vector<Unit> units;
  int64_t saved = 0, records = 0;  // how many tensors there are

 private:
  static std::string text_of(const Tensor& t) { return datagrad::text(t.sizes()); }

  static bool is_dense(const Tensor& t, Layout layout) {
    return layout == Layout::contiguous ? t.is_contiguous() : is_channels_last(t);
  }

  // Places of what the unit saves and of its cotangent; `input` is where the value that it reads is saved.
  void place(Unit& unit, int64_t& input) {
    if (unit.has_weight() || unit.is_curved()) {
      unit.saves_input = unit.reads()[0] > 0 && input < 0;
      if (unit.saves_input) input = saved++;
      unit.input = input;
      unit.record = records++;
    }
    if (unit.is(Kind::normalise)) unit.statistics = std::exchange(saved, saved + 2);
    if (unit.has_bits() || unit.is(Kind::max_pool)) unit.extra = saved++;
  }

  // `other`: sizes of what a sum reads besides.
  Numbers output_of(const Unit& unit, const Numbers& other) const {
    const Numbers& in = unit.in;
    switch (unit.link->kind) {
      case Kind::convolution: {
        const Tensor& w = weight(unit);
        DATAGRAD_CHECK(in.size() == 4 && w.dim() == 4 && w.size(1) == in[1], op, ": a weight of shape ", text_of(w),
                       " does not fit an input of shape ", datagrad::text(in));
        return window(unit, w.size(0), {w.size(2), w.size(3)}, 0);
      }
      case Kind::max_pool:
      case Kind::avg_pool:
        DATAGRAD_CHECK(in.size() == 4, op, ": pooling needs images, got shape ", datagrad::text(in));
        return window(unit, in[1], unit.kernel(), 2);
      case Kind::flatten:
        DATAGRAD_CHECK(in.size() == 4, op, ": flatten needs images, got shape ", datagrad::text(in));
        return {in[0], in[1] * in[2] * in[3]};
      case Kind::linear:
        DATAGRAD_CHECK(in.size() == 2 && weight(unit).dim() == 2 && weight(unit).size(1) == in[1], op,
                       ": a linear link needs a matrix of as many columns as its weight has, got shapes ", datagrad::text(in),
                       " and ", text_of(weight(unit)));
        return {in[0], weight(unit).size(0)};
      case Kind::add:
        DATAGRAD_CHECK(in == other, op, ": add needs two values of one shape, got ", datagrad::text(in), " and ",
                       datagrad::text(other));
        return in;
      case Kind::normalise: {
        const auto groups = static_cast<int64_t>(unit.link->constants[0]);
        DATAGRAD_CHECK(groups >= 0 && (groups == 0 || in[1] % groups == 0), op,
                       ": groups must be 0 (statistics over the batch) or divide C = ", in[1], ", got ", groups);
        const int64_t all = std::accumulate(in.begin(), in.end(), int64_t{1}, std::multiplies<>());
        DATAGRAD_CHECK(all / std::max<int64_t>(1, groups == 0 ? in[1] : groups) > 1, op,
                       ": normalise needs several values, got shape ", datagrad::text(in));
        return in;
      }
      default: return in;
    }
  }

  // Sizes behind a window; its stride, padding and dilation are the link's numbers from `first` on.
  Numbers window(const Unit& unit, int64_t channels, const Numbers& kernel, size_t first) const {
    Numbers out{unit.in[0], channels};
    for (size_t d = 0; d < 2; ++d) {
      const int64_t stride = unit.link->constants[first + d], padding = unit.link->constants[first + 2 + d];
      const int64_t dilation = unit.is(Kind::avg_pool) ? 1 : unit.link->constants[first + 4 + d];
      DATAGRAD_CHECK(stride > 0 && padding >= 0 && dilation > 0 && kernel[d] > 0, op,
                     ": kernel, stride and dilation must be positive, padding must not be negative");
      const int64_t free = unit.in[2 + d] + 2 * padding - dilation * (kernel[d] - 1) - 1;
      DATAGRAD_CHECK(free >= 0, op, ": a kernel of ", datagrad::text(kernel), " does not fit into a padded input of shape ",
                     datagrad::text(unit.in));
      out.push_back(free / stride + 1);
    }
    return out;
  }

  void check_dense(const char* name, const Tensor& t, const Numbers& sizes) const {
    check(name, t, sizes);
    DATAGRAD_CHECK(is_dense(t, layout_at(sizes)), op, ": ", name, " must be dense in the layout of the chain");
  }

  void check_count(const char* what, size_t count, int64_t expected) const {
    DATAGRAD_CHECK(static_cast<int64_t>(count) == expected, op, ": the chain has ", expected, " ", what, ", got ", count);
  }
};

}  // namespace
}  // namespace datagrad
