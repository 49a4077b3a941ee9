"""Which pairs a map is fitted on, which it is judged by, and which queries choose and which report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.joining import Int64Array
from fct_infer.fitting.measures import ByLabels
from fct_infer.fitting.pairs import Pairs

FOLDS = 5
JUDGED_ROWS = 6_000  # of the gallery that candidates are searched in
QUERIES = 1_000  # that choose, and as many others that report


@dataclass(frozen=True)
class Split:
    """Which pairs do what.

    Attributes:
        folds: (n,) of each pair, 0 to 4; a map that transforms a pair is fitted on the other folds.
        judged: (m,) pairs that make up the gallery in which candidates are searched, ascending; of all folds or some.
        choosing, reporting: queries, by number in the measure: candidates are chosen by the ones, and what is said of
            the chosen one is measured with the others.
        are_rows: whether the queries are judged rows, by number; False of a user's.
        labels: (n,) by which one judged row is right for another, and only rows that others are right for ask; None
            where something else says what is right.
    """

    folds: Int64Array
    judged: Int64Array
    choosing: Int64Array
    reporting: Int64Array
    are_rows: bool
    labels: NDArray[Any] | None = None

    @classmethod
    def draw(
        cls,
        pairs: int,
        queries: int | None,
        seed: int,
        *,
        kept: Int64Array | None = None,
        items: Int64Array | None = None,
        labels: NDArray[Any] | None = None,
    ) -> Split:
        """Draw the split.

        Args:
            pairs: how many there are.
            queries: how many queries the user brings; None where the judged rows are the queries.
            seed: of the draw.
            kept: pairs that have to be judged, such as those that queries look for; they are in the first fold, as far
                as it holds them, so that :meth:`first_fold` keeps their queries.
            items: (pairs,) numbers that are equal for copies of one item, which are held out together; see
                :func:`items_of`.
            labels: (pairs,) see :class:`Split`. Rows of a label that few have are judged and held out together, see
                :func:`first_of_few`: alone in its fold, a row has nothing to find there.
        """
        rng = np.random.default_rng(seed)
        items = np.arange(pairs) if items is None else items
        first = np.arange(pairs) if labels is None else first_of_few(labels, items)
        of_pair = np.unique(items[first], return_inverse=True)[1]
        of_item = rng.permutation(np.arange(of_pair.max() + 1) % FOLDS)
        order = rng.permutation(pairs)
        if kept is not None:
            order = np.concatenate([kept, order[~np.isin(order, kept)]])
            sought = rng.permutation(np.unique(of_pair[kept]))
            sought_first = np.concatenate([sought, np.setdiff1d(np.arange(len(of_item)), sought)])
            of_item[sought_first] = np.concatenate([of_item[of_item == 0], of_item[of_item > 0]])
        folds = of_item[of_pair]
        order = order[np.argsort(np.argsort(order)[first[order]], kind="stable")]  # each after the first of its few
        judged = np.sort(order[: max(JUDGED_ROWS, 0 if kept is None else len(kept))])
        asked = rng.permutation(_asking(judged, labels) if queries is None else queries)
        reporting = min(len(asked) // 3, QUERIES)
        choosing = asked[reporting:][:QUERIES]
        return cls(folds, judged, np.sort(choosing), np.sort(asked[:reporting]), queries is None, labels)

    def first_fold(self, truth: Int64Array | None = None) -> Split:
        """Return a split that judges by the rows of the first fold alone, for what is too slow to be fitted five times.

        None of its reporting queries chose here, and none of its choosing queries reports here.

        Args:
            truth: (queries, t) pairs that are right for a user's queries, -1 for none; those with one in the fold ask.
        """
        rng = np.random.default_rng(0)
        fold = np.flatnonzero(self.folds == 0)
        is_judged = np.isin(fold, self.judged)
        judged = np.concatenate([fold[is_judged], rng.permutation(fold[~is_judged])])
        judged = np.sort(judged[: max(JUDGED_ROWS, int(is_judged.sum()))])
        if truth is None:
            asked = judged[_asking(judged, self.labels)]
        else:
            asked = np.flatnonzero(np.isin(truth, judged).any(axis=1))
        chose, reported = (
            self.judged[queries] if self.are_rows else queries for queries in (self.choosing, self.reporting)
        )
        still, fresh = asked[np.isin(asked, reported)], asked[~np.isin(asked, np.concatenate([chose, reported]))]
        reporting = np.concatenate([still, rng.permutation(fresh)])
        reporting = np.sort(reporting[: max(len(still), min(len(asked) // 3, QUERIES))])
        choosing = np.sort(rng.permutation(np.setdiff1d(asked, reporting))[:QUERIES])
        if self.are_rows:
            choosing, reporting = np.searchsorted(judged, choosing), np.searchsorted(judged, reporting)
        return Split(self.folds, judged, choosing, reporting, self.are_rows, self.labels)


def items_of(pairs: Pairs) -> Int64Array:
    """Return (n,) numbers that are equal where old rows or new rows are, the number of the first such pair.

    A copy of an item among the rows that a map is fitted on would tell the answer for it.
    """
    parts = [
        np.unique(rows.view(f"V{rows.dtype.itemsize * rows.shape[1]}").ravel(), return_inverse=True)[1]
        for rows in (pairs.old, pairs.new)
    ]
    items = np.arange(len(pairs))
    while True:
        before = items
        for part in parts:
            smallest = np.full(len(pairs), len(pairs))
            np.minimum.at(smallest, part, items)
            items = smallest[part]
        if np.array_equal(items, before):
            return items


def first_of_few(labels: NDArray[Any], items: Int64Array) -> Int64Array:
    """Return (n,) for each row the first one of its label if at most :data:`FOLDS` rows have it, else itself.

    Of more rows most have another one in their fold. Labels that a copy of an item ties to other labels count as those
    that many have: held out together, one after the other would draw all rows into one fold.

    Args:
        labels: (n,).
        items: (n,) numbers that are equal for copies of one item.
    """
    _, first, of_row, rows = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    of_item = np.unique(items, return_inverse=True)[1]
    lowest, highest = np.full(len(items), len(items)), np.full(len(items), -1)
    np.minimum.at(lowest, of_item, of_row)
    np.maximum.at(highest, of_item, of_row)
    few = rows <= FOLDS
    few[of_row[(lowest < highest)[of_item]]] = False
    return np.where(few[of_row], first[of_row], np.arange(len(items)))


def _asking(judged: Int64Array, labels: NDArray[Any] | None) -> Int64Array:
    """Return which judged rows, by number, ask: those whose label another one has."""
    if labels is None:
        return np.arange(len(judged))
    return np.flatnonzero(np.isin(labels[judged], ByLabels.repeated(labels[judged])))
