// Runs the thread functions of the CUDA activation kernels on the host, thread by thread as a grid would, and compares with
// plain loops: every element is computed exactly once, bits and values are right, and every channel sum and transposed copy is.
#include <math/activation_groups.h>
#include <math/turn.h>

#include <cstdio>
#include <vector>

using namespace datagrad;

namespace {

int failures = 0;

void expect(bool condition, const char* what, const ChannelView& v) {
  if (condition) return;
  ++failures;
  std::printf("%s: outer %ld channels %ld inner %ld\n", what, long(v.outer), long(v.channels), long(v.inner));
}

// Counts how often each element is computed.
template <class Op>
struct Counted {
  Op op;
  int* visits;

  void operator()(int64_t first, int count, float* values) const {
    for (int k = 0; k < count; ++k) ++visits[first + k];
    op(first, count, values);
  }
};

template <int W, class Op>
std::vector<double> sum_columns(const Op& op, const ChannelView& view) {
  const Columns<W> columns(view);
  std::vector<float> partials(columns.splits * view.channels, NAN);
  for (int64_t block = 0; block < columns.blocks(); ++block) {
    for (int64_t split = 0; split < columns.splits; ++split) {
      std::vector<float> shared(Columns<W>::kShared, NAN);
      for (int t = 0; t < kBlockThreads; ++t) {
        columns.template accumulate<float>(op, block, split, t % columns.width, t / columns.width, shared.data());
      }
      for (int t = 0; t < kBlockThreads; ++t) columns.reduce(block, split, t, shared.data(), partials.data());
    }
  }
  std::vector<double> sums;
  for (int64_t c = 0; c < view.channels; ++c) {
    sums.push_back(finish_channel(partials.data(), columns.splits, view.channels, c));
  }
  return sums;
}

template <int W, class Op>
std::vector<double> sum_runs(const Op& op, const ChannelView& view) {
  const Runs<W> runs(view);
  std::vector<float> partials(runs.splits * view.channels, NAN);
  for (int64_t channel = 0; channel < view.channels; ++channel) {
    for (int64_t split = 0; split < runs.splits; ++split) {
      float sum = 0;
      for (int t = 0; t < kBlockThreads; ++t) sum += runs.template accumulate<float>(op, channel, split, t);
      partials[split * view.channels + channel] = sum;
    }
  }
  std::vector<double> sums;
  for (int64_t c = 0; c < view.channels; ++c) {
    sums.push_back(finish_channel(partials.data(), runs.splits, view.channels, c));
  }
  return sums;
}

template <int W, class Op>
std::vector<double> sum_channels(const Op& op, const ChannelView& view) {
  return view.inner == 1 ? sum_columns<W>(op, view) : sum_runs<W>(op, view);
}

void check(const ChannelView& view, bool vector) {
  const int64_t n = view.numel();
  std::vector<Pack16<float>> aligned_x(n / 4 + 2), aligned_y(n / 4 + 2), aligned_other(n / 4 + 2);
  float* x = aligned_x.data()->value + (vector ? 0 : 1);
  float* other = aligned_other.data()->value + (vector ? 0 : 1);
  float* y = aligned_y.data()->value + (vector ? 0 : 1);
  std::vector<float> bias(view.channels);
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>((i * 37) % 101) / 16 - 3;
  for (int64_t i = 0; i < n; ++i) other[i] = static_cast<float>((i * 29) % 31) / 8 - 2;
  for (int64_t c = 0; c < view.channels; ++c) bias[c] = static_cast<float>(c % 5) / 4 - 0.5f;

  std::vector<uint8_t> bits((n + 7) / 8, 0xff);
  std::vector<int> visits(n, 0);
  const Rectifier<float> relu{0.25f};
  const ReluForward<float> forward{{x, bias.data(), other, view}, relu, y, bits.data(), vector};
  const int64_t threads = 3 * kBlockThreads;
  for (int64_t t = 0; t < threads; ++t) map_thread<float>(Counted<ReluForward<float>>{forward, visits.data()}, n, t, threads);
  for (int64_t i = 0; i < n; ++i) {
    const float z = x[i] + bias[i / view.inner % view.channels] + other[i];
    expect(visits[i] == 1, "an element is not computed once", view);
    expect(y[i] == (z > 0 ? z : 0.25f * z), "value", view);
    expect(((bits[i / 8] >> (i % 8)) & 1) == (z > 0), "bit", view);
  }
  for (int64_t i = n; i < 8 * static_cast<int64_t>(bits.size()); ++i) {
    expect(((bits[i / 8] >> (i % 8)) & 1) == 0, "padding bit", view);
  }

  std::vector<uint8_t> read_off(bits.size(), 0xff);
  for (int64_t t = 0; t < n; ++t) y[t] = x[t] > 0 ? x[t] : x[t] < -2 ? NAN : 0;
  for (int64_t t = 0; t < threads; ++t) map_thread<float>(ReluBits<float>{y, read_off.data(), vector}, n, t, threads);
  for (int64_t i = 0; i < 8 * static_cast<int64_t>(bits.size()); ++i) {
    expect(((read_off[i / 8] >> (i % 8)) & 1) == (i < n && (x[i] > 0 || x[i] < -2)), "bit read off a result", view);
  }

  std::fill(visits.begin(), visits.end(), 0);
  const Counted<ReluGate<float>> gate{{x, other, bits.data(), relu, y, vector}, visits.data()};
  const auto sums = fits_groups(view) ? sum_channels<kGroup>(gate, view) : sum_channels<1>(gate, view);
  std::vector<double> truth(view.channels, 0.0);
  for (int64_t i = 0; i < n; ++i) {
    const float g = x[i] + other[i];
    const float gated = ((bits[i / 8] >> (i % 8)) & 1) ? g : 0.25f * g;
    truth[i / view.inner % view.channels] += gated;
    expect(visits[i] == 1, "a gated element is not computed once", view);
    expect(y[i] == gated, "gate", view);
  }
  for (int64_t c = 0; c < view.channels; ++c) {
    expect(std::fabs(sums[c] - truth[c]) <= 1e-4 * (1 + std::fabs(truth[c])), "channel sum", view);
  }
}

// The threads of a warp put an element each into 32 banks of shared memory.
void check_banks() {
  for (int warp = 0; warp < kBlockThreads / 32; ++warp) {
    for (int k = 0; k < kGroup; ++k) {
      std::vector<int> met(32, 0);
      for (int t = 32 * warp; t < 32 * (warp + 1); ++t) {
        std::vector<float> shared(TurnedPass::kShared, 0.0f);
        float values[kGroup] = {};
        values[k] = 1;
        TurnedPass::put(t, values, shared.data());
        for (int i = 0; i < TurnedPass::kShared; ++i) met[i % 32] += shared[i] == 1;
      }
      for (const int times : met) expect(times == 1, "a bank is not met once", {});
    }
  }
}

// The pass with the transposed copy and sums: the gate, where every third bit is 0.
void check_turned(int64_t rows, int64_t columns) {
  const ChannelView view{rows, columns, 1};
  const int64_t n = rows * columns;
  std::vector<float> g(n), out(n, NAN), turned(n, NAN);
  std::vector<uint8_t> bits(n / 8, 0);
  std::vector<int> visits(n, 0);
  for (int64_t i = 0; i < n; ++i) {
    g[i] = static_cast<float>((i * 37) % 101) / 16 - 3;
    if (i % 3 != 0) bits[i / 8] |= static_cast<uint8_t>(1u << (i % 8));
  }
  const Counted<ReluGate<float>> gate{{g.data(), nullptr, bits.data(), {0}, out.data(), false}, visits.data()};
  const TurnedPass pass{rows, columns, turned.data()};
  std::vector<float> partials(pass.splits() * columns, NAN);
  for (int64_t block = 0; block < pass.blocks(); ++block) {
    for (int64_t split = 0; split < pass.splits(); ++split) {
      std::vector<float> shared(TurnedPass::kShared, NAN), sums(kBlockThreads * kGroup, 0.0f);
      for (int64_t tile = split; tile < pass.tiles(); tile += pass.splits()) {
        for (int t = 0; t < kBlockThreads; ++t) pass.compute(gate, block, tile, t, sums.data() + t * kGroup, shared.data());
        for (int t = 0; t < kBlockThreads; ++t) pass.write(block, tile, t, shared.data());
      }
      for (int t = 0; t < kBlockThreads; ++t) pass.put(t, sums.data() + t * kGroup, shared.data());
      for (int t = 0; t < kBlockThreads; ++t) pass.reduce(block, split, t, shared.data(), partials.data());
    }
  }
  for (int64_t j = 0; j < columns; ++j) {
    double truth = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = row * columns + j;
      const float value = i % 3 != 0 ? g[i] : 0;
      truth += value;
      expect(visits[i] == 1 && out[i] == value, "gate beside a copy", view);
      expect(turned[j * rows + row] == value, "transposed copy", view);
    }
    const double sum = finish_channel(partials.data(), pass.splits(), columns, j);
    expect(std::fabs(sum - truth) <= 1e-4 * (1 + std::fabs(truth)), "sum over rows", view);
  }
}

}  // namespace

int main() {
  const ChannelView views[] = {
      {1, 1, 1},    {1, 1, 13},   {5, 7, 1},     {37, 24, 1},   {4096, 8, 1},   {3000, 3, 1}, {70, 264, 1},
      {9, 300, 1},  {3, 5, 7},    {3, 5, 16},    {40, 3, 1024}, {300, 2, 24},   {2, 6, 40},   {700, 3, 9},
      {0, 4, 1},    {2, 3, 0},    {4, 0, 3},     {1, 1, 50000}, {20000, 16, 1}, {65, 2, 2048}, {2, 5000, 1},
  };
  for (const ChannelView& view : views) {
    check(view, true);
    check(view, false);
  }
  for (const int64_t rows : {1, 63, 64, 65, 700, 3000}) {
    for (const int64_t columns : {8, 24, 32, 40, 264}) check_turned(rows, columns);
  }
  check_turned(70000, 8);
  check_banks();
  if (failures != 0) std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
