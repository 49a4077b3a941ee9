"""The nearest gallery items of each query, exactly: what a search without an index finds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import UsageError
from fct_infer.evaluation.checks import Embeddings, Int64Array, Metric, check_embeddings, check_metric
from fct_infer.evaluation.parallel import Progress, for_each_block
from fct_infer.evaluation.scores import Scorer, ranks_among


def nearest(
    queries: Embeddings,
    gallery: Embeddings,
    k: int,
    *,
    metric: Metric = "l2",
    exclude_self: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float32], Int64Array]:
    """Find the ``k`` nearest gallery rows of each query, in the order by which :func:`retrieval_metrics` ranks them.

    Args:
        queries: (n_q, dim) float32 or float16.
        gallery: (n_g, dim) float32 or float16.
        k: how many to find.
        metric: ``"l2"``, ``"ip"`` or ``"cosine"``.
        exclude_self: query i and gallery row i are the same item; a query does not find itself.
        threads: threads to use; by default all cores this process may use.
        progress: called with queries done and queries in all.

    Returns:
        distances: (n_q, k) float32, nearest first: the Euclidean distance (not squared) for ``l2``, otherwise the
            inner product or the cosine, which are larger for nearer items.
        rows: (n_q, k) int64, the gallery rows.

    Raises:
        ArrayError: wrong dtype or shape, a NaN or infinity.
        UsageError: unknown metric, ``k`` below one or beyond what the gallery holds, a thread count below one.
    """
    check_metric(metric)
    check_embeddings(queries, gallery, exclude_self=exclude_self)
    available = len(gallery) - int(exclude_self)
    if not 1 <= k <= available:
        raise UsageError(f"{k} nearest of {available} gallery rows asked for; wanted 1 to {available}")
    scorer = Scorer(queries, gallery, metric)
    distances = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)

    def search_block(block: slice) -> None:
        numbers = np.arange(block.start, block.stop)
        scores, norms = scorer.scores(numbers)
        for query, row, norm in zip(numbers, scores, norms, strict=True):
            if exclude_self:
                row[query] = np.inf
            kth = np.partition(row, k - 1)[k - 1 : k]
            candidates = np.flatnonzero(row <= kth + scorer.tolerance(norm, kth))
            near = row[candidates]
            ranks = ranks_among(near, np.arange(len(near)), scorer.tolerance(norm, near))
            rows[query] = candidates[np.argsort(ranks, kind="stable")[:k]]
            distances[query] = _distances(queries[query], gallery[rows[query]], metric)

    for_each_block(len(queries), scorer.block_rows, search_block, threads, progress)
    return distances, rows


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
