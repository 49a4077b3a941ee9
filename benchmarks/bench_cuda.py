"""How close does a device come to what it can do: on rows that lie there, from host to host, and in a whole upgrade?

First what the device can do at most: the matrix products of the paper-size h alone, and copies. Then the transformation
on rows in its memory, against what a user would pick instead; then rows that start and end in the host's memory; then
lists and codes of an index; then the upgrade of a gallery in memory-backed storage.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.device_assignment import Sizes, measure_assignment
from benchmarks.device_ceilings import FAST_SUMS, copy_ceilings, matmul_ceiling
from benchmarks.device_clock import Call, DeviceClock, RowSet, timing
from benchmarks.device_summary import OURS, gates, tables
from benchmarks.galleries import repeat_gallery, write_gallery
from benchmarks.measure import environment, save
from benchmarks.opponents import NotMeasuredError
from benchmarks.opponents.on_device import ON_DEVICE
from benchmarks.programs import PROGRAMS
from benchmarks.table import show
from benchmarks.upgrade_runs import fused, run_once
from fct_infer import _core
from fct_infer.cuda import cuda_status, device_name, missing_for
from fct_infer.errors import FctError
from fct_infer.reference import apply_float64, largest_values
from fct_infer.transformation import Program, Transformation
from tests.support.programs import random_rows

STORAGE = Path("/dev/shm")
PARITY_ROWS, ACCURACY_ROWS = 64, 1024
MIN_COSINE = {"fp32": 0.99999, "tf32": 0.99999, "fp16": 0.999, "bf16": 0.999, "fp8": 0.99}
PRECISIONS = ("bf16", "fp8", "fp16", "tf32")  # in the order of their worth, should time run out


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        seconds: what is not begun by then is left out, and said to be.
        opponent_rows: row counts at which those run that take long to get ready.
        upgrades: indexes, and how many times over the gallery holds ``upgrade_rows``: without an index a device is done
            with those before it is under way.
    """

    program: str = "paper-size"
    rows: tuple[int, ...] = (1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)
    opponent_rows: tuple[int, ...] = (1 << 16, 1 << 12)
    matmul_rows: tuple[int, ...] = (1 << 14, 1 << 16, 1 << 18)
    rounds: int = 5
    min_seconds: float = 0.05
    copy_bytes: int = 1 << 30
    host_rows: int = 1 << 22
    host_rounds: int = 5
    assignments: tuple[Sizes, ...] = (Sizes(1 << 19, 128, 1024, 32), Sizes(1 << 18, 768, 4096, 96))
    upgrade_rows: int = 4_000_000
    upgrades: tuple[tuple[str, int], ...] = (("none", 8), ("IVF4096,PQ32np", 1))
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
    assignments=(Sizes(1000, 32, 16, 4),),
    upgrade_rows=2000,
    upgrades=(("none", 2), ("IVF16,PQ8np", 1)),
    seconds=120,
)
SLOW_TO_PREPARE = ("TensorRT", "torch.compile")
SECONDS_TO_PREPARE = 60  # about


