"""Training that begins with the lists of the old index: what was near by the old model is often near by the new one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fct_infer.index.clustering import Clustering, squared_error
from fct_infer.transformation import Float32Array

# Note [As good as from scratch]
# Whether lists that began with the old ones are as good as those of training from scratch is known only by training
# from scratch, which is what is to be saved. So it is done for an eighth of the lists: those around four centroids far
# apart, and the rows they have. As many lists are trained there from random rows, and the squared error of both is
# compared: work of an eighth times an eighth. The rows' nearest lists are all among these, so neither side has an edge.
# Recall follows the squared error (about 0.003 for 1 %), and is far noisier when measured on so few rows; two seeds of
# training from scratch differ by up to 0.6 %.
WARM_ITERATIONS = 4
_TRIED_SHARE = 8
_PLACES = 4
_WORSE = 1.005
_LEAST_TRIED = 8  # lists; with fewer all are tried
_SEED = 1236


class WarmStart:
    """The old lists of a sample's rows.

    Attributes:
        lists: (n,) int64, the old list of each row of the sample.
        count: how many old lists there are.
        outcome: what came of it, for people; None before training.
    """

    def __init__(self, lists: NDArray[np.int64], count: int) -> None:
        self.lists, self.count = lists, count
        self.outcome: str | None = None

    def centroids(self, clustering: Clustering, lists: NDArray[np.int64], wanted: int) -> Float32Array | None:
        """Return centroids that began as the means of the old lists; None if training from scratch promises better.

        Args:
            clustering: the rows, and how they are clustered from scratch.
            lists: (n,) of these rows.
            wanted: centroids; as many as there are old lists.
        """
        assert wanted == self.count, "another number of lists is refused when an upgrade is planned"
        warm = replace(clustering, iterations=min(WARM_ITERATIONS, clustering.iterations))
        centroids = warm.refined(_means(clustering.rows, lists, wanted))
        ratio = _error_ratio(clustering, centroids)
        is_kept = ratio <= _WORSE
        self.outcome = (
            f"lists began as the old index's: squared error {ratio:.3f} of training from scratch, on part of the sample"
            if is_kept
            else f"lists were trained from scratch: begun as the old index's their squared error was {ratio:.3f} of it"
        )
        return centroids if is_kept else None


def _means(rows: Float32Array, lists: NDArray[np.int64], count: int) -> Float32Array:
    """Return the mean of the rows of each list; of one without rows the mean of all, which k-means then moves."""
    order = np.argsort(lists, kind="stable")
    sizes = np.bincount(lists, minlength=count)
    means = np.tile(rows.mean(axis=0, dtype=np.float64), (count, 1))
    filled = np.flatnonzero(sizes)
    starts = (np.cumsum(sizes) - sizes)[filled]
    means[filled] = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64) / sizes[filled, None]
    return means.astype(np.float32)


def _error_ratio(clustering: Clustering, centroids: Float32Array) -> float:
    """Return the squared error of centroids over that of training from scratch; see Note [As good as from scratch]."""
    lists = clustering.lists(centroids)
    tried = _tried(centroids)
    is_tried = np.isin(lists, tried)
    rows = np.ascontiguousarray(clustering.rows[is_tried])
    if len(rows) < len(tried):
        return np.inf  # most rows are in few other lists
    ours = squared_error(rows, centroids, lists[is_tried])
    scratch = replace(clustering, rows=rows)
    start = rows[np.random.default_rng(_SEED).permutation(len(rows))[: len(tried)]]
    found = scratch.refined(start)
    theirs = squared_error(rows, found, scratch.lists(found))
    return ours / theirs if theirs > 0 else 1.0 if ours == 0 else np.inf


def _tried(centroids: Float32Array) -> NDArray[np.int64]:
    """Return an eighth of the lists: those nearest to each of four centroids that lie far from each other."""
    count = len(centroids)
    if count < _TRIED_SHARE * _LEAST_TRIED:
        return np.arange(count)
    seed = int(np.random.default_rng(_SEED).integers(count))
    far = np.full(count, np.inf)
    chosen: set[int] = set()
    for _ in range(_PLACES):
        squares = ((centroids - centroids[seed]) ** 2).sum(axis=1)
        chosen.update(np.argsort(squares, kind="stable")[: count // (_TRIED_SHARE * _PLACES)].tolist())
        far = np.minimum(far, squares)
        # The median of what is left, not the farthest: that would be an outlier.
        seed = int(np.argsort(far, kind="stable")[3 * count // 4])
    return np.array(sorted(chosen), np.int64)
