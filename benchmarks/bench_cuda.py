"""How close does a card come to what it can do: on rows that lie there, from host to host, and in a whole upgrade?

First what the card can do at most: the matrix products of the paper-size h alone, and copies. Then the transformation
on rows in its memory, against what a user would pick instead; then rows that start and end in the host's memory; then
the upgrade of a gallery in memory-backed storage.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.device_ceilings import copy_ceilings, matmul_ceiling
from benchmarks.device_clock import Call, DeviceClock, RowSet, timing
from benchmarks.device_summary import OURS, gates, tables
from benchmarks.galleries import write_gallery
from benchmarks.measure import environment, save
from benchmarks.opponents import NotMeasuredError
from benchmarks.opponents.on_device import ON_DEVICE
from benchmarks.programs import PROGRAMS
from benchmarks.table import show
from benchmarks.upgrade_runs import fused, run_once
from fct_infer import _core
from fct_infer.cuda import cuda_status
from fct_infer.errors import FctError
from fct_infer.reference import apply_float64, largest_values
from fct_infer.transformation import Program, Transformation
from tests.support.programs import random_rows

STORAGE = Path("/dev/shm")
PARITY_ROWS = 64
MIN_COSINE = {"fp32": 0.99999, "tf32": 0.99999, "fp16": 0.999, "bf16": 0.999, "fp8": 0.99}
PRECISIONS = ("bf16", "fp8", "fp16", "tf32")  # in the order of their worth, should time run out


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        seconds: what is not begun by then is left out, and said to be.
        opponent_rows: row counts at which those run that take long to get ready.
    """

    program: str = "paper-size"
    rows: tuple[int, ...] = (1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)
    opponent_rows: tuple[int, ...] = (1 << 12, 1 << 16)
    matmul_rows: tuple[int, ...] = (1 << 14, 1 << 16, 1 << 18)
    rounds: int = 5
    min_seconds: float = 0.05
    copy_bytes: int = 1 << 30
    host_rows: int = 1 << 22
    host_rounds: int = 5
    upgrade_rows: int = 1 << 22
    indexes: tuple[str, ...] = ("none", "IVF4096,PQ32np")
    seconds: float = 390


REHEARSAL = Effort(
    program="small",
    rows=(64, 256),
    opponent_rows=(64,),
    matmul_rows=(64,),
    rounds=2,
    min_seconds=0.0,
    copy_bytes=1 << 16,
    host_rows=1000,
    host_rounds=2,
    upgrade_rows=2000,
    indexes=("none", "IVF16,PQ8np"),
    seconds=120,
)
SLOW_TO_PREPARE = ("TensorRT", "torch.compile")


