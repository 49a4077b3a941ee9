"""Along which directions scores of inverted lists are bounded first, and how many of them are enough."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fct_infer import _core
from fct_infer.blas import one_blas_thread
from fct_infer.transformation import Float32Array

# Note [Enough directions]
# Centroids differ most along some directions, rows too. Along so many the core bounds the scores of all lists, and
# scores in full only those that may be the best (Note [Leading directions], csrc/assign/projection.cpp): what it finds
# is the same whatever the directions, so how many there are is measured on whichever rows are at hand, a few. Taken
# are those by which the least is left to do: fewer parts to multiply, but more lists to score in full. Where no number
# of directions leaves much less than scoring everything (rows without a shape, few lists), there are none.
LISTS_FROM = 256  # below, little is left to save
_WORTH_IT = 0.85  # of the work without directions: what was measured is uncertain
_STEP = 16  # directions the core takes at once
_MOST_STEPS = 8
ROWS_TRIED = 64
_ROWS_FROM = 4096  # below, looking for directions takes longer than they save
_MOST_LISTS = 4096  # the directions of so many centroids are those of all
# Work in products of the kind the scores consist of, of which a core does 67 in a nanosecond with AVX2:
_OF_A_LIST = 10.0  # to bound its score, whatever the directions
_OF_A_PART = 1.6  # of the projection, for each dimension
_OF_A_CANDIDATE, _OF_ITS_DIM = 1000.0, 8.0  # to score it in full


class LeadingDirections:
    """The directions along which some centroids differ most.

    Args:
        centroids: (lists, dim) float32 that there are, or that are begun with.
    """

    def __init__(self, centroids: Float32Array) -> None:
        self._centroids = centroids

    @cached_property
    def _all(self) -> Float32Array:
        """All directions (dim, dim), the first the best; looked for only where some may be enough."""
        some = self._centroids[:: -(-len(self._centroids) // _MOST_LISTS)].astype(np.float64)
        shifted = some - some.mean(axis=0)
        with one_blas_thread():
            _, vectors = np.linalg.eigh(shifted.T @ shifted)
        return np.ascontiguousarray(vectors[:, ::-1].T, np.float32)

    def enough(self, centroids: Float32Array, metric: str, rows: Float32Array) -> Float32Array | None:
        """Return as many (count, dim) as leave the least work with these centroids; None if all of it is the least.

        Args:
            centroids: (lists, dim) float32 that are searched.
            metric: ``l2`` or ``ip``.
            rows: (n, dim) float32; some of them are tried.
        """
        lists, dim = centroids.shape
        numbers = range(_STEP, dim // 2 + 1, max(1, dim // 2 // _STEP // _MOST_STEPS) * _STEP)
        if lists < LISTS_FROM or not len(rows) or not numbers:
            return None
        mean = centroids.mean(axis=0)
        tried = rows[:: -(-len(rows) // ROWS_TRIED)] - mean
        shifted = centroids - mean
        biases = np.einsum("ij,j->i", shifted, mean) if metric == "ip" else np.einsum("ij,ij->i", shifted, shifted) / -2
        best, least = None, _WORTH_IT * _work(lists, dim, dim, 1)
        with one_blas_thread(), np.errstate(all="ignore"):  # rows that are not finite are the core's to refuse
            found = self._candidates(tried, shifted, biases, numbers)
        for count, candidates in zip(numbers, found, strict=True):
            work = _work(lists, dim, count, candidates)
            if work < least:
                best, least = count, work
        return None if best is None else self._all[:best]

    def _candidates(
        self, rows: Float32Array, lists: Float32Array, biases: NDArray[np.float32], numbers: range
    ) -> list[float]:
        """Return how many lists are left to be scored in full with each number of directions, on average."""
        directions = self._all[: numbers[-1]]
        row_parts, list_parts = rows @ directions.T, lists @ directions.T
        scores = np.broadcast_to(biases, (len(rows), len(lists))).copy()
        row_rest = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        list_rest = np.einsum("ij,ij->i", lists, lists, dtype=np.float64)
        found, before = [], 0
        for count in numbers:
            added = slice(before, count)
            scores += row_parts[:, added] @ list_parts[:, added].T
            row_rest -= np.square(row_parts[:, added]).sum(axis=1, dtype=np.float64)
            list_rest -= np.square(list_parts[:, added]).sum(axis=1, dtype=np.float64)
            lengths = [np.sqrt(np.maximum(rest, 0)).astype(np.float32) for rest in (row_rest, list_rest)]
            highs = scores + np.multiply.outer(*lengths)
            top = highs.argmax(axis=1)
            floors = np.einsum("ij,ij->i", rows, lists[top]) + biases[top]
            found.append(float((highs >= floors[:, None]).sum(axis=1).mean()))
            before = count
        return found


def nearest_lists(centroids: Float32Array, metric: str, rows: Float32Array, threads: int) -> NDArray[np.int64]:
    """Return the list (n,) of each row (n, dim) with the nearest of centroids (lists, dim), by ``l2`` or ``ip``.

    Raises:
        NonFiniteError: a row holds NaN or infinity.
    """
    directions = None
    if len(rows) >= _ROWS_FROM:
        directions = LeadingDirections(centroids).enough(centroids, metric, rows)
    lists, _ = _core.Assigner(centroids, None, metric=metric, directions=directions).assign(rows, threads)
    assert lists is not None  # there are centroids
    return lists


def _work(lists: int, dim: int, count: int, candidates: float) -> float:
    """Return what a row costs, in products."""
    projection = _OF_A_PART * dim * count if count < dim else 0.0
    return lists * (count + _OF_A_LIST) + projection + candidates * (_OF_A_CANDIDATE + _OF_ITS_DIM * dim)
