"""Where does the time of an upgrade go, and how far is each stage from the most that this machine could do?

Beside the seconds of each stage of an upgrade, run in a process of its own, stands its roof: what the machine alone
allows, measured in the same run by something that does nothing else. For the transformation that is a large matrix
product, for writing it is SHA-256 and the disk, one after the other, as one thread has them; for reading, the page
cache. Without an index the stages run at once, so the whole is as slow as the slowest, if there is a core for each.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from benchmarks.galleries import shards, write_gallery
from benchmarks.measure import WORK, cores, environment, fastest_float, matmul_ceiling, save, warn_if_loaded
from benchmarks.programs import PROGRAMS
from benchmarks.table import gate, show, stages_tables
from benchmarks.upgrade_runs import fused, run_once
from fct_infer.program import Program
from fct_infer.storage import DurableWriter

PROGRAM, ROWS, ROUNDS, INDEXES = "small", 1_000_000, 3, ("none", "IVF1024,PQ32np")
QUICK_ROWS, QUICK_ROUNDS, QUICK_INDEXES = 100_000, 1, ("none", "IVF256,PQ16np")
PIECE = 16 << 20  # bytes hashed and written at once, as a block of an upgrade is
WANTED_WITHOUT_INDEX, WANTED_VERIFY = 0.8, 0.05


def seconds_of(call: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def hash_bytes(data: bytes, count: int) -> None:
    """Hash so many bytes, piece by piece."""
    digest = hashlib.sha256()
    for _ in range(0, count, len(data)):
        digest.update(data)


def write_durably(path: Path, data: bytes, count: int) -> None:
    """Write so many bytes without a look at them; they are on the disk when this returns."""
    with path.open("wb", buffering=0) as file:
        for _ in range(0, count, len(data)):
            file.write(data)
        os.fsync(file.fileno())
    path.unlink()


def write_as_an_upgrade_does(path: Path, data: bytes, count: int) -> None:
    """The same by the writer of an upgrade, digest included."""
    with DurableWriter(path) as writer:
        for _ in range(0, count, len(data)):
            writer.write(data)
        writer.commit()
    path.unlink()


def read_gallery(gallery: Path) -> None:
    """Read every byte of a gallery that lies in the page cache."""
    buffer = bytearray(PIECE)
    for kind in ("embeddings", "side_information"):
        for shard in shards(gallery, kind):
            with shard.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def roofs(folder: Path, program: Program, precision: str, rows: int) -> dict[str, float]:
    """Return the seconds that each piece of work on so many rows takes alone, at the machine's best."""
    count = rows * program.new_dim * 4
    data = np.random.default_rng(0).bytes(PIECE)
    flops = rows * program.flops_per_row
    return {
        "read": seconds_of(lambda: read_gallery(folder / "gallery")),
        "transform": 1e-9 * flops / matmul_ceiling(precision, cores()),
        "hash": seconds_of(lambda: hash_bytes(data, count)),
        "disk": seconds_of(lambda: write_durably(folder / "disk.bin", data, count)),
        "write": seconds_of(lambda: write_as_an_upgrade_does(folder / "disk.bin", data, count)),
    }


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of every figure."""
    return {name: median(run[name] for run in runs) for name in runs[0]}


def bench(folder: Path, rows: int, rounds: int, program: str, indexes: tuple[str, ...]) -> dict[str, Any]:
    """Return the result, ready for JSON."""
    header, h, precision = environment(), PROGRAMS[program], fastest_float()
    write_gallery(folder / "gallery", rows, h.dims)
    roof_runs: list[dict[str, float]] = []
    runs: dict[str, list[dict[str, float]]] = {index: [] for index in indexes}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds} ...", file=sys.stderr, flush=True)
        roof_runs.append(roofs(folder, h, precision, rows))
        for index in indexes:
            run = run_once(fused(program, precision, index), folder / "gallery", folder / "dest")
            runs[index].append({**run["seconds"], "wall": run["wall"], "cpu": run["cpu"]})
    roof = medians(roof_runs)
    found = {index: medians(each) for index, each in runs.items()}
    slowest = max(roof["transform"], roof["hash"], roof["disk"])
    gates = [
        gate(
            "without an index: slowest of h, disk, hash / stream",
            slowest / found["none"]["stream"],
            WANTED_WITHOUT_INDEX,
        )
    ]
    for index in indexes[1:]:
        share = found[index]["verify"] / found[index]["wall"]
        gates.append(gate(f"{index}: share of verify", share, WANTED_VERIFY, at_least=False))
    return {
        **header,
        "parameters": {"rows": rows, "rounds": rounds, "program": program, "precision": precision},
        "roofs": roof,
        "indexes": found,
        "not_measured": [],
        "gates": gates,
    }


@click.command()
@click.option("--rows", default=ROWS, show_default=True, help="Rows of the gallery.")
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option("--program", type=click.Choice(list(PROGRAMS)), default=PROGRAM, show_default=True)
@click.option("--quick", is_flag=True, help="A tenth of the rows, one round; nothing is written to results/.")
def main(rows: int, rounds: int, program: str, quick: bool) -> None:
    """Show the stages of an upgrade beside what the machine allows."""
    warn_if_loaded()
    indexes = QUICK_INDEXES if quick else INDEXES
    if quick:
        rows, rounds = QUICK_ROWS, QUICK_ROUNDS
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        result = bench(Path(folder), rows, rounds, program, indexes)
    show(result, stages_tables(result))
    if not quick:
        name = "stages" if program == PROGRAM else f"stages_{program}"
        print(f"written: {save(name, result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
