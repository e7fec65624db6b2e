// The normalisation family on the CPU: ops, letters and layouts as in datagrad_ext/ops/normalisation.py.
//
// Every op is sums, coefficients, map (math/normalisation.h). Where a set of common statistics lies in one sample the three
// follow each other while the sample is in the cache; in batch norm, sums over all blocks of the batch come first. Sets of
// single rows with a weight for each element (layer norm) have loops of their own.
#if defined(__GNUC__) && !defined(__clang__)
// A chunk's buffer is deliberately not initialised; what is read of it has been written.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <common/normalisation_ops.h>
#include <cpu/normalisation_statistics.h>

namespace datagrad {

void normalise_forward_into(const Normalised& in, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                            const Running& running_mean, const Running& running_var, double momentum, double eps,
                            const Tensor& y, const Tensor& mean, const Tensor& rstd) {
  dispatch_floating(in.x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    Job<T> job(in.sets, in.x, weight, bias);
    job.outer = true;
    job.mean = data<A>(mean), job.rstd = data<A>(rstd), job.out = mutable_data<T>(y);
    StatisticsOut<T> out{mutable_data<A>(mean), mutable_data<A>(rstd), std::vector<double>(job.sets.count()), eps};
    if (in.sets.numel() == 0) {
      for (int64_t set = 0; set < in.sets.count(); ++set) out.store(set, Moments(0, 0, 0, 1));
      return;
    }
    Job<T> own = job;
    own.in.own = true;
    if (job.sets.groups == 0) {
      batch_statistics(own, out);
      map_batch(job, std::vector<double>(kSingleSums * job.sets.c, 0.0));
    } else {
      for_each_sample_block(job, [&](int64_t begin, int64_t end, double* grads) {
        samples_statistics(own, begin, end, out);
        map_samples(job, begin, end, grads);
      });
    }
    if (!running_mean.values) return;
    const double unbiased = job.count() / std::max(1.0, job.count() - 1);
    update_running<T>(running_mean, in.sets, momentum, [&](int64_t set) { return static_cast<double>(job.mean[set]); });
    update_running<T>(running_var, in.sets, momentum, [&](int64_t set) { return out.var[set] * unbiased; });
  });
}

void normalise_map_into(const Linearised& at, const Terms& terms, bool outer, const Tensor* out,
                        const Tensor* weight_grad, const Tensor* bias_grad) {
  dispatch_floating(at.in.x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    Job<T> job(at.in.sets, at.in.x, at.weight);
    job.outer = outer;
    job.mean = data<A>(at.mean), job.rstd = data<A>(at.rstd);
    if (terms.single) job.in.single = data<T>(*terms.single);
    for (size_t i = 0; i < terms.tangents.size(); ++i) {
      job.in.pairs.emplace_back(data<T>(terms.tangents[i]), data<T>(terms.cotangents[i]));
    }
    if (terms.rectified.bits) {
      job.in.bits = data<uint8_t>(*terms.rectified.bits);
      job.in.rectifier = {static_cast<A>(terms.rectified.slope)};
    }
    if (out != nullptr) job.out = mutable_data<T>(*out);
    if (weight_grad != nullptr) {
      job.weight_grad = mutable_data<A>(*weight_grad), job.bias_grad = mutable_data<A>(*bias_grad);
    }
    if (job.sets.numel() == 0) {
      store_param_grads(job, std::vector<double>(2 * job.sets.c, 0.0).data());
    } else if (job.sets.groups == 0) {
      map_batch(job, batch_sums<T>(job.sets, job.in, job.mean));
    } else {
      for_each_sample_block(job, [&](int64_t begin, int64_t end, double* grads) { map_samples(job, begin, end, grads); });
    }
  });
}

}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) { datagrad::register_normalisation(m); }
