"""A whole penalty step of a chain: loss, data gradient, penalties, and the gradients of their sum, in one call.

    total = λ0 mean_n L0(y_n) + Σ_i λ_i mean_n R_i(J_n)        J_n = ∂L(y_n)/∂x_n        y = chain(x)

    sweep 1 → y    head → δ    sweep 2 → J    R_i, v = Σ_i λ_i/N ∂R_i/∂J    sweep 3 → t    ζ = hvp(t) + λ0/N δ0
    sweep 4

x is (N, width), `links` and `params` are those of `ops.chain`. `loss` is L, a head of `ops.heads` by name and
constants, `main` is L0, another head at the same target, or "" for none. `penalties` are words of `ops.seeds`, with a
constant and a weight λ_i each. `wanted` has a flag for each parameter.

Gradients are of the total itself (a cotangent of 1). Everything is row-wise but for the sums, so a native kernel takes
tile after tile of rows through all sweeps while it is in the cache. It pays for chains up to 128 wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._library import op, require
from .chain import parse
from .heads import Head, head_named
from .seeds import Seed, seeds_named, total

_ops = torch.ops.datagrad
_NAME = "chain_penalty_step"


@op(
    f"{_NAME}(Tensor x, Tensor[] params, Tensor? target, str links, str loss, float[] loss_constants, str main,"
    " float[] main_constants, float main_weight, str penalties, float[] constants, float[] weights, bool[] wanted,"
    " bool want_x) -> Tensor[]"
)
def chain_penalty_step(
    x: Tensor,
    params: Sequence[Tensor],
    target: Tensor | None,
    links: str,
    loss: str,
    loss_constants: Sequence[float],
    main: str,
    main_constants: Sequence[float],
    main_weight: float,
    penalties: str,
    constants: Sequence[float],
    weights: Sequence[float],
    wanted: Sequence[bool],
    want_x: bool,
) -> list[Tensor]:
    """[total, mean of L0 if there is one, mean of each R_i, J, x̄ if wanted, *gradients of the wanted parameters].

    The means are scalars. A gradient that nothing flows to is zero. Gradients of parameters may share their storage.
    float32 and float64 only.
    """
    require(
        x.dtype in (torch.float32, torch.float64),
        f"{_NAME}: x must be float32 or float64, got {str(x.dtype)[6:]}; run the sweeps of the chain one by one",
    )
    head, seeds = _head(loss, loss_constants, target), seeds_named(_NAME, penalties, constants)
    require(
        len(seeds) == len(weights),
        f"{_NAME}: needs a weight and a constant for every penalty, got {len(weights)} and {len(constants)} for "
        f"{len(seeds)}",
    )
    y, *saved = _ops.chain_forward.default(x, params, links)
    losses, delta, kept = head.forward(y, target, len(x))
    J, *buffers = _ops.chain_data_vjp.default(delta, params, saved, links)
    norms = [seed.norms(J) for seed in seeds]
    main_delta = None
    if main:
        main_delta = delta
        if (main, tuple(main_constants)) != (loss, tuple(loss_constants)):
            losses, main_delta, _ = _head(main, main_constants, target).forward(y, target, len(x))
    value, figures = total(losses if main else None, main_weight, seeds, norms, weights)
    found: list[Tensor] = []
    if want_x or True in wanted:
        v = _seed(J, seeds, norms, weights)
        record = [delta, *buffers]
        rest = _ops.chain_data_jvp.default(v, params, saved, record, links, wanted, head.curved, [])
        zeta = head.hvp(y, target, kept, rest.pop(0)) if head.curved else None
        if main_delta is not None:
            share = main_delta * (main_weight / max(len(x), 1))
            zeta = share if zeta is None else zeta + share
        n_sums = sum(wanted[link.weight] for link in parse(links) if link.weight is not None)
        sums, tangents = rest[:n_sums], [v, *rest[n_sums:]]
        found = _reverse(zeta, record, tangents, x, params, saved, links, wanted, want_x, sums)
    return [value, *figures, J, *found]


def _head(name: str, constants: Sequence[float], target: Tensor | None) -> Head:
    head = head_named(_NAME, name, constants)
    require(target is not None or not head.reads_target, f"{_NAME}: {name} needs a target")
    return head


def _seed(J: Tensor, seeds: Sequence[Seed], norms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """v = Σ_i λ_i/N ∂R_i/∂J."""
    v, one = torch.zeros_like(J), J.new_ones(())
    for seed, each, weight in zip(seeds, norms, weights, strict=True):
        v = v + seed.seed(J, each, one, weight / max(len(J), 1))
    return v


def _reverse(
    zeta: Tensor | None,
    record: list[Tensor],
    tangents: list[Tensor],
    x: Tensor,
    params: Sequence[Tensor],
    saved: list[Tensor],
    links: str,
    wanted: Sequence[bool],
    want_x: bool,
    sums: list[Tensor],
) -> list[Tensor]:
    """Sweep 4: x̄ and all gradients that are wanted, zeros included."""
    chain = parse(links)
    last_curve = max([i for i, link in enumerate(chain) if link.smooth], default=-1)
    x_flows = want_x and (zeta is not None or last_curve >= 0)
    found = _ops.chain_reverse.default(zeta, record, tangents, x, params, saved, links, wanted, x_flows, sums)
    rest, totals = iter(found), iter(sums)
    results = [next(rest) if x_flows else torch.zeros_like(x)] if want_x else []
    for i, link in enumerate(chain):
        arrives = zeta is not None or i <= last_curve
        if link.weight is not None and wanted[link.weight]:
            results.append(next(totals))
        if link.bias is not None and wanted[link.bias]:
            results.append(next(rest) if arrives else torch.zeros_like(params[link.bias]))
    return results
