"""Is the fused transformation as fast as what a user would pick instead?

Every runtime gets the same weights, all cores, two float32 input arrays that exist already and room for a float32
result. Its result must equal ours before it is timed.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import click
import numpy as np

from benchmarks import opponents
from benchmarks.measure import alternate, cores, environment, matmul_ceiling, paired_ratio, save, warn_if_loaded
from benchmarks.opponents import OPPONENTS, Apply, NotMeasuredError
from benchmarks.programs import PROGRAMS
from benchmarks.table import gate, show, transformation_tables
from fct_infer import _core
from fct_infer.machine import usable_memory
from fct_infer.transformation import Float32Array, Program, Transformation
from tests.support.programs import random_rows

OURS = "fct_infer"
PRECISIONS = ("fp32", "bf16")
MAX_RELATIVE_ERROR = 1e-4  # fp32: L2 norm of a row's difference over that of the row
MIN_COSINE = 0.999  # bf16: runtimes round at different places
ONE_CALL_BYTES_PER_ROW = 13 << 10  # all opponents together, each keeping its activations
WANTED_PAPER_SIZE, WANTED_SMALL, WANTED_ONE_CALL = 0.97, 1.1, 1.4


@dataclass(frozen=True)
class Effort:
    rows: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    rounds: int = 7
    min_seconds: float = 0.2
    rows_in_one_call: int = 1_000_000
    rounds_in_one_call: int = 5


QUICK = Effort(rows=(512, 4096), rounds=3, min_seconds=0.05, rows_in_one_call=100_000, rounds_in_one_call=3)


def load_ours(program: Program, precision: str, threads: int) -> Apply:
    transformation = Transformation(program, precision, threads)

    def apply(old: Float32Array, side: Float32Array, out: Float32Array) -> Float32Array:
        transformation.apply_into(old, side, out)
        return out

    return apply


def check_parity(name: str, result: Float32Array, ours: Float32Array, precision: str) -> None:
    """Raise NotMeasuredError unless ``result`` is what ours is."""
    if precision == "fp32":
        error = float(np.max(np.linalg.norm(result - ours, axis=1) / np.linalg.norm(ours, axis=1)))
        if not error <= MAX_RELATIVE_ERROR:
            raise NotMeasuredError(
                f"{name}: relative error {error:.1e} against fct_infer, wanted <= {MAX_RELATIVE_ERROR}"
            )
    else:
        norms = np.linalg.norm(result, axis=1) * np.linalg.norm(ours, axis=1)
        cosine = float(np.min(np.einsum("ij,ij->i", result, ours) / norms))
        if not cosine >= MIN_COSINE:
            raise NotMeasuredError(f"{name}: cosine {cosine:.5f} with fct_infer, wanted >= {MIN_COSINE}")


class Bench:
    """Collects cases, one for each program, precision and number of rows per call."""

    def __init__(self, effort: Effort, threads: int) -> None:
        self.effort, self.threads = effort, threads
        self.cases: list[dict[str, Any]] = []
        self.not_measured: dict[str, None] = {}
        self.ceilings: dict[str, float] = {}

    def run(self) -> None:
        for precision in PRECISIONS:
            if precision not in _core.precisions():
                self.not_measured[f"{precision}: not native on this CPU, not measured"] = None
                continue
            self.ceilings[precision] = matmul_ceiling(precision, self.threads)
            for name in PROGRAMS:
                for rows in self.effort.rows:
                    self.measure(name, precision, rows, self.effort.rounds)
            self.measure_one_call("small", precision)

    def measure_one_call(self, name: str, precision: str) -> None:
        rows = self.effort.rows_in_one_call
        needed, available = rows * ONE_CALL_BYTES_PER_ROW, usable_memory()
        if available < needed:
            reason = f"needs {needed >> 30} GiB of memory, {available >> 30} are available"
            self.not_measured[f"{precision}: {rows:,} rows in one call: {reason}"] = None
            return
        self.measure(name, precision, rows, self.effort.rounds_in_one_call)

    def measure(self, name: str, precision: str, rows: int, rounds: int) -> None:
        print(f"{name} h, {precision}, {rows:,} rows a call ...", file=sys.stderr, flush=True)
        program = PROGRAMS[name]
        old, side = (random_rows(rows, dim, seed) for seed, dim in enumerate(program.dims.values()))
        out = np.empty((rows, program.new_dim), np.float32)
        applies = {OURS: load_ours(program, precision, self.threads)}
        expected = applies[OURS](old, side, np.empty_like(out))
        for opponent in OPPONENTS:
            try:
                apply = opponents.load(opponent, program, precision, self.threads, rows)
                check_parity(opponent, apply(old, side, out), expected, precision)
                applies[opponent] = apply
            except NotMeasuredError as reason:
                self.not_measured[f"{precision}: {reason}"] = None
        calls = {runtime: partial(apply, old, side, out) for runtime, apply in applies.items()}
        seconds = alternate(calls, rounds, self.effort.min_seconds)
        self.cases.append(self.summarise(name, precision, rows, seconds))

    def summarise(self, name: str, precision: str, rows: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
        flops = PROGRAMS[name].flops_per_row
        runtimes: dict[str, dict[str, float]] = {}
        for runtime, timings in seconds.items():
            speed = rows / median(timings)
            runtimes[runtime] = {
                "seconds": median(timings),
                "rows_per_second": speed,
                "percent_of_peak": 100 * speed * flops / (self.ceilings[precision] * 1e9),
            }
            if runtime != OURS:
                runtimes[runtime]["ratio"] = paired_ratio(timings, seconds[OURS])
        return {
            "program": name,
            "precision": precision,
            "rows": rows,
            "flops_per_row": flops,
            "rounds": len(seconds[OURS]),
            "fastest": min(seconds, key=lambda runtime: median(seconds[runtime])),
            "runtimes": runtimes,
        }

    def gates(self) -> list[dict[str, Any]]:
        """Ours over the fastest opponent, at the number of rows where that opponent is at its best."""
        one_call = self.effort.rows_in_one_call
        groups = (
            ("paper-size h at its best batch", WANTED_PAPER_SIZE, "paper-size", self.effort.rows),
            ("small h at its best batch", WANTED_SMALL, "small", self.effort.rows),
            (f"small h, {one_call:,} rows in one call", WANTED_ONE_CALL, "small", (one_call,)),
        )
        gates = []
        for precision in self.ceilings:
            for what, wanted, program, sizes in groups:
                opponents_there = [
                    (figures["rows_per_second"], figures["ratio"], runtime, case["rows"])
                    for case in self.cases
                    if (case["precision"], case["program"]) == (precision, program) and case["rows"] in sizes
                    for runtime, figures in case["runtimes"].items()
                    if runtime != OURS
                ]
                if opponents_there:
                    speed, ratio, runtime, rows = max(opponents_there)
                    fastest = f"{runtime}, {speed / 1e3:.1f} k rows/s at {rows:,} rows"
                    gates.append(gate(f"{precision} {what}: ours / fastest ({fastest})", ratio, wanted))
        return gates


@click.command()
@click.option("--quick", is_flag=True, help="Under a minute: fewer sizes and rounds, nothing is written.")
@click.option("--threads", default=cores(), show_default=True, help="CPU threads for every runtime.")
def main(quick: bool, threads: int) -> None:
    """Compare fct_infer with torch eager, torch.compile, ONNX Runtime and OpenVINO on random rows."""
    warn_if_loaded()
    header, effort = environment(), QUICK if quick else Effort()
    bench = Bench(effort, threads)
    bench.run()
    result = {
        **header,
        "parameters": {**asdict(effort), "threads": threads},
        "matmul_gflops": bench.ceilings,
        "not_measured": list(bench.not_measured),
        "cases": bench.cases,
        "gates": bench.gates(),
    }
    show(result, transformation_tables(result))
    if not quick:
        print(f"written: {save('transformation', result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
