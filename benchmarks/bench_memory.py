"""Does the memory of an upgrade grow with the gallery?

Two galleries, one ten times the other, and an index that is small beside them; its bytes are subtracted.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.galleries import write_gallery
from benchmarks.measure import WORK, environment, save
from benchmarks.programs import PROGRAMS
from benchmarks.table import gate, memory_tables, show
from benchmarks.upgrade_runs import fused, run_once
from fct_infer import _core

SIZES, QUICK_SIZES = (400_000, 4_000_000), (100_000, 1_000_000)
PROGRAM, INDEX = "small", "IVF256,PQ8np"
ALLOWED_GROWTH = 1.1


def bench(folder: Path, sizes: tuple[int, int]) -> dict[str, Any]:
    """Return the peak memory at both sizes, ready for JSON."""
    header, precision = environment(), _core.precisions()[-1]
    runs = []
    for rows in sizes:
        print(f"{rows:,} rows ...", file=sys.stderr, flush=True)
        gallery = folder / f"gallery-{rows}"
        write_gallery(gallery, rows, PROGRAMS[PROGRAM].dims)
        runs.append({"rows": rows, **run_once(fused(PROGRAM, precision, INDEX), gallery, folder / "dest")})
        shutil.rmtree(gallery)
    small, large = (run["peak_memory"] - run["index_bytes"] for run in runs)
    what = f"peak memory without the index, {sizes[1]:,} rows / {sizes[0]:,} rows"
    return {
        **header,
        "parameters": {"program": PROGRAM, "index": INDEX, "precision": precision},
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
