"""Bodies that run at once, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


def run_threads(bodies: Iterable[Callable[[], object]]) -> None:
    """Run all, and raise the first error of any."""
    failures: list[BaseException] = []

    def guarded(body: Callable[[], object]) -> None:
        try:
            body()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
