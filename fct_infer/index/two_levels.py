"""Tens of thousands of inverted lists: the nearest one is looked for in a few groups of them, if that finds it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isqrt

import numpy as np
from numpy.typing import NDArray

from fct_infer import _core
from fct_infer.index.leading_directions import nearest_lists
from fct_infer.transformation import Float32Array

# Note [Enough groups]
# How many groups must be searched depends on how the lists lie, so it is measured: on rows whose nearest list is known,
# how many groups score better than the one with that list. As many are searched as it takes for 0.9995 of these rows.
# While lists are trained there are rows; later only the centroids are at hand, whichever process fills the index, and
# all must take the same number. Then centroids stand for rows, each with the nearest of the others as its list: those
# lie as far apart as rows from their centroids, and want more groups than rows do, not fewer.
# Where that many groups hold most of the lists (rows without clusters, few lists), two levels are no use.
LISTS_FROM = 1 << 14  # below, all lists are scored sooner
WORTH_IT = 0.4  # of all scores: those of scattered rows and short groups take longer each
_SHARE = 0.9995
_TRIED = 4096  # rows
_GROUPS = 4  # times the root of the lists
_MOST_GROUPS = 1024  # the core's limit
_ITERATIONS = 8
_SEED = 1237


@dataclass(frozen=True)
class TwoLevels:
    """Groups of lists, for the core's ``Assigner`` and ``refine_centroids``.

    Attributes:
        groups: centers (groups, dim) float32, and how many groups of a row are searched.
        cost: about how many scores a row needs, as a share of the lists.
    """

    groups: tuple[Float32Array, int]
    cost: float


def two_levels(
    centroids: Float32Array, metric: str, threads: int, rows: Float32Array | None = None
) -> TwoLevels | None:
    """Return how to look for the nearest of centroids (lists, dim) by groups; None if that is no sooner.

    Found are the nearest lists of all rows but one in 2,000, measured on some of ``rows`` (n, dim), or without them on
    the centroids themselves. The same whatever the threads.
    """
    lists = len(centroids)
    if lists < LISTS_FROM:
        return None
    rng = np.random.default_rng(_SEED)
    count = min(_MOST_GROUPS, _GROUPS * isqrt(lists))
    start = centroids[np.sort(rng.permutation(lists)[:count])]
    centers: Float32Array = _core.refine_centroids(
        centroids, start, metric="l2", spherical=False, iterations=_ITERATIONS, threads=threads
    )
    group_of, _ = _core.Assigner(centers, None).assign(centroids, threads)
    assert group_of is not None  # there are centroids
    if rows is None:
        tried, nearest = _others(centroids, metric, threads, rng)
    else:
        tried = rows[np.sort(rng.permutation(len(rows))[:_TRIED])]
        nearest = nearest_lists(centroids, metric, tried, threads)
    scores = _scores(tried, centers, metric)
    wanted = np.take_along_axis(scores, group_of[nearest][:, None], axis=1)
    before = np.sort((scores > wanted).sum(axis=1))
    probes = int(before[ceil(_SHARE * len(before)) - 1]) + 1
    sizes = np.bincount(group_of, minlength=count)
    searched = np.argpartition(-scores, probes - 1, axis=1)[:, :probes]
    cost = float(count + sizes[searched].sum(axis=1).mean()) / lists
    return TwoLevels((centers, probes), cost) if cost <= WORTH_IT else None


def _others(
    centroids: Float32Array, metric: str, threads: int, rng: np.random.Generator
) -> tuple[Float32Array, NDArray[np.int64]]:
    """Return some centroids and the nearest of the rest to each of them."""
    order = rng.permutation(len(centroids))
    tried, rest = np.split(order, [min(_TRIED, len(centroids) // 8)])
    rows = centroids[tried]
    return rows, rest[nearest_lists(centroids[rest], metric, rows, threads)]


def _scores(rows: Float32Array, centers: Float32Array, metric: str) -> NDArray[np.float64]:
    """Return scores (rows, centers) as the core has them, up to what is the same for all of a row's."""
    wide = centers.astype(np.float64)
    products: NDArray[np.float64] = rows.astype(np.float64) @ wide.T
    return products if metric == "ip" else products - np.einsum("ij,ij->i", wide, wide) / 2
