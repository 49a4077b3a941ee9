"""Queries ranked block by block against one gallery or several aligned ones: what every figure is computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError
from fct_infer.evaluation.checks import (
    Embeddings,
    Int64Array,
    Metric,
    check_embeddings,
    check_metric,
    check_same_items,
    encode_labels,
)
from fct_infer.evaluation.parallel import Progress, for_each_block
from fct_infer.evaluation.placement import RelevantOrder, place_all
from fct_infer.evaluation.scores import Float64Array, Scorer

Visit: TypeAlias = Callable[[int, Int64Array, RelevantOrder, list[Int64Array]], None]
"""Called with a query, its relevant rows, their order over all galleries, and per gallery every row's place."""
_MOST_UNCLEAR = 1 / 16  # share of a gallery from which on one float64 product is cheaper than exact scores row by row


class Ranking:
    """What is ranked: queries, aligned galleries, who is relevant to whom.

    Args:
        queries: (n_q, dim) float32 or float16.
        galleries: one or more (n_g, dim) float32 or float16; row i of each is the same item.
        query_labels: (n_q,) integers, str or bytes.
        gallery_labels: (n_g,), comparable with ``query_labels``.
        metric: ``"l2"``, ``"ip"`` or ``"cosine"``.
        exclude_self: query i and gallery row i are the same item.

    Raises:
        ArrayError: wrong dtype, shape or length, a NaN or infinity, or no query has anything relevant.
        UsageError: unknown metric.
    """

    def __init__(
        self,
        queries: Embeddings,
        galleries: Sequence[Embeddings],
        query_labels: NDArray[Any],
        gallery_labels: NDArray[Any],
        metric: Metric,
        exclude_self: bool,
    ) -> None:
        check_metric(metric)
        for gallery in galleries:
            check_embeddings(queries, gallery, exclude_self=exclude_self)
        codes, gallery_codes = encode_labels(query_labels, gallery_labels, len(queries), len(galleries[0]))
        if exclude_self:
            check_same_items(query_labels, gallery_labels, codes != gallery_codes)
        self._rows_by_label = np.argsort(gallery_codes, kind="stable")
        bounds = np.concatenate(([0], np.cumsum(np.bincount(gallery_codes))))
        self._begin = bounds[np.maximum(codes, 0)]
        self._end = bounds[codes + 1]  # a label the gallery lacks, -1, has an empty range
        self.kept: Int64Array = np.flatnonzero(self._end - self._begin > int(exclude_self))
        """Queries that have something relevant."""
        if not len(self.kept):
            raise ArrayError("no query has a gallery item with its label, so there is nothing to measure")
        self._exclude_self = exclude_self
        self._gallery_rows = len(galleries[0])
        self._gallery_numbers = range(len(galleries))
        self._scorer = Scorer(queries, galleries, metric)

    def relevant_rows(self, query: int) -> Int64Array:
        """Return the gallery rows with a query's label, ascending, itself left out if it is to be."""
        rows: Int64Array = self._rows_by_label[self._begin[query] : self._end[query]]
        return rows[rows != query] if self._exclude_self else rows

    def for_each_query(self, visit: Visit, threads: int | None, progress: Progress | None) -> None:
        """Call ``visit`` for every query that has something relevant, on several threads, in any order."""
        for_each_block(
            len(self.kept),
            self._scorer.block_rows(),
            lambda block: self._rank_block(self.kept[block], visit),
            threads,
            progress,
        )

    def _rank_block(self, queries: Int64Array, visit: Visit) -> None:
        # in float32 a relevant row is unclear itself, and makes some others so
        many = 8 * (self._end[queries] - self._begin[queries]) > self._gallery_rows * _MOST_UNCLEAR
        hard = queries[many].tolist()
        queries = queries[~many]
        if len(queries):
            prepared = self._scorer.prepare(queries)
            blocks = [self._scorer.coarse(prepared, number) for number in self._gallery_numbers]
            for index, query in enumerate(queries.tolist()):
                if not self._rank(query, prepared[index], [block[index] for block in blocks], visit):
                    hard.append(query)
        step = self._scorer.block_rows(itemsize=8)
        for part in (np.array(hard[begin : begin + step]) for begin in range(0, len(hard), step)):
            prepared = self._scorer.prepare(part)
            exact_blocks = [self._scorer.exact_block(prepared, number) for number in self._gallery_numbers]
            for index, query in enumerate(part.tolist()):
                self._rank(query, prepared[index], [block[index] for block in exact_blocks], visit)

    def _rank(self, query: int, one: Float64Array, scores: list[NDArray[Any]], visit: Visit) -> bool:
        """Visit a query that has these scores, float32 or exact; False if float32 leaves too much unclear."""
        rows = self.relevant_rows(query)
        is_exact = scores[0].dtype == np.float64

        def exact(number: int, wanted: Int64Array) -> Float64Array:
            return scores[number][wanted] if is_exact else self._scorer.exact(one, wanted, number)

        relevant_scores = np.concatenate([exact(number, rows) for number in self._gallery_numbers])
        of_exact, of_coarse = self._scorer.tolerance(one, relevant_scores)
        owners = rows if len(scores) == 1 else np.concatenate([rows] * len(scores))
        relevant = RelevantOrder(relevant_scores, owners, of_exact, self._gallery_rows)
        tolerance = (of_exact if is_exact else of_coarse)[relevant.order]
        most = np.inf if is_exact else self._gallery_rows * _MOST_UNCLEAR
        places = []
        for number in self._gallery_numbers:
            found = place_all(relevant, scores[number], tolerance, partial(exact, number), most)
            if found is None:
                return False
            if self._exclude_self:
                found[query] = len(relevant)
            places.append(found)
        visit(query, rows, relevant, places)
        return True
