"""Neighbours that two galleries have in common, against sets counted in plain Python."""

import numpy as np
import pytest
from support.retrieval_reference import ranking

from fct_infer.errors import ArrayError, UsageError
from fct_infer.evaluation import neighbour_overlap


def case(rows=60, queries=15, dims=(4, 6)):
    rng = np.random.default_rng(0)
    base = rng.standard_normal((rows + queries, dims[1])).astype(np.float32)
    old = (base[:, : dims[0]] + 0.3 * rng.standard_normal((rows + queries, dims[0]))).astype(np.float32)
    return old[:rows], base[:rows], base[rows:], old[rows:]


def shared(searches, k, count, metric, exclude_self):
    found = [
        [set(ranking(query, *search, metric, exclude_self)[:k].tolist()) for query in range(count)]
        for search in searches
    ]
    shares = np.array([len(one & other) / k for one, other in zip(*found, strict=True)])
    return shares.mean(), shares.std(ddof=1) / np.sqrt(count)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_queries_of_both_models_search_the_gallery_of_each(metric):
    gallery, new_gallery, queries, old_queries = case()
    found = neighbour_overlap(
        gallery, new_gallery, queries=queries, old_queries=old_queries, ks=(1, 7), metric=metric, threads=2
    )
    for k in (1, 7):
        wanted, error = shared([(old_queries, gallery), (queries, new_gallery)], k, 15, metric, False)
        assert found.overlap[k] == pytest.approx(wanted) and found.standard_error[k] == pytest.approx(error)
    assert 0 < found.overlap[7] < 1 and (found.queries, found.gallery_rows, found.metric) == (15, 60, metric)
    assert found.as_dict()["overlap"].keys() == {"1", "7"}


def test_one_set_of_queries_searches_both_galleries():
    gallery, new_gallery, queries, _ = case(dims=(6, 6))
    found = neighbour_overlap(gallery, new_gallery, queries=queries, ks=(5,))
    assert found.overlap[5] == pytest.approx(
        shared([(queries, gallery), (queries, new_gallery)], 5, 15, "l2", False)[0]
    )


def test_without_queries_rows_search_their_own_gallery_and_do_not_find_themselves():
    gallery, new_gallery, *_ = case()
    found = neighbour_overlap(gallery, new_gallery, ks=(3,))
    wanted, _ = shared([(gallery, gallery), (new_gallery, new_gallery)], 3, 60, "l2", True)
    assert found.overlap[3] == pytest.approx(wanted)
    assert neighbour_overlap(gallery, gallery, ks=(3,)).overlap[3] == 1.0


def test_of_many_queries_a_sample_is_drawn_the_same_for_a_seed():
    gallery, new_gallery, *_ = case()
    found = [neighbour_overlap(gallery, new_gallery, ks=(3,), sample=20, seed=seed) for seed in (1, 1, 2)]
    assert [each.queries for each in found] == [20] * 3
    assert found[0] == found[1] != found[2]


def test_progress_goes_up_to_both_searches():
    gallery, new_gallery, *_ = case()
    seen = []
    neighbour_overlap(gallery, new_gallery, progress=lambda done, rows: seen.append((done, rows)))
    assert seen == sorted(seen) and seen[-1] == (120, 120)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"new_gallery": np.ones((59, 6), np.float32)}, ArrayError, "gallery has 60 rows, new_gallery 59"),
        ({"old_queries": np.ones((3, 4), np.float32)}, ArrayError, "old_queries has 3 rows, queries 15"),
        ({"old_queries": None}, ArrayError, "queries have 6 dims, gallery has 4"),
        ({"ks": (61,)}, UsageError, "61 nearest of 60"),
        ({"sample": 0}, UsageError, "sample is 0"),
        ({"metric": "l1"}, UsageError, "unknown metric"),
    ],
)
def test_what_cannot_be_compared_is_named(changes, error, message):
    gallery, new_gallery, queries, old_queries = case()
    arguments = {"gallery": gallery, "new_gallery": new_gallery, "queries": queries, "old_queries": old_queries}
    with pytest.raises(error, match=message):
        neighbour_overlap(**(arguments | changes))
