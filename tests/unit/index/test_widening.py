"""Searches that go on where the one with fewer lists ended."""

from __future__ import annotations

import numpy as np
import pytest

from fct_infer.index import IndexBuilder
from fct_infer.index.faiss_module import ivf_of
from fct_infer.index.widening import Wanted, Widening

ROWS, DIM, K, LISTS = 1500, 16, 7, 16
QUERIES = 12


def built(factory: str, metric: str = "l2", rows: int = ROWS) -> tuple[IndexBuilder, np.ndarray]:
    """Return an index over random rows under ids that are no row numbers, and some of them as queries."""
    values = np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32)
    builder = IndexBuilder(factory, DIM, metric, threads=1)
    if builder.needs_training:
        builder.train(values)
    builder.add(values[:rows], np.arange(rows) * 5 + 3)
    return builder, values[:QUERIES] + np.float32(0.1)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize(
    "factory",
    [f"IVF{LISTS},Flat", f"IVF{LISTS},SQ8", f"IVF{LISTS},PQ4np", f"OPQ4,IVF{LISTS},PQ4np", f"PCA8,IVF{LISTS},Flat"],
)
def test_each_finds_what_a_search_of_its_own_finds(factory, metric, monkeypatch):
    builder, queries = built(factory, metric)
    expected = {}
    for nprobe in (1, 2, 4, 5, LISTS):
        builder.nprobe = nprobe
        expected[nprobe] = builder.search(queries, K)[1]
    assert (expected[1] != expected[LISTS]).any()

    widening = Widening(builder, queries, K)
    builder.nprobe = 1
    np.testing.assert_array_equal(widening.search(), expected[1])
    monkeypatch.setattr(builder, "search", None)  # nothing is searched twice
    for nprobe in (2, 4, 4, 5, LISTS):
        builder.nprobe = nprobe
        np.testing.assert_array_equal(widening.search(), expected[nprobe])
        assert builder.nprobe == nprobe
    assert ivf_of(builder.index).parallel_mode == 0


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize(
    "factory", [f"IVF{LISTS},Flat", f"IVF{LISTS},SQ8", f"IVF{LISTS},PQ4np", f"OPQ4,IVF{LISTS},PQ4np"]
)
def test_no_more_wanted_rows_are_found_than_in_the_best_case(factory, metric):
    builder, queries = built(factory, metric)
    values = np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32)
    products = queries @ values.T
    apart = np.einsum("ij,ij->i", values, values) - 2 * products if metric == "l2" else -products
    rows = np.argsort(apart, axis=1)[:, :K].ravel()
    wanted = Wanted(np.repeat(np.arange(QUERIES), K), rows * 5 + 3, values[rows])

    def count(found: np.ndarray) -> int:
        return np.count_nonzero((found[wanted.queries] == wanted.ids[:, None]).any(axis=1))

    widening = Widening(builder, queries, K, wanted)
    builder.nprobe = 1
    before = count(widening.search())
    assert 0 < before < count(widening.best_search(2)) < len(wanted.ids)
    for nprobe in (2, 4, LISTS):
        best = count(widening.best_search(nprobe))
        builder.nprobe = nprobe
        found = count(widening.search())
        assert before <= found <= best
        before = found
    assert count(widening.best_search(LISTS)) == before
    rest = Widening(builder, queries, K, Wanted(wanted.queries[:0], wanted.ids[:0], wanted.rows[:0]))
    assert rest.search() is not None and rest.best_search(LISTS) is None


def test_numbers_of_many_lists():
    """Codes begin with as many bytes as the number of a list needs."""
    builder, queries = built("IVF300,Flat")
    values = np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32)
    rows = ((queries[:, None] - values) ** 2).sum(axis=2).argsort(axis=1)[:, K - 1]
    widening = Widening(builder, queries, K, Wanted(np.arange(QUERIES), rows * 5 + 3, values[rows]))
    builder.nprobe = 1
    found, best = widening.search(), widening.best_search(40)
    missing = ~(found == rows[:, None] * 5 + 3).any(axis=1)
    builder.nprobe = 40
    reached = (widening.search() == rows[:, None] * 5 + 3).any(axis=1)
    assert missing.any() and (reached & missing).any()
    np.testing.assert_array_equal((best == rows[:, None] * 5 + 3).any(axis=1), reached)


@pytest.mark.parametrize(
    "factory", [f"IVF{LISTS}_HNSW8,Flat", f"IVF{LISTS},PQ4np,RFlat", f"IVF{LISTS},PQ4x4fsr", "Flat"]
)
def test_what_cannot_be_taken_apart_is_searched_anew(factory):
    builder, queries = built(factory)
    widening = Widening(builder, queries, K)
    for nprobe in (1, 4, LISTS):
        if builder.nprobe is not None:
            builder.nprobe = nprobe
        np.testing.assert_array_equal(widening.search(), builder.search(queries, K)[1])


def test_a_limit_on_codes_is_one_of_the_whole_search():
    builder, queries = built(f"IVF{LISTS},Flat")
    ivf_of(builder.index).max_codes = 100
    widening = Widening(builder, queries, K)
    for nprobe in (1, LISTS):
        builder.nprobe = nprobe
        np.testing.assert_array_equal(widening.search(), builder.search(queries, K)[1])


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_fewer_rows_than_neighbours(metric):
    builder, queries = built(f"IVF{LISTS},Flat", metric, rows=4)
    widening = Widening(builder, queries, K)
    for nprobe in (1, LISTS):
        builder.nprobe = nprobe
        found = widening.search()
    assert (found[:, 4:] == -1).all() and (np.sort(found[:, :4]) == [3, 8, 13, 18]).all()
