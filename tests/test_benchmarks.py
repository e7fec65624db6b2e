"""The benchmark suite: its tables, its gate, its statistics, its results files, its report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import (
    cases,
    ceilings,
    contestants,
    environment,
    gate,
    kernels,
    memory,
    objectives,
    op_cases,
    peaks,
    report,
    results,
    run,
    series,
    suite,
    tables,
    timing,
)
from benchmarks.compare import comparison
from benchmarks.fixed_convolution import Convolution, Geometry, fix_convolutions

SMALL = cases.Subject(
    "small MLP", lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 10)), (6, 5)
)
CASE = cases.Case("small", SMALL, objectives.CROSS_ENTROPY_L2, 50.0)
DIRECT = ("plain", "eager")


def _contestants(*names: str) -> list[contestants.Contestant]:
    return list(contestants.find(list(names)))


def _without_penalty(case: cases.Case) -> contestants.Prepared:
    model, x, t = case.build()
    parameters = list(model.parameters())
    return contestants.Prepared(lambda: objectives.plain_step(model, parameters, case.objective, x, t))


def _raising(case: cases.Case) -> contestants.Prepared:
    raise RuntimeError("no compiler here\nand a long explanation")


WRONG = contestants.Contestant("wrong", "drops the penalty", "peer", _without_penalty)
RAISING = contestants.Contestant("raising", "raises", "peer", _raising)


@pytest.fixture(scope="module")
def measured() -> results.CaseResult:
    return suite.run_case(CASE, [*_contestants(*DIRECT), WRONG, RAISING], repeats=3, with_memory=False)


def _times(median_ms: float) -> timing.Times:
    return timing.summary([0.9 * median_ms, median_ms, 1.2 * median_ms], 4)


def _made_up() -> results.Results:
    accuracy = gate.Accuracy(1e-7, 1.0, 1.0, 1e-6)
    measured = {
        "plain": (2.0, 2**20),
        "eager": (8.0, 2**22),
        "fixed_conv": (6.0, 2**22),
        "ours": (3.0, 2**21),
    }
    rows = []
    for entrant, (ms, size) in zip(_contestants(*measured), measured.values(), strict=True):
        row = results.Row(entrant.name, entrant.title, entrant.role, accuracy=accuracy, allowed_error=1e-3)
        row.times, row.peak_bytes = _times(ms), size
        rows.append(row)
    rows.append(results.Row("compile", "torch.compile", "peer", "failed", "InvalidCxxCompiler: none | found"))
    rows.append(results.Row("jax", "JAX jit", "peer", "absent", "no JAX for cpu"))
    case = results.CaseResult(
        "critic", "critic, 3 conv", "CE + L2²", "cpu", "float32", "contiguous", [2, 3], 0.5, rows
    )
    case.limit_ms, case.limit_by = 1.0, "products"
    case.set_ratios()
    again = results.CaseResult(**vars(case) | {"name": "depth_4"})
    lines = results.SeriesResult("depth", "critic", "depth", [2, 4], [case, again])
    operation = results.OperationResult("relu_gate", "ReLU gate", [4, 5], "float32", accuracy=accuracy)
    operation.ours, operation.torch, operation.ratio = _times(1.0), _times(2.5), 2.5
    surroundings = environment.describe("cpu") | {
        "date": "2001-02-03",
        "device": "Some CPU (R) 7",
        "threads": 2,
    }
    return results.Results(
        surroundings,
        {"repeats": 3, "parts": ["steps"], "quick": False},
        [case],
        [operation],
        ceilings=ceilings.Ceilings({"float32": 1e12}, 2e11),
        series=[lines],
    )


# Tables of cases, contestants, operations


def test_names_are_unique_and_rows_are_complete() -> None:
    for device in ("cpu", "cuda"):
        rows = cases.cases_of(device)
        assert len({case.name for case in rows}) == len(rows) > 0
        assert all(case.precision in gate.TOLERANCES and case.layout in cases.LAYOUTS for case in rows)
        operations = op_cases.operations(device)
        assert len({(row.name, row.shape, row.channels_last, row.precision) for row in operations}) == len(operations)
    names = [contestant.name for contestant in contestants.CONTESTANTS]
    assert len(set(names)) == len(names)
    assert {contestant.role for contestant in contestants.CONTESTANTS} == {"plain", "peer", "ours"}


@pytest.mark.parametrize("case", cases.CPU_CASES, ids=lambda case: case.name)
def test_a_case_builds_the_same_model_and_data_twice(case: cases.Case) -> None:
    (model, x, t), (again, x_again, _) = case.build(), case.build()
    assert x.shape == case.subject.input_shape
    assert torch.equal(x, x_again)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    y = model(x[:1])
    assert y.shape[0] == 1
    assert t.max() < 10
    if case.layout == "channels_last":
        assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", cases.CPU_CASES, ids=lambda case: case.name)
def test_the_gate_would_notice_a_missing_penalty(case: cases.Case) -> None:
    small = replace(
        case.subject, input_shape=(min(4, case.subject.input_shape[0]), *case.subject.input_shape[1:])
    )
    assert gate.oracle(replace(case, subject=small)).penalty_share > 2 * gate.TOLERANCES[case.precision]


@pytest.mark.parametrize("name", ["convbn_bf16", "mlp_paper_bf16", "mlp_narrow_tf32", "sdf_bf16"])
def test_a_case_of_a_gpu_passes_its_gate_on_few_samples(name: str) -> None:
    (case,) = cases.find("cuda", [name])
    rows = suite.rehearse(case, _contestants("plain", "eager", "ours"))
    assert [(row.status, row.reason) for row in rows] == [("ok", None)] * 3


@pytest.mark.parametrize("row", series.SERIES, ids=lambda row: f"{row.device}-{row.name}")
def test_a_series_has_a_case_a_value(row: series.Series) -> None:
    made = list(row.cases())
    assert [case.name for case in made] == [f"{row.name}_{value}" for value in row.values]
    assert len({case.subject.input_shape if row.variable == "batch" else case.subject.title for case in made}) == len(
        made
    )
    assert {case.device for case in made} == {row.device}
    assert contestants.find(list(row.contestants))
    few = made[0].on_few(2)
    assert gate.oracle(few).penalty_share > 2 * gate.TOLERANCES[few.precision]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no series 'nothing' on cpu; the series are batch_mlp"):
        series.find("cpu", ["nothing"])
    with pytest.raises(ValueError, match="no case 'nothing' on cpu; the cases are mlp_paper"):
        cases.find("cpu", ["nothing"])
    with pytest.raises(ValueError, match="no contestant 'nobody'; the contestants are plain"):
        contestants.find(["nobody"])


def test_settings_are_restored_after_an_error() -> None:
    before = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(ZeroDivisionError), replace(CASE, precision="tf32").settings():
        1 / int(not torch.backends.cudnn.benchmark)
    assert before == (torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32)


# Contestants against each other


@pytest.mark.parametrize("objective", [objectives.CROSS_ENTROPY_L1, objectives.R1, objectives.EIKONAL])
def test_the_compiled_form_has_the_value_of_the_eager_step(objective: objectives.Objective) -> None:
    model, x, t = CASE.build()
    model, x = model.double(), x.double()
    parameters = dict(model.named_parameters())
    total = objectives.penalty_total(model, objective, 3.0, parameters, x, t)
    gradients = torch.autograd.grad(
        total, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    expected = objectives.penalty_step(model, list(model.parameters()), objective, 3.0, x, t)
    assert gate.compare(gradients, expected).relative_error < 1e-12


@pytest.mark.parametrize(
    "geometry", [Geometry((1, 1), (1, 1), (1, 1), 1), Geometry((2, 1), (1, 0), (1, 2), 2)]
)
def test_fixed_convolution_has_right_first_and_second_derivatives(geometry: Geometry) -> None:
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2 // geometry.groups, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: Convolution.apply(x, w, geometry), (x, w))
    assert torch.autograd.gradgradcheck(lambda x, w: Convolution.apply(x, w, geometry), (x, w))


def test_fixed_convolution_replaces_every_convolution() -> None:
    model = fix_convolutions(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 5, 3))))
    assert [type(m).__name__ for m in model.modules() if isinstance(m, nn.Conv2d)] == ["FixedConv2d"] * 2


def test_contestants_enter_where_they_belong() -> None:
    (fixed, graph) = _contestants("fixed_conv", "eager_graph")
    critic, mlp = cases.find("cpu", ["critic", "mlp_one"])
    assert fixed.enters(critic)
    assert not fixed.enters(mlp)
    assert not graph.enters(mlp)
    on_cuda = replace(mlp, device="cuda")
    assert graph.enters(on_cuda)
    (compiled,) = _contestants("compile")
    assert compiled.enters(mlp)
    assert not compiled.enters(on_cuda)
    assert _contestants("compile_graph")[0].enters(on_cuda)


# Gate


def test_a_contestant_that_is_wrong_or_raises_is_failed_and_not_timed(measured: results.CaseResult) -> None:
    wrong, raising = measured.row("wrong"), measured.row("raising")
    assert wrong is not None
    assert raising is not None
    assert (wrong.status, wrong.times) == ("failed", None)
    assert str(wrong.reason).startswith("wrong gradients: relative error")
    assert (raising.status, raising.times, raising.reason) == (
        "failed",
        None,
        "RuntimeError: no compiler here",
    )


def test_right_contestants_are_timed(measured: results.CaseResult) -> None:
    for name in DIRECT:
        row = measured.row(name)
        assert row is not None
        assert row.status == "ok"
        assert row.times is not None
        assert len(row.times.samples_ms) == 3
        assert row.times.p20_ms <= row.times.median_ms <= row.times.p80_ms
    assert measured.row("plain").ratio_to_plain == 1  # type: ignore[union-attr]
    assert measured.row("eager").ratio_to_fastest_peer == 1  # type: ignore[union-attr]


def test_the_gate_objects_to_each_kind_of_error() -> None:
    right = (torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([1e-3], dtype=torch.float64))
    assert gate.objection(gate.compare(right, right), 1e-10) is None
    longer = tuple(1.1 * g for g in right)
    assert "relative error 0.1" in str(gate.objection(gate.compare(longer, right), 1e-2))
    one_parameter = (right[0], -right[1])
    assert "worst parameter" in str(gate.objection(gate.compare(one_parameter, right), 1e-2))
    broken = (right[0] * float("nan"), right[1])
    assert gate.objection(gate.compare(broken, right), 1e-2) is not None
    with pytest.raises(ValueError, match=r"gradients have shapes \[\(2,\)\], the parameters have"):
        gate.compare(right[:1], right)


def test_allowed_error_follows_eager_but_never_hides_the_penalty() -> None:
    eager = gate.Accuracy(0.2, 1.0, 1.0, 0.2)
    assert gate.limit("float32", None, 0.8) == gate.TOLERANCES["float32"]
    assert gate.limit("bf16", eager, 2.0) == pytest.approx(0.4)
    assert gate.limit("bf16", eager, 0.3) == pytest.approx(0.15)
    assert gate.baseline_limit("tf32", 2.0) == gate.TOLERANCES["tf32"]
    assert gate.baseline_limit("float32", 2.0) == gate.BASELINES["float32"] > gate.TOLERANCES["float32"]
    assert gate.baseline_limit("bf16", 2.0) == gate.BASELINES["bf16"]
    assert gate.baseline_limit("bf16", 0.6) == pytest.approx(0.3)


def test_a_warning_of_a_contestant_becomes_a_note() -> None:
    import warnings

    def step() -> tuple[torch.Tensor, ...]:
        warnings.warn("took the slow path\nbecause", UserWarning, stacklevel=1)
        return ()

    assert contestants.quietly(contestants.Prepared(step, lambda: ["more"])) == (
        (),
        ["took the slow path", "more"],
    )


# Times and memory


def test_percentiles_interpolate() -> None:
    times = timing.summary([5.0, 1.0, 2.0, 4.0, 3.0, 6.0], calls=2)
    assert (times.p20_ms, times.median_ms, times.p80_ms) == (2.0, 3.5, 5.0)
    assert times.calls_per_repeat == 2


def test_contestants_alternate() -> None:
    called: list[str] = []
    times = timing.alternate(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")}, "cpu", repeats=5
    )
    assert [len(time.samples_ms) for time in times.values()] == [5, 5]
    turns = [name for name, before in zip(called, ["", *called], strict=False) if name != before]
    assert len(turns) > 5


def test_cpu_peak_is_what_the_allocator_held() -> None:
    def step() -> torch.Tensor:
        first = torch.zeros(1000, dtype=torch.float64) + 1
        return first.sum()

    assert 16_000 <= peaks.cpu_peak(step) <= 16_400
    assert peaks.traced_peak(step) == 16_000


def test_the_traced_peak_is_that_of_the_allocator() -> None:
    step = contestants.find(["eager"])[0].make(CASE).step
    step()
    assert peaks.traced_peak(step) == pytest.approx(peaks.cpu_peak(step), rel=0.05)


def test_the_traced_peak_needs_no_memory() -> None:
    huge = replace(CASE, device="meta", subject=replace(SMALL, input_shape=(2**40, 5)))
    assert peaks.traced_peak(contestants.find(["eager"])[0].make(huge).step) > 2**40 * 7 * 4


@pytest.mark.slow
def test_memory_of_a_fresh_process_and_its_failure() -> None:
    assert memory.peak_bytes("mlp_one", "plain") >= 4 * 64 * 64 * 4
    with pytest.raises(RuntimeError, match="peak memory of nobody on mlp_one was not measured: ValueError"):
        memory.peak_bytes("mlp_one", "nobody")


# Limits


def _work(objective: objectives.Objective, network: nn.Module, *shape: int) -> ceilings.Work:
    case = cases.Case("any", cases.Subject("any", lambda: network, shape), objective, 1.0)
    found = ceilings.work(case)
    assert found is not None
    return found


def test_units_of_the_limit_are_those_of_the_sweeps() -> None:
    network = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    first, last = 2 * 4 * 5 * 7, 2 * 4 * 7 * 3
    assert _work(objectives.CROSS_ENTROPY_L2, network, 4, 5).flops == 5 * first + 6 * last
    assert _work(objectives.R1, network, 4, 5).flops == 4 * first + 4 * last
    smooth = nn.Sequential(nn.Linear(5, 7), nn.Softplus(), nn.Linear(7, 3))
    assert _work(objectives.R1, smooth, 4, 5).flops == 5 * first + 6 * last


def test_a_convolution_costs_its_window_for_each_output_and_moves_its_ends_once_a_sweep() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 4 * 4, 1))
    found = _work(objectives.R1, network, 5, 2, 6, 6)
    x, y = 5 * 2 * 6 * 6, 5 * 3 * 4 * 4
    assert found.flops == 4 * (2 * y * 2 * 3 * 3 + 2 * 5 * 3 * 4 * 4)
    assert found.bytes >= 3 * 4 * (x + y)


def test_the_limit_is_the_larger_of_products_and_memory() -> None:
    rates = ceilings.Ceilings({"float32": 1e12}, 1e11)
    assert ceilings.Work(2e9, 1e8).limit("float32", rates) == (2.0, "products")
    assert ceilings.Work(2e9, 1e9).limit("float32", rates) == (10.0, "memory")


def test_ceilings_are_measured_for_the_precisions_of_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ceilings.GEMM_SIZE, "cpu", 32)
    monkeypatch.setitem(ceilings.COPY_BYTES, "cpu", 1024)
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.0)
    rates = ceilings.measure("cpu", [CASE, replace(CASE, precision="bf16")])
    assert set(rates.products) == {"float32", "bf16"}
    assert min(*rates.products.values(), rates.memory) > 0


# Results files


def test_a_results_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "2001-02-03.json"
    results.write(_made_up(), path)
    assert results.read(path) == _made_up()
    data = json.loads(path.read_text(encoding="utf-8"))
    assert {"format", "environment", "settings", "cases", "operations", "ceilings", "series"} <= set(data)
    expected = {"device", "cpu", "threads", "python", "torch", "revision", "date", "datagrad_ext"}
    assert expected <= set(data["environment"])
    assert {"dtype", "layout", "penalty_share", "rows"} <= set(data["cases"][0])


def test_files_that_are_no_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("{}", "not json", json.dumps({"format": 0})):
        path.write_text(text)
        with pytest.raises(ValueError, match="is not a results file"):
            results.read(path)


def test_ratios_are_to_the_fastest_of_a_role() -> None:
    case = _made_up().cases[0]
    ours, eager = case.row("ours"), case.row("eager")
    assert ours is not None
    assert eager is not None
    assert (ours.ratio_to_plain, ours.ratio_to_fastest_peer) == (1.5, 0.5)
    assert eager.ratio_to_plain == 4


def test_the_newest_file_of_each_device_counts(tmp_path: Path) -> None:
    for name in ("a/2001-02-03.json", "a/2001-11-03.json", "b/2000-01-01.json", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in results.newest(tmp_path.iterdir())] == [
        "2001-11-03.json",
        "2000-01-01.json",
    ]


# Tables and the report


def test_numbers_have_three_digits() -> None:
    assert [tables.number(v) for v in (None, 0.12345, 1.2345, 12.345, 123.45)] == [
        "–",
        "0.123",
        "1.23",
        "12.3",
        "123",
    ]


def test_summary_table_says_ratio_speed_up_and_memory() -> None:
    line = tables.summary_table(_made_up()).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "critic, 3 conv",
        "CE + L2², float32",
        "2.00",
        "4.00",
        "3.00",
        "–",
        "**1.50**",
        "2.67",
        "2.00",
        "3.00",
        "0.500",
    ]


def test_case_table_names_failures_and_their_reasons() -> None:
    text = tables.case_table(_made_up().cases[0])
    assert "- torch.compile failed: InvalidCxxCompiler: none | found" in text
    assert text.count("failed") == 2
    assert "- JAX jit is absent: no JAX for cpu" in text
    assert text.count("JAX") == 2
    assert "- limit: 1.00 ms, by products" in text


def test_series_table_has_a_line_a_value() -> None:
    text = tables.series_table(_made_up().series[0])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert cells[0][:3] == ["depth", "plain step, ms", "eager double backprop, ms"]
    assert [line[0] for line in cells[2:]] == ["2", "4"]
    assert cells[2][-2:] == ["1.50", "2.67"]


def test_report_fills_pages_draws_the_plot_and_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    results.write(_made_up(), tmp_path / "results" / "some-cpu-r-7-2-threads" / "2001-02-03.json")
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "performance.md"
    page.parent.mkdir()
    for path in (readme, page):
        path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    where = ["--results", str(tmp_path / "results"), "--readme", str(readme), "--page", str(page)]
    assert report.main([*where, "--check"]) == 1
    assert report.main(where) == 0
    assert report.main([*where, "--check"]) == 0
    text = readme.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "](docs/benchmark-some-cpu-r-7-2-threads.png)" in text
    for part in ("ReLU gate", "products 1 TFLOP/s in float32; copy 200 GB/s", "### Scaling"):
        assert part in page.read_text("utf-8")
    for name in ("benchmark", "scaling"):
        plot = tmp_path / "docs" / f"{name}-some-cpu-r-7-2-threads.png"
        assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"README.md must contain <!-- benchmark:begin --> and"):
        report.insert("no markers", "table", "README.md")


def test_committed_pages_are_what_the_results_files_say() -> None:
    assert report.main(["--check"]) == 0


def test_comparison_divides_now_by_before() -> None:
    before = {("critic", "ours"): [2.0, 4.0], ("critic", "eager"): [8.0]}
    now = {("critic", "ours"): [1.5], ("critic", "eager"): [8.0]}
    line = comparison("v1", before, now, ["critic"]).splitlines()[-1]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "critic",
        "3.00",
        "1.50",
        "0.500",
        "8.00",
        "8.00",
        "1.00",
    ]


# The command


def test_list_names_cases_and_contestants(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    out = capsys.readouterr().out
    names = [case.name for case in cases.CASES] + [contestant.name for contestant in contestants.CONTESTANTS]
    assert all(name in out for name in names)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--case", "nothing"], "no case 'nothing' on cpu"),
        (["--repeats", "0"], "at least 1 is needed"),
        pytest.param(
            ["--device", "cuda"], "finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "files"), [([], 1), (["--quick"], 0), (["--parts", "steps"], 0)])
def test_only_a_full_run_writes_by_itself(
    arguments: list[str], files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "measure", lambda *_: None)
    assert run.main(arguments) == 0
    assert len(list(tmp_path.rglob("*.json"))) == files


def test_a_partial_run_writes_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.json"
    options = [
        "--case",
        "mlp_one",
        "--contestant",
        "plain",
        "eager",
        "ours",
        "--repeats",
        "2",
        "--parts",
        "steps",
    ]
    assert run.main([*options, "--out", str(out)]) == 0
    found = results.read(out)
    (case,) = found.cases
    assert [row.status for row in case.rows] == ["ok", "ok", "ok"]
    assert found.ceilings is not None
    assert case.limit_ms is not None
    assert case.row("ours").ratio_to_limit > 0  # type: ignore[union-attr, operator]
    assert "datagrad_ext" in capsys.readouterr().out


def test_kernels_are_listed_with_their_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["--case", "mlp_one", "--contestant", "eager", "fixed_conv"]) == 0
    said = capsys.readouterr().out
    assert said.count("**") == 2
    assert "**mlp_one, eager double backprop**" in said
    assert "aten::addmm" in said
    assert said.splitlines()[-2].startswith("| all ")
    with pytest.raises(SystemExit):
        kernels.main(["--case", "nothing"])


def test_a_series_is_measured_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(series.find("cpu", ["batch_mlp"])[0], values=(1, 4))
    monkeypatch.setattr(series, "SERIES", (short,))
    out = tmp_path / "series.json"
    options = ["--series", "batch_mlp", "--contestant", "plain", "ours", "--repeats", "1"]
    assert run.main([*options, "--out", str(out)]) == 0
    (found,) = results.read(out).series
    assert (found.variable, found.values) == ("batch", [1, 4])
    assert [[row.contestant for row in point.rows if row.times] for point in found.points] == [["plain", "ours"]] * 2


@pytest.mark.slow
def test_slow_starters_are_started_ahead_and_their_failures_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--warm", "1", "--case", "mlp_one", "--contestant", "plain", "jax"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "mlp_one, jax: ready" or line.startswith("mlp_one, jax: Absent: no JAX for cpu")


def test_a_rehearsal_says_what_the_gate_says(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "cuda", "--rehearse", "--case", "mlp_narrow_tf32", "--contestant", "plain", "ours", "jax"]
    assert run.main(options) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] + line[3:] for line in lines] == [
        ["mlp_narrow_tf32", "plain", "MiB", "ok"],
        ["mlp_narrow_tf32", "ours", "MiB", "ok"],
    ]
    assert all(float(line[2]) > 65536 * 64 * 4 / 2**20 for line in lines)


def test_what_no_time_is_left_for_is_listed_and_measured_by_a_run_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(ceilings, "measure", lambda *_: ceilings.Ceilings({"float32": 1e12}, 1e11))
    monkeypatch.setattr(cases, "CASES", (CASE, replace(CASE, name="other")))
    monkeypatch.setattr(run, "operations", lambda _: [])
    monkeypatch.setattr(series, "SERIES", ())
    ran: list[str] = []

    def measured(case: cases.Case, *_: object) -> results.CaseResult:
        ran.append(case.name)
        return results.CaseResult(case.name, "", "", "cpu", "float32", "contiguous", [1], 0.5, [])

    monkeypatch.setattr(run, "run_case", measured)
    assert run.main(["--budget", "0"]) == 0
    (path,) = tmp_path.rglob("*.json")
    assert results.read(path).left_out == ["small", "other", "operations"]
    assert ran == []
    for _ in range(2):
        assert run.main(["--resume"]) == 0
        assert ran == ["small", "other"]
        assert results.read(path).left_out == []


@pytest.mark.parametrize(
    "operation", op_cases.operations("cuda"), ids=lambda row: f"{row.name}-{len(row.shape)}d-{row.precision}"
)
def test_every_operation_has_a_right_counterpart(operation: op_cases.Operation) -> None:
    small = replace(operation, shape=(2, *operation.shape[1:2], *[4] * (len(operation.shape) - 2)))
    result = suite.run_operation(small, "cpu", 1, ceilings.Ceilings({}, 1e9))
    assert result.reason is None
    assert (result.copy_share is None) == (operation.passes is None)


def test_what_an_operation_moves_follows_its_precision() -> None:
    gate_rows = [row for row in op_cases.operations("cuda") if row.name == "relu_gate" and len(row.shape) == 2]
    assert [row.bytes for row in gate_rows] == [2 * 65536 * 256 * 4, 2 * 65536 * 256 * 2]
