"""What do workers of a Ray cluster add to an upgrade, and what do they cost?

Like for like: a node of the cluster is one core, and so is the one process it is compared with; both sync what they
write and take its digest. The cluster runs already, as a user's does. Two figures are given: of the whole, in which the
workers start as they do once an upgrade, and of the steady rate, from when each worker has done a part to the end.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.galleries import repeat_gallery, write_gallery
from benchmarks.measure import WORK, cores, environment, paired_ratio, save, warn_if_loaded
from benchmarks.programs import UPGRADE_PROGRAMS
from benchmarks.table import Table, gate, show
from benchmarks.upgrade_runs import Run, run_once

PROGRAM, INDEX = "paper-size", "IVF64,PQ16"
PART_ROWS, PARTS, INDEXED_PARTS, ROUNDS = 8192, 48, 24, 3
FEW, MANY = 100, 10_000  # parts without much to do in them
TINY_ROWS, TINY_PROGRAM = 16, "small"
QUICK_PARTS, QUICK_MANY = 16, 1_000
STORE_BYTES = 80 << 20
WANTED_RATIO, MOST_OVERHEAD, MOST_GROWTH = 1.7, 20.0, 1.1


@contextmanager
def two_nodes() -> Iterator[str]:
    """Start a cluster of two nodes, each of which may use one core of this machine; give its address."""
    from ray.cluster_utils import Cluster

    allowed, cluster = os.sched_getaffinity(0), Cluster()
    try:
        for number, core in enumerate(sorted(allowed)[:2]):
            os.sched_setaffinity(0, {core})  # what is started has it from us
            first = {} if number else {"include_dashboard": False}
            cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, **first)
        os.sched_setaffinity(0, allowed)
        yield str(cluster.address)
    finally:
        os.sched_setaffinity(0, allowed)
        cluster.shutdown()


def make_gallery(folder: Path, part_rows: int, parts: int, program: str) -> Path:
    """Write one shard, and make a gallery of it, many times over, if that has not been done."""
    one, path = folder / f"one-{part_rows}", folder / f"gallery-{part_rows}-{parts}"
    if not one.exists():
        write_gallery(one, part_rows, UPGRADE_PROGRAMS[program].dims)
    if not path.exists():
        repeat_gallery(one, path, parts)
    return path


def upgrade(gallery: Path, program: str, index: str, address: str | None = None, workers: int = 1) -> Run:
    """Run one upgrade in a process of its own."""
    cluster = ["--address", address, "--workers", str(workers)] if address else []
    who = f"{workers} workers" if address else "one process"
    print(f"{gallery.name}, index {index}, {who} ...", end=" ", file=sys.stderr, flush=True)
    first_rows = str(int(gallery.name.split("-")[1]) * workers)
    command = ["benchmarks.ray_upgrade", "--program", program, "--index", index, "--first-rows", first_rows, *cluster]
    run = run_once(command, gallery, gallery.with_name("dest"))
    print(f"{run['wall']:.1f} s", file=sys.stderr, flush=True)
    return run


def speed(folder: Path, address: str, parts: int, rounds: int, index: str) -> dict[str, Any]:
    """Compare two one-core nodes with one process on one core."""
    gallery = make_gallery(folder, PART_ROWS, parts, PROGRAM)
    runs: dict[str, list[Run]] = {"one process": [], "two nodes": []}
    for _ in range(rounds):
        runs["one process"].append(upgrade(gallery, PROGRAM, index))
        runs["two nodes"].append(upgrade(gallery, PROGRAM, index, address, 2))
    walls, rates = ({name: [run[key] for run in each] for name, each in runs.items()} for key in ("wall", "rate"))
    return {
        "index": index,
        "rows": parts * PART_ROWS,
        "wall": {name: median(each) for name, each in walls.items()},
        "ratio": paired_ratio(walls["one process"], walls["two nodes"]),
        "rate": {name: median(each) for name, each in rates.items()},
        "steady_ratio": paired_ratio(rates["two nodes"], rates["one process"]),
    }


def costs(folder: Path, address: str, many: int) -> dict[str, Any]:
    """Return what a part costs beside its rows, and what many of them take of the driver's memory."""
    few_parts = make_gallery(folder, TINY_ROWS, FEW, TINY_PROGRAM)
    many_parts = make_gallery(folder, TINY_ROWS, many, TINY_PROGRAM)
    found: dict[str, list[Run]] = {}
    for name, where in (("one process", None), ("one worker", address)):
        found[name] = [upgrade(gallery, TINY_PROGRAM, "none", where) for gallery in (few_parts, many_parts)]
    each = {name: 1000 * (runs[1]["wall"] - runs[0]["wall"]) / (many - FEW) for name, runs in found.items()}
    return {
        "parts": [FEW, many],
        "milliseconds_a_part": each,
        "overhead": each["one worker"] - each["one process"],
        "driver_memory": [run["peak_memory"] for run in found["one worker"]],
        "memory_without": [run["peak_memory"] for run in found["one process"]],
    }


