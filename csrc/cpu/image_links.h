// The links of a chain of images as the sweeps see them: units, what each reads, and what a call needs of them. Letters as in
// datagrad_ext/ops/image_links.py.
#pragma once

#include <common/chain_links.h>
#include <common/chain_plan.h>
#include <cpu/convolution_ops.h>

#include <functional>
#include <numeric>

namespace datagrad {
namespace {

// A link, and the rectifier that it takes in.
struct Unit {
  using Kind = Link::Kind;

  const Link* link;
  const Link* rectifier;
  int64_t output;                // the value that it makes
  Numbers in, out;               // sizes of its (first) input and its output
  int64_t input = -1;            // places among `saved`: of its input,
  int64_t statistics = -1;       // of the mean of a norm, before its reciprocal deviation,
  int64_t extra = -1;            // of its bits, or the places of its maxima
  bool saves_input = false;      // whether it is the first that has the input saved
  int64_t record = -1;           // place of the cotangent of its output in a record

  bool is(Kind kind) const { return link->kind == kind; }
  const Numbers& reads() const { return link->reads; }
  bool has_weight() const { return link->weight >= 0; }
  int64_t bias() const { return rectifier != nullptr && rectifier->bias >= 0 ? rectifier->bias : link->bias; }
  bool has_bits() const { return is(Kind::relu) || rectifier != nullptr; }
  bool updates() const { return is(Kind::normalise) && link->constants[2] != 0; }
  bool is_curved() const { return is(Kind::smooth) || is(Kind::normalise); }

  // Places of what it saves.
  Numbers saves() const {
    Numbers places;
    if (saves_input) places.push_back(input);
    if (statistics >= 0) places.insert(places.end(), {statistics, statistics + 1});
    if (extra >= 0) places.push_back(extra);
    return places;
  }

  // Elements of the output of one sample.
  int64_t out_of_sample() const {
    return std::accumulate(out.begin() + 1, out.end(), int64_t{1}, std::multiplies<>());
  }

  // So many of the link's numbers.
  Numbers numbers(size_t first, size_t count) const {
    return Numbers(link->constants.begin() + first, link->constants.begin() + first + count);
  }

  // Of a pooling; a side of 0 is that of the images.
  Numbers kernel() const {
    Numbers sides = numbers(0, 2);
    for (size_t d = 0; d < 2; ++d) {
      if (sides[d] == 0 && is(Kind::avg_pool)) sides[d] = in[2 + d];
    }
    return sides;
  }

  bool wants_weight(const Flags& wanted) const { return has_weight() && wanted[link->weight]; }
  bool wants_bias(const Flags& wanted) const { return bias() >= 0 && wanted[bias()]; }

  // Whether sweep 3 leaves (δ, t) to sweep 4: where the unit is curved, or its mark says that the pair is smaller than its product.
  bool keeps(const Flags& wanted) const { return is_curved() || (link->marked('p') && wants_weight(wanted)); }
};

// Links of images; each names what it reads.
struct ImageLinks : WordLinks {
  using Kind = Link::Kind;

  std::vector<int64_t> readers;  // how many read each value

  explicit ImageLinks(const std::string& text) : WordLinks(text), readers(link.size() + 1, 0) {
    DATAGRAD_CHECK(!link.empty() && link[0].kind == Kind::convolution, "image chain: must begin with a convolution, got '",
                   text, "'");
    for (int64_t i = 0; i < size(); ++i) read(i);
    for (int64_t value = 0; value < size(); ++value) {
      DATAGRAD_CHECK(readers[value] > 0, "image chain: nothing reads value ", value);
    }
  }

  // Whether link i takes in the next, a rectifier that alone reads it.
  bool takes_next(int64_t i) const {
    if (i + 1 >= size()) return false;
    const Link &here = link[i], &next = link[i + 1];
    if (next.kind != Kind::relu || next.reads[0] != i + 1 || readers[i + 1] != 1) return false;
    if (here.kind == Kind::convolution) return here.bias < 0;
    return (here.kind == Kind::normalise || here.kind == Kind::add) && next.bias < 0;
  }

 private:
  void read(int64_t i) {
    Link& here = link[i];
    if (here.reads.empty()) here.reads = {i};
    const size_t expected = here.kind == Kind::add ? 2 : 1;
    DATAGRAD_CHECK(here.reads.size() == expected, "image chain: ", here.name, " reads ", expected, " values, got ",
                   here.reads.size());
    for (const int64_t value : here.reads) {
      DATAGRAD_CHECK(0 <= value && value <= i, "image chain: link ", i + 1, " can read values 0 to ", i, ", got ", value);
      DATAGRAD_CHECK(value > 0 || here.kind == Kind::convolution, "image chain: convolutions alone can read x");
      ++readers[value];
    }
  }
};

// What sweeps 3 and 4 visit.
struct Needs {
  std::vector<bool> tangents;    // of each unit: whether somebody reads the tangent of its output
  std::vector<bool> cotangents;  // of each value: whether its cotangent leads to something wanted

  Needs(const std::vector<Unit>& units, const Flags& wanted, bool want_x, bool want_y)
      : tangents(units.size()), cotangents(units.back().output + 1) {
    std::vector<bool> read(cotangents.size());
    read.back() = want_y;
    for (size_t i = units.size(); i-- > 0;) {
      const Unit& unit = units[i];
      tangents[i] = read[unit.output];
      if (!tangents[i] && !unit.keeps(wanted) && !unit.wants_weight(wanted)) continue;
      for (const int64_t value : unit.reads()) read[value] = true;
    }
    cotangents[0] = want_x;
    for (const Unit& unit : units) {
      bool leads = unit.wants_weight(wanted) || unit.wants_bias(wanted);
      for (const int64_t value : unit.reads()) leads = leads || cotangents[value];
      cotangents[unit.output] = leads;
    }
  }
};

}  // namespace
}  // namespace datagrad
