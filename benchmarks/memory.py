"""Peak memory of one step in a fresh process: bytes that PyTorch's allocator holds beyond model and data.

CUDA: torch.cuda.max_memory_allocated. CPU: the running maximum over the profiler's allocation events, which
is the same quantity. The step's own gradients count; buffers inside vendor libraries do not.
"""

import multiprocessing
import os
from collections.abc import Callable
from itertools import accumulate
from multiprocessing.connection import Connection

import torch
from torch.profiler import ProfilerActivity, profile

from . import cases, contestants

WARM_UP_CALLS = 2
TIME_LIMIT_SECONDS, ENDING_SECONDS = 300, 20


def cpu_peak(step: Callable[[], object]) -> int:
    """Peak bytes allocated on the CPU during one call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = step()
    del result
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def cuda_peak(step: Callable[[], object]) -> int:
    """Peak bytes allocated on the GPU during one call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _measure(device: str, case_name: str, contestant_name: str, reply: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the profiler's own log lines
    try:
        (case,) = cases.find(device, [case_name])
        (contestant,) = contestants.find([contestant_name])
        with case.settings():
            step = contestant.prepare(case).step
            for _ in range(WARM_UP_CALLS):
                step()
            reply.send((cuda_peak if device == "cuda" else cpu_peak)(step))
    except Exception as error:
        reply.send(f"{type(error).__name__}: {error}")


def peak_bytes(device: str, case: str, contestant: str) -> int:
    """Peak bytes of one step of a contestant; RuntimeError when its process fails or does not answer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(device, case, contestant, send))
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
