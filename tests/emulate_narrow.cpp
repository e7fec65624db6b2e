// Runs the sweeps of the CUDA kernels for narrow chains on the host, warp by warp, and compares with plain loops in double that
// round to 16 bits where the kernels do. Letters as in common/chain_plan.h.
#include "emulate_warp.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <string>

using namespace datagrad;
using namespace datagrad::warp;

namespace {

using Job = NarrowJob<Brain>;
using Link = NarrowLink<Brain>;
using Values = std::vector<Brain>;
using Plain = std::vector<double>;

int failures = 0;
std::mt19937 generator(1);

Values random_values(int64_t n, double scale) {
  std::normal_distribution<double> normal(0, scale);
  Values values;
  for (int64_t k = 0; k < n; ++k) values.emplace_back(static_cast<float>(normal(generator)));
  return values;
}

double rounded(double value) { return static_cast<float>(Brain(static_cast<float>(value))); }

Plain plain(const Values& values) {
  Plain found;
  for (const Brain& value : values) found.push_back(static_cast<float>(value));
  return found;
}

// A chain: linear layers of these widths with an activation between two of them; 'r' is a rectifier, else a row of Activations.
struct Case {
  std::vector<int> widths;
  std::string activations;  // of all but the last layer, repeated
  bool bias_at_activation;
  int rows, warps;
  bool resident;

  std::string text() const {
    std::string found = std::to_string(rows) + " rows, " + std::to_string(warps) + " warps, '" + activations + "', widths";
    for (int width : widths) found += " " + std::to_string(width);
    return found;
  }
};

struct Layer {
  int kind, activation, in, out;
  float constants[2];
  Values weight, bias;
  // by rows: the input, the tangent and the cotangent of the output; all but the linear ones' inputs may be in place
  Values input, tangent, delta, result;
  std::vector<uint8_t> bits;
};

// A plain sweep leaves what flows behind every link, rounded.
double activation_part(const Layer& link, int part, double z) {
  if (link.kind == Link::relu) return part == 0 ? (z > 0 ? z : link.constants[0] * z) : part == 1 ? (z > 0 ? 1 : link.constants[0]) : 0;
  double value = 0;
  visit_activation_row<double>(Activations(), link.activation, link.constants, [&](const auto& activation) {
    value = part == 0 ? activation.f(z) : part == 1 ? activation.first(z) : activation.second(z);
  });
  return value;
}

class Emulation {
 public:
  explicit Emulation(const Case& c) : case_(c) {
    for (size_t l = 0; l + 1 < c.widths.size(); ++l) {
      const int in = c.widths[l], out = c.widths[l + 1];
      Layer linear{Link::linear, 0, in, out, {}, random_values(int64_t(in) * out, 1 / std::sqrt(in)), {}, {}, {}, {}, {}, {}};
      if (!c.bias_at_activation || l + 2 == c.widths.size()) linear.bias = random_values(out, 0.25);
      layers_.push_back(linear);
      if (l + 2 == c.widths.size()) break;
      const char name = c.activations[l % c.activations.size()];
      Layer between{name == 'r' ? Link::relu : Link::smooth, name - '0', out, out, {0.25f, 20.0f}, {}, {}, {}, {}, {}, {}, {}};
      if (name == '0') between.constants[0] = 2.0f;
      if (c.bias_at_activation) between.bias = random_values(out, 0.25);
      layers_.push_back(between);
    }
  }

