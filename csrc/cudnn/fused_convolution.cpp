// The fused convolutions on CUDA: datagrad_ext/ops/fused_convolution.py says what they compute, graphs.h as what, plans.h with what.
#include <common/layout.h>
#include <cudnn/plans.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;  // the frontend declares it
}

namespace datagrad {
namespace {

using Numbers = std::vector<int64_t>;

// All plans of the process. Never destroyed: at its end CUDA may be gone before. cuDNN is the copy that torch has loaded.
Plans& plans() {
  static Plans* const all = [] {
    fe::cudnn_dlhandle = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_NOLOAD);
    DATAGRAD_CHECK(fe::cudnn_dlhandle != nullptr, "fused_convolution: torch has not loaded libcudnn.so.9");
    return new Plans();
  }();
  return *all;
}

Numbers numbers_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Numbers(sizes.data(), sizes.data() + sizes.size());
}

fe::DataType_t dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return fe::DataType_t::FLOAT;
    case ScalarType::BFloat16: return fe::DataType_t::BFLOAT16;
    case ScalarType::Half: return fe::DataType_t::HALF;
    default: fail(op, ": no plan for dtype ", text(t.scalar_type()));
  }
}

Pass pass_of(const std::string& name) {
  if (name == "forward") return Pass::forward;
  if (name == "vjp") return Pass::vjp;
  DATAGRAD_CHECK(name == "jvp", "fused_convolution_plans: pass must be forward, vjp or jvp, got ", name);
  return Pass::jvp;
}

// The operands; `other` is null where there is no bias.
struct Operands {
  const Tensor &in, &weight;
  const Tensor* other;
};

// What has the layout of the result: the input of the convolution in vjp, else its operand.
const Tensor& leader(Pass pass, const Operands& o) { return pass == Pass::vjp ? *o.other : o.in; }

Numbers other_sizes(Pass pass, const Operands& o) {
  if (o.other == nullptr) return {};
  return pass == Pass::forward ? Numbers{1, o.other->size(0), 1, 1} : numbers_of(*o.other);
}

Numbers out_sizes(Pass pass, const Operands& o, const Numbers& stride, const Numbers& padding, const Numbers& dilation) {
  if (pass != Pass::forward) return numbers_of(*o.other);
  Numbers sizes{o.in.size(0), o.weight.size(0)};
  for (int d = 0; d < 2; ++d) {
    sizes.push_back((o.in.size(2 + d) + 2 * padding[d] - dilation[d] * (o.weight.size(2 + d) - 1) - 1) / stride[d] + 1);
  }
  return sizes;
}

Numbers fused_convolution_plans(std::string pass_name, const Tensor& in, const Tensor& weight, std::optional<Tensor> other,
                                Numbers stride, Numbers padding, Numbers dilation, double slope, bool tf32,
                                bool deterministic, bool select, int64_t limit) {
  const char* op = "fused_convolution_plans";
  const Pass pass = pass_of(pass_name);
  DATAGRAD_CHECK(in.dim() == 4 && weight.dim() == 4, op, ": input and weight must have 4 dimensions, got ", in.dim(), " and ", weight.dim());
  DATAGRAD_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op, ": stride, padding and dilation must be 2 numbers each");
  DATAGRAD_CHECK(other || pass == Pass::forward, op, ": ", pass_name, " needs what it gates by");
  const Operands o{in, weight, other ? &*other : nullptr};
  const FusedConvolution what{pass,
                              select ? Form::select : Form::relu,
                              dtype_of(op, in),
                              is_channels_last(leader(pass, o)),
                              numbers_of(in),
                              numbers_of(weight),
                              other_sizes(pass, o),
                              out_sizes(pass, o, stride, padding, dilation),
                              stride,
                              padding,
                              dilation,
                              static_cast<float>(slope)};
  const torch::stable::accelerator::DeviceGuard guard(in.get_device_index());
  return plans().open(what, Rules{tf32, deterministic}, in.get_device_index(), limit);
}

