"""accelerate(model) keeps everything a user relies on, and follows every change made afterwards."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import CE, MLPS, Body, Case, Objective, conv_net, data, ids, mlp, network
from oracle import assert_equal, check, leaf, observe
from test_native import needs_native
from torch import Tensor, nn

import datagrad_ext
from datagrad_ext.layers.image_chain import ImageChain

OBJECTIVE = Objective(CE, ((CE, "l2_squared"),))
KINDS = [network(name) for name in ("mlp_relu", "conv_vgg", "conv_resnet_batch_norm", "tied", "untraceable")]


def compare(ours: nn.Module, plain: nn.Module, inputs: list[Tensor], objective: Callable = OBJECTIVE) -> None:
    """One step of both, at once equal; the modules stay as they are for the next comparison."""
    assert_equal(observe(ours, inputs, objective), observe(plain, inputs, objective))


def pair(case: Case, device: str = "cpu") -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """The accelerated model, already called once, the plain one, and inputs."""
    ours, plain = datagrad_ext.accelerate(case.build().to(device)), case.build().to(device)
    inputs = [t.to(device) for t in case.inputs()]
    compare(ours, plain, inputs)
    return ours, plain, inputs


# ------------------------------------------------------------------------------------------------ identity


@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_is_the_same_object(case: Case) -> None:
    model, plain = case.build(), case.build()
    kind, parameters, names = type(model), list(model.parameters()), [n for n, _ in model.named_modules()]
    ours = datagrad_ext.accelerate(model)
    observe(ours, case.inputs(), OBJECTIVE)
    assert ours is model
    assert isinstance(ours, kind)
    assert type(ours).__name__ == kind.__name__
    assert all(a is b for a, b in zip(parameters, ours.parameters(), strict=True))
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [n for n, _ in ours.named_modules()] == names
    assert [n for n, _ in ours.named_children()] == [n for n, _ in plain.named_children()]
    assert repr(ours) == repr(plain)


@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_twice_is_once(case: Case) -> None:
    ours = datagrad_ext.accelerate(case.build())
    kind = type(ours)
    assert datagrad_ext.accelerate(ours) is ours
    assert type(ours) is kind
    compare(ours, case.build(), case.inputs())
    assert datagrad_ext.accelerate(ours) is ours
    assert type(ours) is kind


def test_a_part_and_then_the_whole() -> None:
    ours = mlp(nn.GELU).double()
    plain = copy.deepcopy(ours)
    datagrad_ext.accelerate(ours[2])
    compare(ours, plain, [data(4, 6)])
    datagrad_ext.accelerate(ours)
    compare(ours, plain, [data(4, 6)])


def _by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def _by_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy_of_copy": lambda m: copy.deepcopy(copy.deepcopy(m)),
    "pickle": _by_pickle,
    "torch_save": _by_torch_save,
}


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(
    "name", ["mlp_relu", "conv_vgg", "tied", "untraceable", "conv_resnet_batch_norm_eval"]
)
def test_copies(name: str, how: str, called: bool) -> None:
    case = network(name)
    ours = datagrad_ext.accelerate(case.build())
    if called:
        observe(ours, case.inputs(), OBJECTIVE)
    twin = COPIES[how](ours)
    assert type(twin) is type(ours)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in ours.parameters()}
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()  # the copy must not read these
    compare(twin, case.build(), case.inputs())
    assert datagrad_ext.program(twin).rows


def test_state_dict_goes_both_ways() -> None:
    case = network("conv_resnet_batch_norm")
    ours, plain = datagrad_ext.accelerate(case.build()), case.build()
    for step in range(2):
        observe(ours, case.inputs(seed=step), OBJECTIVE)
    plain.load_state_dict(ours.state_dict())
    compare(ours, plain, case.inputs())
    ours.load_state_dict(case.build().state_dict())
    compare(ours, case.build(), case.inputs())


def test_torch_functions_that_swap_the_parameters() -> None:
    ours, plain, inputs = pair(network("mlp_gelu"))
    for model in (ours, plain):
        with torch.no_grad():
            vector = nn.utils.parameters_to_vector(model.parameters())
            nn.utils.vector_to_parameters(vector * 0.5, model.parameters())
        model[0].weight = nn.Parameter(model[0].weight.detach() * 2)
        model[2].bias = None
    compare(ours, plain, inputs)


# ------------------------------------------------------------------------------------ changes after a call


def _set(path: str, **values: object) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for name, value in values.items():
            setattr(model.get_submodule(path), name, value)

    return change


class Tempered(nn.Module):
    """Plain Python attributes that forward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.temperature, self.residual, self.slopes = (
            mlp(nn.ReLU, outputs=6),
            2.0,
            False,
            [0.1, 0.2],
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) / self.temperature
        for slope in self.slopes:
            y = F.leaky_relu(y, slope)
        return y + x if self.residual else y


