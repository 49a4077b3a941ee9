"""How far outputs may lie from those expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from support.programs import random_rows

from fct_infer.artifacts.precisions import LIMITS
from fct_infer.reference import apply_float64
from fct_infer.transformation import Program


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest absolute error by the largest absolute number wanted."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted.astype(np.float64)).max() / np.abs(wanted).max())


def assert_within(found: np.ndarray, wanted: np.ndarray, precision: str) -> None:
    """Hold float32 ``found`` against the limit of a precision."""
    assert found.dtype == np.float32
    assert relative_error(found, wanted) <= LIMITS[precision].max_relative_error


def rows_for(inputs: Mapping[str, Any], count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows for inputs of the widths given, as (d,) or d."""
    dims = {name: shape[0] if isinstance(shape, tuple) else shape for name, shape in inputs.items()}
    return {name: random_rows(count, dim, seed + 100 + place) for place, (name, dim) in enumerate(dims.items())}


def reference(program: Program, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """The program in float64."""
    return apply_float64(program, rows["old"], rows.get("side"))
