"""Where every gallery row comes among the relevant ones of a query: what ranks are counted from.

A row's *place* is the number of relevant rows ranked before it. The rank of the relevant row at position i (from 0)
is then the number of rows with a place of at most i.

Ties: rows whose scores differ by no more than float64's rounding error are at the same distance, and of those the
lower row number is first. So the result is the same on every run, whatever the order in which sums are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.evaluation.checks import Int64Array
from fct_infer.evaluation.scores import Float64Array

_FEWEST_BUCKETS, _MOST_BUCKETS = 1 << 12, 1 << 18
_LEAST_WIDTH = 2.0**-100
_SLACK = 2.0**-4  # more than the rounding of a position among the buckets, which is at most 2^18 in float32


class RelevantOrder:
    """The relevant rows of one query in the order of their ranks.

    Args:
        scores: (r,) float64 scores; at least one.
        rows: (r,) gallery rows they belong to; of a row with two scores, each takes its own position.
        tolerance: (r,) how far from each a score is a tie.
        gallery_rows: number of gallery rows.
    """

    def __init__(self, scores: Float64Array, rows: Int64Array, tolerance: Float64Array, gallery_rows: int) -> None:
        order = np.argsort(scores, kind="stable")
        ascending, tolerance = scores[order], tolerance[order]
        is_tie = ascending[1:] - ascending[:-1] <= tolerance[1:]
        first = last = group = np.arange(len(order))
        if is_tie.any():
            first = np.concatenate(([0], np.flatnonzero(~is_tie) + 1))
            last = np.append(first[1:], len(order)) - 1
            group = np.repeat(np.arange(len(first)), last - first + 1)
            order = order[np.lexsort((rows[order], group))]
        self.order = order
        """(r,) positions in the arguments, by rank."""
        self.scores = ascending
        self._gallery_rows = gallery_rows
        self._keys = group * gallery_rows + rows[order]
        # a sentinel each: beyond the last group nothing ties, and everything relevant is before
        self._begin = np.append(first, len(order))
        self._lower = np.append(ascending[first] - tolerance[first], np.inf)
        self._upper = ascending[last] + tolerance[last]

    def __len__(self) -> int:
        return len(self.order)

    def place(self, scores: Float64Array, rows: Int64Array) -> Int64Array:
        """Return the places of rows with these float64 scores."""
        group = self._upper.searchsorted(scores)
        places: Int64Array = self._begin[group]
        tied = np.flatnonzero(scores >= self._lower[group])
        places[tied] = self._keys.searchsorted(group[tied] * self._gallery_rows + rows[tied])
        return places


def place_all(
    relevant: RelevantOrder,
    scores: NDArray[Any],
    tolerance: Float64Array,
    exact: Callable[[Int64Array], Float64Array],
    most_unclear: float = inf,
) -> Int64Array | None:
    """Place every gallery row of one query.

    The range of the relevant scores is cut into buckets. A row in a bucket that no relevant row can lie in, whatever
    the error, is placed by a table; the rest are scored exactly.

    Args:
        relevant: the relevant rows.
        scores: (n_g,) float32 or float64 scores, as near to the exact ones as ``tolerance`` says.
        tolerance: (r,) how far a score may be from the exact one, near each relevant row in rank order.
        exact: returns the float64 scores of some rows.
        most_unclear: give up if more rows than this need an exact score.

    Returns:
        (n_g,) int64 places; None if it gave up.
    """
    wanted = max(len(scores) // 4, 32 * len(relevant))
    buckets = min(max(1 << wanted.bit_length(), _FEWEST_BUCKETS), _MOST_BUCKETS)
    lower, upper = relevant.scores - tolerance, relevant.scores + tolerance
    begin = scores.dtype.type(lower.min())
    scale = scores.dtype.type((buckets - 1) / max(upper.max() - lower.min(), _LEAST_WIDTH))
    position = scores - begin
    position *= scale
    position.clip(-1, buckets, out=position)
    places: Int64Array = _table(
        (lower - float(begin)) * float(scale) - _SLACK, (upper - float(begin)) * float(scale) + _SLACK, buckets
    ).take(position.astype(np.int32).astype(np.intp), mode="wrap")  # by way of int32, which is twice as fast
    unclear = np.flatnonzero(places < 0)
    if len(unclear) > most_unclear:
        return None
    places[unclear] = relevant.place(exact(unclear), unclear)
    return places


def _table(lower: Float64Array, upper: Float64Array, buckets: int) -> Int64Array:
    """Return the place of whatever lies in each bucket, -1 where a relevant row may lie.

    Args:
        lower: (r,) ascending positions from which on each relevant row may lie.
        upper: (r,) ascending positions up to which it may.
        buckets: their number.

    Returns:
        ``buckets`` places, then that of what lies beyond the last bucket, then that of what lies before the first.
    """
    count = len(lower)
    edges = np.zeros(2 * count + 2, np.int64)  # 0, where the first may begin, where it has ended, where the second may
    begins, ends = edges[1:-1:2], edges[2::2]
    np.minimum(np.maximum.accumulate(upper) + 1, buckets, out=ends, casting="unsafe")
    np.minimum(np.minimum.accumulate(lower[::-1])[::-1], ends, out=begins, casting="unsafe")
    np.maximum(begins, edges[:-2:2], out=begins)
    edges[-1] = buckets + 1
    places = np.repeat(_places_and_gaps(count), edges[1:] - edges[:-1])
    return np.append(places, 0)


@lru_cache(maxsize=64)
def _places_and_gaps(count: int) -> Int64Array:
    """Return 0, -1, 1, -1, ..., ``count``."""
    values = np.full(2 * count + 2, -1)
    values[::2] = np.arange(count + 1)
    return values[:-1]
