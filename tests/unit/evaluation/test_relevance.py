"""What is left out of a ranking: cameras, groups, junk and distractors, against the protocols in plain Python."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support.retrieval_reference import distances, market1501, ranking

from fct_infer.errors import ArrayError, UsageError
from fct_infer.evaluation import (
    Exclusions,
    Settings,
    StudyInputs,
    backfilling_curves,
    random_order,
    rank_queries,
    retrieval_metrics,
    retrieved_rows,
    row_benefit,
    study,
)
from fct_infer.evaluation import ranking as ranking_module

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module", params=[0, np.inf], ids=["in float64", "in float32 first"])
def way(request):
    """Small galleries would all take the first way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking_module, "_MOST_UNCLEAR", request.param)
        yield


def test_by_hand():
    """One query, pid 1 in camera 1; the nearest is itself in the same camera, the second junk, the third wrong."""
    gallery = np.array([[0.1], [0.15], [0.2], [0.3]], np.float32)
    pids, cameras = np.array([1, -1, 2, 1]), np.array([1, 3, 1, 2])
    arrays = (np.zeros((1, 1), np.float32), gallery, np.array([1]), pids)
    exclusions = Exclusions(np.array([1]), cameras, ignored_labels=(-1,))
    metrics = retrieval_metrics(*arrays, exclusions=exclusions)
    assert metrics.cmc == {1: 0.0, 5: 1.0}
    assert metrics.mean_average_precision == 0.5
    assert retrieval_metrics(*arrays).cmc[1] == 1.0  # what it would be without


def assert_ranks(found, wanted, query):
    if not wanted:
        assert found.first_relevant[query] == 0 and np.isnan(found.average_precision[query])
        return
    ranks = np.array(wanted)
    assert found.first_relevant[query] == ranks[0]
    assert_allclose(found.average_precision[query], (np.arange(1, len(ranks) + 1) / ranks).mean(), rtol=1e-12)
    assert_allclose(found.recall[query], [(ranks <= k).mean() for k in (1, 3)])
    assert_allclose(found.r_precision[query], (ranks <= len(ranks)).mean())


