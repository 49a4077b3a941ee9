"""Scores of query-gallery pairs: how near each gallery row is to each query, with bounds on the rounding error.

Two precisions work together. One float32 matrix product scores a block of queries against the whole gallery; that
places nearly every row, because the distance to whatever it is compared with exceeds the bound on float32's error.
The few rows that float32 cannot place are scored again in float64 (see ``placement.py``), so that ranks are those of
float64 and do not depend on the BLAS, the block size or the thread count.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fct_infer.evaluation.checks import Embeddings, Int64Array, Metric, check_contents, row_parts

Float64Array = NDArray[np.float64]
_BLOCK_BYTES = 1 << 26
_MOST_ROWS = 256
_CENTER_ROWS = 1024
_UNIT_32, _UNIT_64 = 2.0**-24, 2.0**-53  # largest relative error of one rounding
_UNDERFLOW = 2.0**-100  # more than what float32 loses by flushing to zero, rows being at most one long


def rows_at_once(gallery_rows: int, itemsize: int = 4) -> int:
    """Return how many queries to score at once so that a block of scores of ``itemsize`` bytes stays within 64 MiB."""
    return int(np.clip(_BLOCK_BYTES // (itemsize * gallery_rows), 1, _MOST_ROWS))


class Scorer:
    """Scores of ``queries`` against galleries under one metric; a lower score is nearer.

    With c the middle of the first gallery, the score is ``|g - c|^2 / 2 - (q - c).(g - c)`` for ``l2``, which orders
    rows as ``|q - g|^2`` does and has lost a large common part before it costs digits; ``-q.(g - c)`` for ``ip``,
    which orders rows as ``-q.g`` does; ``-q.g`` of rows of length one for ``cosine``. Medians make the middle, so that
    no outlier moves it. Everything is scaled by a power of two, so that nothing overflows float32.

    Args:
        queries: (n_q, dim) float32 or float16.
        galleries: one or more (n_g, dim) float32 or float16, whose scores can be compared with each other; of
            each, one float64 and one float32 copy is held.
        metric: ``"l2"``, ``"ip"`` or ``"cosine"``.

    Raises:
        ArrayError: a NaN or infinity, or under ``cosine`` a row of length zero; names argument and row.
    """

    def __init__(self, queries: Embeddings, galleries: Sequence[Embeddings], metric: Metric) -> None:
        self.metric = metric
        self._queries, self._gallery_rows = queries, len(galleries[0])  # not the galleries, which may be let go of
        self._dim = queries.shape[1]
        for name, array in (("queries", queries), *(("gallery", gallery) for gallery in galleries)):
            check_contents(name, array, metric)
        self._center = np.zeros(self._dim)
        if metric != "cosine":
            sample = galleries[0][:: max(1, len(galleries[0]) // _CENTER_ROWS)]
            self._center = np.median(sample.astype(np.float64), axis=0)
        self._query_center = self._center if metric == "l2" else np.zeros(self._dim)
        self._scale = 1.0
        longest = max(self._longest(queries, self._query_center), *(self._longest(g, self._center) for g in galleries))
        if longest > 0:
            self._scale = 2.0 ** -np.ceil(np.log2(longest))
        self._wide = [self._prepared(gallery) for gallery in galleries]
        self._coarse = [wide.astype(np.float32) for wide in self._wide]
        self._longest_row = longest * self._scale
        self._buffers = threading.local()

    def block_rows(self, itemsize: int = 4) -> int:
        """See :func:`rows_at_once`."""
        return rows_at_once(self._gallery_rows, itemsize)

    def prepare(self, queries: Int64Array) -> Float64Array:
        """Return the queries of these row numbers as the methods below take them: (b, columns)."""
        block = -self._widened(self._queries[queries], self._query_center)
        return np.append(block, np.ones((len(block), 1)), axis=1) if self.metric == "l2" else block

    def coarse(self, prepared: Float64Array, gallery: int = 0) -> NDArray[np.float32]:
        """Score prepared queries against a whole gallery in float32: (b, n_g), good until the thread's next call."""
        buffers = self._buffers.__dict__.setdefault("by_gallery", {})
        if gallery not in buffers:  # kept, because fresh memory costs a page fault every 4 KiB
            buffers[gallery] = np.empty((self.block_rows(), len(self._wide[gallery])), np.float32)
        scores: NDArray[np.float32] = buffers[gallery][: len(prepared)]
        return np.matmul(prepared.astype(np.float32), self._coarse[gallery].T, out=scores)

    def exact(self, prepared: Float64Array, rows: Int64Array, gallery: int = 0) -> Float64Array:
        """Score prepared queries, (b, columns), each against its own rows, (b, n), in float64: (b, n)."""
        wide, scores = self._wide[gallery], np.empty(rows.shape)
        step = max(1, _BLOCK_BYTES // 8 // max(1, prepared.size))
        for part in (slice(start, start + step) for start in range(0, rows.shape[1], step)):
            np.matmul(wide.take(rows[:, part], axis=0), prepared[:, :, None], out=scores[:, part, None])
        return scores

    def exact_pairs(
        self, prepared: Float64Array, queries: Int64Array, rows: Int64Array, gallery: int = 0
    ) -> Float64Array:
        """Score pairs of one of the prepared queries (0 to b - 1, ascending) and a gallery row in float64: (n,)."""
        bounds = queries.searchsorted(np.arange(len(prepared) + 1)).tolist()
        parts = enumerate(rows[begin:end] for begin, end in pairwise(bounds))
        return np.concatenate([self.exact(prepared[at : at + 1], part[None], gallery)[0] for at, part in parts])

    def exact_block(self, prepared: Float64Array, gallery: int = 0) -> Float64Array:
        """Score prepared queries against a whole gallery in float64: (b, n_g)."""
        scores: Float64Array = prepared @ self._wide[gallery].T
        return scores

    def tolerance(self, prepared: Float64Array, scores: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return how far rounding alone may put another score from each of ``scores``: in float64, float32.

        The rounding error of a score is at most (dim + 4) units of |q||g| + |g|^2 / 2, or twice that for rows made
        one long; a tenth more covers that the bound itself is rounded. Under ``l2`` whatever scores about s is at
        most |q| + sqrt(2 s + |q|^2) long, so an outlier elsewhere in the gallery does not count.

        Args:
            prepared: (b, columns) prepared queries.
            scores: (b, n) float64 scores of each.
        """
        queries = prepared[:, : self._dim]
        square = np.einsum("ij,ij->i", queries, queries)[:, None]
        norm = np.sqrt(square)
        if self.metric == "l2":
            longest = np.minimum(norm + np.sqrt(np.maximum(2 * scores + square, 0)), self._longest_row)
            size = longest * (norm + longest / 2)
        else:
            size = np.broadcast_to(norm * self._longest_row, scores.shape)
        exact = 4 * (self._dim + 8) * _UNIT_64 * size
        return exact, 1.1 * (self._dim + 4) * _UNIT_32 * size + (exact + _UNDERFLOW)

    def _prepared(self, gallery: Embeddings) -> Float64Array:
        """Return the rows as scores are a product with: under ``l2`` their halved squares are one more column."""
        wide = np.empty((len(gallery), self._dim + (self.metric == "l2")))
        for part in row_parts(gallery):
            rows = self._widened(gallery[part], self._center)
            wide[part, : self._dim] = rows
            if self.metric == "l2":
                np.einsum("ij,ij->i", rows, rows / 2, out=wide[part, -1])
        return wide

    def _longest(self, array: Embeddings, center: Float64Array) -> float:
        wide = (self._widened(array[part], center) for part in row_parts(array))
        return float(np.sqrt(max(np.einsum("ij,ij->i", part, part).max() for part in wide)))

    def _widened(self, block: Embeddings, center: Float64Array) -> Float64Array:
        wide = block.astype(np.float64)
        if self.metric == "cosine":
            wide /= np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
            return wide
        wide -= center
        wide *= self._scale
        return wide
