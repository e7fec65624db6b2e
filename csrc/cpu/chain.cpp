// The chain family on the CPU.
#include <common/chain.h>
#include <common/chain_products.h>
#include <common/dtype.h>
#include <cpu/small_products.h>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

namespace datagrad {
namespace {

struct Vendor {
  static void mm(const Tensor& out, const Tensor& a, const Tensor& b) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
  }
  static void addmm(const Tensor& out, const Tensor& c, const Tensor& a, const Tensor& b) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), c.get(), a.get(), b.get(), 1, 1));
  }
};

// Small products of float32 and float64 here, all others by the vendor.
struct CpuProducts {
  using Large = Products<Vendor>;

  static void nn(const Tensor& out, const Tensor& a, const Tensor& b) {
    const int64_t depth = a.size(1);
    const bool done = small_one({&out, &a, &b}, out.size(0), out.size(1), depth, [&](auto tag) {
      using T = typename decltype(tag)::type;
      small::product<T>({data<T>(a), depth, 1}, data<T>(b), mutable_data<T>(out), out.size(0), out.size(1), depth, false);
    });
    if (!done) Large::nn(out, a, b);
  }

  static void nt(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor* bias) {
    const int64_t depth = a.size(1);
    const bool done = (bias == nullptr || bias->is_contiguous()) &&
                      small_one({&out, &a, &b}, out.size(0), out.size(1), depth, [&](auto tag) {
                        using T = typename decltype(tag)::type;
                        small::product_transposed<T>(data<T>(a), data<T>(b), bias == nullptr ? nullptr : data<T>(*bias),
                                                     mutable_data<T>(out), out.size(0), out.size(1), depth);
                      });
    if (!done) Large::nt(out, a, b, bias);
  }

  static void tn(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
    const int64_t depth = a.size(0);
    const bool done = small_one({&out, &a, &b}, out.size(0), out.size(1), depth, [&](auto tag) {
      using T = typename decltype(tag)::type;
      small::product<T>({data<T>(a), 1, out.size(0)}, data<T>(b), mutable_data<T>(out), out.size(0), out.size(1), depth,
                        add);
    });
    if (!done) Large::tn(out, a, b, add);
  }

 private:
  // Calls f(Tag<T>) and returns true if the product is a small one of dense matrices.
  template <class F>
  static bool small_one(std::initializer_list<const Tensor*> matrices, int64_t rows, int64_t columns, int64_t depth,
                        const F& f) {
    if (!small::pays(rows, columns, depth)) return false;
    for (const Tensor* matrix : matrices) {
      if (!matrix->is_contiguous()) return false;
    }
    switch ((*matrices.begin())->scalar_type()) {
      case ScalarType::Float: f(Tag<float>{}); return true;
      case ScalarType::Double: f(Tag<double>{}); return true;
      default: return false;
    }
  }
};

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CPU, m) { datagrad::register_chain<datagrad::CpuProducts>(m); }
