"""Recall against exact search: right by brute force, and fair where rows are equally near."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_infer.index import IndexBuilder, exact_neighbours, measure_recall, recall, tune_nprobe

DIM = 8


def rows_of(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


def blocks_of(rows, ids, size):
    for start in range(0, len(rows), size):
        yield rows[start : start + size], ids[start : start + size]


def brute_force(queries, rows, metric):
    """Distances in float64, smaller is nearer."""
    queries, rows = queries.astype(np.float64), rows.astype(np.float64)
    if metric != "l2":
        return -queries @ rows.T
    return ((queries[:, None] - rows[None]) ** 2).sum(2)


def built(factory, rows, ids, metric="l2"):
    builder = IndexBuilder(factory, DIM, metric, threads=1)
    if builder.needs_training:
        builder.train(rows)
    builder.add(rows, ids)
    return builder


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 200),
    block=st.integers(1, 80),
    k=st.integers(1, 12),
    metric=st.sampled_from(["l2", "ip"]),
    seed=st.integers(0, 99),
)
def test_exact_neighbours_are_those_of_brute_force(count, block, k, metric, seed):
    rows, queries = rows_of(count, seed), rows_of(5, seed + 100)
    ids = np.random.default_rng(seed).permutation(count).astype(np.int64) * 3 + 11
    exact = exact_neighbours(queries, blocks_of(rows, ids, block), k, metric, threads=1)
    expected = ids[np.argsort(brute_force(queries, rows, metric), axis=1)[:, :k]]
    assert exact.k == k
    for found, wanted in zip(exact.ids, expected, strict=True):
        assert set(wanted.tolist()) <= set(found.tolist())
        assert len(found) - len(wanted) <= 1  # a near-tie at most: these rows are random


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("k", [1, 10])
def test_a_flat_index_has_recall_1_and_a_poor_one_its_true_recall(metric, k):
    rows = rows_of(3000)
    if metric == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = np.random.default_rng(3).permutation(3000).astype(np.int64)
    chosen = np.arange(0, 3000, 60)
    queries, own = rows[chosen], ids[chosen]
    exact = exact_neighbours(queries, blocks_of(rows, ids, 700), k + 1, metric, threads=1)
    assert measure_recall(built("Flat", rows, ids, metric), queries, own, exact) == 1

    poor = built("IVF32,Flat", rows, ids, metric)
    distances = brute_force(queries, rows, metric)
    nearest = ids[np.argsort(distances, axis=1)[:, : k + 1]]
    found = poor.search(queries, k + 1)[1]
    pairs = [(set(a) - {o}, set(b)) for o, a, b in zip(own, nearest.tolist(), found.tolist(), strict=True)]
    expected = sum(len(a & b) for a, b in pairs) / sum(len(a) for a, _ in pairs)
    assert 0.05 < expected < 0.95
    assert measure_recall(poor, queries, own, exact) == pytest.approx(expected, abs=0.005)


def test_the_own_row_counts_on_neither_side():
    """An index that finds nothing but the query's own row has recall 0."""
    rows, ids = rows_of(100), np.arange(100)
    exact = exact_neighbours(rows[:10], blocks_of(rows, ids, 30), 11, "l2", threads=1)
    assert measure_recall(built("Flat", rows[:10], ids[:10]), rows[:10], ids[:10], exact) < 0.3
    alone = IndexBuilder("Flat", DIM, "l2", threads=1)
    alone.add(rows[:1], ids[:1])
    alone_exact = exact_neighbours(rows[:1], blocks_of(rows, ids, 30), 11, "l2", threads=1)
    assert measure_recall(alone, rows[:1], ids[:1], alone_exact) == 0


def test_equal_rows_under_any_of_their_ids_are_right():
    """A gallery may hold one item 40 times; which 10 of them an index returns says nothing against it."""
    rows = np.repeat(rows_of(50), 40, axis=0)
    ids = np.random.default_rng(1).permutation(len(rows)).astype(np.int64)
    chosen = np.arange(0, len(rows), 40)
    exact = exact_neighbours(rows[chosen], blocks_of(rows, ids, 333), 11, "l2", threads=1)
    assert all(len(near) == 40 for near in exact.ids)
    backwards = IndexBuilder("Flat", DIM, "l2", threads=1)
    backwards.add(rows[::-1].copy(), ids[::-1].copy())
    assert measure_recall(backwards, rows[chosen], ids[chosen], exact) == 1
    wrong = IndexBuilder("Flat", DIM, "l2", threads=1)
    wrong.add(rows, np.roll(ids, 40))
    assert measure_recall(wrong, rows[chosen], ids[chosen], exact) == 0


def test_a_query_with_countless_equals_is_not_counted(monkeypatch):
    monkeypatch.setattr(recall, "MAX_TIES", 100)
    rows = np.concatenate([np.zeros((500, DIM), np.float32), rows_of(500) + 10])
    ids = np.arange(1000)
    queries, own = rows[[0, 999]], ids[[0, 999]]
    exact = exact_neighbours(queries, blocks_of(rows, ids, 90), 11, "l2", threads=1)
    assert exact.ids[0] is None
    assert len(exact.ids[1]) >= 11
    assert measure_recall(built("Flat", rows, ids), queries, own, exact) == 1
    exact = exact_neighbours(queries[:1], blocks_of(rows, ids, 90), 11, "l2", threads=1)
    assert measure_recall(built("Flat", rows, ids), queries[:1], own[:1], exact) == 1


