"""Plots of one results file: bars of each contestant's time over the plain step, lines of the scaling series."""

from pathlib import Path
from typing import Any

from .results import Results, SeriesResult
from .tables import environment_line, family_of, fastest_form

WIDTH = 0.8


def save(results: Results, path: Path) -> None:
    """Write the plot of one results file as PNG; of a contestant and its CUDA graph the faster is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles: dict[str, str] = {}
    for row in (row for case in results.cases for row in case.rows):
        if row.role != "plain" and row.status != "absent":
            titles.setdefault(family_of(row), row.title)
    size = max(6.0, 1.3 * len(results.cases) + 2), 4.2
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    bar = WIDTH / max(1, len(titles))
    for place, (name, title) in enumerate(titles.items()):
        shift = (place - (len(titles) - 1) / 2) * bar
        forms = [(at + shift, fastest_form(case, name)) for at, case in enumerate(results.cases)]
        timed = [(at, row.ratio_to_plain) for at, row in forms if row.ratio_to_plain]
        bars = axes.bar([at for at, _ in timed], [ratio for _, ratio in timed], bar, label=title)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(results.cases)), [case.name for case in results.cases], rotation=20, ha="right")
    axes.set_ylabel("time / plain step")
    axes.set_title(environment_line(results.environment), fontsize=8)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def save_series(results: Results, path: Path) -> None:
    """Write the scaling plot of one results file as PNG: a panel a series, milliseconds a step against its variable."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(results.series)
    figure, panels = pyplot.subplots(1, count, figsize=(3.6 * count, 3.6), layout="constrained", squeeze=False)
    for axes, series in zip(panels[0], results.series, strict=True):
        _draw(axes, series)
    panels[0][0].set_ylabel("milliseconds a step")
    panels[0][-1].legend(fontsize=7)
    figure.suptitle(environment_line(results.environment), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _draw(axes: Any, series: SeriesResult) -> None:
    titles = {row.contestant: row.title for point in series.points for row in point.rows}
    for name, title in titles.items():
        rows = [(value, point.row(name)) for value, point in zip(series.values, series.points, strict=True)]
        timed = [(value, row.times.median_ms) for value, row in rows if row and row.times]
        axes.plot([value for value, _ in timed], [ms for _, ms in timed], marker="o", markersize=3, label=title)
    axes.set_xscale("log", base=2)
    axes.set_xticks(series.values, map(str, series.values))
    axes.set_yscale("log")
    axes.set_xlabel(series.variable)
    axes.set_title(series.title, fontsize=8)
