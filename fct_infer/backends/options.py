"""How a model file is to be run: what travels together from a command line, or to another process."""

from __future__ import annotations

from dataclasses import dataclass

from fct_infer.artifacts.precisions import PRECISIONS
from fct_infer.backends.runner import BACKENDS
from fct_infer.errors import UnsupportedError


@dataclass(frozen=True)
class RuntimeOptions:
    """How a model is run; picklable. What each means for which file, :func:`load_transformation` says.

    Attributes:
        precision: of the arithmetic, or ``auto``.
        threads: CPU threads of one call; None leaves it to the runtime.
        backend: ``auto`` or the name of a runtime.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``; for the core several: ``cuda:0,cuda:1``.
        device_memory: most bytes of each device's memory; 0 leaves it to the core.
        normalize: L2-normalise the results.
        trust: run files that are code.

    Raises:
        UnsupportedError: there is no such backend or precision.
    """

    precision: str = "fp32"
    threads: int | None = None
    backend: str = "auto"
    device: str = "auto"
    device_memory: int = 0
    normalize: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UnsupportedError(f"backend {self.backend!r} does not exist; there is {', '.join(BACKENDS)}")
        if self.precision not in ("auto", *PRECISIONS):
            raise UnsupportedError(
                f"precision {self.precision!r} does not exist; there is auto, {', '.join(PRECISIONS)}"
            )
