"""A peer in JAX: the penalty step under jax.jit, in a process that has JAX and NumPy and nothing of PyTorch.

`jax_peer.py` starts it and speaks to it in lines of JSON: load a case, give its gradients, run it, name its peak.
A network is a list of layers, each a list of its kind and what the kind needs; parameters are numbers in the list
of all. Images are N x C x H x W, and XLA chooses how they lie in memory.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy

Array = Any  # jax.Array: nothing of JAX is imported before it is known to be there

PRECISIONS = {"float32": ("float32", "highest"), "tf32": ("float32", "tensorfloat32"), "bf16": ("bfloat16", "default")}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print stays out of the conversation
    device = sys.argv[1]
    os.environ["JAX_PLATFORMS"] = device
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    worker: Worker | None = None
    try:
        import jax

        found = {"version": jax.__version__, "device": str(jax.devices()[0])}
        worker = Worker()
    except Exception as error:
        found = {"absent": f"{type(error).__name__}: {error}".partition("\n")[0]}
    print(json.dumps(found), file=replies, flush=True)
    for line in sys.stdin if worker else ():
        request = json.loads(line)
        try:
            reply = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        print(json.dumps(reply), file=replies, flush=True)


class Worker:
    """The step of one case at a time."""

    arguments: tuple[Any, ...]
    step: Any

    def load(
        self, arrays: str, network: list[Any], objective: str, weight: float, precision: str
    ) -> dict[str, Any]:
        """Compile the step of a case; `arrays` has x, t and the parameters p0, p1, ..."""
        import jax
        from jax import numpy as jnp

        dtype, products = PRECISIONS[precision]
        jax.config.update("jax_default_matmul_precision", products)
        with numpy.load(arrays) as data:
            parameters = [jnp.asarray(data[f"p{i}"], dtype) for i in range(len(data) - 2)]
            self.arguments = parameters, jnp.asarray(data["x"], dtype), jnp.asarray(data["t"], "int32")

        def total(parameters: list[Array], x: Array, t: Array) -> Array:
            return penalty_total(lambda x: run_layers(network, parameters, x), objective, weight, x, t)

        self.step = jax.jit(jax.grad(total)).lower(*self.arguments).compile()
        return {}

    def gradients(self, to: str) -> dict[str, Any]:
        """Write the parameters' gradients as float32 arrays g0, g1, ..."""
        found = self.step(*self.arguments)
        numpy.savez(to, **{f"g{i}": numpy.asarray(g, "float32") for i, g in enumerate(found)})
        return {}

    def run(self, calls: int) -> dict[str, Any]:
        """Seconds of so many calls, until the last result is there."""
        import jax

        start = time.perf_counter()
        for _ in range(calls):
            found = self.step(*self.arguments)
        jax.block_until_ready(found)
        return {"seconds": time.perf_counter() - start}

    def peak(self) -> dict[str, Any]:
        """Bytes that the compiled step needs beyond its arguments."""
        sizes = self.step.memory_analysis()
        return {"bytes": sizes.temp_size_in_bytes + sizes.output_size_in_bytes}


# Objectives, by the formula that objectives.py gives them: what J differentiates, loss, penalty, with or without loss


def penalty_total(model: Callable[[Array], Array], formula: str, weight: float, x: Array, t: Array) -> Array:
    """loss + weight * penalty; compare objectives.penalty_total."""
    import jax

    primal, loss, penalty, with_loss = objectives()[formula]

    def scalar(x: Array) -> tuple[Array, tuple[Array, Array]]:
        y = model(x)
        s = primal(y, t)
        return s, (s, y)

    J, (s, y) = jax.grad(scalar, has_aux=True)(x)
    penalised = weight * penalty(J.astype("float32"))
    return penalised + loss(s, y.astype("float32")) if with_loss else penalised


