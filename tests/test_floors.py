"""The floors: a module imports only from floors below its own, and kernels see only torch's stable ABI."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "datagrad_ext"

# From the ground up; what stands on one floor does not see its neighbours. A package is one unit.
FLOORS = (
    {"choices"},
    {"_format", "_native", "ops"},
    {"advice", "amp", "graphed", "layers", "penalties", "losses", "snapshot"},
    {"program", "trace"},
    {"precision", "reference"},
    {"nodes"},
    {"single"},
    {"autograd"},
    {"fusion"},
    {"lower", "watch"},
    {"network"},
    {"accelerate", "functional"},
    {"table", "objective"},
    {"attacks"},
    {"presets"},
    {"cli"},
)
# These put the package together and may import from every floor.
ROOF = {"__init__", "__main__"}
# The compiled module, and the package itself for what stands on the public interface.
COMPILED = {"_native": {"_C", "_nodes"}}
ON_THE_ROOF = {"cli"}

MODULES = sorted(PACKAGE.rglob("*.py"))
STABLE = re.compile(r"torch/(csrc/stable|headeronly|csrc/inductor/aoti_torch/(c|generated))/")


def unit_of(module: Path) -> str:
    """The module or the package, right under datagrad_ext, that `module` belongs to."""
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(unit: str) -> int:
    """The floor's number; a unit that is not in the table has none, and that is an error."""
    floors = [number for number, units in enumerate(FLOORS) if unit in units]
    assert floors, f"datagrad_ext/{unit} has no floor: enter it in FLOORS of {Path(__file__).name}"
    return floors[0]


def imports(module: Path) -> Iterator[str]:
    """The full names of everything that `module` imports, wherever in it."""
    package = ["datagrad_ext", *module.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_floors(module: Path) -> None:
    unit = unit_of(module)
    if unit in ROOF:
        return
    for name in imports(module):
        if name.partition(".")[0] != "datagrad_ext":
            continue
        target = name.split(".")[1] if "." in name else ""
        if target in {unit, *COMPILED.get(unit, ())} or (not target and unit in ON_THE_ROOF):
            continue
        assert target, f"{module.name} imports the whole package"
        below = floor_of(target) < floor_of(unit)
        assert below, f"datagrad_ext/{unit} imports {target}, which is not on a floor below it"


def test_the_table_names_what_there_is() -> None:
    there = {unit_of(module) for module in MODULES} - ROOF
    assert set().union(*FLOORS) == there


def test_nothing_compiles_at_import() -> None:
    guilty = [
        f"{module.name}: {name}"
        for module in MODULES
        for name in imports(module)
        if name.startswith(("torch.utils.cpp_extension", "build_support", "setuptools", "subprocess"))
    ]
    assert not guilty


@pytest.mark.parametrize("directory", ["common", "cpu", "cuda", "math"])
def test_kernels_include_only_the_stable_abi(directory: str) -> None:
    for source in sorted((ROOT / "csrc" / directory).iterdir()):
        for header in re.findall(r'#include [<"](.+?)[>"]', source.read_text()):
            if header.startswith(("torch/", "ATen/", "c10/", "pybind11/")):
                assert directory != "math", (
                    f"csrc/math/{source.name} includes {header}: it must not know torch"
                )
                assert STABLE.match(header), (
                    f"{source.name} includes {header}, which is not in the stable ABI"
                )
