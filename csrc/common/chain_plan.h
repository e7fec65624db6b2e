// What the four sweeps of a chain share: its links and widths, where what they keep lies, and the checks. Ops and letters as
// in datagrad_ext/ops/chain.py.
//
// What a sweep keeps lies in few buffers: a small network notices every tensor that Python has to hold. A large matrix has one
// of its own: tens of megabytes in one piece go back to the system when freed, and come back page by page.
#pragma once

#include <common/chain_links.h>
#include <common/layout.h>

#include <algorithm>
#include <limits>
#include <optional>

namespace datagrad {

using Tensors = std::vector<Tensor>;
using Flags = std::vector<bool>;

inline Tensor empty_matrix(const Tensor& like, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns};
  return empty_dense(like, IntHeaderOnlyArrayRef(sizes, 2), like.scalar_type());
}

inline Tensor empty_vector(const Tensor& like, int64_t size, ScalarType dtype) {
  return empty_dense(like, IntHeaderOnlyArrayRef(&size, 1), dtype);
}

struct Place {
  int64_t buffer = -1, offset = 0;  // buffer -1: nowhere

  explicit operator bool() const { return buffer >= 0; }
};

// Where the matrices of a sweep lie in its buffers, one for each link.
struct Places {
  static constexpr int64_t kAlign = 64, kLargest = int64_t{1} << 20;  // elements

  explicit Places(int64_t links = 0, int64_t largest = kLargest) : of(links), largest(largest) {}

  void add(int64_t link, int64_t size) {
    const int64_t rounded = (size + kAlign - 1) / kAlign * kAlign;
    if (sizes.empty() || sizes.back() + rounded > largest) sizes.push_back(0);
    of[link] = {buffers() - 1, sizes.back()};
    sizes.back() += rounded;
  }

  int64_t buffers() const { return static_cast<int64_t>(sizes.size()); }

  std::vector<Place> of;
  std::vector<int64_t> sizes;  // of the buffers
  int64_t largest;
};

// A rectifier works in place: its input and its output are one matrix, and nobody needs what it overwrites.
class ChainPlan {
 public:
  using Kind = Link::Kind;

  ChainPlan(const char* op, const std::string& text, const Tensors& params)
      : op(op), links(links_of(text).link), params(params), width(1, 0), counts_(links_of(text)) {
    check_count("parameters", params.size(), counts_.params);
    width[0] = weight(links[0]).size(1);
    for (const Link& link : links) {
      width.push_back(link.kind == Kind::linear ? weight(link).size(0) : width.back());
    }
  }

  int64_t size() const { return static_cast<int64_t>(links.size()); }
  int64_t last() const { return size() - 1; }

  const Tensor& weight(const Link& link) const { return params[link.weight]; }

  std::optional<Tensor> bias(const Link& link) const {
    return link.bias < 0 ? std::nullopt : std::optional<Tensor>(params[link.bias]);
  }

  int64_t bit_bytes(int64_t i) const { return (rows * width[i] + 7) / 8; }
  int64_t bit_bytes() const { return bits.sizes.empty() ? 0 : bits.sizes[0]; }

  // Sweep 1 at rows of x. The input of each link but the first lies in `values`, unless nothing but rectifiers lies between
  // it and y: then it is in y.
  void begin(const Tensor& x) { begin(x, std::numeric_limits<int64_t>::max()); }

  // The same for tiles of up to so many rows, each of which goes through all sweeps by itself.
  void begin(const Tensor& x, int64_t tile_rows) {
    check_parameters(x);
    lay_out(std::min(x.size(0), tile_rows));
  }

  // A later sweep, at the rows of what enters it.
  void resume(const char* name, const Tensor& flow, int64_t columns, const Tensors& saved) {
    DATAGRAD_CHECK(flow.dim() == 2, op, ": ", name, " must be a matrix, got shape ", text(flow.sizes()));
    lay_out(flow.size(0));
    check_flow(name, flow, columns);
    check_count("saved buffers", saved.size(), 1 + values.buffers());
    check_dtype(op, "saved bits", saved[0], ScalarType::Byte);
    const int64_t bytes = bit_bytes();
    check_shape(op, "saved bits", saved[0], IntHeaderOnlyArrayRef(&bytes, 1));
    check_buffers("saved values", saved, 1, values);
  }