def gates(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the figures set out to reach."""
    cost, plain = result["costs"], next(case for case in result["cases"] if case["index"] == "none")
    few, many = cost["driver_memory"]
    rows = f"{plain['rows']:,}"
    memory = f"the driver's peak memory at {cost['parts'][1]:,} parts / at {FEW}"
    return [
        gate(f"{rows} rows, no index: rows/s of two nodes / one process", plain["steady_ratio"], WANTED_RATIO),
        gate("the same, the whole: seconds of one process / two nodes", plain["ratio"], WANTED_RATIO),
        gate("milliseconds a part, more than in one process", cost["overhead"], MOST_OVERHEAD, at_least=False),
        gate(memory, many / few, MOST_GROWTH, at_least=False),
    ]


def tables(result: dict[str, Any]) -> list[Table]:
    """One table for speed, one for what parts cost."""
    rows = [
        [
            case["index"],
            f"{case['rows']:,}",
            *(f"{wall:.1f}" for wall in case["wall"].values()),
            f"{case['ratio']:.2f}x",
            *(f"{rate:,.0f}" for rate in case["rate"].values()),
            f"{case['steady_ratio']:.2f}x",
        ]
        for case in result["cases"]
    ]
    cost = result["costs"]
    memory = [f"{size >> 20} MiB" for size in cost["driver_memory"]]
    each = [f"{milliseconds:.1f}" for milliseconds in cost["milliseconds_a_part"].values()]
    few, many = (f"{parts:,} parts" for parts in cost["parts"])
    return [
        Table(
            "Two one-core nodes: the whole, with workers that start, and the steady rate",
            ["index", "rows", "one process, s", "two nodes, s", "ratio", "one process, rows/s", "two nodes", "ratio"],
            rows,
        ),
        Table(
            "A part of few rows",
            ["", "one process, ms", "one worker, ms", f"driver, {few}", f"driver, {many}"],
            [["", *each, *memory]],
        ),
    ]


@click.command()
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option("--quick", is_flag=True, help="Fewer and smaller; nothing is written to results/.")
@click.option("--parts-only", is_flag=True, help="Only price a part, in time and memory; nothing is written.")
def main(rounds: int, quick: bool, parts_only: bool) -> None:
    """Compare two one-core nodes with one process, price a part, and write results/ray.json."""
    if cores() < 2:
        raise click.ClickException("two nodes of one core each want two cores")
    warn_if_loaded()
    result = environment()
    result["versions"]["ray"] = version("ray")
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as name, two_nodes() as address:
        many = QUICK_MANY if quick else MANY
        if parts_only:
            print(json.dumps(costs(Path(name), address, many), indent=2))
            return
        cases = {"none": QUICK_PARTS} if quick else {"none": PARTS, INDEX: INDEXED_PARTS}
        rounds = 1 if quick else rounds
        result["cases"] = [speed(Path(name), address, parts, rounds, index) for index, parts in cases.items()]
        result["costs"] = costs(Path(name), address, many)
    result["parameters"] = {"program": PROGRAM, "part_rows": PART_ROWS, "rounds": rounds, "tiny_rows": TINY_ROWS}
    result["not_measured"] = ["nodes on machines of their own, and a network between them"]
    result["gates"] = gates(result)
    show(result, tables(result))
    if not quick:
        print(f"written: {save('ray', result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