class Bench:
    """Collects a result, part by part; what fails is named with its reason and does not stop the rest.

    Args:
        effort: how much is measured.
        device: ``cuda:N`` or ``cpu``.
        keep: called after each part, so that what was measured by then survives whatever comes.
    """

    def __init__(self, effort: Effort, device: str, keep: Callable[[Bench], object] = lambda bench: None) -> None:
        self.effort, self.device, self._keep = effort, device, keep
        self.clock = DeviceClock(device)
        self.program = PROGRAMS[effort.program]
        self.result: dict[str, Any] = {"ours": {}, "matmul": {}, "copies": {}, "cases": [], "host": {}}
        self.result |= {"assignment": [], "upgrade": {}}
        self._compiled: dict[str, Transformation] = {}
        self.not_measured: dict[str, None] = {}
        self._deadline = time.monotonic() + effort.seconds

    def run(self, precisions: tuple[str, ...]) -> None:
        """Measure everything; first ourselves and the ceilings, last what takes long to get ready."""
        quick = [name for name in ON_DEVICE if name not in SLOW_TO_PREPARE]
        first = precisions[0]
        for precision in precisions:
            self._part(f"fct_infer, {precision}", self.describe_ours, precision)
        for precision in (*precisions, FAST_SUMS) if "fp8" in precisions else precisions:
            self._part(f"matrix products, {precision}", self.measure_matmul, precision)
        self._part("copies", self.measure_copies)
        for precision in precisions:
            for rows in self.effort.rows:
                self._part(f"device data, {precision}, {rows:,} rows", self.measure_on_device, precision, rows, quick)
        self._part(f"host to host, {first}", self.measure_host, first)
        self._part("lists and codes", self.measure_assignment)
        with tempfile.TemporaryDirectory(dir=storage_for(self.upgrade_bytes)) as folder:
            print(f"galleries to upgrade are in {folder}", file=sys.stderr)
            for index, times in self.effort.upgrades:
                self._part(f"upgrade, index {index}", self.measure_upgrade, first, index, times, Path(folder))
        self._deadline -= SECONDS_TO_PREPARE
        for rows in self.effort.opponent_rows:
            for name in SLOW_TO_PREPARE:
                self._part(f"{name}, {first}, {rows:,} rows", self.measure_on_device, first, rows, [name])

    def ours(self, precision: str) -> Transformation:
        """Return our transformation, compiled once; where a precision needs ranges, with those of some rows."""
        if precision not in self._compiled:
            h = Transformation(self.program, precision, device=self.device)
            if not h.is_calibrated:
                rows = (random_rows(ACCURACY_ROWS, dim, 9) for dim in self.program.dims.values())
                h = h.calibrated(largest_values(self.program, *rows))
            self._compiled[precision] = h
        return self._compiled[precision]

    def describe_ours(self, precision: str) -> None:
        """Keep what we run in a precision (kernels, blocks and their speeds), and how far it is from float64."""
        h = self.ours(precision)
        rows = [random_rows(ACCURACY_ROWS, dim, 10 + seed) for seed, dim in enumerate(self.program.dims.values())]
        expected = apply_float64(self.program, *rows)
        found = h(*rows).astype(np.float64)
        self.result["ours"][precision] = {
            "description": h.executable.description,
            "min_cosine": lowest_cosine(found, expected),
            "max_relative_error": float(
                np.max(np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1))
            ),
        }

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
        contestants = {OURS: ours_on_device(self.ours(precision), sets)}
        check_parity(OURS, self.program, precision, sets[0], contestants[OURS][0], self.clock)
        for name in opponents:
            try:
                calls = ON_DEVICE[name](self.program, precision, sets)
                check_parity(name, self.program, precision, sets[0], calls[0], self.clock)
                contestants[name] = calls
            except NotMeasuredError as reason:
                self.not_measured[f"{precision}: {reason}"] = None
            except Exception as error:  # each has its own; what stops one of them stops no other
                self.not_measured[f"{precision}, {rows:,} rows: {name}: {reason_of(error)}"] = None
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
        h = self.ours(precision)
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

    def measure_assignment(self) -> None:
        """Time finding lists and codes of rows, as an index is filled with them."""
        effort = self.effort
        self.result["assignment"] = measure_assignment(
            self.clock, effort.assignments, effort.rounds, effort.min_seconds, self.not_measured
        )

    @property
    def upgrade_bytes(self) -> int:
        """Storage that the upgrades take, and half as much again, for indexes, ids and what is written on the way."""
        most = max(times for _, times in self.effort.upgrades)
        width = sum(self.program.dims.values()) + most * self.program.new_dim
        return self.effort.upgrade_rows * width * np.dtype(np.float16).itemsize * 3 // 2

    def measure_upgrade(self, precision: str, index: str, times: int, folder: Path) -> None:
        """Time a whole upgrade, in a process of its own, of a gallery in a folder."""
        once, unfinished, rows = folder / "once", folder / "unfinished", times * self.effort.upgrade_rows
        if not once.exists():
            write_gallery(unfinished, self.effort.upgrade_rows, self.program.dims, np.float16)
            unfinished.rename(once)
        gallery = folder / f"{times} times"
        if not gallery.exists():
            repeat_gallery(once, gallery, times)
        command = [*fused(self.effort.program, precision, index), "--device", self.device]
        with tempfile.TemporaryDirectory(dir=folder) as place:  # of its own: a run that fails leaves unfinished work
            run = run_once(command, gallery, Path(place) / "dest")
        # The driver's start, once per process, is not the upgrade's.
        seconds = run["wall"] - run["seconds"]["load_model"]
        if folder.parent != STORAGE:
            self.not_measured[
                f"whole upgrade as a target: {STORAGE} has too little room, {folder.parent} was taken"
            ] = None
        storage = {"storage": str(folder.parent), "in_memory": folder.parent == STORAGE}
        figures = {"rows": rows, **timing([seconds], rows), **storage, "run": run}
        self.result["upgrade"][index] = figures

    def _part(self, what: str, measure: Callable[..., None], *arguments: Any) -> None:
        """Measure a part if there is time to begin it; name what is missing, and why."""
        if time.monotonic() > self._deadline:
            self.not_measured[f"{what}: no time left"] = None
            return
        print(f"{what} ...", file=sys.stderr, flush=True)
        try:
            if self.clock.on_device:
                torch.cuda.empty_cache()  # of what the part before has left
            measure(*arguments)
        except Exception as error:  # PyTorch, drivers and file systems each have their own
            self.not_measured[f"{what}: {reason_of(error)}"] = None
        self._keep(self)