  void check_flow(const char* name, const Tensor& flow, int64_t columns) const {
    const int64_t shape[] = {rows, columns};
    check_alike(op, name, flow, "the weight", params[0]);
    check_shape(op, name, flow, IntHeaderOnlyArrayRef(shape, 2));
  }

  // Whether sweep 2 leaves out the cotangent in front of the last linear link and its rectifier: where y is much narrower, sweep 3
  // computes it again for less than a matrix in memory costs. On the CPU, and not in 16 bits.
  bool slim_head() const {
    const ScalarType dtype = params[0].scalar_type();
    if (!params[0].is_cpu() || (dtype != ScalarType::Float && dtype != ScalarType::Double) || size() < 3) return false;
    return links[last()].kind == Kind::linear && links[last() - 1].kind == Kind::relu &&
           links[last() - 2].kind == Kind::linear && kSlim * width.back() <= width[last()];
  }

  // The tangents that sweep 3 keeps: those of the inputs of smooth links.
  Places tangents() const {
    Places places(size());
    for (int64_t i = 1; i < size(); ++i) {
      if (links[i].kind == Kind::smooth) places.add(i, rows * width[i]);
    }
    return places;
  }

  // For each link, where the gradient of its weight stands among the sums, if it is wanted.
  std::vector<size_t> order(const Flags& wanted) const {
    std::vector<size_t> order;
    size_t next = 0;
    for (const Link& link : links) {
      order.push_back(next);
      next += wants_weight(link, wanted) ? 1 : 0;
    }
    return order;
  }

  static bool wants_weight(const Link& link, const Flags& wanted) { return link.weight >= 0 && wanted[link.weight]; }
  static bool wants_bias(const Link& link, const Flags& wanted) { return link.bias >= 0 && wanted[link.bias]; }

  // Links that sweep 3 visits: all for the tangent of y, else up to the last that reads a tangent.
  int64_t tangent_end(const Flags& wanted, bool want_y) const {
    int64_t i = size();
    while (!want_y && i > 0 && links[i - 1].kind != Kind::smooth && !wants_weight(links[i - 1], wanted)) --i;
    return i;
  }

  int64_t last_curve() const {
    int64_t i = last();
    while (i >= 0 && links[i].kind != Kind::smooth) --i;
    return i;
  }

  // The first link with a parameter that is asked for; behind the last if there is none.
  int64_t first_wanted(const Flags& wanted) const {
    int64_t i = 0;
    while (i < size() && !wants_weight(links[i], wanted) && !wants_bias(links[i], wanted)) ++i;
    return i;
  }

  void check_flags(const Flags& wanted) const { check_count("flags", wanted.size(), counts_.params); }

  // A record: what sweep 2 began with, and its buffers. A pair's tangents: what sweep 3 began with, and its buffers.
  size_t record_size() const { return 1 + cotangents.sizes.size(); }

  void check_record(const Tensors& record) const {
    check_count("tensors in a record", record.size(), static_cast<int64_t>(record_size()));
    check_part("record", record, 0, width.back(), cotangents);
  }

  // No sums, or one for each wanted weight.
  void check_sums(const Tensors& sums, const Flags& wanted) const {
    if (sums.empty()) return;
    size_t place = 0;
    for (const Link& link : links) {
      if (!wants_weight(link, wanted)) continue;
      DATAGRAD_CHECK(place < sums.size(), op, ": needs a sum for every wanted weight, got ", sums.size());
      check_dense("sum", sums[place], weight(link).sizes());
      ++place;
    }
    DATAGRAD_CHECK(place == sums.size(), op, ": needs a sum for every wanted weight, got ", sums.size());
  }

