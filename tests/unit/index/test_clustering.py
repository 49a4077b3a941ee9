"""Lists are moved in plain steps; longer ones get codebooks as far as nearly twice as many plain ones do."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from fct_infer import _core
from fct_infer.index.clustering import Clustering, cluster_codebooks, iterations_for, squared_error
from fct_infer.index.training import train_index

ROWS = np.random.default_rng(0).standard_normal((6000, 16)).astype(np.float32)
START = ROWS[:128]


@pytest.mark.parametrize(("metric", "spherical"), [("l2", False), ("ip", True)])
def test_lists_move_in_plain_steps(metric, spherical):
    plain = _core.refine_centroids(ROWS, START, metric=metric, spherical=spherical, iterations=10, threads=1)
    assert np.array_equal(Clustering(ROWS, metric, spherical, 10, 1).refined(START), plain)


def test_lists_are_as_tight_and_as_even_as_those_of_faiss():
    """Of rows as embeddings of texts are, means of some of many vectors, where longer steps fail in both."""
    rows, errors, unevenness = mixtures(20_000, 64), [], []
    for train in (lambda index: train_index(index, rows, 1), lambda index: index.train(rows)):
        index = faiss.index_factory(64, "IVF128,Flat")
        train(index)
        centroids = index.quantizer.reconstruct_n(0, 128)
        lists = index.quantizer.search(rows, 1)[1][:, 0]
        errors.append(squared_error(rows, centroids, lists))
        unevenness.append((np.bincount(lists, minlength=128).astype(float) ** 2).sum())
    assert errors[0] <= 1.002 * errors[1]
    assert unevenness[0] <= 1.1 * unevenness[1]


def mixtures(count, dim):
    """Return rows (count, dim) of length 1: means of 8 of 5,000 vectors, some of them of one of 300 topics."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5000, dim), np.float32)
    share = 1 / np.arange(10, 5010)
    words = rng.choice(5000, (count, 8), p=share / share.sum())
    topics = rng.choice(5000, (300, 8), p=share / share.sum())[rng.integers(300, size=count)]
    words = np.where(np.arange(8) < rng.integers(0, 7, size=(count, 1)), topics, words)
    rows = vectors[words].mean(axis=1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_codebooks_are_as_near_as_after_all_plain_iterations():
    start = np.ascontiguousarray(ROWS[:256].reshape(256, 4, 4).transpose(1, 0, 2))

    def error(books):
        codes = _core.Assigner(None, books, by_residual=False).assign(ROWS, 1)[1]
        return sum(((ROWS[:, 4 * m : 4 * m + 4] - books[m][codes[:, m]]) ** 2).sum() for m in range(4))

    plain = _core.refine_codebooks(ROWS, start, iterations=25, threads=1)
    few = _core.refine_codebooks(ROWS, start, iterations=iterations_for(25), threads=1)
    ours = error(cluster_codebooks(ROWS, start, iterations=iterations_for(25), threads=1))
    assert ours <= 1.005 * error(plain)
    assert ours < error(few)


def test_centroids_of_the_inner_product_stay_of_length_one():
    found = Clustering(ROWS, "ip", True, 6, 1).refined(START)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)


def test_rows_that_are_few_many_times_over():
    rows = np.repeat(ROWS[:10], 50, axis=0)
    found = Clustering(rows, "l2", False, 6, 1).refined(np.ascontiguousarray(rows[::8]))
    assert np.isfinite(found).all()
    assert squared_error(rows, found, Clustering(rows, "l2", False, 1, 1).lists(found)) < 1e-3


def test_longer_steps_are_fewer():
    assert [iterations_for(plain) for plain in (1, 10, 25)] == [1, 6, 14]