class Bench:
    """Collects a result, part by part; what fails is named with its reason and does not stop the rest."""

    def __init__(self, effort: Effort, device: str) -> None:
        self.effort, self.device = effort, device
        self.clock = DeviceClock(device)
        self.program = PROGRAMS[effort.program]
        self.result: dict[str, Any] = {"matmul": {}, "copies": {}, "cases": [], "host": {}, "upgrade": {}}
        self.not_measured: dict[str, None] = {}
        self._deadline = time.monotonic() + effort.seconds

    def run(self, precisions: tuple[str, ...]) -> None:
        """Measure everything; first ourselves and the ceilings, last what takes long to get ready."""
        quick = [name for name in ON_DEVICE if name not in SLOW_TO_PREPARE]
        first = precisions[0]
        for precision in precisions:
            self._part(f"matrix products, {precision}", self.measure_matmul, precision)
        self._part("copies", self.measure_copies)
        for precision in precisions:
            for rows in self.effort.rows:
                self._part(f"device data, {precision}, {rows:,} rows", self.measure_on_device, precision, rows, quick)
        self._part(f"host to host, {first}", self.measure_host, first)
        with tempfile.TemporaryDirectory(dir=STORAGE if STORAGE.is_dir() else None) as folder:
            for index in self.effort.indexes:
                self._part(f"upgrade, index {index}", self.measure_upgrade, first, index, Path(folder))
        for rows in self.effort.opponent_rows:
            for name in SLOW_TO_PREPARE:
                self._part(f"{name}, {first}, {rows:,} rows", self.measure_on_device, first, rows, [name])

    def measure_matmul(self, precision: str) -> None:
        """Time the products of the program alone."""
        effort = self.effort
        self.result["matmul"][precision] = matmul_ceiling(
            self.clock, self.program, precision, effort.matmul_rows, effort.rounds, effort.min_seconds
        )

    def measure_copies(self) -> None:
        """Time copies between host and device."""
        effort = self.effort
        self.result["copies"] = copy_ceilings(self.clock, effort.copy_bytes, effort.rounds, effort.min_seconds)

    def measure_on_device(self, precision: str, rows: int, opponents: list[str]) -> None:
        """Time ourselves and some opponents in turn on rows that lie on the device."""
        dims = self.program.dims
        sets = self.clock.row_sets(rows, dims["old"], dims["side"], self.program.new_dim)
        contestants = {OURS: ours_on_device(self.program, precision, sets)}
        check_parity(OURS, self.program, precision, sets[0], contestants[OURS][0], self.clock)
        for name in opponents:
            try:
                calls = ON_DEVICE[name](self.program, precision, sets)
                check_parity(name, self.program, precision, sets[0], calls[0], self.clock)
                contestants[name] = calls
            except NotMeasuredError as reason:
                self.not_measured[f"{precision}: {reason}"] = None
            except Exception as error:  # each has its own; what stops one of them stops no other
                what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                self.not_measured[f"{precision}, {rows:,} rows: {name}: {what}"] = None
        if not contestants.keys() - self._measured(precision, rows):
            return
        seconds = self.clock.alternate(contestants, self.effort.rounds, self.effort.min_seconds)
        self.result["cases"].append(
            {
                "precision": precision,
                "rows": rows,
                "sets": len(sets),
                "runtimes": {name: timing(values, rows) for name, values in seconds.items()},
            }
        )

    def _measured(self, precision: str, rows: int) -> set[str]:
        return {
            name
            for case in self.result["cases"]
            if (case["precision"], case["rows"]) == (precision, rows)
            for name in case["runtimes"]
        }

    def measure_host(self, precision: str) -> None:
        """Time rows that start and end in the host's memory, float16 both, as NumPy arrays like any other."""
        rows = self.effort.host_rows
        h = ours(self.program, precision, self.device)
        old, side = (
            random_rows(rows, dim, seed).astype(np.float16) for seed, dim in enumerate(self.program.dims.values())
        )
        out = np.empty((rows, self.program.new_dim), np.float16)
        h.apply_into(old, side, out)
        seconds = []
        for _ in range(self.effort.host_rounds):
            start = time.perf_counter()
            h.apply_into(old, side, out)
            seconds.append(time.perf_counter() - start)
        self.result["host"][precision] = {"rows": rows, **timing(seconds, rows)}

    def measure_upgrade(self, precision: str, index: str, folder: Path) -> None:
        """Time a whole upgrade, in a process of its own, of a gallery in memory-backed storage."""
        gallery, dest, rows = folder / "gallery", folder / "dest", self.effort.upgrade_rows
        if not gallery.exists():
            write_gallery(gallery, rows, self.program.dims, np.float16)
        run = run_once([*fused(self.effort.program, precision, index), "--device", self.device], gallery, dest)
        seconds = (
            run["wall"] - run["seconds"]["load_model"]
        )  # the driver's start, once per process, is not the upgrade's
        self.result["upgrade"][index] = {"rows": rows, **timing([seconds], rows), "run": run}
        shutil.rmtree(dest)

    def _part(self, what: str, measure: Callable[..., None], *arguments: Any) -> None:
        """Measure a part if there is time to begin it; name what is missing, and why."""
        if time.monotonic() > self._deadline:
            self.not_measured[f"{what}: no time left"] = None
            return
        print(f"{what} ...", file=sys.stderr, flush=True)
        try:
            measure(*arguments)
        except (NotMeasuredError, FctError, torch.OutOfMemoryError, subprocess.CalledProcessError) as reason:
            self.not_measured[f"{what}: {str(reason).splitlines()[0]}"] = None
        if self.clock.on_card:
            torch.cuda.empty_cache()


