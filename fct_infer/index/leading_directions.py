"""Along which directions scores of inverted lists are bounded first, and how many of them are enough."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from fct_infer import _core
from fct_infer.index.principal import less_mean_of_most, principal_directions
from fct_infer.threadpools import one_blas_thread
from fct_infer.transformation import Float32Array

# Note [Enough directions]
# Centroids differ most along some directions, rows too. Along so many the core bounds the scores of all lists, and
# scores in full only those that may be the best (Note [Leading directions], csrc/assign/projection.cpp): what it finds
# is the same whatever the directions, so how many there are is measured on whichever rows are at hand, a few. Taken
# are those by which the least is left to do: fewer parts to multiply, but more lists to score in full. Where no number
# of directions leaves much less than scoring everything (rows without a shape, few lists), there are none.
# Centroids that are far off, of one row a million times as long as the others, would be a direction each and hide the
# rest; the core tells them from all others by their own length, so they are left out here.
LISTS_FROM = 256  # below, little is left to save
_WORTH_IT = 0.85  # of the work without directions: what was measured is uncertain
_STEP = 16  # directions the core takes at once
_MOST_STEPS = 8
ROWS_TRIED = 64
_ROWS_FROM = 4096  # below, looking for directions takes longer than they save
_MOST_LISTS = 4096  # the directions of so many centroids are those of all


@dataclass(frozen=True)
class _Costs:
    """What one row costs a core, in products of the kind that bounds consist of.

    Attributes:
        of_a_list: to bound its score, whatever the directions.
        of_a_part: of the projection, for each dimension.
        of_a_candidate, its_dim: to score a list in full that may be the best, and for each of its dimensions.
        far_dim: instead of ``its_dim``, where centroids do not fit into a cache.
        in_full: for each dimension of a list and for the list, where all are scored by the fastest way there is.
    """

    of_a_list: float
    of_a_part: float
    of_a_candidate: float
    its_dim: float
    far_dim: float
    in_full: tuple[float, float]

    def with_directions(self, lists: int, dim: int, count: int, candidates: float) -> float:
        """Return the work with so many directions, after which so many lists are scored in full."""
        one = self.of_a_candidate + dim * (self.far_dim if 4 * lists * dim > _CACHE else self.its_dim)
        return lists * (count + self.of_a_list) + self.of_a_part * dim * count + candidates * one

    def without(self, lists: int, dim: int) -> float:
        """Return the work where no score is bounded along directions."""
        of_a_dim, of_a_list = self.in_full
        return lists * (of_a_dim * dim + of_a_list)


_CACHE = 16 << 20  # bytes
# Measured on Zen 3, of which a core does 67 products in a nanosecond, and Zen 5, which does 190: there, what is not a
# product weighs more, and scores in bfloat16 cost less than those that bounds are made of.
_AVX2 = _Costs(of_a_list=10, of_a_part=1.6, of_a_candidate=1000, its_dim=8, far_dim=8, in_full=(1, 10))
_AVX512 = _Costs(of_a_list=38, of_a_part=3.5, of_a_candidate=560, its_dim=14, far_dim=70, in_full=(1, 38))
_AVX512_BF16 = _Costs(of_a_list=38, of_a_part=3.5, of_a_candidate=560, its_dim=14, far_dim=70, in_full=(0.81, 63))


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
        directions, _ = principal_directions(self._centroids[:: -(-len(self._centroids) // _MOST_LISTS)])
        return np.ascontiguousarray(directions, np.float32)

    def enough(self, centroids: Float32Array, metric: str, rows: Float32Array) -> Float32Array | None:
        """Return as many (count, dim) as leave the least work with these centroids; None if all of it is the least.

        Args:
            centroids: (lists, dim) float32 that are searched.
            metric: ``l2`` or ``ip``.
            rows: (n, dim) float32; some of them are tried.
        """
        count, _ = self._fewest(centroids, metric, rows)
        return self._all[:count] if count else None

    def share(self, centroids: Float32Array, metric: str, rows: Float32Array) -> float:
        """Return the work with :meth:`enough` of them, as a share of that without any; 1 where none are enough."""
        count, work = self._fewest(centroids, metric, rows)
        return work / _costs().without(*centroids.shape) if count else 1.0

    def _fewest(self, centroids: Float32Array, metric: str, rows: Float32Array) -> tuple[int, float]:
        """Return how many directions leave the least work, 0 for none, and the work."""
        lists, dim = centroids.shape
        numbers = range(_STEP, dim // 2 + 1, max(1, dim // 2 // _STEP // _MOST_STEPS) * _STEP)
        if lists < LISTS_FROM or not len(rows) or not numbers:
            return 0, 0.0
        shifted, mean = less_mean_of_most(centroids)
        tried = rows[:: -(-len(rows) // ROWS_TRIED)] - mean
        biases = np.einsum("ij,j->i", shifted, mean) if metric == "ip" else np.einsum("ij,ij->i", shifted, shifted) / -2
        costs = _costs()
        best, least = 0, _WORTH_IT * costs.without(lists, dim)
        with one_blas_thread(), np.errstate(all="ignore"):  # rows that are not finite are the core's to refuse
            found = self._candidates(tried, shifted, biases, numbers)
        for count, candidates in zip(numbers, found, strict=True):
            work = costs.with_directions(lists, dim, count, candidates)
            if work < least:
                best, least = count, work
        return best, least

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


@cache
def _costs() -> _Costs:
    """Return those of this CPU, or of the nearest kind that was measured."""
    if not _core.cpu_instruction_set().startswith("AVX512"):
        return _AVX2
    return _AVX512_BF16 if "bf16" in _core.precisions() else _AVX512
