"""Every row is placed as sorting all float64 scores places it, by the float32 way and by the exact one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fct_infer.evaluation.placement import RelevantOrder, place_all

NOTHING = np.empty(0, np.int64)


def expected_places(scores, rows):
    order = np.lexsort((np.arange(len(scores)), scores))
    places = np.empty(len(scores), np.int64)
    places[order] = np.cumsum(np.isin(order, rows)) - np.isin(order, rows)
    return places


def placed(scores, rows, error, dtype=np.float32, **options):
    """Place rows, of (b, n_g) queries at once, by rough scores; the exact ones are asked for where it matters."""
    exact_relevant = np.take_along_axis(scores, rows, 1)
    relevant = RelevantOrder(exact_relevant, rows, np.full(rows.shape, 1e-14), scores.shape[1])
    asked = []
    rough = (scores + np.random.default_rng(0).uniform(-error, error, scores.shape)).astype(dtype)

    def exact(queries, wanted):
        asked.append(len(wanted))
        return scores[queries, wanted]

    tolerance = np.full(rows.shape, 2 * error + 1e-5 * (dtype == np.float32))
    options = {"left_out": NOTHING} | options
    return place_all(relevant, rough, tolerance, rows, relevant.places, exact=exact, **options), asked


def several(rng, queries, gallery_rows, count):
    return np.array([rng.choice(gallery_rows, count, replace=False) for _ in range(queries)])


@pytest.mark.parametrize("error", [0, 1e-6, 1e-3, 0.1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2, 40, 500])
def test_rough_scores_place_as_exact_ones(error, dtype, count):
    rng = np.random.default_rng(count)
    scores = rng.standard_normal((3, 500)) * [[1], [1e-3], [1e3]] + [[0], [5], [0]]
    rows = several(rng, 3, 500, count)
    (places, is_tied), asked = placed(scores, rows, error, dtype)
    assert not is_tied.any()
    assert_array_equal(places, list(map(expected_places, scores, rows)))
    if dtype == np.float64 and error == 0 and count == 40:
        assert sum(asked) < 3 * 60


@given(
    seed=st.integers(0, 2**32 - 1), values=st.integers(1, 6), count=st.integers(1, 30), shift=st.sampled_from([0, 1e3])
)
@settings(max_examples=60, deadline=None)
def test_ties_are_placed_by_row(seed, values, count, shift):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values, (4, 60)) * 0.25 + shift
    rows = several(rng, 4, 60, count)
    (places, is_tied), _ = placed(scores, rows, 0.01)
    assert_array_equal(places, list(map(expected_places, scores, rows)))
    for line, own, tied in zip(scores, rows, is_tied, strict=True):
        assert tied == bool(set(line[own]) & set(np.delete(line, own)))


@pytest.mark.parametrize("error", [0, 0.01])
def test_rows_left_out_come_last_and_tie_with_nothing(error):
    scores = np.array([[1.0, 1, 2, 3], [0, 1, 1, 3], [2, 1, 1, 0]])
    rows = np.array([[0], [1], [2]])
    (places, is_tied), _ = placed(scores, rows, error, left_out=np.array([1, 4, 11]))  # cells of (3, 4)
    assert_array_equal(places, [[0, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 1]])
    assert_array_equal(is_tied, [False, True, True])


@pytest.mark.parametrize("size", [1, 1e-3, 1e3])
def test_scores_that_float32_cannot_tell_from_the_relevant_one_are_scored_exactly(size):
    """One relevant row, far from zero: the buckets are narrower than the spacing of float32 there."""
    scores = size * (1000 + np.random.default_rng(1).uniform(-1e-4, 1e-4, (2, 300)))
    relevant = RelevantOrder(scores[:, :1], np.zeros((2, 1), int), np.full((2, 1), 1e-12 * size), 300)
    rough = scores.astype(np.float32)
    tolerance = np.full((2, 1), 6.2e-5 * size)
    rows = np.zeros((2, 1), int)
    places, _ = place_all(
        relevant, rough, tolerance, rows, relevant.places, NOTHING, lambda query, row: scores[query, row]
    )
    assert_array_equal(places, [expected_places(line, [0]) for line in scores])


def test_it_gives_up_where_too_much_is_unclear():
    rng = np.random.default_rng(1)
    scores, rows = rng.standard_normal((2, 400)), np.tile(np.arange(20), (2, 1))
    assert placed(scores, rows, error=1, most_unclear=100)[0] is None
    assert placed(scores, rows, error=1e-6, most_unclear=100)[0] is not None


def test_scores_that_differ_by_rounding_are_one_distance():
    scores = np.array([[2.0, 5, 5, 5], [1 + 3e-16, 1.0, 2.0, 1 - 3e-16]])
    relevant = RelevantOrder(scores[:, [0, 3]], np.array([[0, 3], [0, 3]]), np.full((2, 2), 1e-14), 4)
    assert_array_equal(relevant.order, [[0, 1], [0, 1]])
    assert_array_equal(relevant.places, [[0, 1], [0, 1]])
    queries, rows = np.repeat([0, 1], 4), np.tile(np.arange(4), 2)
    places, tied = relevant.place(queries, scores.ravel(), rows)
    assert_array_equal(places, [0, 1, 1, 1, 0, 1, 2, 1])
    assert_array_equal(tied, [0, 1, 2, 3, 4, 5, 7])


def test_ranks_count_the_rows_at_or_before_each_relevant_one():
    scores = np.array([[0.0, 1, 2, 3], [3, 2, 1, 0]])
    relevant = RelevantOrder(scores[:, [1, 3]], np.array([[1, 3], [1, 3]]), np.full((2, 2), 1e-14), 4)
    assert_array_equal(relevant.ranks(np.array([[0, 0, 1, 1], [2, 1, 1, 0]])), [[2, 4], [1, 3]])
