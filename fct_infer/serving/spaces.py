"""How rows that are not re-embedded yet are found by queries of the new model: three ways, the best first.

====================  ==============================================  =========================================
                      what is compared                                what it takes
====================  ==============================================  =========================================
:class:`NewSpace`     h of every row, with the query                  the rows transformed once, at load
:class:`StoredRows`   h of the old search's nearest rows              both models at each query, rows by id
:class:`CalibratedSpace`  the old distance, as likely in the new space    both models at each query; loses much
====================  ==============================================  =========================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from fct_infer.errors import ArrayError, UsageError
from fct_infer.gallery.ids import nothing_found
from fct_infer.index import GalleryIndex
from fct_infer.serving.calibration import Calibration
from fct_infer.serving.rows import Ids, costs_of, pair_costs, unit
from fct_infer.transformation import Float32Array, Transformation

DEPTH = 200
_BLOCK_QUERIES = 32


class OldSearch(Protocol):
    """A search in the old space: a :class:`~fct_infer.index.GalleryIndex`, or a database behind the same call."""

    def search(self, queries: Float32Array, k: int) -> tuple[Float32Array, Ids]:
        """Return distances and ids, each (m, k); nothing found is an id of -1, or an empty text."""
        ...


class Space(Protocol):
    """Rows searched by queries of the new model, at costs that compare with distances of the new space.

    Attributes:
        metric, dim: of the new space.
        depth: rows wanted of a search even if fewer are asked for, because their order is not known before.
        is_exact_space: whether costs are distances in the new space, and not only as likely there.
    """

    metric: str
    dim: int
    depth: int
    is_exact_space: bool

    def nearest(self, queries: Float32Array, count: int, old_queries: Float32Array | None) -> tuple[Float32Array, Ids]:
        """Return costs (m, count), ascending, and ids, of the nearest rows; see :data:`~.rows.Nearest`."""
        ...


class NewSpace:
    """Rows in the new space already: transformed, or re-embedded.

    Args:
        index: over them.
    """

    depth, is_exact_space = 0, True

    def __init__(self, index: GalleryIndex) -> None:
        self.index, self.metric, self.dim = index, index.metric, index.dim

    def nearest(self, queries: Float32Array, count: int, old_queries: Float32Array | None) -> tuple[Float32Array, Ids]:
        """See :class:`Space`."""
        distances, ids = self.index.search(queries, count)
        return costs_of(distances, ids, self.metric), ids


class StoredRows:
    """Rows that stay in the old space, in a database: the old search finds candidates, h brings them to the new space.

    Args:
        search: by queries of the old model.
        fetch: ids (n,) -> their old embeddings (n, old_dim) and side-information (n, side_dim), or None if h takes
            none.
        h: the transformation.
        metric: of the new space.
        depth: candidates; what the old search does not have among them is not found.
    """

    is_exact_space = True

    def __init__(
        self,
        search: OldSearch,
        fetch: Callable[[Ids], tuple[Float32Array, Float32Array | None]],
        h: Transformation,
        metric: str,
        depth: int = DEPTH,
    ) -> None:
        self._old, self._fetch, self._h = search, fetch, h
        self.metric, self.dim, self.depth = metric, h.new_dim, depth

    def nearest(self, queries: Float32Array, count: int, old_queries: Float32Array | None) -> tuple[Float32Array, Ids]:
        """See :class:`Space`."""
        _, ids = self._old.search(required(old_queries, len(queries)), count)
        wanted, places = np.unique(ids, return_inverse=True)
        places = places.reshape(ids.shape)
        is_row = wanted != nothing_found(wanted.dtype)
        rows = np.zeros((len(wanted), self.dim), np.float32)
        if is_row.any():
            old, side = self._fetch(wanted[is_row])
            if len(old) != is_row.sum():
                raise ArrayError(f"fetch gave {len(old)} rows for {int(is_row.sum())} ids")
            new = self._h(np.ascontiguousarray(old), None if side is None else np.ascontiguousarray(side))
            rows[is_row] = unit(new) if self.metric == "cosine" else new
        costs = np.empty(ids.shape, np.float32)
        for start in range(0, len(queries), _BLOCK_QUERIES):
            block = slice(start, start + _BLOCK_QUERIES)
            costs[block] = pair_costs(queries[block], rows[places[block]], self.metric)
        costs[~is_row[places]] = np.inf
        order = np.argsort(costs, axis=1, kind="stable")
        return np.take_along_axis(costs, order, axis=1), np.take_along_axis(ids, order, axis=1)


class CalibratedSpace:
    """Rows that stay in the old space, ranked among new ones by how rare their old distance is: the last resort.

    What that loses is measured by :func:`~fct_infer.serving.calibration.calibrate`, ``calibration.loss``.

    Args:
        search: by queries of the old model; a :class:`~fct_infer.index.GalleryIndex` of the calibration's old metric.
        calibration: from old to new distances.
    """

    depth, is_exact_space = 0, False

    def __init__(self, search: OldSearch, calibration: Calibration) -> None:
        self._old, self.calibration = search, calibration
        self.metric, self.dim = calibration.metric, calibration.dim

    def nearest(self, queries: Float32Array, count: int, old_queries: Float32Array | None) -> tuple[Float32Array, Ids]:
        """See :class:`Space`."""
        distances, ids = self._old.search(required(old_queries, len(queries)), count)
        return self.calibration(costs_of(distances, ids, self.calibration.old_metric)), ids


def required(old_queries: Any, count: int) -> Float32Array:
    """Return old_queries if there are as many as queries.

    Raises:
        UsageError: there are none.
        ArrayError: there are more or fewer.
    """
    if old_queries is None:
        raise UsageError("rows that stay in the old space are searched by the old model's embeddings too: old_queries")
    if len(old_queries) != count:
        raise ArrayError(f"old_queries has {len(old_queries)} rows for {count} queries")
    found: Float32Array = old_queries
    return found
