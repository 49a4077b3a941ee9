"""Runs jobs that depend on each other in several processes, one thread each, so that no result depends on the cores."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Job:
    """Work for one process: a function of a module with arguments that can be pickled, and the jobs it waits for."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()


def run_jobs(jobs: Mapping[str, Job], workers: int, threads: int, on_result: Callable[[str, Any, float], None]) -> None:
    """Run all jobs, each after those it needs; ``on_result`` gets name, result and seconds of each that is done.

    The first error ends what has not begun yet, and is raised.
    """
    # Threads that wait for others sleep instead of spinning; a new process reads this once, when it loads PyTorch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    waiting, done, running = dict(jobs), set[str](), dict[Future[Any], str]()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as pool:
        try:
            while waiting or running:
                # No more than there are workers: what begins first is what stands first, once it can.
                ready = [name for name, job in waiting.items() if done.issuperset(job.needs)]
                for name in ready[: workers - len(running)]:
                    job = waiting.pop(name)
                    running[pool.submit(_timed, job.function, job.arguments)] = name
                if not running:
                    raise ValueError(f"these jobs wait for each other: {', '.join(waiting)}")
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(future)
                    on_result(name, *future.result())
                    done.add(name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float]:
    start = time.monotonic()
    return function(*arguments), time.monotonic() - start
