import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support.retrieval_reference import ranking

from fct_infer.errors import ArrayError, UsageError
from fct_infer.evaluation import nearest

METRICS = ("l2", "ip", "cosine")


def true_distances(queries, gallery, rows, metric):
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    pairs = [(query, row) for query, found in zip(queries, rows, strict=True) for row in gallery[found]]
    values = [np.linalg.norm(query - row) if metric == "l2" else query @ row for query, row in pairs]
    if metric == "cosine":
        values = [value / np.linalg.norm(q) / np.linalg.norm(g) for value, (q, g) in zip(values, pairs, strict=True)]
    return np.reshape(values, rows.shape)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_agrees_with_sorting_every_distance(metric, exclude_self, dtype):
    rng = np.random.default_rng(1)
    gallery = (50 + rng.standard_normal((300, 9))).astype(dtype)
    queries = gallery if exclude_self else gallery[:40] + dtype(0.25)
    distances, rows = nearest(queries, gallery, 6, metric=metric, exclude_self=exclude_self, threads=2)
    assert (distances.dtype, rows.dtype) == (np.float32, np.int64)
    expected = [ranking(index, queries, gallery, metric, exclude_self)[:6] for index in range(len(queries))]
    assert_array_equal(rows, expected)
    assert_allclose(distances, true_distances(queries, gallery, rows, metric), rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_ties_come_in_gallery_order(metric, seed, rows):
    rng = np.random.default_rng(seed)
    gallery = rng.integers(-1, 2, (rows, 2)).astype(np.float32) + np.float32(2)
    queries = rng.integers(-2, 3, (5, 2)).astype(np.float32) + np.float32([0, 4])
    k = int(rng.integers(1, rows + 1))
    found = nearest(queries, gallery, k, metric=metric)[1]
    assert_array_equal(found, [ranking(index, queries, gallery, metric, False)[:k] for index in range(5)])


def test_rows_of_one_direction_are_ties_under_cosine():
    gallery = np.array([[1, 1], [3, 3], [7, 7], [1, 1]], np.float32)
    assert_array_equal(nearest(np.array([[-2, 6]], np.float32), gallery, 4, metric="cosine")[1], [[0, 1, 2, 3]])


def test_an_item_is_at_distance_zero_from_itself():
    embeddings = (1000 + np.random.default_rng(2).standard_normal((50, 40))).astype(np.float32)
    distances, rows = nearest(embeddings, embeddings, 1)
    assert_array_equal(rows[:, 0], np.arange(50))
    assert_array_equal(distances, 0)


@pytest.mark.parametrize(("k", "exclude_self"), [(0, False), (5, False), (4, True)])
def test_k_must_lie_within_the_gallery(k, exclude_self):
    embeddings = np.eye(4, dtype=np.float32)
    with pytest.raises(UsageError, match="wanted 1 to"):
        nearest(embeddings, embeddings, k, exclude_self=exclude_self)


def test_bad_contents_are_named():
    embeddings = np.eye(4, dtype=np.float32)
    bad = embeddings.copy()
    bad[2, 1] = np.nan
    with pytest.raises(ArrayError, match="gallery: row 2"):
        nearest(embeddings, bad, 1)
