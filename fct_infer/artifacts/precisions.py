"""The precisions a model can be exported in, and how far each may lie from the model it was made from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a file may differ from its source: see :class:`fct_infer.artifacts.manifest.Parity`.

    ``min_agreement`` is judged on a user's rows only: random rows have neighbours that differ by less than rounding.
    """

    max_relative_error: float
    min_cosine: float
    min_agreement: float


# Most exact first: the order in which a bundle with several files is searched.
LIMITS = {
    "fp32": Limits(1e-4, 0.99999, 0.99),
    "tf32": Limits(5e-3, 0.9999, 0.98),
    "fp16": Limits(5e-3, 0.9999, 0.98),
    "bf16": Limits(5e-2, 0.999, 0.95),
    "int8": Limits(2e-1, 0.98, 0.85),
    "fp8": Limits(2e-1, 0.98, 0.80),
}
PRECISIONS = tuple(LIMITS)
CALIBRATION_ROWS = 4096  # of a real gallery, by default, for those of NEEDS_RANGES