  void check() {
    const int last = static_cast<int>(layers_.size()) - 1, rows = case_.rows;
    const Values x = random_values(int64_t(rows) * layers_[0].in, 1), g = random_values(int64_t(rows) * layers_[last].out, 1);
    const Values v = random_values(int64_t(rows) * layers_[0].in, 1), zeta = random_values(int64_t(rows) * layers_[last].out, 1);

    // Sweep 1. The input of every link is kept: rounded z of a smooth one, with its bias to come.
    start(x, false);
    for (Layer& link : layers_) {
      link.result.assign(int64_t(rows) * link.out, Brain(NAN));
      link.bits.assign((int64_t(rows) * link.out + 7) / 8, 0xff);
    }
    fill([&](int i, Link& link) {
      link.result = layers_[i].result.data();
      link.bits = layers_[i].bits.data();
    });
    run<ForwardSweep>();
    for (int i = 0; i <= last; ++i) layers_[i].input = i == 0 ? x : layers_[i - 1].result;
    for (int i = 0; i <= last; ++i) {
      expect("forward", i, layers_[i].result, link_forward(layers_[i]));
      if (layers_[i].kind != Link::relu) continue;
      const Plain z = with_bias(layers_[i]);
      for (int64_t k = 0; k < int64_t(z.size()); ++k) {
        if (((layers_[i].bits[k / 8] >> (k % 8)) & 1) != (z[k] > 0)) fail("a bit is wrong", i);
      }
    }

    // Sweep 2.
    start(g, true);
    std::vector<Values> pulled(layers_.size());
    for (int i = 0; i <= last; ++i) pulled[i].assign(int64_t(rows) * layers_[i].in, Brain(NAN));
    fill([&](int i, Link& link) { link.result = pulled[i].data(); });
    run<DataVjpSweep>();
    for (int i = last; i >= 0; --i) {
      layers_[i].delta = i == last ? g : pulled[i + 1];
      expect("data_vjp", i, pulled[i], link_vjp(layers_[i], plain(layers_[i].delta)));
    }

    // Sweep 3, with gradients of all weights.
    start(v, false);
    std::vector<Values> pushed(layers_.size());
    for (int i = 0; i <= last; ++i) pushed[i].assign(int64_t(rows) * layers_[i].out, Brain(NAN));
    fill([&](int i, Link& link) {
      link.result = pushed[i].data();
      link.delta[0] = layers_[i].delta.data();
      ask_for_sums(link, false);
    });
    run<DataJvpSweep>();
    for (int i = 0; i <= last; ++i) {
      layers_[i].tangent = i == 0 ? v : pushed[i - 1];
      expect("data_jvp", i, pushed[i], link_jvp(layers_[i], plain(layers_[i].tangent)));
      if (layers_[i].kind != Link::linear) continue;
      expect("δᵀt", i, weight_sums(i), outer(plain(layers_[i].delta), plain(layers_[i].tangent), layers_[i]));
    }

    // Sweep 4, with ζ and without.
    for (const bool with_zeta : {true, false}) {
      start(with_zeta ? zeta : Values(), true);
      job_.pairs = 2;
      job_.walks_to_begin = true;
      for (int i = 0; i <= last; ++i) pulled[i].assign(int64_t(rows) * layers_[i].in, Brain(NAN));
      fill([&](int i, Link& link) {
        link.result = link.kind == Link::linear ? pulled[i].data() : nullptr;
        ask_for_sums(link, true);
        for (int pair = 0; pair < 2 && link.kind == Link::smooth; ++pair) {
          link.delta[pair] = layers_[i].delta.data();
          link.tangent[pair] = layers_[i].tangent.data();
        }
      });
      run<ReverseSweep>();
      check_reverse(with_zeta ? plain(zeta) : Plain(), pulled);
    }
  }

 private:
  void check_reverse(Plain flow, const std::vector<Values>& pulled) {
    for (int i = static_cast<int>(layers_.size()) - 1; i >= 0; --i) {
      const Layer& link = layers_[i];
      const Plain t = plain(link.tangent), delta = plain(link.delta);
      if (link.kind == Link::linear) {
        if (flow.empty()) continue;
        if (!link.bias.empty()) expect("Σ ζ", i, bias_sums(i), column_sums(flow, link.out));
        expect("ζᵀh", i, weight_sums(i), outer(flow, plain(link.input), link));
        expect("reverse", i, pulled[i], link_vjp(link, flow));
        flow = plain(pulled[i]);
        continue;
      }
      if (flow.empty() && link.kind == Link::relu) continue;
      if (flow.empty() && case_.rows > 0) flow.assign(t.size(), 0.0);
      const Plain z = with_bias(link);
      for (size_t k = 0; k < flow.size(); ++k) {
        flow[k] = rounded(activation_part(link, 1, z[k]) * flow[k] + activation_part(link, 2, z[k]) * 2 * t[k] * delta[k]);
      }
      if (!flow.empty() && !link.bias.empty()) expect("Σ ζ", i, bias_sums(i), column_sums(flow, link.out));
    }
  }

