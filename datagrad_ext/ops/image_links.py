"""What the text of a chain of images (`image_chain.py`) names: its units, and the places of their tensors in lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ._library import require
from .chain import Link, words

_TAKES_IN_RECTIFIERS = ("convolution", "normalise", "add")


@dataclass(frozen=True)
class Unit:
    """A link, and the rectifier that it takes in; the places of its tensors in lists, None for none."""

    link: Link
    rectifier: Link | None
    reads: tuple[int, ...]
    output: int
    input: int | None
    saves_input: bool
    """Whether it is the first that has the input saved."""
    statistics: int | None
    """The place of the mean; the reciprocal deviation is behind it."""
    extra: int | None
    record: int | None

    @property
    def word(self) -> int:
        """The place of its link among the words."""
        return self.output - 1 - (self.rectifier is not None)

    @property
    def bias(self) -> int | None:
        """Its place among the parameters."""
        return self.link.bias if self.rectifier is None or self.rectifier.bias is None else self.rectifier.bias

    @property
    def normalises(self) -> bool:
        """Whether it has statistics of its input."""
        return self.link.name == "normalise"

    @property
    def updates(self) -> bool:
        """Whether it updates running statistics."""
        return self.normalises and self.link.constants[2] != 0

    @property
    def curved(self) -> bool:
        """Whether its second derivative is not zero."""
        return self.link.smooth or self.normalises

    @property
    def n_saved(self) -> int:
        """How many tensors it saves."""
        return self.saves_input + 2 * self.normalises + (self.extra is not None)

    def keeps(self, wanted: Sequence[bool]) -> bool:
        """Whether sweep 3 leaves (δ, t) to sweep 4."""
        return self.curved or ("p" in self.link.marks and self.wants(wanted))

    def wants(self, wanted: Sequence[bool]) -> bool:
        """Whether the gradient of its weight is asked for."""
        return self.link.weight is not None and wanted[self.link.weight]

    def wants_bias(self, wanted: Sequence[bool]) -> bool:
        """Whether the gradient of its bias is."""
        return self.bias is not None and wanted[self.bias]

    def is_asked(self, wanted: Sequence[bool]) -> bool:
        """Whether a gradient of its parameters is."""
        return self.wants(wanted) or self.wants_bias(wanted)


@lru_cache
def parse(links: str) -> tuple[Unit, ...]:
    """The units of the links that a text names."""
    left = words(links)
    require(
        bool(left) and left[0].name == "convolution", f"image chain: must begin with a convolution, got '{links}'"
    )
    reads = [link.reads or (i,) for i, link in enumerate(left)]
    readers = Counter(value for each in reads for value in each)
    _check(left, reads, readers)
    found: list[Unit] = []
    inputs: dict[int, int] = {}
    i = saved = records = 0
    while i < len(left):
        link, first = left[i], i
        following = left[i + 1] if i + 1 < len(left) else None
        alone = following is not None and reads[i + 1] == (i + 1,) and readers[i + 1] == 1
        rectifier = following if alone and _takes_in(link, following) else None
        i += 1 if rectifier is None else 2
        has_record = link.smooth or link.weight is not None or link.name == "normalise"
        (value, *_) = reads[first]
        saves_input = has_record and value > 0 and value not in inputs
        if saves_input:
            inputs[value] = saved
        own = saved + saves_input
        statistics = own if link.name == "normalise" else None
        own += 0 if statistics is None else 2
        has_extra = rectifier is not None or link.name in ("relu", "max_pool")
        unit = Unit(
            link,
            rectifier,
            reads[first],
            i,
            inputs.get(value) if has_record else None,
            saves_input,
            statistics,
            own if has_extra else None,
            records if has_record else None,
        )
        saved, records = own + has_extra, records + has_record
        found.append(unit)
    return tuple(found)


def _takes_in(link: Link, following: Link | None) -> bool:
    """Whether the link and the one behind it, which alone reads it, are one unit."""
    if following is None or following.name != "relu" or link.name not in _TAKES_IN_RECTIFIERS:
        return False
    return link.bias is None if link.name == "convolution" else following.bias is None


def _check(links: Sequence[Link], reads: Sequence[tuple[int, ...]], readers: Counter[int]) -> None:
    """What the links read must be there, and everything must be read."""
    for i, (link, values) in enumerate(zip(links, reads, strict=True)):
        expected = 2 if link.name == "add" else 1
        require(len(values) == expected, f"image chain: {link.name} reads {expected} values, got {len(values)}")
        for value in values:
            require(0 <= value <= i, f"image chain: link {i + 1} can read values 0 to {i}, got {value}")
            require(value > 0 or link.name == "convolution", "image chain: convolutions alone can read x")
    for value in range(len(links)):
        require(readers[value] > 0, f"image chain: nothing reads value {value}")


@dataclass(frozen=True)
class Needs:
    """What sweeps 3 and 4 visit, by unit and by value."""

    tangents: tuple[bool, ...]
    """Of each unit, whether somebody reads the tangent of its output."""
    cotangents: tuple[bool, ...]
    """Of each value, whether its cotangent leads to something wanted."""

    @staticmethod
    def of(units: Sequence[Unit], wanted: Sequence[bool], want_x: bool, want_y: bool) -> Needs:
        """Those of a call."""
        read = {units[-1].output} if want_y else set[int]()
        tangents: list[bool] = []
        for unit in reversed(units):
            tangents.append(unit.output in read)
            if tangents[-1] or unit.keeps(wanted) or unit.wants(wanted):
                read.update(unit.reads)
        active = [want_x] + [False] * units[-1].output
        for unit in units:
            active[unit.output] = unit.is_asked(wanted) or any(active[value] for value in unit.reads)
        return Needs(tuple(tangents[::-1]), tuple(active))
