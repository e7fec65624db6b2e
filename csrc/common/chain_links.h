// The text that names the links of a chain, as in datagrad_ext/ops/chain.py: "linear relu+b:0 linear softplus+b:1:20", with
// "@marks" behind a word where the device should take another way to the same result. A chain of images has more kinds of links, and
// "<k" for each value that a link names to read (datagrad_ext/ops/image_chain.py).
#pragma once

#include <common/check.h>

#include <limits>
#include <locale>
#include <string>
#include <unordered_map>
#include <vector>

namespace datagrad {

struct Link {
  enum class Kind { linear, relu, smooth, convolution, flatten, max_pool, avg_pool, normalise, add };

  Kind kind;
  std::string name;
  std::vector<double> constants;
  int64_t weight = -1, bias = -1;  // places among the parameters
  std::string marks;
  std::vector<int64_t> reads;  // the values that the word names

  bool marked(char mark) const { return marks.find(mark) != std::string::npos; }

  double slope() const { return constants[0]; }  // of a rectifier
};

// What Python's repr wrote, whatever the locale.
inline double number(const std::string& text) {
  if (text == "inf") return std::numeric_limits<double>::infinity();
  if (text == "-inf") return -std::numeric_limits<double>::infinity();
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double value = 0;
  stream >> value;
  DATAGRAD_CHECK(!stream.fail() && stream.eof(), "chain: a constant must be a number, got '", text, "'");
  return value;
}

// A kind that is named in the text; what it takes. Any other name is that of a smooth activation.
struct KindRow {
  const char* name;
  Link::Kind kind;
  size_t constants;
};

constexpr KindRow kKinds[] = {
    {"linear", Link::Kind::linear, 0},     {"relu", Link::Kind::relu, 1},         {"convolution", Link::Kind::convolution, 6},
    {"flatten", Link::Kind::flatten, 0},   {"max_pool", Link::Kind::max_pool, 8}, {"avg_pool", Link::Kind::avg_pool, 7},
    {"normalise", Link::Kind::normalise, 3}, {"add", Link::Kind::add, 0},
};

struct WordLinks {
  std::vector<Link> link;
  int64_t params = 0;

  explicit WordLinks(const std::string& text) {
    std::istringstream words(text);
    for (std::string word; words >> word;) add(word);
  }

  int64_t size() const { return static_cast<int64_t>(link.size()); }

 private:
  void add(const std::string& word) {
    Link next;
    const size_t at = word.find('@');
    if (at != std::string::npos) next.marks = word.substr(at + 1);
    std::istringstream spelled(word.substr(0, at));
    std::string text;
    std::getline(spelled, text, '<');
    for (std::string value; std::getline(spelled, value, '<');) next.reads.push_back(static_cast<int64_t>(number(value)));
    std::istringstream parts(text);
    std::getline(parts, text, ':');
    for (std::string constant; std::getline(parts, constant, ':');) next.constants.push_back(number(constant));
    std::istringstream named(text);
    std::getline(named, next.name, '+');
    bool weight = false, bias = false;
    for (std::string own; std::getline(named, own, '+');) weight |= own == "w", bias |= own == "b";
    next.kind = Link::Kind::smooth;
    for (const KindRow& row : kKinds) {
      if (next.name != row.name) continue;
      next.kind = row.kind;
      DATAGRAD_CHECK(next.constants.size() == row.constants, "chain: ", row.name, " has ", row.constants,
                     " constants, got ", next.constants.size());
    }
    if (weight || next.kind == Link::Kind::linear || next.kind == Link::Kind::convolution) next.weight = params++;
    if (bias) next.bias = params++;
    link.push_back(next);
  }
};

// Links of matrices.
struct Links : WordLinks {
  explicit Links(const std::string& text) : WordLinks(text) {
    DATAGRAD_CHECK(!link.empty() && link[0].kind == Link::Kind::linear, "chain: must begin with a linear layer, got '",
                   text, "'");
    for (const Link& each : link) {
      DATAGRAD_CHECK(each.kind <= Link::Kind::smooth, "chain: a link of matrices cannot be ", each.name);
      DATAGRAD_CHECK(each.reads.empty(), "chain: a link of matrices reads what is before it, got '", text, "'");
    }
  }
};

// The links of a text, read once a thread.
template <class Kind = Links>
const Kind& links_of(const std::string& text) {
  thread_local std::unordered_map<std::string, Kind> known;
  const auto found = known.find(text);
  return found != known.end() ? found->second : known.emplace(text, Kind(text)).first->second;
}

}  // namespace datagrad
