"""The nearest gallery items of each query, exactly: what a search without an index finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, UsageError
from fct_infer.evaluation.blocks import do_blocks
from fct_infer.evaluation.checks import AnyEmbeddings, Embeddings, Int64Array, Metric, check_embeddings, check_metric
from fct_infer.evaluation.parallel import Progress
from fct_infer.evaluation.placement import RelevantOrder
from fct_infer.evaluation.scores import Float64Array, Scorer, rows_at_once
from fct_infer.gallery.jobs import Workers


def nearest(
    queries: AnyEmbeddings,
    gallery: AnyEmbeddings,
    k: int,
    *,
    metric: Metric = "l2",
    exclude_self: bool = False,
    query_rows: Int64Array | None = None,
    threads: int | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float32], Int64Array]:
    """Find the ``k`` nearest gallery rows of each query, in the order by which :func:`rank_queries` ranks them.

    Args:
        queries: (n_q, dim) float32 or float16.
        gallery: (n_g, dim) float32 or float16.
        k: how many to find.
        metric: ``"l2"``, ``"ip"`` or ``"cosine"``.
        exclude_self: query i and gallery row i are the same item; a query does not find itself.
        query_rows: (n,) int64, which queries to search with; by default all.
        threads: threads to use; by default all cores this process may use.
        workers: who searches instead of this process, in :class:`StoredEmbeddings`.
        progress: called with queries done and queries in all.

    Returns:
        distances: (n, k) float32, nearest first: the Euclidean distance (not squared) for ``l2``, otherwise the
            inner product or the cosine, which are larger for nearer items.
        rows: (n, k) int64, the gallery rows.

    Raises:
        ArrayError: wrong dtype or shape, a NaN or infinity, a query row that does not exist.
        UsageError: unknown metric, ``k`` below one or beyond what the gallery holds, a thread count below one.
    """
    check_metric(metric)
    check_embeddings(queries, gallery, exclude_self=exclude_self)
    available = len(gallery) - int(exclude_self)
    if not 1 <= k <= available:
        raise UsageError(f"{k} nearest of {available} gallery rows asked for; wanted 1 to {available}")
    wanted = np.arange(len(queries)) if query_rows is None else query_rows
    if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(queries):
        raise ArrayError(f"query_rows go from {wanted.min()} to {wanted.max()}, but there are {len(queries)} queries")
    distances = np.empty((len(wanted), k), np.float32)
    rows = np.empty((len(wanted), k), np.int64)

    def record(found: Sequence[_Found]) -> None:
        for block, *of_block in found:
            distances[block], rows[block] = of_block

    work = _NearestWork((queries, gallery), wanted, k, metric, exclude_self)
    do_blocks(work, record, threads=threads, workers=workers, progress=progress)
    return distances, rows


_Found: TypeAlias = tuple[slice, NDArray[np.float64], Int64Array]


@dataclass(frozen=True)
class _NearestWork:
    """See :class:`~fct_infer.evaluation.blocks.Work`; its rows are the queries that search."""

    embeddings: tuple[AnyEmbeddings, ...]
    wanted: Int64Array
    k: int
    metric: Metric
    exclude_self: bool

    @property
    def rows(self) -> int:
        return len(self.wanted)

    @property
    def block_rows(self) -> int:
        return rows_at_once(len(self.embeddings[1]))

    def open(self, embeddings: Sequence[Embeddings]) -> Callable[[Sequence[slice]], list[_Found]]:
        queries, gallery = embeddings
        scorer = Scorer(queries, [gallery], self.metric)
        return lambda blocks: [(block, *self._search(scorer, queries, gallery, block)) for block in blocks]

    def _search(
        self, scorer: Scorer, queries: Embeddings, gallery: Embeddings, block: slice
    ) -> tuple[NDArray[np.float64], Int64Array]:
        numbers = self.wanted[block]
        prepared = scorer.prepare(numbers)
        rows = np.empty((len(numbers), self.k), np.int64)
        distances = np.empty(rows.shape)
        for at, (query, scores) in enumerate(zip(numbers, scorer.coarse(prepared), strict=True)):
            if self.exclude_self:
                scores[query] = np.inf
            rows[at] = _nearest_rows(scorer, prepared[at : at + 1], scores, self.k)
            distances[at] = _distances(queries[query], gallery[rows[at]], self.metric)
        return distances, rows


def _nearest_rows(scorer: Scorer, one: Float64Array, coarse: NDArray[np.float32], k: int) -> Int64Array:
    """Return the k nearest rows: float32 says which may be, float64 in which order they come."""
    kth = np.partition(coarse, k - 1)[None, k - 1 : k].astype(np.float64)
    candidates = np.flatnonzero(coarse <= kth[0] + 2 * scorer.tolerance(one, kth)[1][0])[None]
    scores = scorer.exact(one, candidates)
    order = RelevantOrder(scores, candidates, scorer.tolerance(one, scores)[0], len(coarse)).order
    found: Int64Array = candidates[0, order[0, :k]]
    return found


def _distances(query: Embeddings, rows: Embeddings, metric: Metric) -> NDArray[np.float64]:
    """Compare (dim,) with (k, dim) in float64, without the cancellation that expanding the square brings."""
    one, many = query.astype(np.float64), rows.astype(np.float64)
    if metric == "l2":
        many -= one
        lengths: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", many, many))
        return lengths
    products: NDArray[np.float64] = np.einsum("ij,j->i", many, one)
    if metric == "cosine":
        products /= np.sqrt(np.einsum("ij,ij->i", many, many) * np.einsum("i,i->", one, one))
    return products
