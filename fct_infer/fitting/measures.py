"""How good a map is, query by query, on rows it was not fitted on.

Mean squared error does not tell: the map with the smallest error may draw rows so close to the mean that every search
finds the same few. So maps are judged by what a search finds among the rows they transformed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fct_infer.evaluation import Exclusions, Metric, nearest, rank_queries
from fct_infer.fitting.pairs import Int64Array
from fct_infer.maps.statistics import Float64Array
from fct_infer.transformation import Float32Array

K = 10


class Measure(Protocol):
    """What candidates are compared by.

    Attributes:
        name: what it measures.
        queries: how many there are.
    """

    name: str
    queries: int

    def scores(self, gallery: Float32Array, queries: Int64Array) -> Float64Array:
        """Return (len(queries),) shares, 0 to 1, of some queries searching ``gallery`` (rows, d_new)."""
        ...


class Overlap:
    """Neighbours that transformed rows have in common with the new model's own, each row searching the others."""

    def __init__(self, new: Float32Array, metric: Metric) -> None:
        self.name, self.queries = f"neighbour overlap@{min(K, len(new) - 1)}", len(new)
        self._new, self._metric, self._k = new, metric, min(K, len(new) - 1)
        self._expected: dict[bytes, Int64Array] = {}

    def scores(self, gallery: Float32Array, queries: Int64Array) -> Float64Array:
        """See :class:`Measure`; ``gallery`` may be of any width, such as the old rows."""
        return shares(self._nearest(gallery, gallery, queries), self._expected_by(queries))

    def agreement(self, gallery: Float32Array, queries: Int64Array) -> Float64Array:
        """Return the share of what new rows find among new rows that they find in ``gallery``, too; see scores."""
        return shares(self._nearest(self._new, gallery, queries), self._expected_by(queries))

    def _expected_by(self, queries: Int64Array) -> Int64Array:
        """Return what the new model finds among its own rows, (queries, k); kept for the next candidate."""
        key = queries.tobytes()
        if key not in self._expected:
            self._expected[key] = self._nearest(self._new, self._new, queries)
        return self._expected[key]

    def _nearest(self, searching: Float32Array, searched: Float32Array, queries: Int64Array) -> Int64Array:
        return nearest(searching, searched, self._k, metric=self._metric, exclude_self=True, query_rows=queries)[1]


class ByLabels:
    """mAP of new rows searching transformed ones, a row's own left out; relevant is what has the same label."""

    name = "mAP"

    def __init__(self, new: Float32Array, labels: NDArray[Any], metric: Metric) -> None:
        self.queries, self._new, self._labels, self._metric = len(new), new, labels, metric

    def scores(self, gallery: Float32Array, queries: Int64Array) -> Float64Array:
        """See :class:`Measure`."""
        return self.between(self._new, gallery, queries)

    def between(self, searching: Float32Array, searched: Float32Array, queries: Int64Array) -> Float64Array:
        """Return the average precision of rows of one set searching another; 0 where nothing is relevant."""
        own_row = Exclusions(query_groups=queries, gallery_groups=np.arange(len(searched)))
        ranks = rank_queries(
            searching[queries],
            searched,
            self._labels[queries],
            self._labels,
            metric=self._metric,
            exclusions=own_row,
        )
        return np.nan_to_num(ranks.average_precision)


class ByTruth:
    """recall@10 of given queries: the share of a query's right rows among the ten nearest transformed rows.

    Args:
        searching: (q, d_new) queries by the new model.
        truth: (q, t) rows of the gallery; -1 for none.
    """

    def __init__(self, searching: Float32Array, truth: Int64Array, metric: Metric) -> None:
        self.name, self.queries = f"recall@{K}", len(searching)
        self._searching, self._truth, self._metric = searching, truth, metric

    def scores(self, gallery: Float32Array, queries: Int64Array) -> Float64Array:
        """See :class:`Measure`."""
        return self.between(self._searching, gallery, queries)

    def between(self, searching: Float32Array, searched: Float32Array, queries: Int64Array) -> Float64Array:
        """Return the recall of some queries in any gallery of the same rows."""
        k = min(K, len(searched))
        found = nearest(searching, searched, k, metric=self._metric, query_rows=queries)[1]
        truth = self._truth[queries]
        hits = (truth[:, :, None] == found[:, None, :]).any(axis=2).sum(axis=1)
        return np.asarray(hits / np.maximum((truth >= 0).sum(axis=1), 1), np.float64)


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


def own_ranks(searching: Float32Array, gallery: Float32Array, queries: Int64Array, metric: Metric) -> Int64Array:
    """Return the rank, 1 the nearest, of each query's own row: row i of ``searching`` is the item of gallery row i."""
    rows = np.arange(len(gallery))
    return rank_queries(searching[queries], gallery, rows[queries], rows, ks=(1,), metric=metric).first_relevant
