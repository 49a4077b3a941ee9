"""How every benchmark here measures: alternating rounds, medians, paired ratios, and a description of the machine."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from fct_infer import _core
from fct_infer.storage import write_json

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parent / ".work"
SETTLE_SECONDS = 0.02  # lets the thread pool of whoever ran before stop spinning
FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
PACKAGES = ("fct-infer", "numpy", "torch", "onnxruntime", "openvino", "faiss-cpu")
GPU_PACKAGES = ("onnxruntime-gpu", "tensorrt", "faiss-gpu-cuvs", "faiss-gpu", "nvidia-cublas", "triton")

Call = Callable[[], object]


def alternate(calls: Mapping[str, Call], rounds: int, min_seconds: float) -> dict[str, list[float]]:
    """Time every call once a round, in turn, so that the machine's moods meet all of them alike.

    Short calls are repeated within one timing until it takes about ``min_seconds``.

    Returns:
        Seconds per call, one figure a round, by name.
    """
    repeats = {name: _repeats(call, min_seconds) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(SETTLE_SECONDS)
            if repeats[name] > 1:
                call()
            seconds[name].append(_time(call, repeats[name]))
    return seconds


def paired_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Return the median over the rounds of one's seconds over the other's in the same round."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def _repeats(call: Call, min_seconds: float) -> int:
    seconds = _time(call, 1)  # also the warm-up: lazy initialisation, first touch of memory
    if seconds < min_seconds:
        seconds = min(_time(call, 1) for _ in range(2))
    return max(1, math.ceil(min_seconds / seconds))


def _time(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


class Stopwatch:
    """Seconds of stages that follow each other."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.laps[stage] = now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds from the start to the end of the last stage."""
        return self._last - self._start


def peak_memory() -> int:
    """Return the peak resident bytes of this process (rusage would count the parent's memory at fork as well)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def fastest_float() -> str:
    """Return what this CPU computes fastest in floating point, as other runtimes do too."""
    return "bf16" if "bf16" in _core.precisions() else "fp32"


def matmul_ceiling(precision: str, threads: int, size: int = 2048, rounds: int = 12) -> float:
    """Return the best GFLOP/s of one large square matrix product in PyTorch: the roof all runtimes share."""
    import torch

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b = (torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    return 2e-9 * size**3 / min(_time(lambda: a @ b, 1) for _ in range(rounds))


def environment() -> dict[str, Any]:
    """Return machine, versions and date, as every results file starts with them."""
    cpuinfo = dict(_key_and_value(line) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    flags = cpuinfo.get("flags", "").split()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpuinfo.get("model name", platform.processor()),
            "cores": cores(),
            "flags": [flag for flag in FLAGS if flag in flags],
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
            "kernel": platform.release(),
            "load_before": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), "onednn": _core.onednn_version, **_versions()},
    }


def warn_if_loaded() -> None:
    """Say on stderr when others keep this machine busy enough to spoil the figures."""
    load = os.getloadavg()[0]
    if load > 0.3 * cores():
        print(f"warning: load {load:.1f} on {cores()} cores, figures will be low and noisy", file=sys.stderr)


def save(name: str, result: dict[str, Any]) -> Path:
    """Write ``results/<name>.json`` and return its path."""
    path = RESULTS / f"{name}.json"
    write_json(path, result)
    return path


def _key_and_value(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def _versions() -> dict[str, str]:
    found = {}
    for package in (*PACKAGES, *GPU_PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            if package in PACKAGES:
                found[package] = "absent"
    return found