  void start(const Values& flow, bool down) {
    flow_ = flow;
    flow_.reserve(1);
    job_ = Job();
    job_.rows = case_.rows;
    job_.flow = flow.empty() && case_.rows > 0 ? nullptr : flow_.data();
    job_.links = job_.end = static_cast<int16_t>(layers_.size());
    job_.down = down;
    job_.resident = case_.resident;
    job_.row = row_of(*std::max_element(case_.widths.begin(), case_.widths.end()));
    job_.weights = 3 * case_.warps * kStrip * job_.row;
  }

  void fill(const std::function<void(int, Link&)>& f) {
    int place = 0, largest = 0;
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      Link& link = job_.link[i];
      link.kind = static_cast<Link::Kind>(layer.kind);
      link.activation = static_cast<int8_t>(layer.activation);
      link.in = static_cast<int16_t>(layer.in);
      link.out = static_cast<int16_t>(layer.out);
      std::copy_n(layer.constants, 2, link.constants);
      link.weight = layer.weight.data();
      link.bias = layer.bias.empty() ? nullptr : layer.bias.data();
      link.input = layer.input.data();
      link.bits = layers_[i].bits.data();
      if (layer.kind == Link::linear) {
        link.weight_place = case_.resident ? place : 0;
        place += Job::weight_size(layer.in, layer.out);
        largest = std::max(largest, Job::weight_size(layer.in, layer.out));
      }
      f(static_cast<int>(i), link);
    }
    memory_.assign(job_.weights + (case_.resident ? place : largest), 0x7fff);  // NaN
  }

  void ask_for_sums(Link& link, bool biases) {
    if (link.kind == Link::linear) {
      link.weight_sum = job_.partial_size;
      job_.partial_size += padded(link.out) * padded(link.in);
    }
    if (biases && link.bias != nullptr) {
      link.bias_sum = job_.partial_size;
      job_.partial_size += padded(link.out);
    }
  }

  // Twice, with the warps in either order: no difference.
  template <class Sweep>
  void run() {
    constexpr int64_t kBlocks = 3;
    std::vector<float> first;
    for (const bool backwards : {false, true}) {
      first.swap(partials_);
      partials_.assign(kBlocks * job_.partial_size, NAN);
      job_.partials = partials_.data();
      for (int64_t index = 0; index < kBlocks; ++index) {
        HostBlock block(index, kBlocks, case_.warps, backwards, memory_);
        Sweep::run(NarrowWalk<HostBlock, Brain>(block, job_));
      }
    }
    if (first != partials_) fail("the order of the warps shows", 0);
  }

  Values total(int place, int rows, int columns) const {
    Values found(int64_t(rows) * columns);
    const NarrowTotal<Brain> total{found.data(), place, rows, columns, false};
    for (int k = 0; k < rows * columns; ++k) total.finish(partials_.data(), 3, job_.partial_size, k);
    return found;
  }
  Values weight_sums(int i) const { return total(job_.link[i].weight_sum, layers_[i].out, layers_[i].in); }
  Values bias_sums(int i) const { return total(job_.link[i].bias_sum, 1, layers_[i].out); }

  Plain with_bias(const Layer& link) const {
    Plain z = plain(link.input);
    for (size_t k = 0; !link.bias.empty() && k < z.size(); ++k) z[k] += static_cast<float>(link.bias[k % link.out]);
    return z;
  }

  Plain link_forward(const Layer& link) const {
    if (link.kind == Link::linear) {
      Plain y = link_jvp(link, plain(link.input), false);
      for (size_t k = 0; !link.bias.empty() && k < y.size(); ++k) y[k] += static_cast<float>(link.bias[k % link.out]);
      return y;
    }
    Plain z = with_bias(link);
    for (double& value : z) value = activation_part(link, 0, value);
    return z;
  }

