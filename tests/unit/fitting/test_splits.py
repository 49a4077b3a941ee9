"""Who is fitted, judged, asked: the first fold alone keeps what chose apart from what reports."""

from __future__ import annotations

import numpy as np
import pytest

from fct_infer.fitting import splits
from fct_infer.fitting.splits import FOLDS, Split, first_of_few


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


@pytest.mark.parametrize("pairs", [600, 30_000])
@pytest.mark.parametrize("size", [2, 5])
def test_rows_of_a_label_that_few_have_are_judged_and_held_out_together(pairs, size):
    labels = np.random.default_rng(0).permutation(np.arange(pairs) // size)
    split = Split.draw(pairs, None, 3, labels=labels)
    assert all(len(set(split.folds[labels == label])) == 1 for label in range(20))
    judged = np.bincount(labels[split.judged])
    assert len(split.judged) == min(pairs, splits.JUDGED_ROWS) and np.sum((judged > 0) & (judged < size)) <= 1
    assert np.bincount(split.folds).max() <= pairs // FOLDS + size


def test_labels_that_many_rows_have_change_nothing():
    labels = np.random.default_rng(0).integers(0, 40, 7_000)
    with_labels, without = (Split.draw(7_000, None, 1, labels=given) for given in (labels, None))
    for one, other in ((with_labels, without), (with_labels.first_fold(), without.first_fold())):
        for name in ("folds", "judged", "choosing", "reporting"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("size", [1, 2, 6])
def test_only_rows_whose_label_another_judged_row_has_ask(size):
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(3_000) < 0.2, np.arange(3_000) // size, 10_000 + np.arange(3_000))
    split = Split.draw(3_000, None, 0, labels=labels)
    for each in (split, split.first_fold()):
        own = labels[each.judged]
        asked = np.concatenate([each.choosing, each.reporting])
        right = np.flatnonzero([np.sum(own == label) > 1 for label in own])
        np.testing.assert_array_equal(np.sort(asked), right)
        assert (len(right) == 0) == (size == 1)


def test_labels_that_copies_tie_together_are_not_held_out_as_one():
    """Items 0 and 3 are copies: were rows of 7, 8 and 9 held out with each other, all of them would be one."""
    labels = np.array([7, 7, 8, 8, 8, 9, 9])
    items = np.array([0, 1, 2, 0, 4, 5, 6])
    assert first_of_few(labels, items).tolist() == [0, 1, 2, 3, 4, 5, 5]
    assert first_of_few(labels, np.arange(7)).tolist() == [0, 0, 2, 2, 2, 5, 5]
    assert first_of_few(np.full(FOLDS + 1, 7), np.arange(FOLDS + 1)).tolist() == list(range(FOLDS + 1))
