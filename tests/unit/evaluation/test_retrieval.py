import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import average_precision_score
from support.retrieval_reference import distances, relevant_ranks

from fct_infer.errors import ArrayError, UsageError
from fct_infer.evaluation import RetrievalMetrics, rank_queries, ranking, retrieval_metrics, scores

METRICS = ("l2", "ip", "cosine")


@pytest.fixture(autouse=True, scope="module", params=[0, np.inf], ids=["in float64", "in float32 first"])
def way(request):
    """Small galleries would all take the first way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_MOST_UNCLEAR", request.param)
        yield


def clustered(rng, rows, dim=12, classes=7, noise=1.5, dtype=np.float32):
    labels = rng.integers(0, classes, rows)
    embeddings = rng.standard_normal((classes, dim))[labels] + noise * rng.standard_normal((rows, dim))
    return embeddings.astype(dtype), labels


def assert_same_as_reference(queries, gallery, query_labels, gallery_labels, **options):
    ranks = rank_queries(queries, gallery, query_labels, gallery_labels, threads=2, ks=(1, 4, 30), **options)
    for query, expected in enumerate(relevant_ranks(queries, gallery, query_labels, gallery_labels, **options)):
        found = np.array(expected)
        if not expected:
            assert ranks.first_relevant[query] == 0 and np.isnan(ranks.average_precision[query])
            assert np.isnan(ranks.recall[query]).all() and np.isnan(ranks.r_precision[query])
            continue
        assert ranks.first_relevant[query] == expected[0]
        assert_allclose(ranks.average_precision[query], np.mean(np.arange(1, len(found) + 1) / found), rtol=1e-12)
        assert_allclose(ranks.recall[query], [np.mean(found <= k) for k in (1, 4, 30)])
        assert_allclose(ranks.r_precision[query], np.mean(found <= len(found)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_separate_sets_agree_with_the_slow_way(metric, dtype):
    rng = np.random.default_rng(1)
    queries, query_labels = clustered(rng, 60, dtype=dtype)
    gallery, gallery_labels = clustered(rng, 230, dtype=dtype)
    assert_same_as_reference(queries, gallery, query_labels, gallery_labels, metric=metric)


@pytest.mark.parametrize("metric", METRICS)
def test_one_set_searched_in_itself_agrees_with_the_slow_way(metric):
    embeddings, labels = clustered(np.random.default_rng(2), 150)
    assert_same_as_reference(embeddings, embeddings, labels, labels, metric=metric, exclude_self=True)


@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 2**32 - 1), dim=st.integers(1, 4), rows=st.integers(2, 40), spread=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_ties_are_ranked_by_gallery_row(metric, seed, dim, rows, spread):
    rng = np.random.default_rng(seed)
    gallery = rng.integers(-spread, spread + 1, (rows, dim)).astype(np.float32)
    gallery[:, 0] += 4  # no row of length zero
    labels = np.r_[0, rng.integers(0, 3, rows - 1)]
    queries, query_labels = gallery[rng.integers(0, rows, 10)], np.r_[0, rng.integers(0, 4, 9)]
    assert_same_as_reference(queries, gallery, query_labels, labels, metric=metric)


@pytest.mark.parametrize("metric", METRICS)
def test_distances_that_only_rounding_tells_apart_are_ties(metric):
    """All orders of one vector's values are equally far from a constant vector, but their sums round differently."""
    rng = np.random.default_rng(12)
    values = rng.standard_normal((3, 24)).astype(np.float32)
    gallery = np.array([rng.permutation(values[index % 3]) for index in range(90)])
    queries = np.array([[0.1], [0.7], [-1.3]], np.float32).repeat(24, axis=1)
    assert len(np.unique(((gallery.astype(np.float64) - queries[0]) ** 2).sum(axis=1))) > 3
    assert_same_as_reference(queries, gallery, np.arange(3), rng.integers(0, 3, 90), metric=metric)