  Plain link_jvp(const Layer& link, const Plain& t, bool = true) const { return times(link, t, true); }
  Plain link_vjp(const Layer& link, const Plain& g) const { return times(link, g, false); }

  Plain times(const Layer& link, const Plain& flow, bool forwards) const {
    if (link.kind != Link::linear) {
      Plain found = with_bias(link);
      for (size_t k = 0; k < found.size(); ++k) {
        // A rectifier is gated by its bit, whose side rounding may have chosen.
        const bool bit = link.kind == Link::relu && ((link.bits[k / 8] >> (k % 8)) & 1) != 0;
        found[k] = link.kind == Link::relu ? (bit ? 1 : link.constants[0]) * flow[k] : activation_part(link, 1, found[k]) * flow[k];
      }
      return found;
    }
    const int in = link.in, out = link.out, wide = forwards ? out : in;
    const Plain weight = plain(link.weight);
    Plain found(int64_t(case_.rows) * wide, 0.0);
    for (int r = 0; r < case_.rows; ++r) {
      for (int o = 0; o < out; ++o) {
        for (int c = 0; c < in; ++c) {
          found[r * wide + (forwards ? o : c)] += weight[o * in + c] * flow[forwards ? r * in + c : r * out + o];
        }
      }
    }
    return found;
  }

  Plain outer(const Plain& g, const Plain& h, const Layer& link) const {
    Plain found(int64_t(link.in) * link.out, 0.0);
    for (int r = 0; r < case_.rows; ++r) {
      for (int o = 0; o < link.out; ++o) {
        for (int c = 0; c < link.in; ++c) found[o * link.in + c] += g[r * link.out + o] * h[r * link.in + c];
      }
    }
    return found;
  }

  static Plain column_sums(const Plain& g, int columns) {
    Plain found(columns, 0.0);
    for (size_t k = 0; k < g.size(); ++k) found[k % columns] += g[k];
    return found;
  }

  // Equal up to the last bit, which the order of a sum decides; by norm and by element.
  void expect(const char* what, int link, const Values& found, const Plain& truth) {
    double error = 0, norm = 0, largest = 0;
    for (size_t k = 0; k < truth.size(); ++k) largest = std::max(largest, std::fabs(truth[k]));
    for (size_t k = 0; k < truth.size(); ++k) {
      const double difference = static_cast<float>(found[k]) - truth[k];
      if (!(std::fabs(difference) <= 0.004 * std::fabs(truth[k]) + 2e-3 * largest)) return fail(what, link);
      error += difference * difference;
      norm += truth[k] * truth[k];
    }
    if (!(error <= 0.003 * 0.003 * norm)) fail(what, link);
  }

  void fail(const char* what, int link) {
    if (++failures < 20) std::printf("%s, link %d: %s\n", what, link, case_.text().c_str());
  }

  Case case_;
  std::vector<Layer> layers_;
  Job job_;
  Values flow_;
  std::vector<uint16_t> memory_;
  std::vector<float> partials_;
};

}  // namespace

int main() {
  for (const int rows : {0, 1, 15, 16, 129}) {
    Emulation({{5, 18, 33, 3}, "r", true, rows, 4, true}).check();
    Emulation({{24, 40, 16, 9}, "r0", false, rows, 8, true}).check();
  }
  for (int row = 0; row < 7; ++row) Emulation({{7, 20, 20, 4}, std::string(1, '0' + row), row % 2 == 0, 70, 4, row % 2 == 1}).check();
  for (const int width : {1, 2, 8, 17, 63, 64, 100, 127}) Emulation({{3, width, width, 1}, "0r", true, 33, 4, width % 2 == 0}).check();
  Emulation({{256, 100, 250}, "1", true, 17, 4, false}).check();
  Emulation({{199, 241, 6}, "4", true, 20, 4, true}).check();
  Emulation({std::vector<int>(17, 13), "r05", true, 40, 4, true}).check();
  if (failures != 0) std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
