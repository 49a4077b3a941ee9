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


def apply_float64(program: Program, old: NDArray[Any], side: NDArray[Any] | None = None) -> Float64Array:
    """Run ``program`` on rows of embeddings, everything in float64.

    Args:
        program: what to compute.
        old: (n, d_old), any real floating dtype.
        side: (n, d_side), any real floating dtype; ``None`` means FCT without side-information, where the old
            embedding takes its place (arXiv 2112.02805, section 3.2). Not looked at if the program takes none.

    Returns:
        (n, d_new) float64.

    Raises:
        ArrayError: an input has the wrong dtype, rank, width or row count.
    """
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
    return values[program.output]


def _checked(name: str, array: NDArray[Any], dim: int, rows: int) -> Float64Array:
    if not np.issubdtype(array.dtype, np.floating) or array.shape != (rows, dim):
        raise ArrayError(f"{name} is {array.dtype} {array.shape}, wanted floating-point ({rows}, {dim})")
    return array.astype(np.float64)


def _gelu(values: Float64Array) -> Float64Array:
    erf = np.fromiter(map(math.erf, (values / math.sqrt(2)).ravel()), np.float64, values.size)
    return 0.5 * values * (1 + erf.reshape(values.shape))


_ACTIVATIONS = {"none": lambda values: values, "relu": lambda values: np.maximum(values, 0.0), "gelu": _gelu}