def test_a_collapsed_model_is_ranked_by_gallery_row():
    embeddings, labels = np.full((300, 5), 0.1, np.float32), np.random.default_rng(3).integers(0, 4, 300)
    assert_same_as_reference(embeddings, embeddings, labels, labels, exclude_self=True)


def test_average_precision_agrees_with_scikit_learn():
    rng = np.random.default_rng(4)
    queries, query_labels = clustered(rng, 40)
    gallery, gallery_labels = clustered(rng, 300)
    ranks = rank_queries(queries, gallery, query_labels, gallery_labels)
    expected = [
        average_precision_score(gallery_labels == label, -distances(query, gallery, "l2"))
        for query, label in zip(queries, query_labels, strict=True)
    ]
    assert_allclose(ranks.average_precision, expected, rtol=1e-12)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_ranks_are_exact_where_float32_arithmetic_is_not(metric):
    """Post-ReLU-like embeddings with a large common part: the expanded square in float32 loses the order."""
    rng = np.random.default_rng(5)
    embeddings = (100 + 0.05 * rng.standard_normal((400, 32))).astype(np.float32)
    labels = rng.integers(0, 8, 400)
    assert_same_as_reference(embeddings, embeddings, labels, labels, metric=metric, exclude_self=True)
    if metric == "l2":
        squares = (embeddings**2).sum(axis=1)
        naive = squares - 2 * embeddings @ embeddings[0]
        true = distances(embeddings[0], embeddings, "l2")
        assert (np.argsort(naive) != np.argsort(true)).any()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [1e8, 1e-8])
def test_ranks_are_exact_beside_an_outlier(metric, size):
    rng = np.random.default_rng(6)
    embeddings, labels = clustered(rng, 200)
    embeddings[17] *= size
    assert_same_as_reference(embeddings, embeddings, labels, labels, metric=metric, exclude_self=True)


def test_values_near_the_ends_of_float32_do_not_overflow():
    rng = np.random.default_rng(7)
    embeddings, labels = clustered(rng, 80)
    expected = rank_queries(embeddings, embeddings, labels, labels, exclude_self=True)
    for exponent in (-100, 120):
        scaled = np.ldexp(embeddings, exponent).astype(np.float32)
        ranks = rank_queries(scaled, scaled, labels, labels, exclude_self=True)
        assert_array_equal(ranks.first_relevant, expected.first_relevant)
        assert_allclose(ranks.average_precision, expected.average_precision, rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_results_do_not_depend_on_threads_or_block_size(metric, monkeypatch):
    embeddings, labels = clustered(np.random.default_rng(8), 333)
    embeddings[100:150] = embeddings[:50]
    one = rank_queries(embeddings, embeddings, labels, labels, metric=metric, threads=1)
    for elements, threads in ((1, 1), (333 * 7, 3), (333 * 50, 2)):
        monkeypatch.setattr(scores, "_BLOCK_BYTES", 4 * elements)
        other = rank_queries(embeddings, embeddings, labels, labels, metric=metric, threads=threads)
        assert_array_equal(other.first_relevant, one.first_relevant)
        assert_array_equal(other.average_precision, one.average_precision)


@given(classes=st.integers(1, 6), per_class=st.integers(2, 6), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_classes_apart_give_a_perfect_score(classes, per_class, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), per_class))
    embeddings = (
        10 * np.eye(classes)[labels] + 0.1 * np.random.default_rng(seed).standard_normal((len(labels), 1))
    ).astype(np.float32)
    metrics = retrieval_metrics(embeddings, embeddings, labels, labels, exclude_self=True, ks=(1, 3))
    assert metrics.cmc == {1: 1.0, 3: 1.0}
    assert metrics.mean_average_precision == 1.0


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_gallery_does_not_matter_without_ties(seed):
    rng = np.random.default_rng(seed)
    queries, query_labels = clustered(rng, 8)
    gallery, labels = clustered(rng, 60)
    labels[:7] = np.arange(7)
    order = rng.permutation(60)
    one = rank_queries(queries, gallery, query_labels, labels)
    other = rank_queries(queries, gallery[order], query_labels, labels[order])
    assert_array_equal(other.first_relevant, one.first_relevant)
    assert_allclose(other.average_precision, one.average_precision, rtol=1e-14)


