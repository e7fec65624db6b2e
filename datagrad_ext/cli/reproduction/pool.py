"""Tasks on several processes, one torch thread each: the same figures whatever the number of processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

import torch

from datagrad_ext.cli.errors import UserError

Task = TypeVar("Task")
Record = TypeVar("Record")


def records(work: Callable[[Task], Record], tasks: Sequence[Task], jobs: int) -> Iterator[Record]:
    """work(task) of each, as they are ready. One job runs in this process.

    Raises:
        UserError: a process died.
    """
    if jobs == 1 or len(tasks) < 2:
        yield from _here(work, tasks)
        return
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=get_context("spawn"), initializer=_begin)
    try:
        for future in as_completed([pool.submit(work, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps for want of memory: what is finished is kept; run the same command again, "
            f"with fewer --jobs (now {jobs})"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _here(work: Callable[[Task], Record], tasks: Sequence[Task]) -> Iterator[Record]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from map(work, tasks)
    finally:
        torch.set_num_threads(threads)


def _begin() -> None:
    """In a worker: Ctrl-C ends it at once and in silence."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
