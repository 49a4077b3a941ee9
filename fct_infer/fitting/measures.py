"""How good a map is, query by query, on rows it was not fitted on.

Mean squared error does not tell: the map with the smallest error may draw rows so close to the mean that every search
finds the same few. So maps are judged by what a search finds among the rows they transformed.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.joining import Int64Array
from fct_infer.evaluation import Exclusions, Metric, nearest, rank_queries
from fct_infer.maps.statistics import Float64Array
from fct_infer.measuring import shares
from fct_infer.transformation import Float32Array

K = 10

Direction: TypeAlias = Literal["old-to-new", "new-to-old"]
"""Whether stored rows go into the space of new queries, or new queries into that of the stored rows."""


class Search(NamedTuple):
    """How rows are searched, and what is mapped."""

    metric: Metric
    direction: Direction = "old-to-new"


class Measure(Protocol):
    """What candidates are compared by.

    Attributes:
        name: what it measures.
    """

    name: str

    def scores(self, transformed: Float32Array, queries: Int64Array) -> Float64Array:
        """Return (len(queries),) shares, 0 to 1, of some queries, by the transformed rows of all items."""
        ...


class Overlap:
    """Neighbours in common with those that the model of the target space finds among its own rows.

    Of a gallery's map: each transformed row searches the other transformed rows. Of a map of queries: each transformed
    row searches the target's rows.

    Args:
        target: (n, d) rows of all items in the space that the map leads to.
        metric: how they are searched.
        direction: what is mapped.
    """

    def __init__(self, target: Float32Array, metric: Metric, direction: Direction = "old-to-new") -> None:
        self._k = min(K, len(target) - 1)
        self.name = f"neighbour overlap@{self._k}"
        self._target, self._metric, self._direction = target, metric, direction
        self._expected: dict[bytes, Int64Array] = {}

    def scores(self, transformed: Float32Array, queries: Int64Array) -> Float64Array:
        """See :class:`Measure`."""
        if self._direction == "new-to-old":
            return self.agreement(transformed, queries)
        return self.within(transformed, queries)

    def within(self, rows: Float32Array, queries: Int64Array) -> Float64Array:
        """Return the shares where rows of any space, of any width, search each other."""
        return shares(self._nearest(rows, rows, queries), self._expected_by(queries))

    def agreement(self, transformed: Float32Array, queries: Int64Array) -> Float64Array:
        """Return the shares where rows of one model search those of the other, as in production."""
        if self._direction == "new-to-old":
            found = self._nearest(transformed, self._target, queries)
        else:
            found = self._nearest(self._target, transformed, queries)
        return shares(found, self._expected_by(queries))

    def _expected_by(self, queries: Int64Array) -> Int64Array:
        """Return what the target's model finds among its own rows, (queries, k); kept for the next candidate."""
        key = queries.tobytes()
        if key not in self._expected:
            self._expected[key] = self._nearest(self._target, self._target, queries)
        return self._expected[key]

    def _nearest(self, searching: Float32Array, searched: Float32Array, queries: Int64Array) -> Int64Array:
        return nearest(searching, searched, self._k, metric=self._metric, exclude_self=True, query_rows=queries)[1]


class ByLabels:
    """mAP of rows of one model searching those of the other, a row's own left out; relevant is the same label.

    Args:
        target: as of :class:`Overlap`.
        labels: (n,).
        metric: how rows are searched.
        direction: what is mapped.
    """

    name = "mAP"

    def __init__(
        self, target: Float32Array, labels: NDArray[Any], metric: Metric, direction: Direction = "old-to-new"
    ) -> None:
        self._target, self._labels, self._metric, self._direction = target, labels, metric, direction

    def scores(self, transformed: Float32Array, queries: Int64Array) -> Float64Array:
        """See :class:`Measure`."""
        if self._direction == "new-to-old":
            return self.between(transformed, self._target, queries)
        return self.between(self._target, transformed, queries)

    def between(self, searching: Float32Array, searched: Float32Array, queries: Int64Array) -> Float64Array:
        """Return the average precision of rows of one set searching another; 0 where nothing is relevant."""
        own_row = Exclusions(query_groups=queries, gallery_groups=np.arange(len(searched)))
        found = np.isin(self._labels[queries], self.repeated(self._labels))
        precision = np.zeros(len(queries))
        if found.any():
            ranks = rank_queries(
                searching[queries],
                searched,
                self._labels[queries],
                self._labels,
                metric=self._metric,
                exclusions=own_row,
            )
            precision = np.nan_to_num(ranks.average_precision)
        return precision

    @staticmethod
    def repeated(labels: NDArray[Any]) -> NDArray[Any]:
        """Return the labels that several items have: of the others nothing can be found."""
        values, counts = np.unique(labels, return_counts=True)
        several: NDArray[Any] = values[counts > 1]
        return several


class ByTruth:
    """recall@10 of given queries: the share of a query's right rows among the ten nearest transformed rows.

    Args:
        searching: (q, d_new) queries by the new model.
        truth: (q, t) rows of the gallery; -1 for none.
        metric: how rows are searched.
    """

    def __init__(self, searching: Float32Array, truth: Int64Array, metric: Metric) -> None:
        self.name = f"recall@{K}"
        self._searching, self._truth, self._metric = searching, truth, metric

    def scores(self, transformed: Float32Array, queries: Int64Array) -> Float64Array:
        """See :class:`Measure`."""
        return self.between(self._searching, transformed, queries)

    def between(self, searching: Float32Array, searched: Float32Array, queries: Int64Array) -> Float64Array:
        """Return the recall of some queries in any gallery of the same rows."""
        k = min(K, len(searched))
        found = nearest(searching, searched, k, metric=self._metric, query_rows=queries)[1]
        truth = self._truth[queries]
        hits = (truth[:, :, None] == found[:, None, :]).any(axis=2).sum(axis=1)
        return np.asarray(hits / np.maximum((truth >= 0).sum(axis=1), 1), np.float64)
