"""k-means by the core: of lists in FAISS's steps, of codebooks in longer ones, which are as near in fewer of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer import _core
from fct_infer.index.leading_directions import LeadingDirections, nearest_lists
from fct_infer.index.two_levels import two_levels
from fct_infer.transformation import Float32Array

# Note [Longer steps]
# An entry of a codebook wanders to where it ends in ever shorter steps, mostly in one direction. Going on 1.8 times as
# far (the over-relaxed iteration, which still converges below 2) reaches the same squared error in 0.56 of the
# iterations: after 14 of them 32.92, 36.29 and 10.67 % of the squares were left of definitions of WordNet, of tokens'
# embeddings and of pictures, after 25 plain ones 32.92, 36.28 and 10.71. The last step is the plain one.
# Lists are trained in plain steps. They have many dims and few rows, and what was as good on synthetic rows near a
# plane was not on others: 1,024 lists of the definitions were 0.5 % less tight than FAISS's and so uneven that
# searching 16 read a third more rows, for a recall@10 that was 0.9 points lower.
_STEP = 1.8
_ITERATIONS = 14, 25  # that are worth so many plain ones
_A_JUMP = 100.0  # times the median squared step: an entry without rows was put beside another, which is no direction


def iterations_for(plain: int) -> int:
    """Return how many iterations of longer steps are worth so many plain ones."""
    longer, plainer = _ITERATIONS
    return ceil(plain * longer / plainer)


@dataclass(frozen=True)
class Clustering:
    """k-means of the centroids of lists; the same whatever the threads.

    Attributes:
        rows: (n, dim) float32 to be clustered.
        metric: ``l2`` or ``ip``, by which a row belongs to a centroid.
        spherical: whether centroids are of length one.
        iterations: from random rows on.
        threads: of the core.
    """

    rows: Float32Array
    metric: str
    spherical: bool
    iterations: int
    threads: int

    def refined(self, centroids: Float32Array) -> Float32Array:
        """Return centroids (lists, dim) after all iterations from those given."""
        return deque(islice(self.refinements(centroids), self.iterations), maxlen=1).pop()

    def refinements(self, centroids: Float32Array) -> Iterator[Float32Array]:
        """Yield centroids (lists, dim) after one iteration from those given, after two, and so on while they move."""
        leading = LeadingDirections(centroids)  # which move, but stay among the rows
        while True:
            start, centroids = centroids, self.moved(centroids, self.ways(centroids, leading))
            yield centroids
            if np.array_equal(start, centroids):
                return

    def ways(self, centroids: Float32Array, leading: LeadingDirections) -> dict[str, Any]:
        """Return how the nearest of centroids are found soonest: ``groups`` or ``directions``, for :meth:`moved`."""
        levels = two_levels(centroids, self.metric, self.threads, self.rows)
        if levels is not None:
            return {"groups": levels.groups}
        return {"directions": leading.enough(centroids, self.metric, self.rows)}

    def moved(self, centroids: Float32Array, ways: dict[str, Any]) -> Float32Array:
        """Return centroids after one plain iteration."""
        found: Float32Array = _core.refine_centroids(
            self.rows,
            centroids,
            metric=self.metric,
            spherical=self.spherical,
            iterations=1,
            threads=self.threads,
            **ways,
        )
        return found

    def lists(self, centroids: Float32Array) -> NDArray[np.int64]:
        """Return the list of each row (n,)."""
        return nearest_lists(centroids, self.metric, self.rows, self.threads)


def cluster_codebooks(rows: Float32Array, codebooks: Float32Array, *, iterations: int, threads: int) -> Float32Array:
    """Return codebooks (parts, 256, dim / parts) after k-means on rows (n, dim) from those given; the same whatever
    the threads. See Note [Longer steps].
    """
    for left in reversed(range(iterations)):
        plain: Float32Array = _core.refine_codebooks(rows, codebooks, iterations=1, threads=threads)
        steps = plain - codebooks
        squares = np.einsum("...i,...i->...", steps, steps)
        if not left or not squares.any():
            return plain
        is_step = squares <= _A_JUMP * np.median(squares, axis=-1, keepdims=True)
        codebooks = codebooks + np.where(is_step, np.float32(_STEP), np.float32(1))[..., None] * steps
    return codebooks


def squared_error(rows: Float32Array, centroids: Float32Array, lists: NDArray[np.int64]) -> float:
    """Return the mean squared distance of rows (n, dim) to the centroids of their lists (n,)."""
    rest = rows - centroids[lists]
    return float(np.einsum("ij,ij->", rest, rest, dtype=np.float64) / max(1, len(rows)))
