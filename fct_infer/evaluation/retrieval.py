"""CMC top-k, mAP, recall@k and R-precision, with the conventions of FCT (arXiv 2112.02805).

The gallery is ranked for each query over its whole length, less what is left out (:class:`Exclusions`); a gallery item
is relevant if it has the query's label.
Items at the same distance, up to the rounding error of float64, are ranked by gallery row, so the result is the same
on every run, for any block size and thread count. Other libraries agree where nothing ties, and where something does
if they are given the ranks: scikit-learn's average precision counts all items at one distance as found together, and
torchmetrics orders them arbitrarily (and takes items that score zero or less for irrelevant). How many queries a tie
decides is told. Average precision is the mean of the precisions, not the trapezoids of Market-1501's own program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, Unpack, get_args

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError
from fct_infer.evaluation.checks import AnyEmbeddings, Int64Array, Metric, SearchOptions, check_ks
from fct_infer.evaluation.parallel import Progress
from fct_infer.evaluation.ranking import RankedBatch, Ranking
from fct_infer.evaluation.scores import Float64Array

Figure: TypeAlias = Literal["cmc", "map", "recall", "r-precision"]
FIGURES: tuple[Figure, ...] = get_args(Figure)


@dataclass(frozen=True)
class RetrievalMetrics:
    """How well a set of queries finds its own in a gallery.

    Attributes:
        cmc: k -> share of queries with a relevant item among their k nearest, 0 to 1 (CMC top-k; metric learning
            calls the same recall@k).
        mean_average_precision: mean over queries of the mean, over a query's relevant items, of the precision at
            their ranks in the full ranking, 0 to 1 (mAP@1.0).
        recall: k -> mean over queries of the share of a query's relevant items that are among its k nearest, 0 to 1
            (recall@k of information retrieval).
        r_precision: mean over queries of the share of relevant items among the R nearest, R being the number of
            items relevant to the query, 0 to 1.
        queries: number of queries these are means over.
        skipped_queries: number of queries left out because the gallery holds nothing relevant to them.
        gallery_rows: number of gallery items (with ``exclude_self`` each query sees one less).
        metric: how distances were measured.
        tied_queries: number of queries whose ranks are decided by a tie, see :class:`QueryRanks`.
    """

    cmc: dict[int, float]
    mean_average_precision: float
    recall: dict[int, float]
    r_precision: float
    queries: int
    skipped_queries: int
    gallery_rows: int
    metric: Metric
    tied_queries: int = 0

    def shares(self, figures: Iterable[Figure] = ("cmc", "map")) -> dict[str, float]:
        """Return figures (0 to 1) under the names people read, in the order asked for."""
        known: dict[str, dict[str, float]] = {
            "cmc": {f"CMC-{k}": share for k, share in self.cmc.items()},
            "map": {"mAP": self.mean_average_precision},
            "recall": {f"recall@{k}": share for k, share in self.recall.items()},
            "r-precision": {"R-precision": self.r_precision},
        }
        return {name: share for figure in figures for name, share in known[figure].items()}

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as strict JSON."""
        by_k = {name: {str(k): share for k, share in getattr(self, name).items()} for name in ("cmc", "recall")}
        return asdict(self) | by_k

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> RetrievalMetrics:
        """Return what :meth:`as_dict` was made of."""
        by_k = {name: {int(k): share for k, share in figures[name].items()} for name in ("cmc", "recall")}
        return cls(**{**figures, **by_k})


@dataclass(frozen=True)
class QueryRanks:
    """What the metrics are means of, query by query.

    Attributes:
        first_relevant: (n_q,) int64, rank of the nearest relevant item, 1 the nearest of all; 0 if none is relevant.
        average_precision: (n_q,) float64; NaN if no item is relevant.
        recall: (n_q, len(ks)) float64, share of the relevant items among the k nearest; NaN if none is.
        r_precision: (n_q,) float64; NaN if no item is relevant.
        is_tied: (n_q,) bool, whether an item that is not relevant is as near as one that is: only their row numbers
            decide which comes first, so that another order of the gallery would give other figures.
        ks: the k of CMC top-k and recall@k.
        gallery_rows: number of gallery items.
        metric: how distances were measured.
    """

    first_relevant: Int64Array
    average_precision: Float64Array
    recall: Float64Array
    r_precision: Float64Array
    is_tied: NDArray[np.bool_]
    ks: tuple[int, ...]
    gallery_rows: int
    metric: Metric

    def cmc(self, k: int) -> float:
        """Return CMC top-k, at any k: the share of queries with a relevant item among their ``k`` nearest."""
        ranks = self.first_relevant[self.first_relevant > 0]
        return float(np.mean(ranks <= k))

    def metrics(self, among: NDArray[np.bool_] | None = None) -> RetrievalMetrics:
        """Return the means over all queries, or over those marked in ``among``, (n_q,) bool.

        Raises:
            ArrayError: none of these queries has anything relevant.
        """
        among = np.ones(len(self.first_relevant), bool) if among is None else among
        chosen = among & (self.first_relevant > 0)
        if not chosen.any():
            raise ArrayError("no query has a gallery item with its label, so there is nothing to measure")
        queries = int(chosen.sum())
        recall = self.recall[chosen].mean(axis=0)
        return RetrievalMetrics(
            cmc={k: float(np.mean(self.first_relevant[chosen] <= k)) for k in self.ks},
            mean_average_precision=float(self.average_precision[chosen].mean()),
            recall={k: float(share) for k, share in zip(self.ks, recall, strict=True)},
            r_precision=float(self.r_precision[chosen].mean()),
            queries=queries,
            skipped_queries=int(among.sum()) - queries,
            gallery_rows=self.gallery_rows,
            metric=self.metric,
            tied_queries=int((self.is_tied & chosen).sum()),
        )

    def by_class(self, query_labels: NDArray[Any]) -> dict[Any, RetrievalMetrics]:
        """Return the means over the queries of each label that has something relevant, in sorted order.

        Raises:
            ArrayError: not one label per query.
        """
        if query_labels.shape != self.first_relevant.shape:
            raise ArrayError(f"query_labels has shape {query_labels.shape} for {len(self.first_relevant)} queries")
        kept = np.unique(query_labels[self.first_relevant > 0])
        return {label.item(): self.metrics(query_labels == label) for label in kept}