@given(seed=SEEDS, rows=st.integers(2, 40), persons=st.integers(1, 4), cameras=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_market_1501(seed, rows, persons, cameras):
    rng = np.random.default_rng(seed)
    gallery, queries = (rng.integers(-2, 3, (count, 2)).astype(np.float32) for count in (rows, 7))
    pids, query_pids = rng.integers(-1, persons + 1, rows), rng.integers(-1, persons + 2, 7)
    cams, query_cams = rng.integers(0, cameras, rows), rng.integers(0, cameras + 1, 7)
    pids[0], query_pids[0], cams[0], query_cams[0] = 1, 1, 0, 1  # something is relevant
    exclusions = Exclusions(query_cams, cams, ignored_labels=(-1,), distractor_labels=(0,))
    found = rank_queries(queries, gallery, query_pids, pids, ks=(1, 3), exclusions=exclusions, threads=2)
    for query, row in enumerate(queries):
        far = distances(row, gallery, "l2")
        assert_ranks(found, market1501(far, query_pids[query], query_cams[query], pids, cams), query)


@given(seed=SEEDS, rows=st.integers(2, 30), exclude_self=st.booleans(), metric=st.sampled_from(["l2", "ip", "cosine"]))
@settings(max_examples=80, deadline=None)
def test_groups_cameras_junk_and_the_own_row_together(seed, rows, exclude_self, metric):
    rng = np.random.default_rng(seed)
    gallery = rng.integers(1, 5, (rows, 3)).astype(np.float32)
    labels, cams, groups = rng.integers(0, 3, (3, rows))
    labels[:2], cams[:2], groups[:2] = 1, (0, 1), (0, 1)
    own = np.arange(rows) if exclude_self else rng.integers(0, rows, 9)
    own[0] = 0
    query_cams, query_groups = (np.where(rng.random(len(own)) < 0.5, each[own], 5) for each in (cams, groups))
    query_cams[0], query_groups[0] = 0, 0
    exclusions = Exclusions(query_cams, cams, query_groups, groups, ignored_labels=(2,))
    options = {"metric": metric, "exclude_self": exclude_self, "exclusions": exclusions}
    found = rank_queries(gallery[own], gallery, labels[own], labels, ks=(1, 3), **options)
    for query in range(len(own)):
        label, far = labels[own[query]], distances(gallery[own][query], gallery, metric)
        seen = [
            row
            for row in ranking(query, gallery[own], gallery, metric, exclude_self)
            if labels[row] != 2
            and groups[row] != query_groups[query]
            and not (labels[row] == label and cams[row] == query_cams[query])
        ]
        assert_ranks(found, [rank for rank, row in enumerate(seen, 1) if labels[row] == label], query)
        right = [far[row] for row in seen if labels[row] == label]
        is_tied = any(np.isclose(far[row], right, rtol=1e-12, atol=1e-12).any() for row in seen if labels[row] != label)
        assert found.is_tied[query] == is_tied


def case(seed=0, rows=70, queries=12):
    rng = np.random.default_rng(seed)
    new_gallery = rng.standard_normal((rows, 4)).astype(np.float32)
    gallery = (new_gallery + rng.standard_normal((rows, 4))).astype(np.float32)
    labels, cams, groups = rng.integers(-1, 4, rows), rng.integers(0, 3, rows), rng.integers(0, 9, rows)
    query_labels, query_cams = rng.integers(1, 4, queries), rng.integers(0, 3, queries)
    exclusions = Exclusions(query_cams, cams, np.arange(queries), groups, (-1,), (0,))
    return rng.standard_normal((queries, 4)).astype(np.float32), gallery, new_gallery, query_labels, labels, exclusions


def test_backfilling_leaves_out_the_same_rows():
    *arrays, exclusions = case()
    queries, gallery, new_gallery, *labels = arrays
    order = random_order(len(gallery), 0)
    curve = backfilling_curves(*arrays, {"x": [order]}, points=5, exclusions=exclusions)["x"]
    for share, merit in zip(curve.shares, curve.mean_average_precision, strict=True):
        mixed, done = gallery.copy(), order[: round(share * len(gallery))]
        mixed[done] = new_gallery[done]
        wanted = retrieval_metrics(queries, mixed, *labels, exclusions=exclusions)
        assert merit == pytest.approx(wanted.mean_average_precision, rel=1e-12)


def test_benefit_leaves_out_the_same_rows():
    *arrays, exclusions = case(1, rows=40)
    queries, gallery, new_gallery, *labels = arrays
    before = retrieval_metrics(queries, gallery, *labels, exclusions=exclusions).mean_average_precision
    gains = []
    for row in range(len(gallery)):
        changed = gallery.copy()
        changed[row] = new_gallery[row]
        after = retrieval_metrics(queries, changed, *labels, exclusions=exclusions)
        gains.append(after.mean_average_precision - before)
    assert_allclose(row_benefit(*arrays, exclusions=exclusions), gains, atol=1e-9)
    assert_array_equal(np.array(gains)[labels[1] == -1], 0)


def test_a_study_leaves_them_out_of_every_search_and_of_what_it_shows():
    queries, gallery, new_gallery, query_labels, labels, exclusions = case(2)
    masks = {
        f"{of}_{what}": getattr(exclusions, f"{of}_{what}")
        for of in ("query", "gallery")
        for what in ("cameras", "groups")
    }
    inputs = StudyInputs(queries, gallery, query_labels, labels, queries, gallery, new_gallery, **masks)
    found = study(inputs, Settings(ignored_labels=(-1,), distractor_labels=(0,)))
    for name, searched in (("old", gallery), ("new", new_gallery)):
        wanted = rank_queries(queries, searched, query_labels, labels, exclusions=exclusions)
        assert_array_equal(found.matrix.ranks[name, name].first_relevant, wanted.first_relevant)
    wanted = retrieval_metrics(queries, new_gallery, query_labels, labels, exclusions=exclusions)
    assert found.curves["random"].mean_average_precision[-1] == pytest.approx(wanted.mean_average_precision)
    assert found.as_dict()["ignored_labels"] == [-1] and found.as_dict()["distractor_labels"] == [0]
    shown = retrieved_rows(inputs, found)
    assert shown
    for row in shown:
        camera, group = exclusions.query_cameras[row.query], exclusions.query_groups[row.query]
        for name, items in row.found.items():
            assert len(items) == 6
            assert not ((labels[items] == row.label) & (exclusions.gallery_cameras[items] == camera)).any()
            assert not (exclusions.gallery_groups[items] == group).any() and not (labels[items] == -1).any()
            first = found.matrix.ranks[tuple(name.split("/"))].first_relevant[row.query]
            assert row.is_relevant[name].index(True) == first - 1 if first <= 6 else not any(row.is_relevant[name])


@given(seed=SEEDS, rows=st.integers(2, 30), exclude_self=st.booleans(), text=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_query_may_name_several_right_rows(seed, rows, exclude_self, text):
    rng = np.random.default_rng(seed)
    gallery = rng.integers(-2, 3, (rows, 2)).astype(np.float32)
    ids = 7 * rng.permutation(rows)
    queries = gallery if exclude_self else rng.integers(-2, 3, (9, 2)).astype(np.float32)
    truth = rng.choice(np.append(ids, -1), (len(queries), 3))  # some twice, some that no row has
    truth[0] = ids[1]
    groups, query_groups = rng.integers(0, 5, rows), rng.integers(1, 6, len(queries))
    groups[1] = 0
    make = (lambda each: each.astype(str)) if text else (lambda each: each)
    exclusions = Exclusions(query_groups=query_groups, gallery_groups=groups)
    found = rank_queries(
        queries, gallery, make(truth), make(ids), ks=(1, 3), exclude_self=exclude_self, exclusions=exclusions
    )
    for query in range(len(queries)):
        seen = [
            row for row in ranking(query, queries, gallery, "l2", exclude_self) if groups[row] != query_groups[query]
        ]
        assert_ranks(found, [rank for rank, row in enumerate(seen, 1) if ids[row] in truth[query]], query)


def test_where_every_row_is_its_own_class_no_order_is_by_class():
    queries, gallery, new_gallery, *_ = case(3)
    ids, truth = np.arange(len(gallery)), np.arange(2 * len(queries)).reshape(-1, 2)
    inputs = StudyInputs(queries, gallery, truth, ids, new_gallery=new_gallery)
    found = study(inputs, Settings())
    assert set(found.curves) == {"random", "oracle"}
    assert all(len(row.found["new/old"]) == 6 for row in retrieved_rows(inputs, found))
    assert retrieved_rows(inputs, found)[0].label.count(", ") == 1


def test_ties_are_counted_where_they_decide():
    gallery = np.array([[1], [-1], [2], [3], [3]], np.float32)
    queries, query_labels = np.zeros((3, 1), np.float32), np.array([0, 2, 3])
    labels = np.array([0, 1, 2, 3, 3])
    ranks = rank_queries(queries, gallery, query_labels, labels)
    assert ranks.is_tied.tolist() == [True, False, False]  # two right rows at one distance decide nothing
    assert ranks.metrics().tied_queries == 1 and ranks.metrics().as_dict()["tied_queries"] == 1
    assert ranks.metrics(np.array([False, True, True])).tied_queries == 0
    assert not rank_queries(
        queries, gallery, query_labels, labels, exclusions=Exclusions(ignored_labels=(1,))
    ).is_tied.any()


def test_memory_stays_far_below_a_mask_of_all_pairs():
    rng = np.random.default_rng(3)
    rows, queries = 6000, 600
    embeddings = rng.standard_normal((rows, 8)).astype(np.float32)
    labels, cams, groups = (rng.integers(0, high, rows) for high in (400, 6, 1500))
    exclusions = Exclusions(cams[:queries], cams, groups[:queries], groups, (0,))
    peaks = []
    for each in (None, exclusions):
        tracemalloc.start()
        retrieval_metrics(embeddings[:queries], embeddings, labels[:queries], labels, threads=1, exclusions=each)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < queries * rows / 2


GOOD = np.eye(3, dtype=np.float32)
LABELS = np.array([1, 1, 2])


@pytest.mark.parametrize(
    ("exclusions", "message"),
    [
        ({"query_cameras": LABELS, "gallery_cameras": LABELS[:2]}, "gallery_cameras has 2 entries for 3 embeddings"),
        ({"query_cameras": LABELS, "gallery_cameras": LABELS.astype(str)}, "query_cameras are int64 and gallery_cam"),
        ({"query_groups": LABELS.astype(float), "gallery_groups": LABELS}, r"query_groups is float64 \(3,\)"),
        ({"ignored_labels": ("junk",)}, "labels are int64, 'junk' cannot be compared"),
        ({"distractor_labels": (b"0",)}, "labels are int64, b'0' cannot be compared"),
        ({"query_groups": LABELS, "gallery_groups": LABELS}, "nothing to measure"),
    ],
)
def test_bad_exclusions_are_named(exclusions, message):
    with pytest.raises(ArrayError, match=message):
        rank_queries(GOOD, GOOD, LABELS, LABELS, exclusions=Exclusions(**exclusions))


@pytest.mark.parametrize("what", ["query_cameras", "gallery_cameras", "query_groups", "gallery_groups"])
def test_cameras_and_groups_of_one_set_only_are_refused(what):
    with pytest.raises(UsageError, match=f"{what} are given"):
        Exclusions(**{what: LABELS})
