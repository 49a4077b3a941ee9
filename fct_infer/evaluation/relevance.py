"""Who is relevant to whom, and who is not ranked at all: labels, cameras, groups, and each query's own row."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, UsageError
from fct_infer.evaluation.checks import Int64Array, check_same_items, encode_labels


@dataclass(frozen=True)
class Exclusions:
    """Which gallery rows a query is not ranked against; they take no rank and are neither right nor wrong.

    Market-1501's protocol: cameras of both sets, ``ignored_labels=(-1,)`` for junk and ``distractor_labels=(0,)``.

    Attributes:
        query_cameras, gallery_cameras: (n_q,) and (n_g,) integers, str or bytes: a gallery row with the query's label
            *and* its camera is left out.
        query_groups, gallery_groups: likewise: a gallery row of the query's group is left out, whatever its label (the
            same product, video or burst).
        ignored_labels: gallery rows with one of them are left out for every query; queries with one are not measured.
        distractor_labels: gallery rows with one of them are ranked and never right; queries with one are not measured.

    Raises:
        UsageError: cameras or groups of only one of the sets.
    """

    query_cameras: NDArray[Any] | None = None
    gallery_cameras: NDArray[Any] | None = None
    query_groups: NDArray[Any] | None = None
    gallery_groups: NDArray[Any] | None = None
    ignored_labels: tuple[Any, ...] = field(default=())
    distractor_labels: tuple[Any, ...] = field(default=())

    def __post_init__(self) -> None:
        for what in ("cameras", "groups"):
            of_queries, of_gallery = getattr(self, f"query_{what}"), getattr(self, f"gallery_{what}")
            if (of_queries is None) != (of_gallery is None):
                known, missing = ("query", "gallery") if of_gallery is None else ("gallery", "query")
                raise UsageError(f"{known}_{what} are given, {missing}_{what} are not; they are compared")


class Relevance:
    """The rows that are relevant to each query, and those it is not ranked against; never a mask of all pairs.

    Args:
        query_labels: (n_q,) integers, str or bytes; or (n_q, t), several of a query (a shorter list repeats one): what
            has any of them is relevant.
        gallery_labels: (n_g,), comparable with ``query_labels``.
        counts: n_q and n_g.
        exclude_self: query i is gallery row i; it is not ranked against itself.
        exclusions: what else is left out.

    Raises:
        ArrayError: wrong dtype, shape or length of labels, cameras or groups, or ``exclude_self`` contradicts labels.
    """

    def __init__(
        self,
        query_labels: NDArray[Any],
        gallery_labels: NDArray[Any],
        counts: tuple[int, int],
        *,
        exclude_self: bool = False,
        exclusions: Exclusions | None = None,
    ) -> None:
        exclusions = exclusions or Exclusions()
        codes, gallery_codes = encode_labels(query_labels, gallery_labels, *counts)
        if exclude_self and codes.ndim == 1:
            check_same_items(query_labels, gallery_labels, codes != gallery_codes)
        never = (*exclusions.ignored_labels, *exclusions.distractor_labels)
        codes = np.where(_is_one_of(query_labels, never), -1, codes)
        ignored = _is_one_of(gallery_labels, exclusions.ignored_labels)
        self._exclude_self, self.gallery_rows = exclude_self, counts[1]
        self._ignored: Int64Array = np.flatnonzero(ignored)
        by_label = np.where(ignored, -1, gallery_codes)
        self._labels = _Rows(codes, by_label) if codes.ndim == 1 else _Pairs(codes, by_label)
        self._cameras, self._groups = (
            None
            if of_queries is None or of_gallery is None
            else _Rows(*encode_labels(of_queries, of_gallery, *counts, what=what))
            for what, of_queries, of_gallery in (
                ("cameras", exclusions.query_cameras, exclusions.gallery_cameras),
                ("groups", exclusions.query_groups, exclusions.gallery_groups),
            )
        )
        self.counts: Int64Array = self._count()
        """(n_q,) how many rows are relevant to each query."""

    def relevant_rows(self, queries: Int64Array) -> Int64Array:
        """Return the relevant rows of queries that have equally many, ascending: (b, r)."""
        of_query, rows = self._labels.of(queries)
        kept = ~self._is_excluded(queries[of_query], rows)
        return rows[kept].reshape(len(queries), -1)

    def left_out(self, queries: Int64Array) -> Int64Array:
        """Return the cells, counted through (b, n_g), of the rows that each query is not ranked against."""
        places = np.arange(len(queries))
        cells = [(places[:, None] * self.gallery_rows + self._ignored).ravel()] if len(self._ignored) else []
        if self._exclude_self:
            cells.append(places * self.gallery_rows + queries)
        if self._cameras is not None:
            of_query, rows = self._labels.of(queries)
            same = self._cameras.is_same(queries[of_query], rows)
            cells.append(of_query[same] * self.gallery_rows + rows[same])
        if self._groups is not None:
            of_query, rows = self._groups.of(queries)
            cells.append(of_query * self.gallery_rows + rows)
        return np.concatenate(cells) if cells else np.empty(0, np.int64)

    def _is_excluded(self, queries: Int64Array, rows: Int64Array) -> NDArray[np.bool_]:
        """Whether each of these pairs of one label is not ranked."""
        excluded = rows == queries if self._exclude_self else np.zeros(len(rows), bool)
        for same in (self._cameras, self._groups):
            if same is not None:
                excluded |= same.is_same(queries, rows)
        return excluded

    def _count(self) -> Int64Array:
        """Count by inclusion and exclusion, so that not even the pairs of one label are looked at."""
        if isinstance(self._labels, _Pairs):  # which are few
            of_query, rows = self._labels.of(np.arange(len(self._labels.queries)))
            kept = of_query[~self._is_excluded(of_query, rows)]
            return np.bincount(kept, minlength=len(self._labels.queries))
        labels, others = self._labels, [same for same in (self._cameras, self._groups) if same is not None]
        counts = labels.counts()
        for same in others:
            counts = counts - labels.with_(same).counts()
        if len(others) == 2:
            counts = counts + reduce(_Rows.with_, others, labels).counts()
        if self._exclude_self:
            own = np.arange(len(labels.queries))
            is_left = labels.is_same(own, own)
            for same in others:
                is_left &= ~same.is_same(own, own)
            counts = counts - is_left
        return counts


class _Rows:
    """Gallery rows by a code that queries have as well; -1 is the code of nothing."""

    def __init__(self, queries: Int64Array, gallery: Int64Array) -> None:
        self.queries, self.gallery = queries, gallery
        self._by_code = np.argsort(gallery, kind="stable")
        ascending = gallery[self._by_code]
        self._begin, self._end = (ascending.searchsorted(queries, side) for side in ("left", "right"))
        self._end = np.where(queries < 0, self._begin, self._end)

    def counts(self) -> Int64Array:
        """Return how many gallery rows have each query's code: (n_q,)."""
        counts: Int64Array = self._end - self._begin
        return counts

    def of(self, queries: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return (place among ``queries``, gallery row) of all pairs of one code, by query and by row: each (n,)."""
        begin, lengths = self._begin[queries], (self._end - self._begin)[queries]
        of_query = np.repeat(np.arange(len(queries)), lengths)
        at = np.arange(len(of_query)) + np.repeat(begin - (np.cumsum(lengths) - lengths), lengths)
        return of_query, self._by_code[at]

    def is_same(self, queries: Int64Array, rows: Int64Array) -> NDArray[np.bool_]:
        """Whether each pair of a query and a row has one code."""
        same: NDArray[np.bool_] = (self.queries[queries] == self.gallery[rows]) & (self.queries[queries] >= 0)
        return same

    def with_(self, other: _Rows) -> _Rows:
        """Return the rows by both codes together."""
        width = max(int(other.queries.max()), int(other.gallery.max())) + 1
        both = [
            np.where((one < 0) | (two < 0), -1, one * width + two)
            for one, two in ((self.queries, other.queries), (self.gallery, other.gallery))
        ]
        codes = np.unique(np.concatenate(both), return_inverse=True)[1]  # small again, so that no product overflows
        codes = np.where(np.concatenate(both) < 0, -1, codes)
        return _Rows(codes[: len(self.queries)], codes[len(self.queries) :])


class _Pairs(_Rows):
    """Gallery rows of queries that have several codes: (n_q, t)."""

    def __init__(self, queries: Int64Array, gallery: Int64Array) -> None:
        self.queries, self.gallery = queries, gallery
        every = np.arange(len(queries))
        found = [_Rows(column, gallery).of(every) for column in queries.T]
        cells = np.unique(np.concatenate([of_query * len(gallery) + rows for of_query, rows in found]))
        of_query, self._by_code = np.divmod(cells, len(gallery))
        self._begin, self._end = (of_query.searchsorted(every, side) for side in ("left", "right"))


def _is_one_of(labels: NDArray[Any], wanted: tuple[Any, ...]) -> NDArray[np.bool_]:
    """Whether each label is one of a few.

    Raises:
        ArrayError: one of the few cannot be compared with the labels.
    """
    found = np.zeros(labels.shape, bool)
    for label in wanted:
        kind = np.asarray(label).dtype.kind
        if kind != labels.dtype.kind and not {kind, labels.dtype.kind} <= set("biu"):
            raise ArrayError(f"labels are {labels.dtype}, {label!r} cannot be compared with them")
        found |= labels == label
    return found
