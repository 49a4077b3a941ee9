"""Who is fitted, judged, asked: the first fold alone keeps what chose apart from what reports."""

from __future__ import annotations

import numpy as np
import pytest

from fct_infer.fitting import splits
from fct_infer.fitting.splits import FOLDS, Split


@pytest.mark.parametrize("pairs", [50, 1_000, 7_000, 40_000])
def test_rows_of_the_first_fold_choose_or_report_as_before(pairs):
    split = Split.draw(pairs, None, 3)
    fold = split.first_fold()
    assert np.all(split.folds[fold.judged] == 0) and np.all(np.diff(fold.judged) > 0)
    assert len(fold.judged) == min(pairs // FOLDS, splits.JUDGED_ROWS)
    asked, reports = fold.judged[fold.choosing], fold.judged[fold.reporting]
    assert not np.isin(asked, reports).any()
    assert len(reports) > 0.25 * min(len(fold.judged), 3 * splits.QUERIES)
    assert not np.isin(reports, split.judged[split.choosing]).any()
    assert not np.isin(asked, split.judged[split.reporting]).any()


def test_more_rows_of_the_fold_are_judged_where_not_all_pairs_were():
    split = Split.draw(40_000, None, 0)
    fold = split.first_fold()
    assert np.isin(split.judged[split.folds[split.judged] == 0], fold.judged).all()
    assert len(fold.choosing) == len(fold.reporting) == splits.QUERIES


def test_what_queries_look_for_is_held_out_in_the_first_fold():
    truth = np.stack([np.arange(500, 700), np.full(200, -1)], axis=1)
    truth[0] = 3, 990  # two right rows
    kept = np.unique(truth[truth >= 0])
    split = Split.draw(1000, 200, 0, kept=kept)
    assert np.bincount(split.folds).tolist() == [200] * FOLDS
    assert np.sum(split.folds[kept] == 0) == 200 == len(kept) - 1
    fold = split.first_fold(truth)
    asked = np.concatenate([fold.choosing, fold.reporting])
    assert len(np.unique(asked)) == len(asked) >= 199
    np.testing.assert_array_equal(np.intersect1d(fold.reporting, split.choosing), [])
    assert not fold.are_rows and np.isin(truth[asked], fold.judged).any(axis=1).all()


def test_copies_of_what_queries_look_for_are_held_out_with_it():
    items = np.tile(np.arange(500), 2)  # each item twice
    split = Split.draw(1000, 80, 0, kept=np.arange(80), items=items)
    np.testing.assert_array_equal(split.folds[:500], split.folds[500:])
    assert np.all(split.folds[:80] == 0)
