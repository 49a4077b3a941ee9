"""What a user would pick instead of this package, one file per opponent.

Every opponent has ``load(program, precision, threads, rows) -> Apply``. It gets the weights, all cores, and the rows
per call it may specialise for (None: any number); it raises :class:`NotMeasuredError` with the reason if it cannot run.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from fct_infer.transformation import Float32Array, Program

# (old, side, out) -> the result: `out` if the runtime can write there, else an array of its own.
Apply = Callable[[Float32Array, Float32Array, Float32Array], Float32Array]

OPPONENTS = {
    "torch eager": "torch_eager",
    "torch.compile": "torch_compile",
    "ONNX Runtime": "onnx_runtime",
    "OpenVINO": "openvino_runtime",
}


class NotMeasuredError(Exception):
    """An opponent cannot run here; the message says why."""


def find(name: str) -> ModuleType:
    """Import an opponent by its name in :data:`OPPONENTS`.

    Raises:
        NotMeasuredError: it is not installed.
    """
    try:
        return import_module(f"benchmarks.opponents.{OPPONENTS[name]}")
    except ImportError as error:
        raise NotMeasuredError(f"{name}: {error}") from error


def load(name: str, program: Program, precision: str, threads: int, rows: int | None = None) -> Apply:
    """Make an opponent ready to run ``program``.

    Raises:
        NotMeasuredError: it is not installed, or cannot run this precision on this machine.
    """
    apply: Apply = find(name).load(program, precision, threads, rows)
    return apply
