"""Training that begins with the lists of the old index: what was near by the old model is often near by the new one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fct_infer.index.clustering import Clustering, squared_error
from fct_infer.machine import counted
from fct_infer.transformation import Float32Array

# Note [As good as from scratch]
# Whether lists that begin as the old ones are as good as those of training from scratch is known only by training from
# scratch, which is what is to be saved. So it is tried on an eighth of the old lists, those around four that lie far
# apart, and the rows they have: as many lists are trained there from random rows and from the old ones, and the squared
# errors compared: work of an eighth times an eighth. The old lists get as many iterations as they need to be as tight,
# in the trial and then for all; if that is no fewer than from scratch, they are dropped. Recall follows the squared
# error (about 0.003 for 1 %) and is far noisier on so few rows; two seeds from scratch differ by up to 0.6 %, so that
# half a percent more is as tight.
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
        means = _means(clustering.rows, lists, wanted)
        iterations = _enough_iterations(clustering, means, lists)
        if iterations is None:
            self.outcome = "lists were trained from scratch: begun as the old index's they were no sooner as good"
            return None
        self.outcome = (
            f"lists began as the old index's: as good after {counted(iterations, 'iteration')} as after "
            f"{clustering.iterations} from scratch, on part of the sample"
        )
        return replace(clustering, iterations=iterations).refined(means)


def _means(rows: Float32Array, lists: NDArray[np.int64], count: int) -> Float32Array:
    """Return the mean of the rows of each list; of one without rows the mean of all, which k-means then moves."""
    order = np.argsort(lists, kind="stable")
    sizes = np.bincount(lists, minlength=count)
    means = np.tile(rows.mean(axis=0, dtype=np.float64), (count, 1))
    sorted_rows, ends = rows[order], np.cumsum(sizes)
    for each in np.flatnonzero(sizes).tolist():  # several times as fast as np.add.reduceat
        means[each] = sorted_rows[ends[each] - sizes[each] : ends[each]].mean(axis=0, dtype=np.float64)
    return means.astype(np.float32)


def _enough_iterations(clustering: Clustering, means: Float32Array, lists: NDArray[np.int64]) -> int | None:
    """Return how few iterations from the old lists are as good as all from scratch; None if no fewer are."""
    tried = _tried(means)
    rows = np.ascontiguousarray(clustering.rows[np.isin(lists, tried)])
    if len(rows) < len(tried):
        return None  # most rows are in few other lists
    trial = replace(clustering, rows=rows)

    def error(found: Float32Array) -> float:
        return squared_error(rows, found, trial.lists(found))

    scratch = rows[np.random.default_rng(_SEED).permutation(len(rows))[: len(tried)]]
    limit = _WORSE * error(trial.refined(scratch))
    fewer = zip(range(1, trial.iterations), trial.refinements(means[tried]), strict=False)
    return next((count for count, found in fewer if error(found) <= limit), None)


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
