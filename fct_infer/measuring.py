"""Shares with their standard errors, and what they are counted from: ranks of one's own row, rows in common.

All in float64 and in memory, of some thousand rows at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
_RANKED_ROWS = 256  # at once
_TIE = 1e-9  # of the numbers whose difference a distance is


@dataclass(frozen=True)
class Estimate:
    """A mean over queries and its standard error; both shares, 0 to 1."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, scores: Float64Array) -> Estimate:
        """Return the estimate from (n,) scores, n at least 1."""
        spread = float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else 0.0
        return cls(float(scores.mean()), spread)

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.standard_error:.1f} %"


def shares(found: Int64Array, expected: Int64Array) -> Float64Array:
    """Return the share of ``expected`` (n, k) among ``found`` (n, k), row by row."""
    common = (found[:, :, None] == expected[:, None, :]).any(axis=2)
    return np.asarray(common.mean(axis=1), np.float64)


def own_ranks(searching: NDArray[Any], searched: NDArray[Any], queries: Int64Array, metric: str) -> Int64Array:
    """Return the rank, 1 the nearest, of each query's own row: row i of both is one item; ties count as behind it.

    By inner product a row's own partner need not be near, so Euclidean distance takes its place.
    """
    ranks = np.empty(len(queries), np.int64)
    metric = "l2" if metric == "ip" else metric
    for place, distances, tie in distance_blocks(searching, searched, queries, metric):
        block = queries[place : place + len(distances)]
        own = distances[np.arange(len(block)), block]
        margin = _TIE * (np.abs(own) + tie[block])
        ranks[place : place + len(block)] = 1 + np.sum(distances < (own - margin)[:, None], axis=1)
    return ranks


def nearest_others(searching: NDArray[Any], searched: NDArray[Any], k: int, metric: str) -> Int64Array:
    """Return the ``k`` nearest rows (n, k) of each, in no order; row i of both is one item, which is left out."""
    found = np.empty((len(searching), k), np.int64)
    for place, distances, _ in distance_blocks(searching, searched, np.arange(len(searching)), metric):
        rows = np.arange(len(distances))
        distances[rows, place + rows] = np.inf
        found[place : place + len(rows)] = np.argpartition(distances, k - 1, axis=1)[:, :k]
    return found


def distance_blocks(
    searching: NDArray[Any], searched: NDArray[Any], queries: Int64Array, metric: str
) -> Iterator[tuple[int, Float64Array, Float64Array]]:
    """Yield, some queries at a time, the place of the first, (b, n) numbers that order rows, and (n,) squared norms."""
    one, many = (np.asarray(rows, np.float64) for rows in (searching, searched))
    if metric == "cosine":
        one, many = (directions(rows) for rows in (one, many))
    squares = np.sum(many**2, axis=1)
    for place in range(0, len(queries), _RANKED_ROWS):
        block = queries[place : place + _RANKED_ROWS]
        products = one[block] @ many.T
        yield place, (-products if metric == "ip" else squares - 2 * products), squares


def directions(rows: NDArray[Any]) -> Float64Array:
    """Return rows (n, d) divided by their lengths; zero rows stay zero."""
    wide = np.asarray(rows, np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12), np.float64)
