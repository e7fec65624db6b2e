"""Peak memory of one step on the CPU in a fresh process, where no profiler disturbs a time."""

import multiprocessing
import os
from multiprocessing.connection import Connection

from . import cases, contestants
from .peaks import cpu_peak

WARM_UP_CALLS = 2
TIME_LIMIT_SECONDS, ENDING_SECONDS = 300, 20


def _measure(case_name: str, contestant_name: str, reply: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the profiler's own log lines
    try:
        (case,) = cases.find("cpu", [case_name])
        (contestant,) = contestants.find([contestant_name])
        with case.settings():
            step = contestant.make(case).step
            for _ in range(WARM_UP_CALLS):
                step()
            reply.send(cpu_peak(step))
    except Exception as error:
        reply.send(f"{type(error).__name__}: {error}")


def peak_bytes(case: str, contestant: str) -> int:
    """Peak bytes of one step on a case of the CPU; RuntimeError when the process fails or does not answer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(case, contestant, send))
    process.start()
    send.close()
    try:
        answer = receive.recv() if receive.poll(TIME_LIMIT_SECONDS) else "no answer in time"
    except EOFError:
        answer = "the process ended without an answer"
    else:
        process.join(ENDING_SECONDS)
    finally:
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise RuntimeError(f"peak memory of {contestant} on {case} was not measured: {answer}")
    return answer
