import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support.embeddings import upgrade

from fct_infer.errors import ArrayError
from fct_infer.evaluation import (
    backfilling_curves,
    class_mean_order,
    oracle_order,
    random_order,
    ranking,
    retrieval_metrics,
    row_benefit,
    uncertainty_order,
)


@pytest.fixture(autouse=True, scope="module", params=[0, np.inf], ids=["in float64", "in float32 first"])
def way(request):
    """Small galleries would all take the first way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_MOST_UNCLEAR", request.param)
        yield


def test_a_random_order_holds_every_row_and_is_the_seeds():
    assert_array_equal(np.sort(random_order(100, 3)), np.arange(100))
    assert_array_equal(random_order(100, 3), random_order(100, 3))
    assert (random_order(100, 3) != random_order(100, 4)).any()


def test_uncertain_rows_come_first_and_equal_ones_as_they_lie():
    assert_array_equal(uncertainty_order(np.array([0.5, -3, 2, 0.5], np.float32)), [2, 0, 3, 1])
    assert_array_equal(uncertainty_order(np.array([1, 5, 5], np.uint8)), [1, 2, 0])


@pytest.mark.parametrize(
    ("scores", "message"),
    [(np.ones((3, 1)), r"float64 \(3, 1\)"), (np.array(["a"]), "<U1"), (np.array([1, np.nan]), "row 1 is NaN")],
)
def test_bad_uncertainty_is_named(scores, message):
    with pytest.raises(ArrayError, match=message):
        uncertainty_order(scores)


def test_distance_to_the_class_mean_in_both_directions():
    gallery = np.array([[0], [10], [2], [12], [1], [20]], np.float32)
    labels = np.array(list("ababab"))  # means 1 and 14: distances 1, 4, 1, 2, 0, 6
    assert_array_equal(class_mean_order(gallery, labels), [5, 1, 3, 0, 2, 4])
    assert_array_equal(class_mean_order(gallery, labels, "near"), [4, 0, 2, 3, 1, 5])


def test_under_cosine_lengths_do_not_count():
    gallery = np.array([[1, 0], [50, 0], [1, 1], [0, 3]], np.float32)
    order = class_mean_order(gallery, np.zeros(4, int), metric="cosine")
    assert order[0] == 3 and order[-1] == 2 and list(order[1:3]) == [0, 1]


def brute_force_benefit(queries, gallery, new_gallery, query_labels, labels, **options):
    base = retrieval_metrics(queries, gallery, query_labels, labels, **options).mean_average_precision
    gains = []
    for row in range(len(gallery)):
        changed = gallery.copy()
        changed[row] = new_gallery[row]
        gains.append(retrieval_metrics(queries, changed, query_labels, labels, **options).mean_average_precision - base)
    return gains


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_benefit_is_what_replacing_one_row_gains(metric, exclude_self):
    arrays = upgrade(1, queries=None if exclude_self else 20, rows=60)
    options = {"metric": metric, "exclude_self": exclude_self}
    assert_allclose(row_benefit(*arrays, **options, threads=2), brute_force_benefit(*arrays, **options), atol=1e-9)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(2, 14))
@settings(max_examples=40, deadline=None)
def test_benefit_is_exact_with_ties(seed, rows):
    rng = np.random.default_rng(seed)
    gallery, new_gallery = rng.integers(-1, 2, (2, rows, 2)).astype(np.float32)
    queries = rng.integers(-1, 2, (3, 2)).astype(np.float32)
    labels, query_labels = np.r_[0, rng.integers(0, 2, rows - 1)], np.array([0, 1, 0])
    arrays = (queries, gallery, new_gallery, query_labels, labels)
    assert_allclose(row_benefit(*arrays), brute_force_benefit(*arrays), atol=1e-9)


def test_the_oracle_beats_chance():
    arrays = upgrade(2, rows=200)
    orders = {"oracle": [oracle_order(*arrays)], "random": [random_order(200, seed) for seed in range(5)]}
    curves = backfilling_curves(*arrays, orders)
    assert curves["oracle"].area > curves["random"].area + 3 * curves["random"].area_spread
