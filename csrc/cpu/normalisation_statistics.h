// Mean, variance and running statistics of a normalisation on the CPU.
#pragma once

#include <cpu/normalisation_walks.h>

#include <cmath>

namespace datagrad {
namespace {

constexpr int64_t kHead = 64;  // elements whose mean is near enough to that of all

template <class T>
struct StatisticsOut {
  Acc<T>*mean, *rstd;
  std::vector<double> var;
  double eps;

  void store(int64_t set, const Moments& m) {
    mean[set] = static_cast<Acc<T>>(m.mean);
    rstd[set] = static_cast<Acc<T>>(1.0 / std::sqrt(m.var + eps));
    var[set] = m.var;
  }
};

// The mean of the first elements of a set of one sample: near enough to the whole's to take sums about it.
template <class T>
Acc<T> head_mean(const Job<T>& job, int64_t sample, int64_t first) {
  constexpr int64_t kHeadRows = 4;
  const Sets& sets = job.sets;
  const bool rows = sets.channels_fastest;
  const int64_t n = std::min(kHead, rows ? sets.channels() : sets.size), lines = rows ? std::min(sets.size, kHeadRows) : 1;
  Acc<T> buffer[kHead];
  double total[kSingleSums] = {};
  for (int64_t line = 0; line < lines; ++line) {
    const int64_t at = rows ? (sample * sets.size + line) * sets.c + first : (sample * sets.c + first) * sets.size;
    const Acc<T>* head = widened(job.in.x + at, buffer, n);
    add_chunk_sums<true, true, false>(head, head, head, head, n, Acc<T>(0), total);
  }
  return static_cast<Acc<T>>(pivot_of(total[0] / static_cast<double>(n * lines)));
}

// What sums of each channel of the batch are taken about: its mean over the first samples.
template <class T>
std::vector<Acc<T>> batch_pivots(const Job<T>& job) {
  const Sets& sets = job.sets;
  std::vector<Acc<T>> pivot(sets.c, Acc<T>(0));
  if (!sets.channels_fastest && (sets.n == 1 || sets.size >= kHead)) {
    for (int64_t c = 0; c < sets.c; ++c) pivot[c] = head_mean(job, 0, c);
    return pivot;
  }
  Sets head = sets;
  head.n = std::min<int64_t>(sets.n, std::max<int64_t>(1, kHead / std::max<int64_t>(1, sets.size)));
  const auto first = batch_sums<T>(head, job.in, pivot.data());
  for (int64_t c = 0; c < sets.c; ++c) {
    pivot[c] = static_cast<Acc<T>>(pivot_of(first[c] / static_cast<double>(head.elements())));
  }
  return pivot;
}

// Statistics of the batch.
template <class T>
void batch_statistics(const Job<T>& job, StatisticsOut<T>& out) {
  const Sets& sets = job.sets;
  const std::vector<Acc<T>> pivot = batch_pivots(job);
  const auto sums = batch_sums<T>(sets, job.in, pivot.data());
  for (int64_t c = 0; c < sets.c; ++c) out.store(c, Moments(pivot[c], sums[c], sums[sets.c + c], job.count()));
}

// Statistics of the sets of one sample.
template <class T>
void sample_statistics(const Job<T>& job, int64_t sample, std::vector<Acc<T>>& pivot, std::vector<double>& sums,
                       StatisticsOut<T>& out) {
  const Sets& sets = job.sets;
  const int64_t c = sets.c, n = sets.channels();
  const Tile tile = sets.channels_fastest ? Tile{sample * sets.size, (sample + 1) * sets.size, 0, c}
                                          : Tile{sample, sample + 1, 0, c};
  for (int64_t first = 0; first < c; first += n) std::fill_n(pivot.begin() + first, n, head_mean(job, sample, first));
  std::fill(sums.begin(), sums.end(), 0.0);
  tile_sums(sets, job.in, tile, pivot.data(), sums.data(), c);
  for (int64_t first = 0; first < c; first += n) {
    double s0 = 0, s1 = 0;
    for (int64_t i = first; i < first + n; ++i) s0 += sums[i], s1 += sums[c + i];
    out.store(sets.of(sample, first), Moments(pivot[first], s0, s1, job.count()));
  }
}

template <class T>
void row_statistics(const Job<T>& job, int64_t row, StatisticsOut<T>& out) {
  const int64_t n = job.sets.channels();
  for (int64_t first = 0; first < job.sets.c; first += n) {
    double sums[kSingleSums] = {};
    const Acc<T> pivot = head_mean(job, row, first);
    add_run_sums<T>(job.in, row * job.sets.c + first, n, pivot, nullptr, sums);
    out.store(job.sets.of(row, first), Moments(pivot, sums[0], sums[1], job.count()));
  }
}

template <class T>
void samples_statistics(const Job<T>& job, int64_t begin, int64_t end, StatisticsOut<T>& out) {
  std::vector<Acc<T>> pivot(job.sets.c);
  std::vector<double> sums(kSingleSums * job.sets.c);
  for (int64_t sample = begin; sample < end; ++sample) {
    if (job.sets.has_rows()) {
      row_statistics(job, sample, out);
    } else {
      sample_statistics(job, sample, pivot, sums, out);
    }
  }
}

// running = (1 - momentum) running + momentum new, the new one averaged over the samples' sets of the channel.
template <class T, class Of>
void update_running(const Running& running, const Sets& sets, double momentum, const Of& of_set) {
  const auto update = [&](auto* values) {
    const int64_t samples = sets.groups == 0 ? 1 : sets.n;
    for (int64_t c = 0; c < sets.c; ++c) {
      double sum = 0;
      for (int64_t sample = 0; sample < samples; ++sample) sum += of_set(sample * sets.c + c);
      const double old = widen(values[c]), now = (1 - momentum) * old + momentum * sum / static_cast<double>(samples);
      values[c] = static_cast<std::decay_t<decltype(values[c])>>(static_cast<Acc<T>>(now));
    }
  };
  if (running.values->scalar_type() == accumulation_dtype(running.values->scalar_type())) {
    update(mutable_data<Acc<T>>(*running.values));
  } else {
    update(mutable_data<T>(*running.values));
  }
}

}  // namespace
}  // namespace datagrad