def test_many_far_ties_do_not_push_out_the_near_rows_that_come_later(monkeypatch):
    monkeypatch.setattr(recall, "MAX_TIES", 20)
    query = np.zeros((1, DIM), np.float32)
    far = np.ones((200, DIM), np.float32)
    near = rows_of(30) * 0.01
    rows, ids = np.concatenate([far, near]), np.arange(230)
    exact = exact_neighbours(query, blocks_of(rows, ids, 50), 10, "l2", threads=1)
    expected = 200 + np.argsort((near.astype(float) ** 2).sum(1))[:10]
    assert set(exact.ids[0].tolist()) == set(expected.tolist())


def test_fewer_rows_than_neighbours():
    rows, ids = rows_of(4), np.array([3, 1, 4, 15])
    exact = exact_neighbours(rows, blocks_of(rows, ids, 3), 11, "l2", threads=1)
    assert all(sorted(near.tolist()) == [1, 3, 4, 15] for near in exact.ids)
    assert measure_recall(built("Flat", rows, ids), rows, ids, exact) == 1
    one = exact_neighbours(rows[:1], blocks_of(rows[:1], ids[:1], 3), 11, "l2", threads=1)
    assert measure_recall(built("Flat", rows[:1], ids[:1]), rows[:1], ids[:1], one) == 1


@pytest.mark.parametrize("target", [None, 0.8, 1.0])
def test_nprobe_is_doubled_until_the_target(target):
    rows, ids = rows_of(4000), np.arange(4000)
    chosen = np.arange(0, 4000, 80)
    exact = exact_neighbours(rows[chosen], blocks_of(rows, ids, 1000), 11, "l2", threads=1)
    builder = built("IVF64,Flat", rows, ids)
    before = measure_recall(builder, rows[chosen], ids[chosen], exact)
    reached = tune_nprobe(builder, rows[chosen], ids[chosen], exact, target)
    assert before < 0.7
    assert reached >= (0.9 if target is None else target)
    assert reached == measure_recall(builder, rows[chosen], ids[chosen], exact)
    assert builder.nprobe.bit_count() == 1
    builder.nprobe //= 2
    if target is not None:
        assert measure_recall(builder, rows[chosen], ids[chosen], exact) < target


@pytest.mark.parametrize("are_given", ["all", "not all", "none"])
def test_a_search_that_cannot_add_enough_is_spared(are_given, monkeypatch):
    rows, ids = rows_of(8000), np.arange(8000) + 7
    chosen = np.arange(0, 8000, 40)
    exact = exact_neighbours(rows[chosen], blocks_of(rows, ids, 1000), 11, "l2", threads=1)
    builder, tried, searches = built("IVF64,PQ4np", rows, ids), {}, []
    search = recall.Widening.search
    monkeypatch.setattr(recall.Widening, "search", lambda self: searches.append(builder.nprobe) or search(self))
    given = {"all": slice(None), "not all": slice(2000), "none": None}[are_given]
    backwards = ids[given][::-1], rows[given][::-1]
    reached = tune_nprobe(builder, rows[chosen], ids[chosen], exact, None, tried, given and backwards)
    assert builder.nprobe == 16 and reached == tried[16] < 0.9
    assert reached == measure_recall(builder, rows[chosen], ids[chosen], exact)
    assert searches == list(tried) == ([1, 2, 4, 8, 16] if are_given == "all" else [1, 2, 4, 8, 16, 32])


def test_an_index_without_lists_is_left_as_it_is():
    rows, ids = rows_of(500), np.arange(500)
    exact = exact_neighbours(rows[:20], blocks_of(rows, ids, 100), 11, "l2", threads=1)
    assert tune_nprobe(built("Flat", rows, ids), rows[:20], ids[:20], exact, 1.0) == 1


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("size", [1e-20, 1e17, 1e25])  # squares that are no normal numbers, that fit, that overflow
def test_sizes_at_the_edges_of_float32_are_searched(metric, size):
    rows = rows_of(300, 9)
    rows[17] *= np.float32(size)
    ids = np.arange(300)
    exact = exact_neighbours(rows[:5], blocks_of(rows, ids, 90), 11, metric, threads=1)
    expected = np.argsort(brute_force(rows[:5], rows, metric), axis=1)[:, :11]
    for found, wanted in zip(exact.ids, expected, strict=True):
        assert set(wanted.tolist()) <= set(found.tolist()) and len(found) <= 12


def test_a_query_too_large_for_float32_is_searched_too():
    rows = rows_of(50, 9)
    queries = np.concatenate([rows[:2], np.full((1, DIM), 3e38, np.float32)])
    with np.errstate(all="ignore"):
        exact = exact_neighbours(queries, blocks_of(rows, np.arange(50), 20), 11, "l2", threads=1)
    assert 0 in exact.ids[0] and 1 in exact.ids[1]


def test_a_block_of_rows_without_direction_is_left_out():
    rows = np.zeros((40, DIM), np.float32)
    rows[:15] = rows_of(15, 3) / np.linalg.norm(rows_of(15, 3), axis=1, keepdims=True)
    exact = exact_neighbours(rows[:3], blocks_of(rows, np.arange(40), 20), 30, "cosine", threads=1)
    assert all(set(found.tolist()) == set(range(15)) for found in exact.ids)
