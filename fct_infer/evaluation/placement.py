"""Where every gallery row comes among the relevant ones of a query: what ranks are counted from.

A row's *place* is the number of relevant rows ranked before it. The rank of the relevant row at position i (from 0)
is then the number of rows with a place of at most i.

Ties: rows whose scores differ by no more than float64's rounding error are at the same distance, and of those the
lower row number is first. So the result is the same on every run, whatever the order in which sums are taken.

Everything here is of a few queries (b) at once that have equally many relevant scores (m), so that NumPy is called
once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.evaluation.checks import Int64Array
from fct_infer.evaluation.scores import Float64Array

Exact: TypeAlias = Callable[[Int64Array, Int64Array], Float64Array]
"""Returns the float64 scores of pairs of a query (0 to b - 1) and a gallery row."""
_FEWEST_BUCKETS, _MOST_BUCKETS = 1 << 12, 1 << 18
_LEAST_WIDTH = 2.0**-100
_SLACK = 2.0**-4  # more than the rounding of a position among the buckets, which is at most 2^18 in float32


class RelevantOrder:
    """The relevant rows of each query in the order of their ranks.

    Args:
        scores: (b, m) float64 scores; at least one.
        rows: (b, m) gallery rows they belong to; of a row with two scores, each takes its own position.
        tolerance: (b, m) how far from each a score is a tie.
        gallery_rows: number of gallery rows.
    """

    def __init__(self, scores: Float64Array, rows: Int64Array, tolerance: Float64Array, gallery_rows: int) -> None:
        queries, count = scores.shape
        numbers = np.arange(queries)[:, None]
        order = np.argsort(scores, axis=1, kind="stable")
        ascending, tolerance = scores[numbers, order], tolerance[numbers, order]
        lower, upper = ascending - tolerance, ascending + tolerance
        first = np.broadcast_to(np.arange(count), scores.shape)
        is_tie = ascending[:, 1:] - ascending[:, :-1] <= tolerance[:, 1:]
        if is_tie.any():
            first, last = _ends_of_groups(is_tie)
            order = order[numbers, np.lexsort((rows[numbers, order], first), axis=1)]
            lower, upper = lower[numbers, first], upper[numbers, last]
        self.order = order
        """(b, m) positions in the arguments, by rank."""
        self.places = np.empty_like(order)
        """(b, m) place of each of the arguments."""
        self.places[numbers, order] = np.arange(count)
        self.scores = ascending
        self._gallery_rows = gallery_rows
        # a sentinel for each query: beyond the last group nothing ties, and everything relevant is before
        sentinel = np.full((queries, 1), inf)
        self._lower = np.concatenate((lower, sentinel), axis=1).ravel()
        self._upper = _by_query(numbers, np.concatenate((upper, sentinel), axis=1)).ravel()
        self._keys = self._key(numbers * (count + 1) + first, rows[numbers, order]).ravel()

    def ranks(self, places: Int64Array) -> Int64Array:
        """Return the ranks of the relevant rows, from 1, where all rows of a gallery, (b, n_g), have these places."""
        queries, count = self.order.shape
        cells = (places + np.arange(queries)[:, None] * (count + 1)).ravel()
        counts = np.bincount(cells, minlength=queries * (count + 1)).reshape(queries, -1)
        return np.cumsum(counts[:, :-1], axis=1)

    def place(self, queries: Int64Array, scores: Float64Array, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return the places of pairs of a query (0 to b - 1) and a row with these float64 scores, all (n,).

        Second, the numbers of the pairs that tie with something relevant: (t,).
        """
        count = self.order.shape[1]
        # the first of the group of ties that the row belongs to or comes before
        first = self._upper.searchsorted(_by_query(queries, scores))
        places: Int64Array = first - queries * (count + 1)
        tied = np.flatnonzero(scores >= self._lower[first])
        places[tied] = self._keys.searchsorted(self._key(first[tied], rows[tied])) - queries[tied] * count
        return places, tied

    def _key(self, first: Int64Array, rows: Int64Array) -> Int64Array:
        """Return what sorts relevant rows by query, group of ties and row."""
        return first * self._gallery_rows + rows


