"""CMC top-k and mean average precision, with the conventions of FCT (arXiv 2112.02805, section 4).

The gallery is ranked for each query over its whole length; a gallery item is relevant if it has the query's label.
Items at the same distance, up to the rounding error of float64, are ranked by gallery row, so the result is the same
on every run, for any block size and thread count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, UsageError
from fct_infer.evaluation.checks import Embeddings, Int64Array, Metric, check_embeddings, check_metric, encode_labels
from fct_infer.evaluation.parallel import Progress, for_each_block
from fct_infer.evaluation.scores import Scorer, ranks_among


@dataclass(frozen=True)
class RetrievalMetrics:
    """How well a set of queries finds its own in a gallery.

    Attributes:
        cmc: k -> share of queries with a relevant item among their k nearest, 0 to 1 (CMC top-k).
        mean_average_precision: mean over queries of the mean, over a query's relevant items, of the precision at
            their ranks in the full ranking, 0 to 1 (mAP@1.0).
        queries: number of queries these are means over.
        skipped_queries: number of queries left out because the gallery holds nothing relevant to them.
        gallery_rows: number of gallery items (with ``exclude_self`` each query sees one less).
        metric: how distances were measured.
    """

    cmc: dict[int, float]
    mean_average_precision: float
    queries: int
    skipped_queries: int
    gallery_rows: int
    metric: Metric

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as strict JSON."""
        return {
            "cmc": {str(k): share for k, share in self.cmc.items()},
            "mean_average_precision": self.mean_average_precision,
            "queries": self.queries,
            "skipped_queries": self.skipped_queries,
            "gallery_rows": self.gallery_rows,
            "metric": self.metric,
        }


@dataclass(frozen=True)
class QueryRanks:
    """What the metrics are means of, query by query.

    Attributes:
        first_relevant: (n_q,) int64, rank of the nearest relevant item, 1 the nearest of all; 0 if none is relevant.
        average_precision: (n_q,) float64; NaN if no item is relevant.
        gallery_rows: number of gallery items.
        metric: how distances were measured.
    """

    first_relevant: Int64Array
    average_precision: NDArray[np.float64]
    gallery_rows: int
    metric: Metric

    def cmc(self, k: int) -> float:
        """Return CMC top-k: the share of queries with a relevant item among their ``k`` nearest."""
        ranks = self.first_relevant[self.first_relevant > 0]
        return float(np.mean(ranks <= k))

    def metrics(self, ks: Iterable[int] = (1, 5)) -> RetrievalMetrics:
        """Return the means, with CMC at each of ``ks``."""
        has_relevant = self.first_relevant > 0
        queries = int(has_relevant.sum())
        return RetrievalMetrics(
            cmc={k: self.cmc(k) for k in check_ks(ks)},
            mean_average_precision=float(self.average_precision[has_relevant].mean()),
            queries=queries,
            skipped_queries=len(has_relevant) - queries,
            gallery_rows=self.gallery_rows,
            metric=self.metric,
        )


def check_ks(ks: Iterable[int]) -> tuple[int, ...]:
    """Return the ranks CMC is asked at, ascending and each once; UsageError unless all are integers above zero."""
    wanted = tuple(ks)
    if not wanted or any(not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1 for k in wanted):
        raise UsageError(f"CMC is asked at k = {', '.join(map(str, wanted)) or 'nothing'}; wanted integers above zero")
    return tuple(sorted({int(k) for k in wanted}))