def retrieval_metrics(
    queries: AnyEmbeddings,
    gallery: AnyEmbeddings,
    query_labels: NDArray[Any],
    gallery_labels: NDArray[Any],
    *,
    ks: Iterable[int] = (1, 5),
    progress: Progress | None = None,
    **search: Unpack[SearchOptions],
) -> RetrievalMetrics:
    """Rank the gallery for every query and return the means; arguments and errors as for :func:`rank_queries`."""
    return rank_queries(queries, gallery, query_labels, gallery_labels, ks=ks, progress=progress, **search).metrics()


def rank_queries(
    queries: AnyEmbeddings,
    gallery: AnyEmbeddings,
    query_labels: NDArray[Any],
    gallery_labels: NDArray[Any],
    *,
    ks: Iterable[int] = (1, 5),
    progress: Progress | None = None,
    **search: Unpack[SearchOptions],
) -> QueryRanks:
    """Rank the gallery for every query and return the figures query by query.

    Memory beside the arguments: a float64 and a float32 copy of the gallery, and about 100 MB a thread.

    Args:
        queries: (n_q, dim) float32 or float16; float16 is widened while it is read.
        gallery: (n_g, dim) float32 or float16.
        query_labels: (n_q,) integers, str or bytes.
        gallery_labels: (n_g,), comparable with ``query_labels``.
        ks: the k of CMC top-k and recall@k; one beyond the gallery's size counts all of it.
        progress: called with queries done and queries in all.
        search: see :class:`SearchOptions`.

    Raises:
        ArrayError: wrong dtype, shape or length, a NaN or infinity, or no query has anything relevant.
        UsageError: unknown metric, a k or thread count below one.
    """
    ks = check_ks(ks)
    limits = np.array([min(k, len(gallery)) for k in ks])
    ranking = Ranking(queries, [gallery], query_labels, gallery_labels, **search)
    first_relevant = np.zeros(len(queries), np.int64)
    average_precision, r_precision = np.full((2, len(queries)), np.nan)
    recall = np.full((len(queries), len(ks)), np.nan)
    is_tied = np.zeros(len(queries), bool)

    def record(found: Iterable[tuple[NDArray[Any], ...]]) -> None:
        columns = first_relevant, average_precision, recall, r_precision, is_tied
        for numbers, *of_queries in found:
            for column, values in zip(columns, of_queries, strict=True):
                column[numbers] = values

    ranking.each_block(_Figures(limits), record, progress)
    return QueryRanks(first_relevant, average_precision, recall, r_precision, is_tied, ks, len(gallery), ranking.metric)


@dataclass(frozen=True)
class _Figures:
    """A :class:`~fct_infer.evaluation.ranking.Measure`: query numbers, then the columns of :class:`QueryRanks`."""

    limits: Int64Array  # the k

    def __call__(self, batches: Iterator[RankedBatch]) -> list[tuple[NDArray[Any], ...]]:
        return [tuple(map(np.concatenate, zip(*map(self._of_batch, batches), strict=True)))]

    def _of_batch(self, batch: RankedBatch) -> tuple[NDArray[Any], ...]:
        ranks, count = batch.relevant.ranks(batch.places[0]), batch.rows.shape[1]
        return (
            batch.queries,
            ranks[:, 0],
            (np.arange(1, count + 1) / ranks).mean(axis=1),
            (ranks[:, :, None] <= self.limits).mean(axis=1),
            (ranks <= count).mean(axis=1),
            batch.is_tied,
        )