@given(seed=st.integers(0, 2**32 - 1), shift=st.integers(-(2**14), 2**14))
@settings(max_examples=30, deadline=None)
def test_a_constant_added_to_all_embeddings_does_not_change_l2_ranks(seed, shift):
    rng = np.random.default_rng(seed)
    embeddings = np.round(clustered(rng, 50)[0] * 64).astype(np.float32) / 64  # so that adding is exact
    labels = rng.integers(0, 4, 50)
    one = rank_queries(embeddings, embeddings, labels, labels, exclude_self=True)
    shifted = embeddings + np.float32(shift)
    assert_array_equal(shifted - np.float32(shift), embeddings)
    other = rank_queries(shifted, shifted, labels, labels, exclude_self=True)
    assert_array_equal(other.first_relevant, one.first_relevant)
    assert_array_equal(other.average_precision, one.average_precision)


def test_by_hand():
    gallery = np.array([[0], [1], [2], [3]], np.float32)
    labels = np.array(["a", "b", "a", "b"])
    metrics = retrieval_metrics(np.array([[-1], [9]], np.float32), gallery, np.array(["a", "a"]), labels, ks=(2, 1))
    # -1 ranks a b a b: (1/1 + 2/3) / 2; 9 ranks b a b a: (1/2 + 2/4) / 2
    assert metrics.mean_average_precision == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert metrics.cmc == {1: 0.5, 2: 1.0}
    assert list(metrics.cmc) == [1, 2]
    assert metrics.recall == {1: 0.25, 2: 0.5}
    assert metrics.r_precision == 0.5
    assert RetrievalMetrics.from_dict(metrics.as_dict()) == metrics
    assert metrics.as_dict() == {
        "cmc": {"1": 0.5, "2": 1.0},
        "mean_average_precision": metrics.mean_average_precision,
        "recall": {"1": 0.25, "2": 0.5},
        "r_precision": 0.5,
        "queries": 2,
        "skipped_queries": 0,
        "gallery_rows": 4,
        "metric": "l2",
        "tied_queries": 0,
    }


def test_queries_with_nothing_relevant_are_left_out_and_counted():
    gallery = np.array([[0], [1], [2]], np.float32)
    queries = np.array([[0], [0], [2], [5]], np.float32)
    metrics = retrieval_metrics(queries, gallery, np.array([7, -1, 9, 99]), np.array([7, 8, 9]))
    assert (metrics.queries, metrics.skipped_queries) == (2, 2)
    assert metrics.mean_average_precision == 1.0
    # searched in itself, an item alone of its label has nothing relevant
    own = retrieval_metrics(gallery, gallery, np.array([7, 7, 9]), np.array([7, 7, 9]), exclude_self=True)
    assert (own.queries, own.skipped_queries) == (2, 1)


def test_self_is_found_first_unless_excluded():
    embeddings = np.array([[0], [1], [4], [4.5]], np.float32)
    labels = np.array([0, 1, 0, 1])
    assert retrieval_metrics(embeddings, embeddings, labels, labels, ks=(1,)).cmc == {1: 1.0}
    assert retrieval_metrics(embeddings, embeddings, labels, labels, ks=(1,), exclude_self=True).cmc == {1: 0.0}


