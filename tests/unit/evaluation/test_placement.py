"""Every row is placed as sorting all float64 scores places it, by the float32 way and by the exact one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fct_infer.evaluation.placement import RelevantOrder, place_all


def expected_places(scores, rows):
    order = np.lexsort((np.arange(len(scores)), scores))
    places = np.empty(len(scores), np.int64)
    places[order] = np.cumsum(np.isin(order, rows)) - np.isin(order, rows)
    return places


def placed(scores, rows, error, dtype=np.float32, **options):
    """Place rows by scores of some error; the exact ones are asked for where that matters."""
    relevant = RelevantOrder(scores[rows], rows, np.full(len(rows), 1e-14), len(scores))
    asked = []
    rough = (scores + np.random.default_rng(0).uniform(-error, error, len(scores))).astype(dtype)

    def exact(wanted):
        asked.append(len(wanted))
        return scores[wanted]

    tolerance = np.full(len(rows), 2 * error + 1e-5 * (dtype == np.float32))
    return place_all(relevant, rough, tolerance, exact, **options), asked


@pytest.mark.parametrize("error", [0, 1e-6, 1e-3, 0.1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2, 40, 500])
def test_rough_scores_place_as_exact_ones(error, dtype, count):
    rng = np.random.default_rng(count)
    scores = rng.standard_normal(500)
    rows = rng.choice(500, count, replace=False)
    places, asked = placed(scores, rows, error, dtype)
    assert_array_equal(places, expected_places(scores, rows))
    if error <= 1e-6 and count == 40:
        assert sum(asked) < 120


@given(
    seed=st.integers(0, 2**32 - 1), values=st.integers(1, 6), count=st.integers(1, 30), shift=st.sampled_from([0, 1e3])
)
@settings(max_examples=60, deadline=None)
def test_ties_are_placed_by_row(seed, values, count, shift):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values, 60) * 0.25 + shift
    rows = np.sort(rng.choice(60, count, replace=False))
    places, _ = placed(scores, rows, 0.01)
    assert_array_equal(places, expected_places(scores, rows))


def test_it_gives_up_where_too_much_is_unclear():
    scores = np.random.default_rng(1).standard_normal(400)
    assert placed(scores, np.arange(20), error=1, most_unclear=100)[0] is None
    assert placed(scores, np.arange(20), error=1e-6, most_unclear=100)[0] is not None


def test_scores_that_differ_by_rounding_are_one_distance():
    scores = np.array([1 + 3e-16, 1.0, 2.0, 1 - 3e-16])
    relevant = RelevantOrder(scores[[0, 3]], np.array([0, 3]), np.full(2, 1e-14), 4)
    assert_array_equal(relevant.order, [0, 1])
    assert_array_equal(relevant.place(scores, np.arange(4)), [0, 1, 2, 1])
