"""Which precision is the fastest that is exact enough, found on rows instead of assumed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.artifacts.precisions import LIMITS
from fct_infer.reference import apply_float64, largest_values, row_cosines, top1_agreement
from fct_infer.transformation import NEEDS_RANGES, Transformation, check_transformation

NEVER_CHOSEN = ("fp32", "fp8")  # what all others fall back to; what no device has shown to be worth it yet
MIN_AGREEMENT = LIMITS["bf16"].min_agreement  # nobody who asks for auto gives up more neighbours than in bf16


def choose_precision(
    h: Transformation, old: NDArray[Any], side: NDArray[Any] | None = None, *, min_cosine: float | None = None
) -> Transformation:
    """Return ``h`` in the fastest precision its device has natively that proves itself on some rows, else in fp32.

    A row rounded to fewer bits may keep its place or lose it: rows of unit length around one mean, say, differ by
    little to begin with. So every precision is tried on rows of the kind it will see. One that is scaled by ranges of
    values takes these from every other row and is tried on the rest; besides the cosines, the nearest neighbours among
    those must stay what they are, as often as bf16 has to keep them: of 8 bits a cosine says too little.

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
    for name in reversed([name for name in h.native_precisions if name not in NEVER_CHOSEN]):
        candidate = h.in_precision(name)
        proof = slice(None)
        if name in NEEDS_RANGES:
            seen = slice(None, None, 2)
            candidate = candidate.calibrated(largest_values(h.program, old[seen], None if side is None else side[seen]))
            proof = slice(1, None, 2) if len(old) > 1 else seen  # rows that the ranges were not made for
        found, is_good = _proven(candidate, expected[proof], *_rows(proof, old, side), min_cosine=min_cosine)
        if is_good:
            candidate.choice = f"chosen by auto, {found}"
            return candidate
        refused.append(found)
    reason = "; ".join(refused) or f"{h.device} has no faster one natively"
    return h.in_precision("fp32", f"chosen by auto, {reason}")


def _rows(rows: slice, old: NDArray[Any], side: NDArray[Any] | None) -> tuple[NDArray[Any], NDArray[Any] | None]:
    return np.ascontiguousarray(old[rows]), None if side is None else np.ascontiguousarray(side[rows])


def _proven(
    h: Transformation,
    expected: NDArray[np.float64],
    old: NDArray[Any],
    side: NDArray[Any] | None,
    *,
    min_cosine: float | None,
) -> tuple[str, bool]:
    """Return what was found on some rows, for people, and whether it is enough."""
    limit = LIMITS[h.precision].min_cosine if min_cosine is None else min_cosine
    new = h(old, side).astype(np.float64)
    lowest = float(row_cosines(expected, new).min())
    found = f"{h.precision}: cosine >= {lowest:.6f} on {len(old):,} rows, wanted {limit}"
    if h.precision not in NEEDS_RANGES or not lowest >= limit:
        return found, lowest >= limit
    kept = top1_agreement(expected, new)
    return f"{found}; {kept:.1%} keep their nearest neighbour, wanted {MIN_AGREEMENT:.0%}", kept >= MIN_AGREEMENT
