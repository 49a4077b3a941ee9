"""Longer steps get as far as plain iterations of k-means get in nearly twice as many."""

from __future__ import annotations

import numpy as np
import pytest

from fct_infer import _core
from fct_infer.index.clustering import Clustering, cluster_codebooks, iterations_for, squared_error

ROWS = np.random.default_rng(0).standard_normal((6000, 16)).astype(np.float32)
START = ROWS[:128]


def test_lists_are_as_tight_as_after_all_plain_iterations():
    plain = _core.refine_centroids(ROWS, START, metric="l2", spherical=False, iterations=10, threads=1)
    few = _core.refine_centroids(ROWS, START, metric="l2", spherical=False, iterations=iterations_for(10), threads=1)
    cluster = Clustering(ROWS, "l2", False, iterations_for(10), 1)
    ours, all_of_them, as_few = (
        squared_error(ROWS, found, cluster.lists(found)) for found in (cluster.refined(START), plain, few)
    )
    assert ours <= 1.003 * all_of_them
    assert ours < as_few


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


def test_lists_on_a_sphere_are_as_near_as_after_plain_iterations():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((16_384, 24), np.float32) @ rng.standard_normal((24, 64), np.float32)
    iterations = iterations_for(10, spherical=True)
    plain = _core.refine_centroids(rows, rows[:256].copy(), metric="ip", spherical=True, iterations=10, threads=1)
    found = Clustering(rows, metric="ip", spherical=True, iterations=iterations, threads=1).refined(rows[:256].copy())
    nearest = [(rows @ centroids.T).max(axis=1).mean() for centroids in (found, plain)]
    assert nearest[0] >= 0.997 * nearest[1]
