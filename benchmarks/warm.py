"""Fill the caches of the compilers, several cases at a time, so that a run finds their work done.

Compiling takes longer than measuring. TORCHINDUCTOR_CACHE_DIR and JAX_COMPILATION_CACHE_DIR say where the caches are;
they must be the same in the run.
"""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from . import cases, contestants
from .contestants import SLOW_STARTERS


def _start(device: str, case_name: str, contestant_name: str) -> str:
    """Make the contestant's step once; one line about it."""
    (case,) = cases.find(device, [case_name])
    (contestant,) = contestants.find([contestant_name])
    try:
        with case.settings():
            contestants.quietly(contestant.make(case))
    except Exception as error:
        return f"{case_name}, {contestant_name}: {type(error).__name__}: {error}".partition("\n")[0]
    return f"{case_name}, {contestant_name}: ready"


def fill(
    device: str, chosen: Sequence[cases.Case], entrants: Sequence[contestants.Contestant], workers: int
) -> str:
    """Start every slow starter among the contestants on every case; a line about each."""
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    slow = [entrant for entrant in entrants if entrant.name in SLOW_STARTERS]
    jobs = [(device, case.name, row.name) for case in chosen for row in slow if row.enters(case)]
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context) as pool:
        return "\n".join(pool.map(_start, *zip(*jobs, strict=True))) if jobs else "nothing to warm"