def objectives() -> dict[str, tuple[Callable[..., Array], Callable[..., Array], Callable[..., Array], bool]]:
    """The table."""
    import jax
    from jax import numpy as jnp

    def cross_entropy(y: Array, t: Array) -> Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(y.astype("float32")), t[:, None], 1).sum()

    def output_sum(y: Array, t: Array) -> Array:
        return y.astype("float32").sum()

    def sample_mean(s: Array, y: Array) -> Array:
        return s / y.shape[0]

    def l1(J: Array) -> Array:
        return jnp.abs(J).sum() / J.shape[0]

    def l2_squared(J: Array) -> Array:
        return jnp.square(J).sum() / J.shape[0]

    def eikonal(J: Array) -> Array:
        return jnp.square(jnp.linalg.norm(J, axis=1) - 1).mean()

    return {
        "CE + L1": (cross_entropy, sample_mean, l1, True),
        "CE + L2²": (cross_entropy, sample_mean, l2_squared, True),
        "R1, linear head": (output_sum, sample_mean, l2_squared, False),
        "|f| + eikonal": (output_sum, lambda s, y: jnp.abs(y).mean(), eikonal, True),
    }


# Layers: kind -> function of the parameters, x and what else the description says


def run_layers(layers: list[Any], parameters: list[Array], x: Array) -> Array:
    """The network's value."""
    for kind, *options in layers:
        x = LAYERS[kind](parameters, x, *options)
    return x


def linear(parameters: list[Array], x: Array, weight: int, bias: int | None) -> Array:
    y = x @ parameters[weight].T
    return y if bias is None else y + parameters[bias]


def convolution(
    parameters: list[Array], x: Array, weight: int, bias: int | None, stride: list[int], padding: list[int]
) -> Array:
    import jax

    edges = [(edge, edge) for edge in padding]
    names = ("NCHW", "OIHW", "NCHW")
    y = jax.lax.conv_general_dilated(x, parameters[weight], stride, edges, dimension_numbers=names)
    return y if bias is None else y + parameters[bias][:, None, None]


def batch_norm(parameters: list[Array], x: Array, weight: int, bias: int, epsilon: float) -> Array:
    import jax

    wide = x.astype("float32")
    mean, variance = wide.mean((0, 2, 3), keepdims=True), wide.var((0, 2, 3), keepdims=True)
    unit = (wide - mean) * jax.lax.rsqrt(variance + epsilon)
    scale, shift = (parameters[place][:, None, None].astype("float32") for place in (weight, bias))
    return (unit * scale + shift).astype(x.dtype)


def running_norm(parameters: list[Array], x: Array, weight: int, bias: int, epsilon: float) -> Array:
    """By the statistics of a network that has not been trained: mean 0, variance 1."""
    return x * (1 + epsilon) ** -0.5 * parameters[weight] + parameters[bias]


def leaky_relu(parameters: list[Array], x: Array, slope: float) -> Array:
    from jax import numpy as jnp

    return jnp.where(x > 0, x, slope * x)


def softplus(parameters: list[Array], x: Array, beta: float) -> Array:
    import jax

    return jax.nn.softplus(beta * x) / beta


def max_pool(parameters: list[Array], x: Array, size: int) -> Array:
    import jax

    window = (1, 1, size, size)
    return jax.lax.reduce_window(x, numpy.array(-numpy.inf, x.dtype), jax.lax.max, window, window, "VALID")


def average(parameters: list[Array], x: Array) -> Array:
    return x.mean((2, 3), keepdims=True)


def flatten(parameters: list[Array], x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def residual(parameters: list[Array], x: Array, body: list[Any], shortcut: list[Any]) -> Array:
    y = run_layers(body, parameters, x) + run_layers(shortcut, parameters, x)
    return leaky_relu(parameters, y, 0.0)


LAYERS = {
    function.__name__: function
    for function in (
        linear,
        convolution,
        batch_norm,
        running_norm,
        leaky_relu,
        softplus,
        max_pool,
        average,
        flatten,
        residual,
    )
}

if __name__ == "__main__":
    main()
