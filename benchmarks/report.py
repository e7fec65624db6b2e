"""Turn results files into README's table, docs/performance.md and plots: python -m benchmarks.report

The text between the two markers of a page is replaced whole; numbers there are never typed. The newest file
of each device counts. `--check` writes nothing and exits with 1 when a page is not what the files say.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import plots, tables
from .environment import ROOT, slug
from .results import Results, newest, read

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
NONE_YET = "No results yet: `python -m benchmarks.run`, then `python -m benchmarks.report`."


def insert(page: str, generated: str, name: str) -> str:
    """`page` with the text between its markers replaced; ValueError when it has not exactly one pair."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in tail or END in tail:
        raise ValueError(f"{name} must contain {BEGIN} and {END}, once each, where the table goes")
    return f"{head}{BEGIN}\n{generated}\n{END}{tail}"


def plot_name(results: Results) -> str:
    """File name of a device's plot in docs/."""
    return f"benchmark-{slug(results.environment)}.png"


def series_plot_name(results: Results) -> str:
    """File name of a device's plot of the scaling series in docs/."""
    return f"scaling-{slug(results.environment)}.png"


def short(results: Results, folder: str) -> str:
    """README's part for one device: where, table, plot."""
    line = f"{tables.environment_line(results.environment)}; median of {results.settings['repeats']}."
    plot = f"![time of each contestant over the plain step]({folder}{plot_name(results)})"
    return "\n\n".join([line, tables.summary_table(results), plot])


def full(results: Results) -> str:
    """docs/performance.md's part for one device: summary, every case, every series, every operation."""
    parts = [f"## {tables.device(results.environment)}", short(results, "")]
    parts += [f"Kernels:\n\n```text\n{results.environment['datagrad_ext']['backends']}\n```"]
    parts += [tables.ceilings_line(results.ceilings)] if results.ceilings else []
    parts += [f"Left out for want of time: {', '.join(results.left_out)}."] if results.left_out else []
    parts += ["### Cases", *(tables.case_table(case) for case in results.cases)]
    if results.series:
        plot = f"![milliseconds a step against batch and depth]({series_plot_name(results)})"
        parts += ["### Scaling", plot, *(tables.series_table(series) for series in results.series)]
    if results.operations:
        parts += ["### Operations", tables.operation_table(results.operations)]
    return "\n\n".join(parts)


def render(all_results: Sequence[Results], readme: Path, page: Path) -> dict[Path, str]:
    """New text of both pages."""
    folder = page.parent.relative_to(readme.parent).as_posix() + "/"
    texts = {
        readme: "\n\n".join(short(results, folder) for results in all_results),
        page: "\n\n".join(full(results) for results in all_results),
    }
    return {path: insert(path.read_text("utf-8"), texts[path] or NONE_YET, path.name) for path in texts}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="default: %(default)s"
    )
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md", help="plots go beside")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is out of date")
    arguments = parser.parse_args(argv)
    try:
        folders = [folder for folder in arguments.results.glob("*") if folder.is_dir()]
        all_results = [read(path) for path in newest(folders)]
        pages = render(all_results, arguments.readme, arguments.page)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    stale = [path for path, text in pages.items() if path.read_text("utf-8") != text]
    if arguments.check:
        for path in stale:
            print(f"{path} is not what the results files say; run python -m benchmarks.report")
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages[path], "utf-8")
    for results in all_results:
        plots.save(results, arguments.page.parent / plot_name(results))
        if results.series:
            plots.save_series(results, arguments.page.parent / series_plot_name(results))
    print(f"{len(all_results)} results files, {len(stale)} pages changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
