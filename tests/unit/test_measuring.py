"""Shares and ranks against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from fct_infer.measuring import Estimate, nearest_others, own_ranks


def distances(one, many, metric):
    if metric == "ip":
        return -one @ many.T
    if metric == "cosine":
        one, many = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, many))
    return np.linalg.norm(one[:, None] - many[None], axis=2)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_nearest_others_leave_out_the_own_row(metric):
    one, many = (np.random.default_rng(seed).standard_normal((600, 5)) for seed in (0, 1))
    expected = distances(one, many, metric)
    np.fill_diagonal(expected, np.inf)
    found = nearest_others(one, many, 4, metric)
    assert np.array_equal(np.sort(found, axis=1), np.sort(np.argsort(expected, axis=1)[:, :4], axis=1))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_own_ranks_count_the_nearer_rows(metric):
    one, many = (np.random.default_rng(seed).standard_normal((300, 5)) for seed in (0, 1))
    expected = distances(one, many, metric)
    ranks = 1 + (expected < np.diag(expected)[:, None]).sum(axis=1)
    queries = np.arange(3, 300, 2)
    assert np.array_equal(own_ranks(one, many, queries, metric), ranks[queries])


def test_an_estimate_of_one_score_has_no_error():
    assert Estimate.of(np.array([0.5])) == Estimate(0.5, 0.0)
    assert str(Estimate.of(np.array([0.0, 1.0]))) == "50.0 ± 50.0 %"
