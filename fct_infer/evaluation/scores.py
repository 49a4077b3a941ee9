"""Scores of query-gallery pairs: how near each gallery row is to each query, with a bound on the rounding error.

The scores of a block of queries are one matrix product. It is taken in float64, although embeddings are float32
or float16: in float32 the errors of ``|q|^2 + |g|^2 - 2 q.g`` exceed the gaps between neighbours in any gallery
of some size, and ranks would depend on the BLAS, the block size and the thread count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fct_infer.evaluation.checks import Embeddings, Int64Array, Metric, check_contents, row_parts

Float64Array = NDArray[np.float64]
_UNIT = 2.0**-53  # largest relative error of one float64 rounding
_SCORE_ELEMENTS = 1 << 22
_CENTER_ROWS = 1024


class Scorer:
    """Scores of ``queries`` against ``gallery`` under one metric; a lower score is nearer.

    With c the middle of the gallery, the score is ``|q - g|^2`` for ``l2``, computed from q - c and g - c so that
    a large common part cancels before it costs digits; ``-q.(g - c)`` for ``ip``, which orders rows as ``-q.g``
    does; ``-q.g`` of rows of length one for ``cosine``. Medians make the middle, so that no outlier moves it.

    Args:
        queries: (n_q, dim) float32 or float16.
        gallery: (n_g, dim) float32 or float16; held as one float64 copy.
        metric: ``"l2"``, ``"ip"`` or ``"cosine"``.

    Raises:
        ArrayError: a NaN or infinity, or under ``cosine`` a row of length zero; names argument and row.
    """

    def __init__(self, queries: Embeddings, gallery: Embeddings, metric: Metric) -> None:
        self.metric = metric
        self._dim = gallery.shape[1]
        self._queries = queries
        for name, array in (("queries", queries), ("gallery", gallery)):
            check_contents(name, array, metric)
        self._gallery = np.empty(gallery.shape)
        for part in row_parts(gallery):
            self._gallery[part] = self._widened(gallery[part])
        if metric != "cosine":
            center = np.median(self._gallery[:: max(1, len(gallery) // _CENTER_ROWS)], axis=0)
            self._gallery -= center
        self._query_center = center if metric == "l2" else np.zeros(self._dim)
        self._squares = np.einsum("ij,ij->i", self._gallery, self._gallery)
        self._largest_norm = np.sqrt(self._squares.max())

    @property
    def block_rows(self) -> int:
        """Queries to score at once so that a block of scores stays near 32 MiB."""
        return int(np.clip(_SCORE_ELEMENTS // len(self._gallery), 1, 256))

    def scores(self, queries: Int64Array) -> tuple[Float64Array, Float64Array]:
        """Score the queries of these row numbers against the whole gallery.

        Returns:
            The scores, (b, n_g) float64, and the norms of the queries as :meth:`tolerance` wants them, (b,) float64.
        """
        block = self._widened(self._queries[queries]) - self._query_center
        squares = np.einsum("ij,ij->i", block, block)
        if self.metric == "l2":
            scores = np.matmul(-2 * block, self._gallery.T)
            scores += self._squares
            scores += squares[:, None]
        else:
            scores = np.matmul(-block, self._gallery.T)
        return scores, np.sqrt(squares)

    def tolerance(self, query_norm: float, scores: Float64Array) -> Float64Array:
        """Return how far, for one query, another score may be from each of ``scores`` by rounding alone.

        The rounding error of a score is at most (2 dim + 8) units of (|q| + |g|)^2 or |q||g|. Under ``l2``
        whatever scores about s has |g| <= |q| + sqrt(s), so an outlier elsewhere in the gallery does not count.
        """
        size = np.full(len(scores), query_norm * self._largest_norm)
        if self.metric == "l2":
            size = (2 * query_norm + np.sqrt(np.maximum(scores, 0))) ** 2
        size *= 2 * (2 * self._dim + 8) * _UNIT
        return size

    def _widened(self, block: Embeddings) -> Float64Array:
        wide = block.astype(np.float64)
        if self.metric == "cosine":
            wide /= np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
        return wide


def ranks_among(scores: Float64Array, rows: Int64Array, tolerance: Float64Array) -> Int64Array:
    """Return the rank, from 1, that each of some rows has among all ``scores``, (n_g,).

    Scores no further away than a row's ``tolerance`` are ties, and of those the lower row is first.
    """
    lower, upper = scores[rows] - tolerance, scores[rows] + tolerance
    ordered = np.sort(scores)
    low = ordered.searchsorted(lower, "left")
    high = ordered.searchsorted(upper, "right")
    ranks: Int64Array = low + 1
    tied = np.flatnonzero(high - low > 1)
    for same in _groups(low[tied] * (len(scores) + 1) + high[tied]):
        group = tied[same]  # one set of ties: found once for all the rows in it
        ties = np.flatnonzero((scores >= lower[group[0]]) & (scores <= upper[group[0]]))
        ranks[group] += ties.searchsorted(rows[group])
    return ranks


def _groups(keys: Int64Array) -> list[Int64Array]:
    """Return the positions of each distinct key."""
    if not len(keys):
        return []
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