def retrieval_metrics(
    queries: Embeddings,
    gallery: Embeddings,
    query_labels: NDArray[Any],
    gallery_labels: NDArray[Any],
    *,
    metric: Metric = "l2",
    exclude_self: bool = False,
    ks: Iterable[int] = (1, 5),
    threads: int | None = None,
    progress: Progress | None = None,
) -> RetrievalMetrics:
    """Rank the gallery for every query and return CMC top-k and mAP.

    Memory beside the arguments: one float64 copy of the gallery and about 35 MB a thread.

    Args:
        queries: (n_q, dim) float32 or float16; float16 is widened while it is read.
        gallery: (n_g, dim) float32 or float16.
        query_labels: (n_q,) integers, str or bytes.
        gallery_labels: (n_g,), comparable with ``query_labels``.
        metric: ``"l2"`` Euclidean distance (the papers'), ``"ip"`` inner product, ``"cosine"``.
        exclude_self: query i and gallery row i are the same item (one set searched in itself, or in another
            model's embeddings of it); each query's own row is left out of its ranking.
        ks: the k of CMC top-k.
        threads: threads to use; by default all cores this process may use.
        progress: called with queries done and queries in all.

    Raises:
        ArrayError: wrong dtype, shape or length, a NaN or infinity, or no query has anything relevant.
        UsageError: unknown metric, a k or thread count below one.
    """
    check_ks(ks := tuple(ks))
    ranks = rank_queries(
        queries,
        gallery,
        query_labels,
        gallery_labels,
        metric=metric,
        exclude_self=exclude_self,
        threads=threads,
        progress=progress,
    )
    return ranks.metrics(ks)


def rank_queries(
    queries: Embeddings,
    gallery: Embeddings,
    query_labels: NDArray[Any],
    gallery_labels: NDArray[Any],
    *,
    metric: Metric = "l2",
    exclude_self: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> QueryRanks:
    """Rank the gallery for every query; arguments and errors as for :func:`retrieval_metrics`."""
    check_metric(metric)
    check_embeddings(queries, gallery, exclude_self=exclude_self)
    query_codes, gallery_codes = encode_labels(query_labels, gallery_labels, len(queries), len(gallery))
    if exclude_self and (query_codes != gallery_codes).any():
        row = int(np.flatnonzero(query_codes != gallery_codes)[0])
        raise ArrayError(
            f"exclude_self takes query i and gallery row i for the same item, but query {row} has label "
            f"{query_labels[row].item()!r} and gallery row {row} has {gallery_labels[row].item()!r}"
        )
    ranking = _Ranking(Scorer(queries, gallery, metric), query_codes, gallery_codes, exclude_self)
    for_each_block(len(ranking.kept), ranking.scorer.block_rows, ranking.rank_block, threads, progress)
    return QueryRanks(ranking.first_relevant, ranking.average_precision, len(gallery), metric)


class _Ranking:
    """One ranking under way: results fill up block by block, in any order."""

    def __init__(self, scorer: Scorer, query_codes: Int64Array, gallery_codes: Int64Array, exclude_self: bool) -> None:
        self.scorer = scorer
        self.exclude_self = exclude_self
        self.rows_by_label = np.argsort(gallery_codes, kind="stable")
        bounds = np.concatenate(([0], np.cumsum(np.bincount(gallery_codes))))
        self.begin = bounds[np.maximum(query_codes, 0)]
        self.end = bounds[query_codes + 1]  # a label the gallery lacks, -1, has an empty range
        self.kept = np.flatnonzero(self.end - self.begin > int(exclude_self))
        if not len(self.kept):
            raise ArrayError("no query has a gallery item with its label, so there is nothing to measure")
        self.first_relevant = np.zeros(len(query_codes), np.int64)
        self.average_precision = np.full(len(query_codes), np.nan)

    def rank_block(self, block: slice) -> None:
        """Fill in the results of some of the kept queries."""
        queries = self.kept[block]
        scores, norms = self.scorer.scores(queries)
        for query, row, norm in zip(queries, scores, norms, strict=True):
            relevant = self.rows_by_label[self.begin[query] : self.end[query]]
            if self.exclude_self:
                relevant = relevant[relevant != query]
                row[query] = np.inf
            tolerance = self.scorer.tolerance(norm, row[relevant])
            ranks = np.sort(ranks_among(row, relevant, tolerance))
            self.first_relevant[query] = ranks[0]
            self.average_precision[query] = np.mean(np.arange(1, len(ranks) + 1) / ranks)
