"""Proof that an exported file computes what its source computes: figures, and limits by precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.artifacts.manifest import Parity
from fct_infer.artifacts.precisions import LIMITS
from fct_infer.errors import GateError
from fct_infer.reference import top1_agreement
from fct_infer.transformation import Float32Array


@dataclass(frozen=True)
class Difference:
    """How far outputs lie from those expected; see :class:`fct_infer.artifacts.manifest.Parity`."""

    rows: int
    max_abs_error: float
    max_relative_error: float
    min_cosine: float
    worst_row: int
    top1_agreement: float


def compare(expected: NDArray[np.floating[Any]], found: Float32Array, real_rows: int = 0) -> Difference:
    """Compare outputs (rows, dim); the last ``real_rows`` of them judge the retrieval, or all if there are none.

    Raises:
        GateError: the shapes differ, or a number is not finite.
    """
    if found.shape != expected.shape:
        raise GateError(f"its output is of shape {found.shape}, wanted {expected.shape}")
    wanted, found64 = expected.astype(np.float64), found.astype(np.float64)
    if not np.isfinite(found64).all():
        row = int(np.argmin(np.isfinite(found64).all(axis=1)))
        raise GateError(f"row {row} of the probe: its output is not finite")
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found64, axis=1)
    dots = np.einsum("ij,ij->i", wanted, found64)
    same = (wanted == found64).all(axis=1)  # among them rows of zeros, which have no cosine
    cosines = np.where(same, 1.0, dots / np.where(norms > 0, norms, 1.0))
    error, worst = float(np.abs(found64 - wanted).max()), int(np.argmin(cosines))
    scale = float(np.abs(wanted).max())
    return Difference(
        rows=len(wanted),
        max_abs_error=error,
        max_relative_error=error / scale if scale > 0 else error,
        min_cosine=min(float(cosines[worst]), 1.0),
        worst_row=worst,
        top1_agreement=top1_agreement(wanted[-real_rows:], found64[-real_rows:]),
    )


def check(difference: Difference, precision: str, real_rows: int) -> None:
    """Hold the figures against the limits of ``precision``.

    Raises:
        GateError: they do not keep them; names the limit and the worst row.
    """
    limits = LIMITS[precision]
    where = f"row {difference.worst_row} of the probe is worst"
    if not difference.max_relative_error <= limits.max_relative_error:
        raise GateError(
            f"relative error {difference.max_relative_error:.2e} is above {limits.max_relative_error:.0e}; {where}"
        )
    if not difference.min_cosine >= limits.min_cosine:
        raise GateError(f"cosine {difference.min_cosine:.6f} is below {limits.min_cosine}; {where}")
    if real_rows and not difference.top1_agreement >= limits.min_agreement:
        raise GateError(
            f"{difference.top1_agreement:.1%} of {real_rows:,} rows keep their nearest neighbour, wanted "
            f"{limits.min_agreement:.0%}"
        )


def proof(difference: Difference, real_rows: int, runtime: str, rows_per_second: float) -> Parity:
    """Return the figures as the manifest keeps them."""
    return Parity(
        rows=difference.rows,
        max_abs_error=difference.max_abs_error,
        max_relative_error=difference.max_relative_error,
        min_cosine=difference.min_cosine,
        top1_agreement=difference.top1_agreement,
        real_rows=real_rows,
        runtime=runtime,
        rows_per_second=rows_per_second,
    )
