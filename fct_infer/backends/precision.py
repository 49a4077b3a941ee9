"""Which precision is the fastest that is exact enough, found on rows instead of assumed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.artifacts.precisions import LIMITS
from fct_infer.reference import apply_float64, row_cosines
from fct_infer.transformation import NEEDS_RANGES, Transformation, check_transformation


def choose_precision(
    h: Transformation, old: NDArray[Any], side: NDArray[Any] | None = None, *, min_cosine: float | None = None
) -> Transformation:
    """Return ``h`` in the fastest precision its device has natively that proves itself on some rows, else in fp32.

    A row rounded to fewer bits may keep its place or lose it: rows of unit length around one mean, say, differ by
    little to begin with. So every precision is tried on rows of the kind it will see.

    Args:
        h: of precision ``auto``; any other is returned as it is.
        old: (n, old_dim) float32 or float16, n at least 1: some thousand rows of the gallery.
        side: (n, side_dim), as ``h`` takes it.
        min_cosine: lowest cosine of a row to its float64 value; by default that of
            :data:`~fct_infer.artifacts.precisions.LIMITS` for each precision.

    Returns:
        A transformation that can be called; its ``choice`` says why it has its precision.

    Raises:
        UsageError: ``h`` is no transformation.
        ArrayError: an input has the wrong dtype, rank, width or row count.
        NonFiniteError: a row of an input, or its result, holds NaN or infinity.
    """
    check_transformation(h)
    if h.precision != "auto":
        return h
    assert h.program is not None  # another runtime has the precision of its file
    expected = apply_float64(h.program, old, side)
    refused = []
    for name in reversed([name for name in h.native_precisions if name not in NEEDS_RANGES and name != "fp32"]):
        limit = LIMITS[name].min_cosine if min_cosine is None else min_cosine
        candidate = h.in_precision(name)
        lowest = float(row_cosines(expected, candidate(old, side).astype(np.float64)).min())
        found = f"{name}: cosine >= {lowest:.6f} on {len(old):,} rows, wanted {limit}"
        if lowest >= limit:
            candidate.choice = f"chosen by auto, {found}"
            return candidate
        refused.append(found)
    reason = "; ".join(refused) or f"{h.device} has no faster one natively"
    return h.in_precision("fp32", f"chosen by auto, {reason}")