  void check_pairs(const Tensors& records, const Tensors& kept, const Places& tangents) const {
    const size_t record = record_size(), tangent = 1 + tangents.sizes.size();
    DATAGRAD_CHECK(records.size() % record == 0 && records.size() / record * tangent == kept.size(), op, ": a record has ",
                   record, " tensors here and its tangents have ", tangent, ", got ", records.size(), " and ", kept.size());
    for (size_t pair = 0; pair < records.size() / record; ++pair) {
      check_part("record", records, pair * record, width.back(), cotangents);
      check_part("tangents", kept, pair * tangent, width[0], tangents);
    }
  }

  const char* op;
  const std::vector<Link>& links;
  const Tensors& params;
  std::vector<int64_t> width;  // of the input of each link, and of y
  int64_t rows = 0;
  Places values, bits, cotangents;  // cotangents: of the output of each link but the last, and those a slim head leaves out

 private:
  static constexpr int64_t kSlim = 4;

  const Links& counts_;

  void lay_out(int64_t n) {
    rows = n;
    values = cotangents = Places(size());
    bits = Places(size(), std::numeric_limits<int64_t>::max());
    int64_t end = last();
    while (links[end].kind == Kind::relu) --end;
    for (int64_t i = 1; i <= end; ++i) share_or_add(values, i, i - 1, links[i - 1], width[i]);
    for (int64_t i = 0; i < size(); ++i) {
      if (links[i].kind == Kind::relu) bits.add(i, bit_bytes(i));
    }
    for (int64_t i = last() - (slim_head() ? 3 : 1); i >= 0; --i) share_or_add(cotangents, i, i + 1, links[i + 1], width[i + 1]);
  }

  // A place for link i: that of its neighbour if a rectifier lies between the two.
  void share_or_add(Places& places, int64_t i, int64_t neighbour, const Link& between, int64_t columns) {
    if (between.kind == Kind::relu && places.of[neighbour]) {
      places.of[i] = places.of[neighbour];
    } else {
      places.add(i, rows * columns);
    }
  }

  void check_part(const char* name, const Tensors& tensors, size_t first, int64_t columns, const Places& places) const {
    const int64_t shape[] = {rows, columns};
    check_dense(name, tensors[first], IntHeaderOnlyArrayRef(shape, 2));
    check_buffers(name, tensors, first + 1, places);
  }

  void check_buffers(const char* name, const Tensors& tensors, size_t first, const Places& places) const {
    for (size_t i = 0; i < places.sizes.size(); ++i) {
      check_dense(name, tensors[first + i], IntHeaderOnlyArrayRef(&places.sizes[i], 1));
    }
  }

  void check_dense(const char* name, const Tensor& t, IntHeaderOnlyArrayRef shape) const {
    check_alike(op, name, t, "the weight", params[0]);
    check_shape(op, name, t, shape);
    DATAGRAD_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
  }

  void check_parameters(const Tensor& x) const {
    check_floating(op, "x", x);
    DATAGRAD_CHECK(x.dim() == 2, op, ": x must be a matrix, got shape ", text(x.sizes()));
    int64_t columns = x.size(1);
    for (const Link& link : links) {
      if (link.kind == Kind::linear) {
        const Tensor& w = weight(link);
        check_alike(op, "weight", w, "x", x);
        DATAGRAD_CHECK(w.dim() == 2 && columns == w.size(1), op, ": mat1 and mat2 shapes cannot be multiplied: ",
                       "the input has ", columns, " columns, the weight has shape ", text(w.sizes()));
        columns = w.size(0);
      }
      if (link.bias < 0) continue;
      check_alike(op, "bias", params[link.bias], "x", x);
      check_shape(op, "bias", params[link.bias], IntHeaderOnlyArrayRef(&columns, 1));
    }
  }

  void check_count(const char* what, size_t count, int64_t expected) const {
    DATAGRAD_CHECK(static_cast<int64_t>(count) == expected, op, ": the chain has ", expected, " ", what, ", got ",
                   count);
  }
};

}  // namespace datagrad