@pytest.mark.parametrize(
    "make",
    [
        lambda labels: labels.astype(np.int8),
        lambda labels: labels.astype(np.uint64) + np.uint64(2**63 + 2**54),
        lambda labels: np.array([f"class {label}" for label in labels]),
        lambda labels: np.array([f"class {label}".encode() for label in labels]),
    ],
)
def test_labels_of_any_comparable_kind(make):
    embeddings, labels = clustered(np.random.default_rng(9), 90)
    expected = retrieval_metrics(embeddings[:30], embeddings[30:], labels[:30], labels[30:])
    assert retrieval_metrics(embeddings[:30], embeddings[30:], make(labels)[:30], make(labels)[30:]) == expected


def test_progress_counts_up_to_the_number_of_queries():
    embeddings, labels = clustered(np.random.default_rng(10), 700)
    seen = []
    retrieval_metrics(embeddings, embeddings, labels, labels, progress=lambda done, rows: seen.append((done, rows)))
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == (700, 700)


def test_memory_stays_far_below_the_distance_matrix():
    embeddings, labels = clustered(np.random.default_rng(11), 6000, dim=8, classes=400)
    tracemalloc.start()
    retrieval_metrics(embeddings, embeddings, labels, labels, exclude_self=True, threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 72e6 == 6000 * 6000 * 4 / 2  # half of a float32 matrix


GOOD = np.eye(3, dtype=np.float32)
LABELS = np.array([0, 0, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": GOOD.tolist()}, "queries is a list"),
        ({"queries": GOOD.astype(np.float64)}, "queries has dtype float64, wanted float32 or float16"),
        ({"gallery": GOOD.astype(">f4")}, "gallery has dtype >f4"),
        ({"gallery": GOOD[0]}, r"gallery has shape \(3,\)"),
        ({"queries": GOOD[:0], "query_labels": LABELS[:0]}, r"queries has shape \(0, 3\)"),
        ({"gallery": GOOD[:, :0]}, r"gallery has shape \(3, 0\)"),
        ({"gallery": np.ones((3, 4), np.float32)}, "queries have 3 dims, gallery has 4"),
        ({"query_labels": LABELS[:2]}, "query_labels has 2 entries for 3 embeddings"),
        ({"gallery_labels": LABELS[:, None]}, r"gallery_labels is int64 \(3, 1\)"),
        ({"gallery_labels": LABELS.astype(object)}, "gallery_labels is object"),
        ({"gallery_labels": LABELS.astype(float)}, "gallery_labels is float64"),
        ({"gallery_labels": LABELS.tolist()}, "gallery_labels is list"),
        ({"gallery_labels": np.array(["a", "b", "c"])}, "cannot be compared"),
        ({"gallery_labels": LABELS.astype(np.uint64)}, "cannot be compared"),
        ({"query_labels": LABELS + 5}, "nothing to measure"),
        ({"queries": np.where(np.eye(3) * [0, 1, 0], np.nan, 1).astype(np.float32)}, "queries: row 1 holds a NaN"),
        ({"gallery": np.where(np.eye(3) * [0, 0, 1], np.inf, 1).astype(np.float16)}, "gallery: row 2 holds a NaN"),
        ({"gallery": np.diag([1, 0, 1]).astype(np.float32), "metric": "cosine"}, "gallery: row 1 has length zero"),
        ({"exclude_self": True, "gallery": np.eye(2, 3, dtype=np.float32), "gallery_labels": LABELS[:2]}, "3 queries"),
        ({"exclude_self": True, "gallery_labels": LABELS[::-1]}, "query 0 has label 0 and gallery row 0 has 1"),
    ],
)
def test_bad_arrays_are_named(changes, message):
    arguments = {"queries": GOOD, "gallery": GOOD, "query_labels": LABELS, "gallery_labels": LABELS} | changes
    with pytest.raises(ArrayError, match=message):
        retrieval_metrics(**arguments)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"metric": "l1"}, "unknown metric 'l1'"),
        ({"ks": (0, 1)}, "0, 1"),
        ({"ks": ()}, "k = nothing"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_bad_options_are_named(option, message):
    with pytest.raises(UsageError, match=message):
        retrieval_metrics(GOOD, GOOD, LABELS, LABELS, **option)
