"""Does the memory of an upgrade grow with the gallery?

Two galleries, one ten times the other. Without an index nothing may grow; with one, memory grows by the index, which
FAISS keeps in lists that have room for up to twice their rows.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.galleries import write_gallery
from benchmarks.measure import WORK, environment, fastest_float, save
from benchmarks.programs import PROGRAMS
from benchmarks.table import gate, memory_tables, show
from benchmarks.upgrade_runs import fused, run_once

SIZES, QUICK_SIZES = (400_000, 4_000_000), (100_000, 1_000_000)
PROGRAM, INDEXES = "small", ("none", "IVF256,PQ8np")
ALLOWED_GROWTH = 1.1


def bench(folder: Path, sizes: tuple[int, int]) -> dict[str, Any]:
    """Return the peak memory at both sizes, ready for JSON."""
    header, precision = environment(), fastest_float()
    runs = []
    for rows in sizes:
        gallery = folder / f"gallery-{rows}"
        write_gallery(gallery, rows, PROGRAMS[PROGRAM].dims)
        for index in INDEXES:
            print(f"{rows:,} rows, index {index} ...", file=sys.stderr, flush=True)
            run = run_once(fused(PROGRAM, precision, index), gallery, folder / "dest")
            runs.append({"rows": rows, "index": index, **run})
        shutil.rmtree(gallery)
    small, large = (run["peak_memory"] for run in runs if run["index"] == "none")
    what = f"peak memory without an index, {sizes[1]:,} rows / {sizes[0]:,} rows"
    return {
        **header,
        "parameters": {"program": PROGRAM, "precision": precision},
        "runs": runs,
        "not_measured": [],
        "gates": [gate(what, large / small, ALLOWED_GROWTH, at_least=False)],
    }


@click.command()
@click.option("--quick", is_flag=True, help="A quarter of the rows; nothing is written to results/.")
def main(quick: bool) -> None:
    """Measure the peak memory of an upgrade at 400,000 and 4,000,000 rows (needs 7 GB of disk)."""
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        result = bench(Path(folder), QUICK_SIZES if quick else SIZES)
    show(result, memory_tables(result))
    if not quick:
        print(f"written: {save('upgrade_memory', result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