def place_all(
    relevant: RelevantOrder,
    scores: NDArray[Any],
    tolerance: Float64Array,
    rows: Int64Array,
    places: Int64Array,
    left_out: Int64Array,
    exact: Exact,
    most_unclear: float = inf,
) -> tuple[Int64Array, NDArray[np.bool_]] | None:
    """Place every gallery row of each query.

    The range of the relevant scores is cut into buckets. A row in a bucket that no relevant row can lie in, whatever
    the error, is placed by a table; the rest are scored exactly.

    Args:
        relevant: the relevant rows.
        scores: (b, n_g) float32 or float64 scores, as near to the exact ones as ``tolerance`` says.
        tolerance: (b, m) how far a score may be from the exact one, near each relevant row in rank order.
        rows: (b, r) relevant rows of this gallery.
        places: (b, r) their places, which ``relevant`` knows.
        left_out: (n,) cells, counted through (b, n_g), that are not ranked: placed after everything relevant.
        exact: what knows the float64 scores.
        most_unclear: give up if more rows a query than this need an exact score.

    Returns:
        (b, n_g) int64 places, and (b,) whether a row ties with a relevant one without being relevant; None if it gave
        up.
    """
    queries, gallery_rows = scores.shape
    wanted = max(gallery_rows // 4, 32 * relevant.scores.shape[1])
    buckets = min(max(1 << wanted.bit_length(), _FEWEST_BUCKETS), _MOST_BUCKETS)
    lower, upper = relevant.scores - tolerance, relevant.scores + tolerance
    begin = np.nextafter(lower.min(axis=1, keepdims=True).astype(scores.dtype), scores.dtype.type(-inf))
    width = np.maximum(upper.max(axis=1, keepdims=True) - begin, _LEAST_WIDTH)
    scale = ((buckets - 4) / width).astype(scores.dtype)
    table = _table(
        (lower - begin) * scale.astype(np.float64) - _SLACK,
        (upper - begin) * scale.astype(np.float64) + _SLACK,
        buckets,
    )
    position = scores - begin
    position *= scale
    position.clip(-1, buckets - 2, out=position)
    # by way of int32, which is twice as fast
    bucket = np.add(position.astype(np.int32), np.arange(queries)[:, None] * buckets + 1)
    found: Int64Array = table.take(bucket)
    found[np.arange(queries)[:, None], rows] = places
    found.ravel()[left_out] = relevant.scores.shape[1]
    unclear = np.flatnonzero(found < 0)
    if len(unclear) > most_unclear * queries:
        return None
    of_query, row = np.divmod(unclear, gallery_rows)
    found.ravel()[unclear], tied = relevant.place(of_query, exact(of_query, row), row)
    is_tied = np.zeros(queries, bool)
    is_tied[of_query[tied]] = True
    return found, is_tied


def _table(lower: Float64Array, upper: Float64Array, buckets: int) -> Int64Array:
    """Return the place of whatever lies in each bucket, -1 where a relevant row may lie, of one query after the other.

    Args:
        lower: (b, m) positions from which on each relevant row may lie, in rank order.
        upper: (b, m) positions up to which it may.
        buckets: their number; the first holds what lies before position 0, the last what lies beyond all.
    """
    queries, count = lower.shape
    # 0, where the first may begin, where it has ended, where the second may, ..., the number of buckets
    edges = np.zeros((queries, 2 * count + 2), np.int64)
    begins, ends = edges[:, 1:-1:2], edges[:, 2::2]
    np.minimum(np.maximum.accumulate(upper, axis=1) + 2, buckets - 1, out=ends, casting="unsafe")
    begins[:] = np.minimum.accumulate(lower[:, ::-1], axis=1)[:, ::-1]
    begins += 1
    np.minimum(begins, ends, out=begins)
    np.maximum(begins, edges[:, :-2:2], out=begins)
    edges[:, -1] = buckets
    return np.repeat(_places_and_gaps(queries, count), np.diff(edges, axis=1).ravel())


@lru_cache(maxsize=64)
def _places_and_gaps(queries: int, count: int) -> Int64Array:
    """Return 0, -1, 1, -1, ..., ``count``, for each query."""
    values = np.full(2 * count + 1, -1)
    values[::2] = np.arange(count + 1)
    return np.tile(values, queries)


def _ends_of_groups(is_tie: NDArray[np.bool_]) -> tuple[Int64Array, Int64Array]:
    """Return the first and the last position of the group that each of (b, m) is in; (b, m - 1) tie with the next."""
    queries, count = is_tie.shape[0], is_tie.shape[1] + 1
    first, last = np.tile(np.arange(count), (2, queries, 1))
    first[:, 1:][is_tie] = 0
    last[:, :-1][is_tie] = count
    return np.maximum.accumulate(first, axis=1), np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]


def _by_query(queries: Int64Array, values: Float64Array) -> NDArray[np.complex128]:
    """Return keys that sort by query, then by value: NumPy orders complex numbers by their real part first."""
    keys = np.empty(values.shape, np.complex128)
    keys.real, keys.imag = queries, values
    return keys
