"""Row blocks over a pool of threads; numpy releases the GIL in everything that takes long."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeAlias

from fct_infer.errors import UsageError
from fct_infer.machine import usable_cpus
from fct_infer.threadpools import one_blas_thread

Progress: TypeAlias = Callable[[int, int], None]
"""Called from the caller's own thread with rows done and rows in all."""


def for_each_block(
    rows: int, block_rows: int, work: Callable[[slice], None], threads: int | None, progress: Progress | None
) -> None:
    """Call ``work`` once for every block of at most ``block_rows`` of the rows 0..``rows``, on ``threads`` threads.

    Each thread does its own matrix products, so BLAS is held to one thread meanwhile (process-wide). The first
    exception stops what has not begun and is raised when what has begun is over.

    Raises:
        UsageError: ``threads`` is below one.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}, wanted at least 1")
    done = 0
    with one_blas_thread(), ThreadPoolExecutor(threads or usable_cpus()) as pool:
        parts = [slice(start, min(start + block_rows, rows)) for start in range(0, rows, block_rows)]
        futures = {pool.submit(work, part): part for part in parts}
        try:
            for future in as_completed(futures):
                future.result()
                done += futures[future].stop - futures[future].start
                if progress is not None:
                    progress(done, rows)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