// A plan is run on nothing but what it was made for.
void check_fits(const char* op, const Plan& plan, const Operands& o, const Numbers& stride, const Numbers& padding,
                const Numbers& dilation, double slope) {
  const FusedConvolution& what = plan.what;
  const bool fits = o.in.is_cuda() && o.in.get_device_index() == plan.device && dtype_of(op, o.in) == what.dtype &&
                    numbers_of(o.in) == what.in && numbers_of(o.weight) == what.weight &&
                    other_sizes(what.pass, o) == what.other && is_channels_last(leader(what.pass, o)) == what.channels_last &&
                    stride == what.stride && padding == what.padding && dilation == what.dilation &&
                    static_cast<float>(slope) == what.slope;
  DATAGRAD_CHECK(fits, op, ": the plan was made for other operands than ", text(o.in.sizes()), " and ", text(o.weight.sizes()));
  check_alike(op, "weight", o.weight, "the input", o.in);
  if (o.other != nullptr) check_alike(op, "the third operand", *o.other, "the input", o.in);
}

Tensor run(const char* op, Pass pass, const Operands& o, const Numbers& stride, const Numbers& padding, const Numbers& dilation,
           double slope, int64_t number) {
  const std::shared_ptr<const Plan> found = plans().find(number);
  const Plan& plan = *found;
  DATAGRAD_CHECK(plan.what.pass == pass, op, ": the plan was made for another op");
  check_fits(op, plan, o, stride, padding, dilation, slope);
  const torch::stable::accelerator::DeviceGuard guard(plan.device);
  const Layout layout = plan.what.channels_last ? Layout::channels_last : Layout::contiguous;
  const Tensor in = in_layout(o.in, layout), weight = in_layout(o.weight, layout);
  std::optional<Tensor> other;
  if (o.other != nullptr) other = pass == Pass::forward ? in_layout(*o.other, Layout::contiguous) : in_layout(*o.other, layout);
  Tensor out = empty_dense(in, plan.what.out, in.scalar_type(), layout);
  const Numbers bytes{plan.workspace > 0 ? plan.workspace : 1};
  const Tensor workspace = empty_dense(in, {bytes.data(), bytes.size()}, ScalarType::Byte);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(plan.device, &stream));
  std::unordered_map<int64_t, void*> pack{{kIn, in.data_ptr()}, {kWeight, weight.data_ptr()}, {kOut, out.data_ptr()}};
  if (other) pack[kOther] = other->data_ptr();
  plans().run(plan, pack, workspace.data_ptr(), stream);
  return out;
}

Tensor fused_convolution_forward(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, Numbers stride, Numbers padding,
                                 Numbers dilation, double slope, int64_t plan) {
  return run("fused_convolution_forward", Pass::forward, {x, weight, bias ? &*bias : nullptr}, stride, padding, dilation, slope, plan);
}

Tensor fused_convolution_vjp(const Tensor& g, const Tensor& weight, const Tensor& h, Numbers stride, Numbers padding, Numbers dilation,
                             double slope, int64_t plan) {
  return run("fused_convolution_vjp", Pass::vjp, {g, weight, &h}, stride, padding, dilation, slope, plan);
}

Tensor fused_convolution_jvp(const Tensor& t, const Tensor& weight, const Tensor& y, Numbers stride, Numbers padding, Numbers dilation,
                             double slope, int64_t plan) {
  return run("fused_convolution_jvp", Pass::jvp, {t, weight, &y}, stride, padding, dilation, slope, plan);
}

void fused_convolution_close(const Tensor&, int64_t plan) { plans().close(plan); }

}  // namespace
}  // namespace datagrad

STABLE_TORCH_LIBRARY_IMPL(datagrad, CUDA, m) {
  m.impl("fused_convolution_forward", TORCH_BOX(&datagrad::fused_convolution_forward));
  m.impl("fused_convolution_vjp", TORCH_BOX(&datagrad::fused_convolution_vjp));
  m.impl("fused_convolution_jvp", TORCH_BOX(&datagrad::fused_convolution_jvp));
  m.impl("fused_convolution_plans", TORCH_BOX(&datagrad::fused_convolution_plans));
  m.impl("fused_convolution_close", TORCH_BOX(&datagrad::fused_convolution_close));
}
