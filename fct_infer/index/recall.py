"""How many true neighbours an index finds, against exact search over every row, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fct_infer.index.builder import Ids, IndexBuilder
from fct_infer.index.faiss_module import faiss
from fct_infer.transformation import Float32Array

ENOUGH_RECALL = 0.95
WORTH_DOUBLING = 0.01  # recall that twice the lists must add


def exact_neighbours(
    queries: Float32Array, blocks: Iterable[tuple[Float32Array, Ids]], k: int, metric: str, threads: int
) -> Ids:
    """Return the ids (m, k) of the nearest of all rows, which come in blocks of (rows, ids)."""
    module = faiss()
    module.omp_set_num_threads(threads)
    kind = module.METRIC_L2 if metric == "l2" else module.METRIC_INNER_PRODUCT
    sign = 1 if metric == "l2" else -1
    best = np.full((len(queries), k), np.inf, np.float32)
    best_ids = np.full((len(queries), k), -1, np.int64)
    for rows, ids in blocks:
        distances, positions = module.knn(queries, rows, min(k, len(rows)), kind)
        merged = np.concatenate([best, sign * distances], axis=1)
        merged_ids = np.concatenate([best_ids, ids[positions]], axis=1)
        order = np.argsort(merged, axis=1, kind="stable")[:, :k]
        best, best_ids = np.take_along_axis(merged, order, 1), np.take_along_axis(merged_ids, order, 1)
    return best_ids


def measure_recall(builder: IndexBuilder, queries: Float32Array, own_ids: Ids, exact: Ids) -> float:
    """Return the share of exact neighbours the index finds, a query's own row left out on both sides.

    Args:
        builder: the index; it is searched for as many neighbours as ``exact`` has columns.
        queries: (m, dim) float32, rows of the gallery.
        own_ids: (m,) their ids.
        exact: (m, k + 1) ids by exact search, own row included.
    """
    _, found = builder.search(queries, exact.shape[1])
    hits = wanted = 0
    for own, exact_ids, found_ids in zip(own_ids.tolist(), exact.tolist(), found.tolist(), strict=True):
        truth = set(exact_ids) - {own, -1}
        hits += len(truth & set(found_ids))
        wanted += len(truth)
    return hits / wanted if wanted else 1.0


def tune_nprobe(builder: IndexBuilder, queries: Float32Array, own_ids: Ids, exact: Ids, target: float | None) -> float:
    """Double ``nprobe`` until recall reaches ``target``; without one, until it is enough or doubling adds little.

    Returns the recall reached. Arguments as in :func:`measure_recall`.
    """
    recall = measure_recall(builder, queries, own_ids, exact)
    while builder.nprobe is not None and builder.nprobe < builder.nlist and recall < (target or ENOUGH_RECALL):
        before, nprobe = recall, builder.nprobe
        builder.nprobe = min(2 * nprobe, builder.nlist)
        recall = measure_recall(builder, queries, own_ids, exact)
        if target is None and recall < before + WORTH_DOUBLING:
            builder.nprobe, recall = nprobe, before
            break
    return recall
