"""One upgrade, by one process on one core or by the workers of a cluster, in a process of its own; prints JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from benchmarks.measure import Stopwatch, peak_memory
from benchmarks.programs import UPGRADE_PROGRAMS
from fct_infer.distributed.ray_executor import RayExecutor
from fct_infer.transformation import Transformation
from fct_infer.upgrade.run import upgrade_gallery
from fct_infer.upgrade.settings import Settings


@click.command()
@click.argument("gallery", type=Path)
@click.argument("dest", type=Path)
@click.option("--program", required=True)
@click.option("--index", required=True)
@click.option("--address", help="Of the cluster; without it this process does all, on one core.")
@click.option("--workers", default=1)
def main(gallery: Path, dest: Path, program: str, index: str, address: str | None, workers: int) -> None:
    executor = RayExecutor(address, workers) if address else None
    if executor is None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    h = Transformation(UPGRADE_PROGRAMS[program], "fp32", 1)
    watch = Stopwatch()
    report = upgrade_gallery(gallery, h, dest, settings=Settings(index=index, verify_rows=64), executor=executor)
    watch.lap("upgrade")
    print(json.dumps({"wall": watch.total, "seconds": report.timings, "peak_memory": peak_memory()}))


if __name__ == "__main__":
    main()
