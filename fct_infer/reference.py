"""The arithmetic of a :class:`~fct_infer.transformation.Program` in float64, step by step, as the definition reads.

Slow and plain on purpose: exported files and upgraded galleries are judged against it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError
from fct_infer.transformation import Add, Concat, Linear, Normalize, Program

Float64Array = NDArray[np.float64]
AS_NEAR = 0.01  # relative difference of two distances that no retrieval depends on
_ROWS_AT_ONCE = 256  # of which all values are kept at once
_SEARCHED_AT_ONCE = 512


def apply_float64(program: Program, old: NDArray[Any], side: NDArray[Any] | None = None) -> Float64Array:
    """Run ``program`` on rows of embeddings, everything in float64.

    Args:
        program: what to compute.
        old: (n, d_old), any real floating dtype.
        side: (n, d_side), any real floating dtype; ``None`` means FCT without side-information, where the old
            embedding takes its place (arXiv 2112.02805). Not looked at if the program takes none.

    Returns:
        (n, d_new) float64.

    Raises:
        ArrayError: an input has the wrong dtype, rank, width or row count.
    """
    return _values(program, old, side)[program.output]


def largest_values(program: Program, old: NDArray[Any], side: NDArray[Any] | None = None) -> dict[str, float]:
    """Return the largest absolute value that each of :attr:`Program.linear_inputs` takes over some rows.

    These are the ranges that 8-bit products are scaled by, found as ``fct-export`` finds them for its
    files: the largest value seen, nothing cut; 1 for a value that is always zero.

    Args:
        program: whose values.
        old: (n, d_old), n at least 1, of a real gallery.
        side: (n, d_side) or ``None``, as for :func:`apply_float64`.

    Raises:
        ArrayError: an input has the wrong dtype, rank, width or row count, or no rows.
    """
    if not len(old):
        raise ArrayError("old has no rows, wanted at least 1")
    largest = dict.fromkeys(program.linear_inputs, 0.0)
    for start in range(0, len(old), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        values = _values(program, old[rows], None if side is None else side[rows])
        for name in largest:
            largest[name] = max(largest[name], float(np.abs(values[name]).max()))
    return {name: value or 1.0 for name, value in largest.items()}


def row_cosines(expected: Float64Array, found: Float64Array) -> Float64Array:
    """Cosine of each row of (n, d) to its counterpart; two (nearly) zero rows agree, a zero row alone does not."""
    norms = np.linalg.norm(expected, axis=1), np.linalg.norm(found, axis=1)
    product = norms[0] * norms[1]
    both_zero = (norms[0] < 1e-12) & (norms[1] < 1e-12)
    dots = np.einsum("ij,ij->i", expected, found)
    return np.where(both_zero, 1.0, dots / np.where(product > 0, product, 1.0))


def top1_agreement(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Share of rows of (n, d) whose nearest other row, by L2 distance, is the same in both, or one as near.

    1 for a single row. See :class:`fct_infer.artifacts.manifest.Parity`.
    """
    if len(wanted) < 2:
        return 1.0
    right, chosen = _nearest(wanted), _nearest(found)
    distances = [np.linalg.norm(wanted - wanted[nearest], axis=1) for nearest in (right, chosen)]
    return float((distances[1] <= (1 + AS_NEAR) * distances[0]).mean())


def _values(program: Program, old: NDArray[Any], side: NDArray[Any] | None) -> dict[str, Float64Array]:
    given = {"old": old, "side": old if side is None else side}
    values = {name: _checked(name, given[name], dim, len(old)) for name, dim in program.dims.items()}
    for step in program.steps:
        match step:
            case Linear():
                product = values[step.input] @ step.weight.astype(np.float64).T + step.bias
                values[step.output] = _ACTIVATIONS[step.activation](product)
            case Concat():
                values[step.output] = np.concatenate([values[name] for name in step.inputs], axis=1)
            case Add():
                values[step.output] = values[step.inputs[0]] + values[step.inputs[1]]
            case Normalize():
                rows = values[step.input]
                values[step.output] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return values


def _nearest(rows: NDArray[np.float64]) -> NDArray[np.intp]:
    centred = rows - rows.mean(axis=0)  # which keeps distances, and digits that a common offset would take
    squares = np.einsum("ij,ij->i", centred, centred)
    nearest = [_nearest_of(centred, squares, start) for start in range(0, len(rows), _SEARCHED_AT_ONCE)]
    return np.concatenate(nearest)


def _nearest_of(rows: NDArray[np.float64], squares: NDArray[np.float64], start: int) -> NDArray[np.intp]:
    distances = squares - 2 * (rows[start : start + _SEARCHED_AT_ONCE] @ rows.T)
    own = np.arange(len(distances))
    distances[own, start + own] = np.inf
    return np.asarray(distances.argmin(axis=1))


def _checked(name: str, array: NDArray[Any], dim: int, rows: int) -> Float64Array:
    if not np.issubdtype(array.dtype, np.floating) or array.shape != (rows, dim):
        raise ArrayError(f"{name} is {array.dtype} {array.shape}, wanted floating-point ({rows}, {dim})")
    return array.astype(np.float64)


def _gelu(values: Float64Array) -> Float64Array:
    erf = np.fromiter(map(math.erf, (values / math.sqrt(2)).ravel()), np.float64, values.size)
    return 0.5 * values * (1 + erf.reshape(values.shape))


_ACTIVATIONS = {"none": lambda values: values, "relu": lambda values: np.maximum(values, 0.0), "gelu": _gelu}
