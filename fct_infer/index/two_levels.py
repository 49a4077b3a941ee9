"""Tens of thousands of inverted lists: the nearest one is looked for in a few groups of them, if that finds it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isqrt

import numpy as np
from numpy.typing import NDArray

from fct_infer import _core
from fct_infer.index.leading_directions import LeadingDirections, nearest_lists
from fct_infer.transformation import Float32Array

# Note [Enough groups]
# How many groups must be searched depends on how the lists lie, so it is measured: on rows whose nearest list is known,
# how many groups score better than the one with that list. As many are searched as it takes for 0.9995 of these rows.
# While lists are trained there are rows; later only the centroids are at hand, whichever process fills the index, and
# all must take the same number. Then centroids stand for rows, each with the nearest of the others as its list: those
# lie as far apart as rows from their centroids, and want more groups than rows do, not fewer.
# Where that many groups hold most of the lists (rows without clusters, few lists), two levels are no use, nor where
# scores along a few directions find the nearest list as soon. Nor where the core does not find in these groups what it
# should: most centroids are shorter or longer than it multiplies.
LISTS_FROM = 1 << 14  # below, all lists are scored sooner
WORTH_IT = 0.4  # of all scores, or what directions leave of them: of scattered rows, in short groups, each takes longer
_SHARE, _LEAST_SHARE = 0.9995, 0.99  # wanted; found by the core, or groups are not to be trusted
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
    the centroids themselves. The same whatever the threads, on CPUs of one kind.
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
    if rows is None:  # some of the centroids, among the rest
        order = rng.permutation(lists)
        of_tried, of_rest = np.split(order, [min(_TRIED, lists // 8)])
        tried, searched, searched_groups = centroids[of_tried], centroids[of_rest], group_of[of_rest]
    else:
        tried = rows[np.sort(rng.permutation(len(rows))[:_TRIED])]
        searched, searched_groups = centroids, group_of
    nearest = nearest_lists(searched, metric, tried, threads)
    scores = _scores(tried, centers, metric)
    wanted = np.take_along_axis(scores, searched_groups[nearest][:, None], axis=1)
    before = np.sort((scores > wanted).sum(axis=1))
    probes = int(before[ceil(_SHARE * len(before)) - 1]) + 1
    sizes = np.bincount(group_of, minlength=count)
    visited = np.argpartition(-scores, probes - 1, axis=1)[:, :probes]
    levels = TwoLevels((centers, probes), float(count + sizes[visited].sum(axis=1).mean()) / lists)
    if levels.cost > WORTH_IT * LeadingDirections(searched).share(searched, metric, tried):
        return None
    found, _ = _core.Assigner(centroids, None, metric=metric, groups=levels.groups).assign(tried, threads)
    expected = tried if rows is None else centroids[nearest]  # a centroid finds itself, or one that is the same
    return levels if np.mean((centroids[found] == expected).all(axis=1)) >= _LEAST_SHARE else None


def _scores(rows: Float32Array, centers: Float32Array, metric: str) -> NDArray[np.float64]:
    """Return scores (rows, centers) as the core has them, up to what is the same for all of a row's."""
    wide = centers.astype(np.float64)
    products: NDArray[np.float64] = rows.astype(np.float64) @ wide.T
    return products if metric == "ip" else products - np.einsum("ij,ij->i", wide, wide) / 2
