"""The nearest of many lists is found in a few groups of them, or all are looked at."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from fct_infer import _core
from fct_infer.errors import ArrayError
from fct_infer.index import two_levels as module
from fct_infer.index.clustering import Clustering, squared_error
from fct_infer.index.filling import filler_of
from fct_infer.index.leading_directions import LeadingDirections
from fct_infer.index.two_levels import two_levels

DIM, LISTS = 16, 1024
RNG = np.random.default_rng(0)
CENTRES = RNG.standard_normal((80, DIM)).astype(np.float32) * 8


def clustered(rows):
    return CENTRES[RNG.integers(0, len(CENTRES), rows)] + RNG.standard_normal((rows, DIM)).astype(np.float32)


CENTROIDS, ROWS = clustered(LISTS), clustered(6000)


@pytest.fixture(autouse=True)
def _few_lists_are_many(monkeypatch):
    monkeypatch.setattr(module, "LISTS_FROM", 512)
    monkeypatch.setattr("fct_infer.index.filling.LISTS_FROM", 512)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("rows", [None, ROWS[:2000]])
def test_nearly_all_rows_get_their_nearest_list(rows, metric):
    centroids, data = CENTROIDS, ROWS
    if metric == "ip":
        centroids, data = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (CENTROIDS, ROWS))
    levels = two_levels(centroids, metric, 1, rows)
    assert levels is not None and levels.cost <= module.WORTH_IT
    exact, _ = _core.Assigner(centroids, None, metric=metric).assign(data, 1)
    found, _ = _core.Assigner(centroids, None, metric=metric, groups=levels.groups).assign(data, 1)
    assert (found == exact).mean() >= 0.995
    again = two_levels(centroids, metric, 3, rows)
    assert again.groups[1] == levels.groups[1] and np.array_equal(again.groups[0], levels.groups[0])


def test_where_groups_do_not_help_there_are_none():
    assert two_levels(RNG.standard_normal((LISTS, 64)).astype(np.float32), "l2", 1) is None
    assert two_levels(CENTROIDS[:500], "l2", 1) is None
    assert two_levels(np.repeat(CENTROIDS[:1], LISTS, axis=0), "l2", 1) is None


def test_where_the_core_tells_no_groups_apart_there_are_none():
    """All centroids are shorter than it multiplies integers for."""
    assert two_levels(CENTROIDS, "l2", 1) is not None
    assert two_levels(CENTROIDS * np.float32(1e-20), "l2", 1) is None


@pytest.mark.parametrize("scale", [1e6, 1e15, 1e30])
def test_a_far_centroid_hides_no_groups(scale):
    centroids = CENTROIDS.copy()
    centroids[7] *= np.float32(scale)
    levels, plain = two_levels(centroids, "l2", 1), two_levels(CENTROIDS, "l2", 1)
    assert levels is not None and levels.cost <= 1.25 * plain.cost
    exact, _ = _core.Assigner(CENTROIDS, None).assign(ROWS, 1)
    found, _ = _core.Assigner(centroids, None, groups=levels.groups).assign(ROWS, 1)
    assert (found == exact)[exact != 7].mean() >= 0.995


def test_where_directions_find_lists_as_soon_there_are_none(monkeypatch):
    monkeypatch.setattr(LeadingDirections, "share", lambda *_: 0.05)
    assert two_levels(CENTROIDS, "l2", 1, ROWS) is None


def test_training_by_groups_is_as_tight():
    start = np.ascontiguousarray(ROWS[:LISTS])
    cluster = Clustering(ROWS, "l2", False, 4, 1)
    by_groups = cluster.refined(start)
    assert two_levels(by_groups, "l2", 1, ROWS) is not None
    module.LISTS_FROM = LISTS + 1  # the fixture puts it back
    errors = [squared_error(ROWS, found, cluster.lists(found)) for found in (by_groups, cluster.refined(start))]
    assert errors[0] <= 1.005 * errors[1]


@pytest.mark.parametrize("factory", [f"IVF{LISTS},Flat", f"IVF{LISTS}_HNSW8,PQ4"])
def test_a_filled_index_is_a_plain_one_and_the_same_however_rows_are_cut(factory):
    index = faiss.index_factory(DIM, factory)
    index.quantizer.add(CENTROIDS)
    if factory.endswith("PQ4"):
        index.do_polysemous_training = False  # takes seconds
    index.train(ROWS)
    files = []
    for cuts in ([6000], [1, 2999, 6000]):
        filled = faiss.clone_index(index)
        fill, start = filler_of(filled), 0
        for stop in cuts:
            fill(ROWS[start:stop], np.arange(start, stop), 1 + len(cuts))
            start = stop
        files.append(faiss.serialize_index(filled))
    assert np.array_equal(*files)
    index.add(ROWS)
    filled.nprobe = index.nprobe = 8
    truth = faiss.knn(ROWS[:200], ROWS, 10)[1]
    recalls = [
        np.mean([len(np.intersect1d(a, b)) for a, b in zip(truth, each.search(ROWS[:200], 10)[1], strict=True)]) / 10
        for each in (filled, index)
    ]
    assert recalls[0] >= recalls[1] - 0.01


def test_without_clusters_rows_behind_a_graph_are_left_to_faiss():
    index = faiss.index_factory(64, "IVF600_HNSW8,Flat")
    index.train(RNG.standard_normal((700, 64)).astype(np.float32))
    assert filler_of(index) is None


def test_bad_groups_are_refused():
    with pytest.raises(ArrayError, match="probes is 5, wanted 1 to 4"):
        _core.Assigner(CENTROIDS, None, groups=(CENTROIDS[:4], 5))
    with pytest.raises(ArrayError, match="centers"):
        _core.Assigner(CENTROIDS, None, groups=(CENTROIDS[:4, :3].copy(), 1))