def reason_of(error: Exception) -> str:
    """Return the first line of an error's message, after its class unless its messages are made to stand alone."""
    first = next(iter(str(error).strip().splitlines()), "")
    speaks = isinstance(error, (NotMeasuredError, FctError))
    return first if speaks and first else f"{type(error).__name__}: {first}".removesuffix(": ")


def storage_for(size: int) -> Path:
    """Return memory-backed storage if it has room for ``size`` bytes, else where temporary files go."""
    has_room = STORAGE.is_dir() and shutil.disk_usage(STORAGE).free >= size
    return STORAGE if has_room else Path(tempfile.gettempdir())


def ours_on_device(h: Transformation, sets: list[RowSet]) -> list[Call]:
    """On rows that lie on a device; in a rehearsal, on rows of the CPU."""
    if h.device == "cpu":
        return [partial(h.apply_into, rows.old.numpy(), rows.side.numpy(), rows.out.numpy()) for rows in sets]
    return [partial(h.apply_on_device, rows.old, rows.side, rows.out) for rows in sets]


def lowest_cosine(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Return the lowest cosine of two rows (n, dim) with the same number; NaN if a row holds one."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(np.min(np.einsum("ij,ij->i", found, expected) / norms))


def check_parity(name: str, program: Program, precision: str, rows: RowSet, call: Call, clock: DeviceClock) -> None:
    """Raise NotMeasuredError unless a call returns, or fills ``out`` with, what float64 gives."""
    rows.out.fill_(float("nan"))
    clock.synchronize()
    returned = call()
    clock.synchronize()
    result = returned if isinstance(returned, torch.Tensor) else rows.out
    found = result[:PARITY_ROWS].double().cpu().numpy()
    expected = apply_float64(program, *(part[:PARITY_ROWS].cpu().numpy() for part in (rows.old, rows.side)))
    cosine = lowest_cosine(found, expected)
    if not cosine >= MIN_COSINE[precision]:
        raise NotMeasuredError(f"{name}: cosine {cosine:.5f} with float64, wanted >= {MIN_COSINE[precision]}")


def describe_device(device: str) -> dict[str, Any]:
    """Return the device and its software, as results files hold them."""
    if device == "cpu":
        return {"name": "rehearsal on the CPU"}
    status = cuda_status()
    used = next(each for each in status.devices if each.index == torch.device(device).index)
    return {
        **asdict(used),
        "driver": status.driver,
        "cublaslt": status.cublaslt,
        "torch_cuda": torch.version.cuda,
        "l2_bytes": DeviceClock(device).cache_bytes,
    }


def summary(bench: Bench, header: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured so far, as results files hold it."""
    result = {
        **header,
        "parameters": {
            **asdict(bench.effort),
            "bytes_in_per_row": 2 * sum(bench.program.dims.values()),
            "bytes_out_per_row": 2 * bench.program.new_dim,
        },
        **bench.result,
        "not_measured": list(bench.not_measured),
    }
    return {**result, "gates": gates(result)}


def usable_device(device: str) -> str:
    """Return the full name of one device that both the core and PyTorch can use.

    Raises:
        ClickException: it is not one, or they cannot; says why.
    """
    try:
        device = device_name(device)
        missing = "one device is measured" if device == "cpu" or "," in device else missing_for(device)
        if missing is None:
            _core.precisions(device)  # of a device that is not too old
    except FctError as error:
        raise click.ClickException(str(error)) from error
    if missing is None and not torch.cuda.is_available():
        missing = "this PyTorch cannot use it"
    if missing:
        raise click.ClickException(f"{device}: {missing}; --dry rehearses on the CPU")
    return device


@click.command()
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--dry", is_flag=True, help="Rehearse on the CPU with tiny sizes; nothing is written.")
@click.option("--seconds", type=float, help="Begin nothing new after this long [default: 390].")
def main(device: str, dry: bool, seconds: float | None) -> None:
    """Compare the transformation on a device with what the device can do, and with what a user would pick instead."""
    device, effort = ("cpu", REHEARSAL) if dry else (usable_device(device), Effort())
    if seconds is not None:
        effort = replace(effort, seconds=seconds)
    header = {**environment(), "device": describe_device(device)}
    name = "cuda-" + re.sub(r"[^a-z0-9]+", "-", header["device"]["name"].lower()).strip("-")
    bench = Bench(effort, device, lambda bench: None if dry else save(name, summary(bench, header)))
    native = _core.precisions(device)
    bench.run(tuple(precision for precision in PRECISIONS if precision in native) or ("fp32",))
    result = summary(bench, header)
    show(result, tables(result))
    if not dry:
        print(f"written: {save(name, result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
