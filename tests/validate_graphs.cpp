// The graphs of the fused convolutions (csrc/cudnn/graphs.h) as the frontend reads them, without a GPU: each is validated, and its
// properties are inferred from operands and geometry. The argument is the path of libcudnn. Prints what is wrong.
#include <cudnn/graphs.h>

#include <dlfcn.h>

#include <cstdio>

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;
}

namespace {

using namespace datagrad;
using Numbers = std::vector<int64_t>;

struct Row {
  const char* name;
  Numbers x, weight, stride, padding, dilation;
};

const Row kRows[] = {
    {"k3 p1", {8, 16, 12, 10}, {24, 16, 3, 3}, {1, 1}, {1, 1}, {1, 1}},
    {"k4 s2 p1", {8, 16, 12, 10}, {32, 16, 4, 4}, {2, 2}, {1, 1}, {1, 1}},
    {"k4 s2 p1 of an odd image", {8, 16, 13, 11}, {32, 16, 4, 4}, {2, 2}, {1, 1}, {1, 1}},
    {"1x1", {8, 16, 12, 10}, {8, 16, 1, 1}, {1, 1}, {0, 0}, {1, 1}},
    {"groups", {8, 16, 12, 10}, {32, 4, 3, 3}, {1, 1}, {1, 1}, {1, 1}},
    {"depthwise", {8, 16, 12, 10}, {16, 1, 3, 3}, {1, 1}, {1, 1}, {1, 1}},
    {"dilation", {2, 3, 12, 10}, {8, 3, 3, 2}, {2, 1}, {2, 0}, {2, 3}},
    {"one pixel", {1, 8, 4, 4}, {5, 8, 4, 4}, {1, 1}, {0, 0}, {1, 1}},
};

Numbers convolved(const Row& row) {
  Numbers y{row.x[0], row.weight[0]};
  for (int d = 0; d < 2; ++d) {
    y.push_back((row.x[2 + d] + 2 * row.padding[d] - row.dilation[d] * (row.weight[2 + d] - 1) - 1) / row.stride[d] + 1);
  }
  return y;
}

FusedConvolution example(const Row& row, Pass pass, Form form, fe::DataType_t dtype, bool channels_last, bool bias, float slope) {
  const Numbers y = convolved(row), channels{1, row.weight[0], 1, 1};
  FusedConvolution c{pass, form, dtype, channels_last, row.x, row.weight, y, y, row.stride, row.padding, row.dilation, slope};
  if (pass == Pass::vjp) c.in = y, c.other = c.out = row.x;
  if (pass == Pass::forward) c.other = bias ? channels : Numbers{};
  return c;
}

int failures = 0, graphs = 0;

void check(bool right, const char* row, const FusedConvolution& c, const std::string& said) {
  if (right) return;
  ++failures;
  std::printf("%s, pass %d, form %d, dtype %d, slope %g: %s\n", row, int(c.pass), int(c.form), int(c.dtype), c.slope, said.c_str());
}

void validate(const Row& row, const FusedConvolution& c) {
  ++graphs;
  const auto graph = GraphOf(c).graph();
  auto status = graph->validate();
  check(status.is_good(), row.name, c, status.get_message());
}

}  // namespace

int main(int, char** arguments) {
  fe::cudnn_dlhandle = dlopen(arguments[1], RTLD_NOW);
  if (!fe::cudnn_dlhandle) {
    std::printf("%s\n", dlerror());
    return 1;
  }
  for (const Row& row : kRows) {
    for (const auto dtype : {fe::DataType_t::FLOAT, fe::DataType_t::BFLOAT16, fe::DataType_t::HALF}) {
      for (const bool last : {true, false}) {
        for (const float slope : {0.f, 0.2f}) {
          for (const Form form : {Form::relu, Form::select}) {
            validate(row, example(row, Pass::forward, form, dtype, last, true, slope));
            validate(row, example(row, Pass::forward, form, dtype, last, false, slope));
            validate(row, example(row, Pass::vjp, form, dtype, last, false, slope));
            validate(row, example(row, Pass::jvp, form, dtype, last, false, slope));
          }
        }
      }
    }
  }
  // Validation finds something: a convolution without strides.
  FusedConvolution wrong = example(kRows[0], Pass::jvp, Form::relu, fe::DataType_t::FLOAT, true, false, 0);
  wrong.stride = {};
  check(GraphOf(wrong).graph()->validate().is_bad(), "without strides", wrong, "taken");
  std::printf("%d graphs, %d failures\n", graphs, failures);
  return failures != 0;
}
