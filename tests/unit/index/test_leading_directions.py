"""Scores are bounded along a few directions where rows have a shape, and the lists are those of all scores."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import pytest

from fct_infer import _core
from fct_infer.errors import ArrayError
from fct_infer.index import filling, leading_directions
from fct_infer.index.clustering import Clustering
from fct_infer.index.leading_directions import LISTS_FROM, ROWS_TRIED, LeadingDirections, nearest_lists
from fct_infer.index.training import train_index

RNG = np.random.default_rng(3)
DIM = 96


def rows_with_a_shape(count):
    """Rows near a plane of 12 dimensions, far from 0."""
    plane = np.random.default_rng(4).standard_normal((12, DIM), np.float32)
    noise = RNG.standard_normal((count, DIM), np.float32)
    return RNG.standard_normal((count, 12), np.float32) @ plane + np.float32(0.3) * noise + np.float32(5)


ROWS = rows_with_a_shape(6000)
CENTROIDS = ROWS[: 2 * LISTS_FROM].copy()


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_few_directions_are_enough_and_change_no_list(metric):
    directions = LeadingDirections(CENTROIDS).enough(CENTROIDS, metric, ROWS)
    assert directions is not None and len(directions) < DIM / 2
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(directions)), atol=1e-5)
    every, _ = _core.Assigner(CENTROIDS, None, metric=metric).assign(ROWS, 1)
    found, _ = _core.Assigner(CENTROIDS, None, metric=metric, directions=directions).assign(ROWS, 2)
    np.testing.assert_array_equal(found, every)
    np.testing.assert_array_equal(nearest_lists(CENTROIDS, metric, ROWS, 1), every)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("lists", [2049, 5000])
def test_of_thousands_of_lists_none_is_missed(lists, metric):
    """They are bounded before any is scored; some rows lie on centroids, of which some are twice there, and some so far
    that float32 tells few lists apart, whose answer is the same however lists are looked for."""
    centroids = rows_with_a_shape(lists)
    centroids[lists // 2 :: 7] = centroids[: len(centroids[lists // 2 :: 7])]
    rows = np.concatenate([ROWS[:999], centroids[-500:], np.float32(1e6) * ROWS[:200], np.zeros((2, DIM), np.float32)])
    directions = LeadingDirections(centroids).enough(centroids, metric, ROWS)
    assert directions is not None
    every, _ = _core.Assigner(centroids, None, metric=metric).assign(rows, 1)
    has_bfloat = "bf16" in _core.precisions()
    all_kinds = (_core.Assigner(centroids, None, metric=metric, reduced=each) for each in {False, has_bfloat})
    for kind in all_kinds:
        np.testing.assert_array_equal(kind.assign(rows, 1)[0], every)
    for count in (16, len(directions), 40):
        some = np.ascontiguousarray(LeadingDirections(centroids)._all[:count])
        found, _ = _core.Assigner(centroids, None, metric=metric, directions=some).assign(rows, 2)
        np.testing.assert_array_equal(found, every)


def test_directions_of_other_centroids_change_no_list_either():
    directions = LeadingDirections(ROWS[-500:]).enough(CENTROIDS, "l2", ROWS)
    every, _ = _core.Assigner(CENTROIDS, None).assign(ROWS, 1)
    np.testing.assert_array_equal(_core.Assigner(CENTROIDS, None, directions=directions).assign(ROWS, 1)[0], every)


def test_where_directions_do_not_help_there_are_none():
    shapeless = RNG.standard_normal((1000, DIM)).astype(np.float32)
    assert LeadingDirections(shapeless[:500]).enough(shapeless[:500], "l2", shapeless) is None
    few = CENTROIDS[: LISTS_FROM - 1]
    assert LeadingDirections(few).enough(few, "l2", ROWS) is None
    assert LeadingDirections(CENTROIDS).enough(CENTROIDS, "l2", ROWS[:0]) is None
    narrow = np.ascontiguousarray(CENTROIDS[:, :20])
    assert LeadingDirections(narrow).enough(narrow, "l2", np.ascontiguousarray(ROWS[:, :20])) is None


@pytest.mark.parametrize("scale", [1e6, 1e15, 1e30])
def test_far_centroids_hide_no_directions_and_change_no_list(scale):
    centroids = CENTROIDS.copy()
    centroids[3] *= np.float32(scale)
    centroids[9] *= np.float32(-scale / 1000)
    directions, plain = (LeadingDirections(each).enough(each, "l2", ROWS) for each in (centroids, CENTROIDS))
    assert directions is not None and len(directions) <= len(plain)
    rows = np.concatenate([ROWS, centroids])
    every, _ = _core.Assigner(centroids, None).assign(rows, 1)
    found, _ = _core.Assigner(centroids, None, directions=directions).assign(rows, 2)
    np.testing.assert_array_equal(found, every)
    np.testing.assert_array_equal(every[-len(centroids) :], np.arange(len(centroids)))


def test_there_are_fewer_or_none_where_scoring_all_costs_less(monkeypatch):
    """As in bfloat16 on CPUs that have it."""
    costs = leading_directions._costs()
    assert LeadingDirections(CENTROIDS).enough(CENTROIDS, "l2", ROWS) is not None
    monkeypatch.setattr(leading_directions, "_costs", lambda: replace(costs, in_full=(0.1, 0.1)))
    assert LeadingDirections(CENTROIDS).enough(CENTROIDS, "l2", ROWS) is None


def test_candidates_beyond_the_cache_cost_more_and_so_there_are_more_directions(monkeypatch):
    costs = replace(leading_directions._AVX512, far_dim=1000)
    monkeypatch.setattr(leading_directions, "_costs", lambda: costs)
    near = LeadingDirections(CENTROIDS).enough(CENTROIDS, "l2", ROWS)
    monkeypatch.setattr(leading_directions, "_CACHE", 0)
    far = LeadingDirections(CENTROIDS).enough(CENTROIDS, "l2", ROWS)
    assert far is None or len(far) > len(near)


@pytest.mark.parametrize("same", [CENTROIDS[:1], np.zeros((1, DIM), np.float32)])
def test_centroids_that_are_all_the_same(same):
    centroids = np.repeat(same, LISTS_FROM, axis=0)
    assert (nearest_lists(centroids, "l2", ROWS, 1) == 0).all()


def test_training_with_directions_is_training_without(monkeypatch):
    cluster = Clustering(ROWS, metric="l2", spherical=False, iterations=3, threads=2)
    found = cluster.refined(CENTROIDS)
    monkeypatch.setattr(LeadingDirections, "enough", lambda *_: None)
    np.testing.assert_array_equal(cluster.refined(CENTROIDS), found)


def test_an_index_filled_with_directions_is_the_one_filled_without(monkeypatch):
    index = faiss.index_factory(DIM, f"IVF{LISTS_FROM},PQ12np")
    train_index(index, ROWS, 1)
    used = []
    enough = LeadingDirections.enough

    def noted(self, centroids, metric, rows):
        used.append(len(rows))
        return enough(self, centroids, metric, rows)

    def filled(blocks):
        copy = faiss.clone_index(index)
        fill = filling.filler_of(copy)
        for rows in np.split(ROWS, blocks):
            fill(rows, None, 2)
        return faiss.serialize_index(copy)

    monkeypatch.setattr(LeadingDirections, "enough", noted)
    by_directions = filled([1, 5, 5 + 2 * ROWS_TRIED])
    assert used == [2 * ROWS_TRIED]  # by the first rows that are enough to tell
    monkeypatch.setattr(LeadingDirections, "enough", lambda *_: None)
    np.testing.assert_array_equal(by_directions, filled([]))


def test_bad_directions_are_refused():
    for directions in (np.ones((2, DIM), np.float32), np.eye(DIM, dtype=np.float32)[:3, :4].copy()):
        with pytest.raises(ArrayError):
            _core.Assigner(CENTROIDS, None, directions=directions)
