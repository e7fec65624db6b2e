// The three fused convolutions as graphs of cuDNN, in terms of the header-only frontend; nothing here needs a GPU or torch.
//
//   forward   rectified(conv_fprop(x, w) + b)         in x, other b (may be missing)
//   vjp       gated(conv_dgrad(g, w), h)              in g, other h, the input of the convolution, a rectifier's output
//   jvp       gated(conv_fprop(t, w), y)              in t, other y, the rectified output of the convolution
//
// A rectifier of slope s is z where z > 0, else s z; a gate lets through what it gates where h > 0, else s times it. Each is spelled
// in one of two forms: `relu` by cuDNN's own modes, `select` by a comparison and a selection, which treats what is not finite as PyTorch does.
#pragma once

// cuDNN's functions are looked up in the copy that the process has loaded (`cudnn_dlhandle`).
#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include <memory>
#include <string>
#include <vector>

namespace datagrad {

namespace fe = cudnn_frontend;

enum class Pass { forward, vjp, jvp };
enum class Form { relu, select };

// All tensors are dense, in channels_last or all contiguous; sizes as PyTorch has them.
struct FusedConvolution {
  Pass pass;
  Form form;
  fe::DataType_t dtype;
  bool channels_last;
  std::vector<int64_t> in, weight, other, out;  // sizes; no `other`: no bias
  std::vector<int64_t> stride, padding, dilation;
  float slope;
};

// Names of the graph's tensors in its variant pack; the last two are numbers on the host.
enum Name : int64_t { kIn = 1, kWeight, kOther, kOut, kZero, kSlope };

inline std::vector<int64_t> graph_strides(const std::vector<int64_t>& sizes, bool channels_last) {
  const int64_t c = sizes[1], h = sizes[2], w = sizes[3];
  if (channels_last) return {c * h * w, 1, w * c, c};
  return {c * h * w, h * w, w, 1};
}

class GraphOf {
 public:
  explicit GraphOf(const FusedConvolution& c) : c_(c), graph_(std::make_shared<fe::graph::Graph>()) {
    graph_->set_io_data_type(c.dtype).set_intermediate_data_type(fe::DataType_t::FLOAT).set_compute_data_type(fe::DataType_t::FLOAT);
    const Node in = tensor(kIn, c.in), weight = tensor(kWeight, c.weight);
    const Node other = c.other.empty() ? nullptr : tensor(kOther, c.other);
    Node z = product(in, weight);
    if (c.pass == Pass::forward && other) z = pointwise(fe::PointwiseMode_t::ADD, z, other);
    const Node out = c.form == Form::relu ? by_relu(z, other) : by_selection(z, c.pass == Pass::forward ? z : other);
    out->set_output(true).set_uid(kOut).set_dim(c.out).set_stride(graph_strides(c.out, c.channels_last)).set_data_type(c.dtype);
  }

  const std::shared_ptr<fe::graph::Graph>& graph() const { return graph_; }

 private:
  using Node = std::shared_ptr<fe::graph::Tensor_attributes>;

  Node tensor(Name name, const std::vector<int64_t>& sizes) {
    return graph_->tensor(fe::graph::Tensor_attributes()
                              .set_name("tensor" + std::to_string(name))
                              .set_uid(name)
                              .set_dim(sizes)
                              .set_stride(graph_strides(sizes, c_.channels_last))
                              .set_data_type(c_.dtype));
  }

  Node number(Name name) {
    return graph_->tensor(fe::graph::Tensor_attributes()
                              .set_name("number" + std::to_string(name))
                              .set_uid(name)
                              .set_dim({1, 1, 1, 1})
                              .set_stride({1, 1, 1, 1})
                              .set_is_pass_by_value(true)
                              .set_data_type(fe::DataType_t::FLOAT));
  }

  template <class Attributes>
  Attributes geometry() const {
    return Attributes().set_padding(c_.padding).set_stride(c_.stride).set_dilation(c_.dilation);
  }

  Node product(const Node& in, const Node& weight) {
    if (c_.pass != Pass::vjp) return graph_->conv_fprop(in, weight, geometry<fe::graph::Conv_fprop_attributes>());
    Node x_bar = graph_->conv_dgrad(in, weight, geometry<fe::graph::Conv_dgrad_attributes>());
    x_bar->set_dim(c_.out).set_stride(graph_strides(c_.out, c_.channels_last));  // several sizes have outputs of g's
    return x_bar;
  }

  Node pointwise(fe::PointwiseMode_t mode, const Node& a, const Node& b) {
    return graph_->pointwise(a, b, fe::graph::Pointwise_attributes().set_mode(mode));
  }

  Node by_relu(const Node& z, const Node& gate) {
    auto attributes = fe::graph::Pointwise_attributes();
    if (c_.slope != 0) attributes.set_relu_lower_clip_slope(c_.slope);
    if (c_.pass == Pass::forward) return graph_->pointwise(z, attributes.set_mode(fe::PointwiseMode_t::RELU_FWD));
    return graph_->pointwise(z, gate, attributes.set_mode(fe::PointwiseMode_t::RELU_BWD));
  }

  // NaN passes as in the op `relu_forward`: slope 0 closes where gate <= 0, another slope opens where gate > 0.
  Node by_selection(const Node& z, const Node& gate) {
    const bool steep = c_.slope == 0;
    const Node zero = number(kZero);
    const Node low = steep ? zero : pointwise(fe::PointwiseMode_t::MUL, z, number(kSlope));
    const Node mask = pointwise(steep ? fe::PointwiseMode_t::CMP_LE : fe::PointwiseMode_t::CMP_GT, gate, zero);
    mask->set_data_type(fe::DataType_t::BOOLEAN);
    const auto select = fe::graph::Pointwise_attributes().set_mode(fe::PointwiseMode_t::BINARY_SELECT);
    return steep ? graph_->pointwise(low, z, mask, select) : graph_->pointwise(z, low, mask, select);
  }

  const FusedConvolution& c_;
  std::shared_ptr<fe::graph::Graph> graph_;
};

}  // namespace datagrad