def _changed_slopes(model: nn.Module) -> None:
    model.slopes.append(0.7)


def _linear(outputs: int, seed: int = 3) -> nn.Module:
    layer = nn.Linear(8, outputs).double()
    layer.load_state_dict({"weight": data(outputs, 8, seed=seed), "bias": data(outputs, seed=seed)})
    return layer


def _replaced(index: int, module: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        model[index] = module()

    return change


def _wider(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].padding, model[0].kernel_size = (2, 2), (4, 4)


def _append(model: nn.Module) -> None:
    model.append(nn.Tanh())


CHANGES: list = [
    pytest.param("mlp_dropout", _set("1", p=0.1), id="dropout_p"),
    pytest.param("mlp_dropout", _set("3", p=1.0), id="dropout_p_1"),
    pytest.param("mlp_leaky_relu", _set("1", negative_slope=0.5), id="negative_slope"),
    pytest.param("mlp_softplus", _set("1", beta=4.0), id="beta"),
    pytest.param("mlp_elu", _set("3", alpha=2.0), id="alpha"),
    pytest.param("mlp_gelu", _set("3", approximate="tanh"), id="approximate"),
    pytest.param("conv_vgg", _wider, id="conv_padding"),
    pytest.param("mlp_layer_norm", _set("1", eps=0.5), id="eps"),
    pytest.param("mlp_batch_norm", _set("1", momentum=0.9), id="momentum"),
    pytest.param("mlp_relu", _replaced(1, nn.Tanh), id="replaced_activation"),
    pytest.param("mlp_relu", _replaced(4, lambda: _linear(3)), id="replaced_head"),
    pytest.param("mlp_relu", _append, id="appended"),
    pytest.param("mlp_relu", lambda model: model.__delitem__(3), id="deleted"),
    pytest.param("mlp_relu", lambda model: model[0].requires_grad_(False), id="frozen"),
    pytest.param("mlp_relu", lambda model: model.requires_grad_(False), id="all_frozen"),
    pytest.param("frozen_first", lambda model: model.requires_grad_(True), id="thawed"),
    pytest.param("mlp_dropout", lambda model: model.eval(), id="eval"),
    pytest.param("mlp_dropout", lambda model: model[1].eval(), id="eval_of_one"),
    pytest.param("mlp_dropout_eval", lambda model: model.train(), id="train"),
    pytest.param("mlp_batch_norm", lambda model: model.eval(), id="eval_batch_norm"),
    pytest.param("conv_resnet_batch_norm", lambda model: model.eval(), id="eval_resnet"),
    pytest.param("tied_modules", _replaced(1, nn.ReLU), id="replaced_between_shared"),
    pytest.param(
        "untraceable", lambda m: setattr(m, "first", nn.Identity()), id="replaced_child_of_untraceable"
    ),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_change_after_the_first_call(name: str, change: Callable[[nn.Module], object], device: str) -> None:
    ours, plain, inputs = pair(network(name), device)
    for model in (ours, plain):
        change(model)
    for _ in range(2):
        compare(ours, plain, inputs)


@pytest.mark.parametrize(
    "change",
    [
        _set("", temperature=0.5),
        _set("", residual=True),
        _set("", slopes=[0.9]),
        _changed_slopes,
        _set("body.1", training=False),
    ],
    ids=["float", "bool", "list", "list_in_place", "flag_of_a_part"],
)
def test_attributes_that_forward_reads(change: Callable[[nn.Module], None]) -> None:
    case = Case("tempered", Tempered)
    ours, plain, inputs = pair(case)
    for model in (ours, plain):
        change(model)
    compare(ours, plain, inputs)


def test_train_and_eval_in_turn(device: str) -> None:
    ours, plain, inputs = pair(network("conv_vgg"), device)
    for mode in (False, True, True, False, True):
        compare(ours.train(mode), plain.train(mode), inputs)


def test_shapes_in_turn(device: str) -> None:
    ours, plain, _ = pair(network("conv_resnet_batch_norm"), device)
    for shape in ((2, 3, 8, 8), (5, 3, 8, 8), (2, 3, 10, 6), (1, 3, 16, 9), (2, 3, 8, 8)):
        compare(ours, plain, [data(*shape).to(device)])


def test_shape_decides_in_forward() -> None:
    """A size used as a Python number is not frozen into the program."""

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x).tanh()
            return (h * h.size(0)).view(h.shape[0] * 2, -1) / x.dim()

    ours, plain, _ = pair(Case("sized", Sized))
    for rows in (4, 2, 7):
        compare(ours, plain, [data(rows, 6)])


def test_dtype_and_back() -> None:
    ours, plain, inputs = pair(network("mlp_gelu"))
    objective = OBJECTIVE
    for model in (ours, plain):
        model.float()
    found = observe(ours, [t.float() for t in inputs], objective)
    assert found["value J0.0"].dtype == torch.float32
    assert_equal(found, observe(plain, [t.float() for t in inputs], objective), rtol=1e-4)
    for model in (ours, plain):
        model.double()
    compare(ours, plain, inputs)


def test_hooks_on_inner_modules_fire(device: str) -> None:
    """A module with hooks stays opaque, whenever they came, and the table says why."""
    case = network("mlp_gelu")
    for call_first in (False, True):
        ours, plain = datagrad_ext.accelerate(case.build().to(device)), case.build().to(device)
        inputs = [t.to(device) for t in case.inputs()]
        if call_first:
            compare(ours, plain, inputs)
        seen: dict[int, list[str]] = {id(ours): [], id(plain): []}
        handles = []
        for model in (ours, plain):
            log = seen[id(model)].append
            handles += [
                model[1].register_forward_hook(lambda m, i, y, log=log: log("forward") or y * 2),
                model[2].register_forward_pre_hook(lambda m, i, log=log: log("before") or (i[0] + 1,)),
            ]
        compare(ours, plain, inputs)
        assert seen[id(ours)] == seen[id(plain)] == ["forward", "before"]
        rows = {row.name: row for row in datagrad_ext.program(ours).rows}
        noted = [row for row in rows.values() if row.kind == "opaque"]
        assert len(noted) == 2, rows
        assert all("hook" in row.note for row in noted)
        for handle in handles:
            handle.remove()
        compare(ours, plain, inputs)
        assert all(row.kind != "opaque" for row in datagrad_ext.program(ours).rows)


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_critic"])
def test_full_backward_hooks_on_inner_modules_fire(name: str, device: str) -> None:
    ours, plain, inputs = pair(network(name), device)
    calls: dict[int, list] = {id(ours): [], id(plain): []}
    for model in (ours, plain):
        log = calls[id(model)].append
        model[2].register_full_backward_hook(lambda m, gi, go, log=log: log(1) or (gi[0] * 2,))

    def first_order(model: nn.Module, x: Tensor):
        model(x).square().sum().backward()
        return {}

    compare(ours, plain, inputs, first_order)
    assert len(calls[id(ours)]) == len(calls[id(plain)]) == 1


# ----------------------------------------------------------------------------------------------- arguments


class WithArguments(nn.Module):
    """Optional and keyword arguments, a flag, a loss inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.side = mlp(nn.SiLU), nn.Linear(2, 6)

    def forward(self, x, side=None, *, scale=1.0, squash=False, target=None):
        if side is not None:
            x = x + self.side(side)
        y = self.net(x) * scale
        if squash:
            y = torch.sigmoid(y)
        return y if target is None else F.cross_entropy(y, target)


ARGUMENTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "positional": lambda m, x: m(x),
    "none": lambda m, x: m(x, None),
    "keyword_input": lambda m, x: m(x=x),
    "float": lambda m, x: m(x, scale=2.5),
    "flag": lambda m, x: m(x, squash=True),
    "tensor": lambda m, x: m(x, x[:, :2] * 1),
    "keyword_tensor": lambda m, x: m(x, side=x[:, :2].detach()),
    "all": lambda m, x: m(x, side=x[:, 2:4].tanh(), scale=0.3, squash=True),
    "loss": lambda m, x: m(x, target=torch.arange(len(x), device=x.device)),
}


@pytest.mark.parametrize("case", [Case("arguments", WithArguments)], ids=ids)
def test_arguments_in_turn(case: Case, device: str) -> None:
    """One model, called in every way after each other: no call runs the program of another."""
    ours, plain = datagrad_ext.accelerate(case.build().to(device)), case.build().to(device)
    for call in [*ARGUMENTS.values(), *reversed(ARGUMENTS.values())]:

        def code(model: nn.Module, x: Tensor, call=call):
            total = call(model, x).square().sum()
            (J,) = torch.autograd.grad(total, x, create_graph=True)
            (total + J.square().sum()).backward()
            return {"J": J}

        compare(ours, plain, [data(4, 6).to(device)], code)


def test_arguments_that_are_containers() -> None:
    class Containers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 5)

        def forward(self, batch):
            return {"out": self.a(batch["x"]).tanh() * self.b(batch["more"][0]), "x": batch["x"]}

    def code(model: nn.Module, x: Tensor, z: Tensor):
        y = model({"x": x, "more": [z, "label"]})["out"]
        J, K = torch.autograd.grad(y.square().sum(), (x, z), create_graph=True)
        (J.square().sum() + (K * z).sum()).backward()
        return {"J": J, "K": K}

    check(Containers().double(), [data(4, 6), data(4, 6, seed=2)], code, datagrad_ext.accelerate)


def test_integer_input(device: str) -> None:
    """Tokens: nothing to take a data gradient of, the parameters still learn."""

    def code(model: nn.Module, x: Tensor):
        model((x * 10).long().abs() % 7).square().sum().backward()
        return {}

    model = nn.Sequential(nn.Embedding(7, 6), nn.Flatten(1), nn.Linear(36, 5), nn.ReLU()).double()
    check(model, [data(4, 6)], code, datagrad_ext.accelerate, device=device)


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(0, 1).contiguous().transpose(0, 1)


def _stepped(t: Tensor) -> Tensor:
    return torch.stack([t, t], -1)[..., 0]


def _offset(t: Tensor) -> Tensor:
    return torch.cat([t.flatten()[:1], t.flatten()])[1:].view_as(t)


def _expanded(t: Tensor) -> Tensor:
    return t[:1].expand_as(t)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": _transposed,
    "stepped": _stepped,
    "offset": _offset,
    "expanded": _expanded,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
}
LAYOUT_NETWORKS = (
    "mlp_relu",
    "mlp_gelu",
    "conv_vgg",
    "conv_critic",
    "conv_resnet_group_norm",
    "conv_3d",
    "dag_flatten",
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYOUT_NETWORKS)
def test_layout_of_the_input(name: str, layout: str, device: str) -> None:
    def code(model: nn.Module, x: Tensor):
        return OBJECTIVE(model, LAYOUTS[layout](x))

    case = network(name)
    check(case.build(), case.inputs(), code, datagrad_ext.accelerate, device=device)


def test_channels_last_stays_channels_last(device: str) -> None:
    net = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Softplus()).double()  # noqa: E731
    model = datagrad_ext.accelerate(net().to(device, memory_format=torch.channels_last))
    x = data(2, 3, 8, 8).to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = model(x)
    (J,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    J.square().sum().backward()
    for name, tensor in {"y": y, "J": J, "weight gradient": model[2].weight.grad}.items():
        assert tensor.is_contiguous(memory_format=torch.channels_last), name


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize(
    "name",
    [
        *["mlp_relu", "mlp_gelu", "conv_critic", "conv_vgg", "dag_dense", "dag_mul", "mlp_layer_norm"],
        *["conv_resnet_plain", "conv_resnet_batch_norm_eval"],
    ],
)
def test_small_batches(name: str, rows: int, device: str) -> None:
    def code(model: nn.Module, x: Tensor):
        y = model(x)
        (J,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (y.sum() + J.square().sum()).backward()
        return {"y": y, "J": J}

    case = network(name)
    check(case.build(), [t[:rows] for t in case.inputs()], code, datagrad_ext.accelerate, device=device)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e60])
@pytest.mark.parametrize("case", [*[c for c in MLPS if c.opaque is False][::2], network("conv_vgg")], ids=ids)
def test_not_finite_input(case: Case, value: float, device: str) -> None:
    """One bad sample: the same samples and parameters are spoilt as in PyTorch, no more and no fewer."""

    def code(model: nn.Module, x: Tensor):
        y = model(x)
        (J,) = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)
        (y.tanh().sum() + J.square().sum()).backward()
        return {"y": y, "J": J}

    inputs = case.inputs()
    inputs[0].view(-1)[1] = value
    check(case.build(), inputs, code, datagrad_ext.accelerate, device=device)


# ------------------------------------------------------------------------------------- refusals and tables

REFUSED = {
    "function": lambda: torch.relu,
    "tensor": lambda: torch.ones(2),
    "class": lambda: nn.Linear,
    "none": lambda: None,
    "compiled": lambda: torch.compile(nn.Linear(2, 2)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("what", REFUSED)
def test_refuses_in_a_sentence(what: str) -> None:
    with pytest.raises(TypeError, match=r"^accelerate\(\).*[A-Za-z ]{20,}") as caught:
        datagrad_ext.accelerate(REFUSED[what]())
    assert len(str(caught.value).split()) > 8


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_refuses_a_script_module() -> None:
    with pytest.raises(TypeError, match="ScriptModule"):
        datagrad_ext.accelerate(torch.jit.script(nn.Linear(2, 2)))


def test_program_of_a_plain_module_says_what_to_do() -> None:
    with pytest.raises(TypeError, match="accelerate"):
        datagrad_ext.program(nn.Linear(2, 2), torch.ones(1, 2))


def test_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageChain, "covers", lambda *_: False)
    case = network("conv_resnet_batch_norm")
    ours = datagrad_ext.accelerate(case.build())
    before = copy.deepcopy(ours.state_dict())
    state = torch.random.get_rng_state()
    table = datagrad_ext.program(ours, *case.inputs())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items()), (
        "looking at a program trains it"
    )
    text = str(table)
    for row in table.rows:
        assert row.name in text
        assert row.layer in text
        assert row.saved_bytes >= 0
        assert row.kind != "opaque" or row.note, "an opaque row says why"
    first = table.rows[0]
    assert (tuple(first.input_shape), tuple(first.output_shape)) == ((3, 3, 8, 8), (3, 4, 8, 8))
    assert {row.kind for row in table.rows if row.layer == "BatchNorm"} <= {"native", "reference"}


@needs_native
def test_table_of_a_chain() -> None:
    """One row names the layers, and what they read that is not before them."""
    convolutions = {"f": nn.Conv2d(3, 4, 3), "g": nn.Conv2d(3, 4, 3)}
    block = Body(lambda m, x: (m.norm(m.f(x)) + m.g(x)).relu(), norm=nn.BatchNorm2d(4), **convolutions)
    (row,) = datagrad_ext.program(datagrad_ext.accelerate(block), torch.ones(2, 3, 5, 5)).rows
    assert row.layer == "Conv2d → BatchNorm → Conv2d<0 → Add<2<3 → ReLU"


@pytest.mark.parametrize("name", ["dag_cumsum", "opaque_gru"])
def test_table_names_what_is_opaque(name: str) -> None:
    case = network(name)
    table = datagrad_ext.program(datagrad_ext.accelerate(case.build()), *case.inputs())
    assert [row.layer for row in table.rows if row.kind == "opaque" and row.note]


def test_table_of_an_untraceable_model_lists_its_parts() -> None:
    ours, _, _ = pair(network("untraceable"))
    table = datagrad_ext.program(ours)
    assert any(row.name.startswith("first") for row in table.rows)
    assert any(row.name.startswith("second") for row in table.rows)
    assert str(table)


def test_relu_saves_one_bit_an_element() -> None:
    model = datagrad_ext.accelerate(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).float())
    rows = datagrad_ext.program(model, torch.ones(4, 3, 16, 16)).rows
    relu = next(row for row in rows if "relu" in row.layer.lower())
    of_convolution = 4 * 3 * 16 * 16 * 4  # x
    assert relu.saved_bytes == of_convolution + 4 * 8 * 16 * 16 // 8


# -------------------------------------------------------------------------------------------------- layers


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules() -> None:
    """Their first call makes the parameters and changes their class."""
    ours, plain = (nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(5)) for _ in range(2))
    datagrad_ext.accelerate(ours)
    x = data(4, 6).float().requires_grad_()
    ours(x)
    plain(x)
    plain.load_state_dict(ours.state_dict())
    compare(ours.double(), plain.double(), [data(4, 6)])


def test_transformer_layer_first_order(device: str) -> None:
    """PyTorch itself has no second order here on the CPU."""

    def code(model: nn.Module, x: Tensor):
        y = model(x)
        y.square().sum().backward()
        return {"y": y}

    for train in (True, False):
        layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        model = nn.Sequential(layer, nn.Linear(6, 5)).double().train(train)
        check(model, [data(2, 3, 6)], code, datagrad_ext.accelerate, device=device)


def test_two_models_of_one_class_do_not_share_programs() -> None:
    wide, narrow = (Tempered().double() for _ in range(2))
    narrow.temperature, narrow.residual = 0.3, True
    plain = [copy.deepcopy(model) for model in (wide, narrow)]
    ours = [datagrad_ext.accelerate(model) for model in (wide, narrow)]
    for _ in range(2):
        for model, expected in zip(ours, plain, strict=True):
            compare(model, expected, [data(4, 6)])


def test_accelerated_model_inside_a_plain_one(device: str) -> None:
    class Outer(nn.Module):
        def __init__(self, accelerate: Callable) -> None:
            super().__init__()
            self.trunk, self.head = accelerate(conv_net().double()), nn.Linear(5, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.sin(self.trunk(x)))

    ours, plain = Outer(datagrad_ext.accelerate), Outer(lambda m: m)
    plain.load_state_dict(ours.state_dict())
    compare(ours.to(device), plain.to(device), [data(2, 3, 8, 8).to(device)])


def test_batch_norm_counts_every_forward_once(device: str) -> None:
    ours, plain, inputs = pair(network("mlp_batch_norm"), device)
    for model in (ours, plain):
        for seed in range(3):
            x = leaf(data(4, 6, seed=seed).to(device))
            J = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0]
            J.square().sum().backward()
        with torch.no_grad():
            model(inputs[0])
    assert int(ours[1].num_batches_tracked) == int(plain[1].num_batches_tracked) == 5
    assert_equal(dict(ours.named_buffers()), dict(plain.named_buffers()))
