"""What does each precision of this CPU gain, and what does it cost?

The same program computes in every precision the CPU has, in turn, on rows that int8's ranges were not taken from.
CPU time is shown beside wall time: other work on the machine disturbs it less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import click
import numpy as np

from benchmarks.measure import alternate, cores, environment, paired_ratio, save, warn_if_loaded
from benchmarks.programs import UPGRADE_PROGRAMS
from benchmarks.table import gate, precisions_tables, show
from fct_infer import _core
from fct_infer.reference import apply_float64, largest_values, row_cosines
from fct_infer.transformation import NEEDS_RANGES, Transformation
from tests.support.programs import random_rows

WANTED_INT8 = 1.8  # times bf16, at the paper's size
GATED = "paper-size", 8192
CHECKED_ROWS = 512


@dataclass(frozen=True)
class Effort:
    programs: tuple[str, ...] = tuple(UPGRADE_PROGRAMS)
    rows: tuple[int, ...] = (512, 1024, 8192)
    rounds: int = 7
    min_seconds: float = 0.2


QUICK = Effort(programs=("small",), rows=(512,), rounds=3, min_seconds=0.05)


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the CPU seconds of one of several calls."""
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


def measure(name: str, rows: int, effort: Effort, threads: int) -> dict[str, Any]:
    """Return the figures of one program at one number of rows a call, by precision."""
    print(f"{name} h, {rows:,} rows a call ...", file=sys.stderr, flush=True)
    program = UPGRADE_PROGRAMS[name]
    old, side = (random_rows(rows, dim, seed) for seed, dim in enumerate(program.dims.values()))
    ranges = largest_values(program, *(random_rows(4096, dim, 2 + n) for n, dim in enumerate(program.dims.values())))
    out = np.empty((rows, program.new_dim), np.float32)
    expected = apply_float64(program, old[:CHECKED_ROWS], side[:CHECKED_ROWS])
    calls, cosines = {}, {}
    for precision in _core.precisions():
        h = Transformation(program, precision, threads, ranges=ranges if precision in NEEDS_RANGES else None)
        calls[precision] = partial(h.apply_into, old, side, out)
        calls[precision]()
        cosines[precision] = float(row_cosines(expected, out[:CHECKED_ROWS].astype(np.float64)).min())
    seconds = alternate(calls, effort.rounds, effort.min_seconds)
    repeats = max(1, round(effort.min_seconds / min(seconds["fp32"])))
    cpu = {precision: median(cpu_seconds(call, repeats) for _ in range(3)) for precision, call in calls.items()}
    return {
        "program": name,
        "rows": rows,
        "flops_per_row": program.flops_per_row,
        "precisions": {
            precision: {
                "rows_per_second": rows / median(seconds[precision]),
                "cpu_seconds_per_million_rows": 1e6 * cpu[precision] / rows,
                "ratio": paired_ratio(seconds["fp32"], seconds[precision]),
                "lowest_cosine": cosines[precision],
            }
            for precision in calls
        },
        "int8_over_bf16": paired_ratio(seconds["bf16"], seconds["int8"])
        if {"bf16", "int8"} <= seconds.keys()
        else None,
    }


@click.command()
@click.option("--quick", is_flag=True, help="Some seconds: one program, one size; nothing is written.")
@click.option("--threads", default=cores(), show_default=True, help="CPU threads.")
def main(quick: bool, threads: int) -> None:
    """Compare the precisions of this CPU with each other on random rows."""
    warn_if_loaded()
    header, effort = environment(), QUICK if quick else Effort()
    cases = [measure(name, rows, effort, threads) for name in effort.programs for rows in effort.rows]
    missing = [each for each in ("bf16", "int8") if each not in _core.precisions()]
    gates = [
        gate(f"int8 / bf16, {case['program']} h, {case['rows']:,} rows a call", case["int8_over_bf16"], WANTED_INT8)
        for case in cases
        if (case["program"], case["rows"]) == GATED and case["int8_over_bf16"]
    ]
    result = {
        **header,
        "parameters": {**asdict(effort), "threads": threads},
        "not_measured": [f"{precision}: this CPU has none" for precision in missing],
        "cases": cases,
        "gates": gates,
    }
    show(result, precisions_tables(result))
    if not quick:
        print(f"written: {save('precisions', result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
