"""The nearest gallery items of each query, exactly: what a search without an index finds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, UsageError
from fct_infer.evaluation.checks import Embeddings, Int64Array, Metric, check_embeddings, check_metric
from fct_infer.evaluation.parallel import Progress, for_each_block
from fct_infer.evaluation.placement import RelevantOrder
from fct_infer.evaluation.scores import Float64Array, Scorer


def nearest(
    queries: Embeddings,
    gallery: Embeddings,
    k: int,
    *,
    metric: Metric = "l2",
    exclude_self: bool = False,
    query_rows: Int64Array | None = None,
    threads: int | None = None,
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
    scorer = Scorer(queries, [gallery], metric)
    distances = np.empty((len(wanted), k), np.float32)
    rows = np.empty((len(wanted), k), np.int64)

    def search_block(block: slice) -> None:
        numbers = wanted[block]
        prepared = scorer.prepare(numbers)
        scores = scorer.coarse(prepared)
        for place, (query, row) in enumerate(zip(numbers, scores, strict=True), block.start):
            if exclude_self:
                row[query] = np.inf
            at = place - block.start
            rows[place] = _nearest_rows(scorer, prepared[at : at + 1], row, k)
            distances[place] = _distances(queries[query], gallery[rows[place]], metric)

    for_each_block(len(wanted), scorer.block_rows(), search_block, threads, progress)
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
