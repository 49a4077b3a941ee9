"""Proof that an exported file computes what its source computes: random input, several batch sizes, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.artifacts.manifest import Parity
from fct_infer.errors import GateError
from fct_infer.transformation import Float32Array

Batch: TypeAlias = Mapping[str, Float32Array]


@dataclass(frozen=True)
class Limits:
    """What a file may differ from its source: see :class:`fct_infer.artifacts.manifest.Parity`."""

    max_relative_error: float
    min_cosine: float


LIMITS = {"fp32": Limits(max_relative_error=1e-4, min_cosine=0.99999)}


@dataclass(frozen=True)
class Probe:
    """Random inputs and what the source makes of them.

    Attributes:
        batches: inputs by name, (n, ...) float32, with another n in each.
        expected: outputs of all batches one after the other, (rows, output_dim).
    """

    batches: tuple[Batch, ...]
    expected: NDArray[np.floating[Any]]


def random_batches(inputs: Mapping[str, tuple[int, ...]], sizes: tuple[int, ...]) -> tuple[Batch, ...]:
    """Standard normal numbers for inputs of the given shapes, the same at every call."""
    rng = np.random.default_rng(0)
    return tuple(
        {name: rng.standard_normal((size, *shape), np.float32) for name, shape in inputs.items()} for size in sizes
    )


def compare(expected: NDArray[np.floating[Any]], found: Float32Array) -> tuple[Parity, int]:
    """Compare outputs (rows, dim); return the figures and the row with the lowest cosine.

    Raises:
        GateError: the shapes differ, or a number is not finite.
    """
    if found.shape != expected.shape or not np.isfinite(found).all():
        what = "not finite" if found.shape == expected.shape else f"of shape {found.shape}, wanted {expected.shape}"
        raise GateError(f"its output is {what}")
    wanted, found64 = expected.astype(np.float64), found.astype(np.float64)
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found64, axis=1)
    dots = np.einsum("ij,ij->i", wanted, found64)
    same = (wanted == found64).all(axis=1)  # among them rows of zeros, which have no cosine
    cosines = np.where(same, 1.0, dots / np.where(norms > 0, norms, 1.0))
    error, worst = float(np.abs(found64 - wanted).max()), int(np.argmin(cosines))
    scale = float(np.abs(wanted).max())
    relative = error / scale if scale > 0 else error
    return Parity(len(wanted), error, relative, min(float(cosines[worst]), 1.0)), worst


def check(expected: NDArray[np.floating[Any]], found: Float32Array, precision: str) -> Parity:
    """Return the figures if they keep the limits of ``precision``.

    Raises:
        GateError: they do not; names the limit and the worst row.
    """
    parity, worst = compare(expected, found)
    limits = LIMITS[precision]
    if parity.max_relative_error > limits.max_relative_error:
        raise GateError(f"relative error {parity.max_relative_error:.2e} is above {limits.max_relative_error:.0e}")
    if parity.min_cosine < limits.min_cosine:
        raise GateError(f"row {worst} of the probe: cosine {parity.min_cosine:.6f} is below {limits.min_cosine}")
    return parity
