"""Queries ranked block by block against one gallery or several aligned ones: what every figure is computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError
from fct_infer.evaluation.blocks import do_blocks
from fct_infer.evaluation.checks import (
    AnyEmbeddings,
    Embeddings,
    Int64Array,
    Metric,
    check_embeddings,
    check_metric,
)
from fct_infer.evaluation.parallel import Progress
from fct_infer.evaluation.placement import RelevantOrder, place_all
from fct_infer.evaluation.relevance import Exclusions, Relevance
from fct_infer.evaluation.scores import Float64Array, Scorer, rows_at_once
from fct_infer.gallery.jobs import Workers

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_MOST_UNCLEAR = 1 / 16  # share of a gallery from which on one float64 product is cheaper than exact scores row by row
_BATCH_ELEMENTS = 1 << 18  # scores placed at once: enough to outweigh the calls, few enough to stay in cache


@dataclass(frozen=True)
class RankedBatch:
    """A few queries ranked.

    Attributes:
        queries: (b,) their numbers; all have equally many relevant rows.
        rows: (b, r) the relevant rows.
        relevant: their order over all galleries.
        places: per gallery every row's place, (b, n_g); rows left out come after everything relevant.
        is_tied: (b,) whether a row that is not relevant is as near as one that is, in some gallery, so that only the
            row numbers decide which comes first.
    """

    queries: Int64Array
    rows: Int64Array
    relevant: RelevantOrder
    places: list[Int64Array]
    is_tied: NDArray[np.bool_]


class Measure(Protocol[T_co]):
    """What is made of ranked queries; picklable."""

    def __call__(self, batches: Iterator[RankedBatch]) -> T_co:
        """Return what some blocks of queries add, to what others do by ``+``; at least one batch."""
        ...


@dataclass(frozen=True)
class RankingWork(Generic[T]):
    """Queries ranked against aligned galleries; see :class:`~fct_infer.evaluation.blocks.Work`. Its rows are ``kept``.

    Attributes:
        embeddings: queries (n_q, dim), and one or more galleries (n_g, dim), whose row i is the same item.
        relevance: who is relevant to whom.
        kept: queries that have something relevant, those with equally many rows together.
        metric: ``"l2"``, ``"ip"`` or ``"cosine"``.
        measure: what is made of the batches of some blocks; picklable.
    """

    embeddings: tuple[AnyEmbeddings, ...]
    relevance: Relevance
    kept: Int64Array
    metric: Metric
    measure: Measure[T]

    @property
    def rows(self) -> int:
        """Queries that are ranked."""
        return len(self.kept)

    @property
    def block_rows(self) -> int:
        """Queries that are scored at once."""
        return rows_at_once(len(self.embeddings[1]))

    def open(self, embeddings: Sequence[Embeddings]) -> Callable[[Sequence[slice]], T]:
        """See :class:`~fct_infer.evaluation.blocks.Work`.

        Raises:
            ArrayError: a NaN or infinity, or under ``cosine`` a row of length zero; names argument and row.
        """
        ranker = _Ranker(Scorer(embeddings[0], embeddings[1:], self.metric), self.relevance, len(embeddings[1:]))
        return lambda blocks: self.measure(batch for block in blocks for batch in ranker.batches(self.kept[block]))


class Ranking:
    """What is ranked: queries, aligned galleries, who is relevant to whom.

    Args:
        queries: (n_q, dim) float32 or float16.
        galleries: one or more (n_g, dim) float32 or float16; row i of each is the same item.
        query_labels: (n_q,) integers, str or bytes.
        gallery_labels: (n_g,), comparable with ``query_labels``.
        metric, exclude_self, threads, exclusions, workers: as :class:`SearchOptions` says.

    Raises:
        ArrayError: wrong dtype, shape or length, or no query has anything relevant.
        UsageError: unknown metric.
    """

    def __init__(
        self,
        queries: AnyEmbeddings,
        galleries: Sequence[AnyEmbeddings],
        query_labels: NDArray[Any],
        gallery_labels: NDArray[Any],
        *,
        metric: Metric = "l2",
        exclude_self: bool = False,
        threads: int | None = None,
        exclusions: Exclusions | None = None,
        workers: Workers | None = None,
    ) -> None:
        check_metric(metric)
        for gallery in galleries:
            check_embeddings(queries, gallery, exclude_self=exclude_self)
        self._relevance = Relevance(
            query_labels,
            gallery_labels,
            (len(queries), len(galleries[0])),
            exclude_self=exclude_self,
            exclusions=exclusions,
        )
        relevant = self._relevance.counts
        kept = np.flatnonzero(relevant > 0)
        self.kept: Int64Array = kept[np.argsort(relevant[kept], kind="stable")]
        """Queries that have something relevant, those with equally many rows together."""
        if not len(kept):
            raise ArrayError("no query has a gallery item with its label, so there is nothing to measure")
        self.metric: Metric = metric
        self._embeddings = (queries, *galleries)
        self._threads, self._workers = threads, workers

    def each_block(self, measure: Measure[T], record: Callable[[T], None], progress: Progress | None) -> None:
        """Have all queries ranked that have something relevant; ``record`` is told what is made of some blocks of them.

        Args:
            measure: what is made of some blocks, on several threads or elsewhere; picklable.
            record: called with each, one call at a time, in any order.
            progress: called with queries done and queries in all.

        Raises:
            ArrayError: a NaN or infinity, or under ``cosine`` a row of length zero.
            UsageError: a thread count below one.
            FctError: as for :func:`~fct_infer.evaluation.blocks.do_blocks`.
        """
        work = RankingWork(self._embeddings, self._relevance, self.kept, self.metric, measure)
        do_blocks(work, record, threads=self._threads, workers=self._workers, progress=progress)


class _Ranker:
    """Ranks blocks of queries, each on one thread."""

    def __init__(self, scorer: Scorer, relevance: Relevance, galleries: int) -> None:
        self._scorer, self._relevance = scorer, relevance
        self._gallery_rows = relevance.gallery_rows
        self._gallery_numbers = range(galleries)

    def batches(self, queries: Int64Array) -> Iterator[RankedBatch]:
        """Yield the queries of one block, a few at a time."""
        # in float32 every relevant row makes some others unclear
        many = 8 * self._relevance.counts[queries] > self._gallery_rows * _MOST_UNCLEAR
        hard = [queries[many]]
        queries = queries[~many]
        if len(queries):
            prepared = self._scorer.prepare(queries)
            blocks = [self._scorer.coarse(prepared, number) for number in self._gallery_numbers]
            for batch in self._batches(queries):
                ranked = self._rank(queries[batch], prepared[batch], [block[batch] for block in blocks])
                if ranked is None:
                    hard.append(queries[batch])
                else:
                    yield ranked
        queries, step = np.concatenate(hard), self._scorer.block_rows(itemsize=8)
        for part in (queries[begin : begin + step] for begin in range(0, len(queries), step)):
            prepared = self._scorer.prepare(part)
            exact_blocks = [self._scorer.exact_block(prepared, number) for number in self._gallery_numbers]
            for batch in self._batches(part):
                ranked = self._rank(part[batch], prepared[batch], [block[batch] for block in exact_blocks])
                assert ranked is not None  # nothing is unclear in float64
                yield ranked

    def _batches(self, queries: Int64Array) -> Iterator[slice]:
        """Yield slices of queries that have equally many relevant rows."""
        most = max(1, _BATCH_ELEMENTS // self._gallery_rows)
        relevant = self._relevance.counts[queries]
        begin = 0
        for end in [*(np.flatnonzero(np.diff(relevant)) + 1).tolist(), len(queries)]:
            yield from (slice(at, min(at + most, end)) for at in range(begin, end, most))
            begin = end

    def _rank(self, queries: Int64Array, prepared: Float64Array, scores: list[NDArray[Any]]) -> RankedBatch | None:
        """Return queries that have these scores, float32 or exact; None if float32 leaves too much unclear."""
        rows, numbers = self._relevance.relevant_rows(queries), np.arange(len(queries))
        is_exact = scores[0].dtype == np.float64

        def relevant_scores(number: int) -> Float64Array:
            if is_exact:
                return scores[number][numbers[:, None], rows]
            return self._scorer.exact(prepared, rows, number)

        def exact(number: int, of_query: Int64Array, row: Int64Array) -> Float64Array:
            if is_exact:
                found: Float64Array = scores[number][of_query, row]
                return found
            return self._scorer.exact_pairs(prepared, of_query, row, number)

        known = np.concatenate([relevant_scores(number) for number in self._gallery_numbers], axis=1)
        of_exact, of_coarse = self._scorer.tolerance(prepared, known)
        relevant = RelevantOrder(known, np.tile(rows, len(scores)), of_exact, self._gallery_rows)
        tolerance = (of_exact if is_exact else of_coarse)[numbers[:, None], relevant.order]
        most = np.inf if is_exact else self._gallery_rows * _MOST_UNCLEAR
        left_out = self._relevance.left_out(queries)
        places, is_tied = [], np.zeros(len(queries), bool)
        for number, own in enumerate(np.split(relevant.places, len(scores), axis=1)):
            placed = place_all(relevant, scores[number], tolerance, rows, own, left_out, partial(exact, number), most)
            if placed is None:
                return None
            places.append(placed[0])
            is_tied |= placed[1]
        return RankedBatch(queries, rows, relevant, places, is_tied)
