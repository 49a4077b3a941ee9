import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support.embeddings import upgrade

from fct_infer.errors import ArrayError, UsageError
from fct_infer.evaluation import backfilling_curves, random_order, rank_queries, ranking


@pytest.fixture(autouse=True, scope="module", params=[0, np.inf], ids=["in float64", "in float32 first"])
def way(request):
    """Small galleries would all take the first way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_MOST_UNCLEAR", request.param)
        yield


def mixed(gallery, new_gallery, order, count):
    rows = gallery.copy()
    rows[order[:count]] = new_gallery[order[:count]]
    return rows


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_every_point_is_a_search_of_the_mixed_gallery(metric, exclude_self):
    queries, gallery, new_gallery, query_labels, labels = upgrade(3, queries=None if exclude_self else 30, rows=110)
    options = {"metric": metric, "exclude_self": exclude_self, "ks": (1, 3)}
    orders = {"random": [random_order(110, seed) for seed in (0, 1)], "as they lie": [np.arange(110)]}
    curves = backfilling_curves(queries, gallery, new_gallery, query_labels, labels, orders, **options, threads=2)
    assert list(curves) == list(orders)
    for name, same_kind in orders.items():
        curve = curves[name]
        assert len(curve.shares) == 22 and curve.shares[0] == 0 and curve.shares[-1] == 1
        for point, share in enumerate(curve.shares):
            found = [
                rank_queries(
                    queries, mixed(gallery, new_gallery, order, round(share * 110)), query_labels, labels, **options
                ).metrics()
                for order in same_kind
            ]
            merit = np.mean([metrics.mean_average_precision for metrics in found])
            assert curve.mean_average_precision[point] == pytest.approx(merit, rel=1e-12)
            for k in (1, 3):
                assert curve.cmc[k][point] == pytest.approx(np.mean([metrics.cmc[k] for metrics in found]))
        assert curve.area == pytest.approx(np.mean(curve.mean_average_precision))
        assert curve.cmc_area(3) == pytest.approx(np.mean(curve.cmc[3]))
    assert curves["random"].area_spread > 0 and curves["as they lie"].area_spread is None


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(2, 40), dim=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_ties_between_old_and_new_rows_are_ranked_by_row(seed, rows, dim):
    rng = np.random.default_rng(seed)
    gallery, new_gallery = rng.integers(-1, 2, (2, rows, dim)).astype(np.float32)
    queries = rng.integers(-1, 2, (6, dim)).astype(np.float32)
    labels, query_labels = np.r_[0, rng.integers(0, 3, rows - 1)], np.r_[0, rng.integers(0, 3, 5)]
    order = rng.permutation(rows)
    curve = backfilling_curves(queries, gallery, new_gallery, query_labels, labels, {"x": [order]}, points=7)["x"]
    for share, merit in zip(curve.shares, curve.mean_average_precision, strict=True):
        rows_now = mixed(gallery, new_gallery, order, round(share * rows))
        ranks = rank_queries(queries, rows_now, query_labels, labels)
        assert merit == pytest.approx(ranks.metrics().mean_average_precision, rel=1e-12)


def test_a_perfect_transformation_gains_nothing_by_backfilling():
    queries, _, gallery, query_labels, labels = upgrade(5)
    curve = backfilling_curves(queries, gallery, gallery, query_labels, labels, {"x": [np.arange(len(gallery))]})["x"]
    assert_allclose(curve.mean_average_precision, curve.mean_average_precision[0], rtol=1e-14)
    assert curve.smallest_share(curve.mean_average_precision[0] - 1e-9) == 0
    assert curve.smallest_share(1.1) is None


def test_the_smallest_share_is_the_first_point_that_reaches_the_level():
    queries, gallery, new_gallery, query_labels, labels = upgrade(6)
    orders = {"x": [random_order(len(gallery), 0)]}
    curve = backfilling_curves(queries, gallery, new_gallery, query_labels, labels, orders)["x"]
    level = curve.mean_average_precision[9]
    share = curve.smallest_share(level)
    assert share <= curve.shares[9]
    before = [m for s, m in zip(curve.shares, curve.mean_average_precision, strict=True) if s < share]
    assert all(merit < level for merit in before)


def test_results_do_not_depend_on_threads():
    arrays = upgrade(7)
    orders = {"x": [random_order(len(arrays[1]), 0)]}
    one, two = (backfilling_curves(*arrays, orders, threads=threads)["x"] for threads in (1, 3))
    assert_array_equal(one.mean_average_precision, two.mean_average_precision)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"points": 1}, UsageError, "two points"),
        ({"orders": {}}, UsageError, "two points and an order"),
        ({"orders": {"x": []}}, UsageError, "two points and an order"),
        ({"orders": {"x": [np.zeros(90, np.int64)]}}, ArrayError, "order 'x'.*90 row numbers once"),
        ({"orders": {"x": [np.arange(89)]}}, ArrayError, r"shape \(89,\)"),
        ({"new_gallery": np.ones((89, 6), np.float32)}, ArrayError, r"new_gallery \(89, 6\)"),
    ],
)
def test_what_makes_no_curve_is_refused(changes, error, message):
    names = ("queries", "gallery", "new_gallery", "query_labels", "gallery_labels")
    arguments = dict(zip(names, upgrade(8, rows=90), strict=True)) | {"orders": {"x": [np.arange(90)]}}
    with pytest.raises(error, match=message):
        backfilling_curves(**(arguments | changes))
