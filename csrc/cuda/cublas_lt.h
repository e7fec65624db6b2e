// The part of cuBLASLt that fuses a rectifier, or its gate and the bias gradient, with a product. Its C interface is declared here by hand, as far as it is
// used: the header comes with the CUDA toolkit's libraries and not with its compiler, and names and numbers of that interface do
// not change. The library itself is the copy that torch has loaded.
#pragma once

#include <common/check.h>
#include <cuda/lt_product.h>

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>

namespace datagrad {
namespace lt {

constexpr int kTransA = 3, kTransB = 4, kEpilogue = 7, kBiasPointer = 8, kAuxPointer = 11, kAuxLd = 12;  // of a product
constexpr int kMaxWorkspace = 1, kReductions = 3, kMinAlignment = 5;  // of a preference; alignments of A, B, C, D in order
constexpr int kComputeFloat = 68, kComputeTf32 = 77;
constexpr int64_t kWorkspace = int64_t{8} << 20;  // bytes

struct Algorithm {
  uint64_t data[8];
};

struct Found {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

// The functions of the loaded library; `loaded` is false where there is none.
struct Library {
  int (*create)(void**) = nullptr;
  int (*desc_create)(void**, int, int) = nullptr;
  int (*desc_set)(void*, int, const void*, size_t) = nullptr;
  int (*desc_destroy)(void*) = nullptr;
  int (*layout_create)(void**, int, uint64_t, uint64_t, int64_t) = nullptr;
  int (*layout_destroy)(void*) = nullptr;
  int (*preference_create)(void**) = nullptr;
  int (*preference_set)(void*, int, const void*, size_t) = nullptr;
  int (*preference_destroy)(void*) = nullptr;
  int (*heuristic)(void*, void*, void*, void*, void*, void*, void*, int, Found*, int*) = nullptr;
  int (*matmul)(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*, void*, void*,
                const Algorithm*, void*, size_t, cudaStream_t) = nullptr;
  bool loaded = false;

  static const Library& get() {
    static const Library library;
    return library;
  }

 private:
  Library() {
    void* handle = nullptr;
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
      if (handle == nullptr) handle = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
    }
    if (handle == nullptr) return;
    loaded = true;
    const auto take = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(handle, name));
      loaded = loaded && function != nullptr;
    };
    take(create, "cublasLtCreate");
    take(desc_create, "cublasLtMatmulDescCreate");
    take(desc_set, "cublasLtMatmulDescSetAttribute");
    take(desc_destroy, "cublasLtMatmulDescDestroy");
    take(layout_create, "cublasLtMatrixLayoutCreate");
    take(layout_destroy, "cublasLtMatrixLayoutDestroy");
    take(preference_create, "cublasLtMatmulPreferenceCreate");
    take(preference_set, "cublasLtMatmulPreferenceSetAttribute");
    take(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    take(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    take(matmul, "cublasLtMatmul");
  }
};

inline void check(int status, const char* what) {
  DATAGRAD_CHECK(status == 0, "cuBLASLt: ", what, " failed with status ", status);
}

// An object of the library, destroyed with this one.
struct Object {
  void* pointer = nullptr;
  int (*destroy)(void*);

  explicit Object(int (*destroy)(void*)) : destroy(destroy) {}
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  ~Object() {
    if (pointer != nullptr) destroy(pointer);
  }
};

class Products {
 public:
  static Products& get() {
    static Products products;
    return products;
  }

  // Enqueues the product; throws where the library or an algorithm is missing.
  void run(const Product& p, int device, void* workspace, cudaStream_t stream) {
    const Library& library = Library::get();
    DATAGRAD_CHECK(library.loaded, "cuBLASLt: torch has not loaded the library");
    const std::lock_guard<std::mutex> lock(mutex_);
    void*& handle = handles_[device];
    if (handle == nullptr) check(library.create(&handle), "creating a handle");
    // In its terms, column by column: outᵀ = op(b)ᵀ aᵀ.
    Object desc(library.desc_destroy);
    check(library.desc_create(&desc.pointer, p.tf32 ? kComputeTf32 : kComputeFloat, kFloat), "describing a product");
    const auto set = [&](int attribute, auto value) {
      check(library.desc_set(desc.pointer, attribute, &value, sizeof value), "describing a product");
    };
    set(kTransA, int32_t{p.turned ? 1 : 0});
    set(kTransB, int32_t{0});
    set(kEpilogue, static_cast<uint32_t>(p.epilogue));
    if (p.bits != nullptr) {
      set(kAuxPointer, p.bits);
      set(kAuxLd, p.columns);
    }
    if (p.vector != nullptr) set(kBiasPointer, p.vector);
    Object b(library.layout_destroy), a(library.layout_destroy), out(library.layout_destroy);
    const auto layout = [&](Object& object, int64_t fast, int64_t slow) {
      check(library.layout_create(&object.pointer, p.type, fast, slow, fast), "describing a matrix");
    };
    layout(b, p.turned ? p.inner : p.columns, p.turned ? p.columns : p.inner);
    layout(a, p.inner, p.rows);
    layout(out, p.columns, p.rows);
    const auto key = p.key(device);
    auto known = algorithms_.find(key);
    if (known == algorithms_.end()) {
      if (algorithms_.size() >= kMostAlgorithms) algorithms_.clear();
      known = algorithms_.emplace(key, algorithm(handle, desc, b, a, out)).first;
    }
    const float one = 1, zero = 0;
    check(library.matmul(handle, desc.pointer, &one, p.b, b.pointer, p.a, a.pointer, &zero, p.out, out.pointer, p.out, out.pointer,
                         &known->second, workspace, kWorkspace, stream),
          "a product");
  }

 private:
  static constexpr size_t kMostAlgorithms = 1024;

  static Algorithm algorithm(void* handle, const Object& desc, const Object& b, const Object& a, const Object& out) {
    const Library& library = Library::get();
    Object preference(library.preference_destroy);
    check(library.preference_create(&preference.pointer), "describing a preference");
    const auto set = [&](int attribute, auto value) {
      check(library.preference_set(preference.pointer, attribute, &value, sizeof value), "describing a preference");
    };
    set(kMaxWorkspace, static_cast<uint64_t>(kWorkspace));
    set(kReductions, uint32_t{2});  // split sums in float32 only, or none
    for (int operand = 0; operand < 4; ++operand) set(kMinAlignment + operand, static_cast<uint32_t>(kAlignment));
    Found found;
    std::memset(&found, 0, sizeof found);
    int count = 0;
    check(library.heuristic(handle, desc.pointer, b.pointer, a.pointer, out.pointer, out.pointer, preference.pointer, 1, &found, &count),
          "looking for an algorithm");
    DATAGRAD_CHECK(count > 0 && found.state == 0, "cuBLASLt: no algorithm for this product");
    return found.algorithm;
  }

  std::mutex mutex_;
  std::map<int, void*> handles_;  // of each device
  std::map<std::array<int64_t, 6>, Algorithm> algorithms_;
};

}  // namespace lt
}  // namespace datagrad
