"""One upgrade, by one process on one core or by the workers of a cluster, in a process of its own; prints JSON."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click

from benchmarks.measure import Stopwatch, peak_memory
from benchmarks.programs import UPGRADE_PROGRAMS
from fct_infer.distributed.ray_executor import RayExecutor
from fct_infer.transformation import Transformation
from fct_infer.upgrade.run import upgrade_gallery
from fct_infer.upgrade.settings import Settings


class Pace:
    """Rows and times as an upgrade reports them, for the rate between two of them."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []

    def __call__(self, stage: str, done: int, _rows: int) -> None:
        if stage == "transform":
            self._marks.append((time.perf_counter(), done))

    def rate(self, first_rows: int) -> float | None:
        """Return the rows a second from when so many were durable to the end; None if that is no time at all."""
        marks = [mark for mark in self._marks if mark[1] >= first_rows]
        (start, before), (end, after) = marks[0], marks[-1]
        return (after - before) / (end - start) if end > start else None


@click.command()
@click.argument("gallery", type=Path)
@click.argument("dest", type=Path)
@click.option("--program", required=True)
@click.option("--index", required=True)
@click.option("--address", help="Of the cluster; without it this process does all, on one core.")
@click.option("--workers", default=1)
@click.option("--first-rows", default=0, help="From which on the rate is counted: a part of each worker.")
def main(
    gallery: Path, dest: Path, program: str, index: str, address: str | None, workers: int, first_rows: int
) -> None:
    executor = RayExecutor(address, workers) if address else None
    if executor is None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    h = Transformation(UPGRADE_PROGRAMS[program], "fp32", 1)
    watch, pace, settings = Stopwatch(), Pace(), Settings(index=index, verify_rows=64)
    report = upgrade_gallery(gallery, h, dest, settings=settings, executor=executor, progress=pace)
    watch.lap("upgrade")
    found = {"wall": watch.total, "seconds": report.timings, "rate": pace.rate(first_rows)}
    print(json.dumps(found | {"peak_memory": peak_memory()}))


if __name__ == "__main__":
    main()