def ours(program: Program, precision: str, device: str) -> Transformation:
    """Return our transformation; where a precision needs ranges, those of some rows."""
    h = Transformation(program, precision, device=device)
    if h.is_calibrated:
        return h
    return h.calibrated(largest_values(program, *(random_rows(4096, dim, 9) for dim in program.dims.values())))


def ours_on_device(program: Program, precision: str, sets: list[RowSet]) -> list[Call]:
    """On rows that lie on a card; in a rehearsal, on rows of the CPU."""
    device = sets[0].old.device
    h = ours(program, precision, str(device))
    if device.type == "cpu":
        return [partial(h.apply_into, rows.old.numpy(), rows.side.numpy(), rows.out.numpy()) for rows in sets]
    return [partial(h.apply_on_device, rows.old, rows.side, rows.out) for rows in sets]


def check_parity(name: str, program: Program, precision: str, rows: RowSet, call: Call, clock: DeviceClock) -> None:
    """Raise NotMeasuredError unless a call returns, or fills ``out`` with, what float64 gives."""
    rows.out.fill_(float("nan"))
    clock.synchronize()
    returned = call()
    clock.synchronize()
    result = returned if isinstance(returned, torch.Tensor) else rows.out
    found = result[:PARITY_ROWS].double().cpu().numpy()
    expected = apply_float64(program, *(part[:PARITY_ROWS].cpu().numpy() for part in (rows.old, rows.side)))
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(np.min(np.einsum("ij,ij->i", found, expected) / norms))
    if not cosine >= MIN_COSINE[precision]:
        raise NotMeasuredError(f"{name}: cosine {cosine:.5f} with float64, wanted >= {MIN_COSINE[precision]}")


def describe_device(device: str) -> dict[str, Any]:
    """Return the card and its software, as results files hold them."""
    if device == "cpu":
        return {"name": "rehearsal on the CPU"}
    status = cuda_status()
    card = next(card for card in status.cards if card.index == torch.device(device).index)
    return {
        **asdict(card),
        "driver": status.driver,
        "cublaslt": status.cublaslt,
        "torch_cuda": torch.version.cuda,
        "l2_bytes": DeviceClock(device).cache_bytes,
    }


@click.command()
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--dry", is_flag=True, help="Rehearse on the CPU with tiny sizes; nothing is written.")
@click.option("--seconds", type=float, help="Begin nothing new after this long [default: 390].")
def main(device: str, dry: bool, seconds: float | None) -> None:
    """Compare the transformation on a card with what the card can do, and with what a user would pick instead."""
    device, effort = ("cpu", REHEARSAL) if dry else (device, Effort())
    if seconds is not None:
        effort = Effort(**{**asdict(effort), "seconds": seconds})
    if not dry and cuda_status().missing:
        raise click.ClickException(f"{device}: {cuda_status().missing}; --dry rehearses on the CPU")
    native = _core.precisions() if dry else _core.precisions(device)
    header, bench = environment(), Bench(effort, device)
    bench.run(tuple(name for name in PRECISIONS if name in native) or ("fp32",))
    result = {
        **header,
        "device": describe_device(device),
        "parameters": {
            **asdict(effort),
            "bytes_in_per_row": 2 * sum(bench.program.dims.values()),
            "bytes_out_per_row": 2 * bench.program.new_dim,
        },
        **bench.result,
        "not_measured": list(bench.not_measured),
    }
    result["gates"] = gates(result)
    show(result, tables(result))
    if not dry:
        slug = re.sub(r"[^a-z0-9]+", "-", result["device"]["name"].lower()).strip("-")
        print(f"written: {save(f'cuda-{slug}', result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
