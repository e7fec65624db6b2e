"""The environment variables of the build, and the error that every missing prerequisite raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class Unavailable(Exception):
    """Something that the native build needs is missing or failed; the text is a sentence for the user."""


@dataclass(frozen=True)
class Options:
    """What the user wants.

    require_native: a fallback to pure Python is an error.
    cuda: True demands the CUDA kernels, False forbids them, None builds them where there is an nvcc.
    cudnn: the same for the fused convolutions, which come with the CUDA kernels where their headers are found.
    """

    require_native: bool
    cuda: bool | None
    cudnn: bool | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Options:
        """Read DATAGRAD_REQUIRE_NATIVE, DATAGRAD_CUDA and DATAGRAD_CUDNN."""
        native, *parts = (_switch(environ, f"DATAGRAD_{name}") for name in ("REQUIRE_NATIVE", "CUDA", "CUDNN"))
        return cls(bool(native), *parts)


def _switch(environ: Mapping[str, str], name: str) -> bool | None:
    """True for '1', False for '0', None where the variable is unset or empty."""
    value = environ.get(name, "")
    if value not in ("", "0", "1"):
        raise Unavailable(f"{name}={value!r} is not understood: set it to 1 or 0, or leave it unset")
    return value == "1" if value else None
