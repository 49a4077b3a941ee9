from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fct_infer.errors import UsageError
from fct_infer.training.data import splits
from fct_infer.training.data.splits import Split


@given(rows=st.integers(1, 500), share=st.floats(0, 0.9), seed=st.integers(0, 20))
def test_a_split_holds_out_the_share_it_was_asked_for(rows, share, seed):
    split = Split.draw(rows, share, seed)
    mask = split.is_held_out(0, rows)
    assert mask.sum() == int(rows * share) == rows - split.training_rows
    parts = [split.is_held_out(first, min(first + 7, rows)) for first in range(0, rows, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), mask)
    np.testing.assert_array_equal(split.is_training(0, rows), ~mask)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_split_leaves_rows_to_train_on(share):
    with pytest.raises(UsageError, match="below 1"):
        Split.draw(10, share, 0)


@given(images=st.lists(st.integers(-3, 30), min_size=1, max_size=200), share=st.floats(0, 0.9), seed=st.integers(0, 20))
def test_no_image_is_on_both_sides(images, share, seed):
    groups = np.array(images)
    largest = np.bincount(groups + 3).max()
    count = int(len(images) * share)
    try:
        split = Split.draw(len(images), share, seed, groups)
    except UsageError:
        assert count < largest
        return
    held_out = split.is_held_out(0, len(images))
    assert not set(groups[held_out]) & set(groups[~held_out])
    assert max(0, count - largest + 1) <= held_out.sum() <= count


def test_the_limit_of_held_out_rows_holds_for_groups_too(monkeypatch):
    monkeypatch.setattr(splits, "MAX_VALIDATION_ROWS", 10)
    split = Split.draw(1000, 0.5, 0, np.tile(np.arange(250), 4))
    assert len(split.held_out) == 8


def test_groups_depend_on_the_seed_alone():
    groups = np.repeat(np.arange(50), 3)
    one, again, other = (Split.draw(150, 0.2, seed, groups).held_out for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
