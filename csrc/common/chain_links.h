// The text that names the links of a chain, as in datagrad_ext/ops/chain.py: "linear relu+b:0 linear softplus+b:1:20", with
// "@marks" behind a word where the device should take another way to the same result.
#pragma once

#include <common/check.h>

#include <limits>
#include <locale>
#include <string>
#include <unordered_map>
#include <vector>

namespace datagrad {

struct Link {
  enum class Kind { linear, relu, smooth };

  Kind kind;
  std::string name;
  std::vector<double> constants;
  int64_t weight = -1, bias = -1;  // places among the parameters
  std::string marks;

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

struct Links {
  std::vector<Link> link;
  int64_t params = 0;

  explicit Links(const std::string& text) {
    std::istringstream words(text);
    for (std::string word; words >> word;) add(word);
    DATAGRAD_CHECK(!link.empty() && link[0].kind == Link::Kind::linear, "chain: must begin with a linear layer, got '",
                   text, "'");
  }

  int64_t size() const { return static_cast<int64_t>(link.size()); }

 private:
  void add(const std::string& word) {
    Link next;
    const size_t at = word.find('@');
    if (at != std::string::npos) next.marks = word.substr(at + 1);
    std::istringstream parts(word.substr(0, at));
    std::getline(parts, next.name, ':');
    for (std::string constant; std::getline(parts, constant, ':');) next.constants.push_back(number(constant));
    const size_t plus = next.name.find('+');
    const bool bias = plus != std::string::npos;
    next.name = next.name.substr(0, plus);
    next.kind = next.name == "linear" ? Link::Kind::linear
                : next.name == "relu" ? Link::Kind::relu
                                      : Link::Kind::smooth;
    const size_t expected = next.kind == Link::Kind::relu ? 1 : 0;
    DATAGRAD_CHECK(next.kind == Link::Kind::smooth || next.constants.size() == expected, "chain: ", next.name, " has ",
                   expected, " constants, got ", next.constants.size());
    if (next.kind == Link::Kind::linear) next.weight = params++;
    if (bias) next.bias = params++;
    link.push_back(next);
  }
};

// The links of a text, read once a thread.
inline const Links& links_of(const std::string& text) {
  thread_local std::unordered_map<std::string, Links> known;
  const auto found = known.find(text);
  return found != known.end() ? found->second : known.emplace(text, Links(text)).first->second;
}

}  // namespace datagrad
