"""Pairs of rows by two models that see the same items."""

from __future__ import annotations

import numpy as np


def clustered(rows, old_dim=12, new_dim=16, clusters=20, seed=0):
    """Items around centres, seen by a model of each width through a random map and some noise: old, new, labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, clusters, rows)
    items = rng.standard_normal((clusters, 10))[labels] + 0.6 * rng.standard_normal((rows, 10))
    models = (rng.standard_normal((10, dim)) for dim in (old_dim, new_dim))
    old, new = (items @ model + 0.3 * rng.standard_normal((rows, model.shape[1])) for model in models)
    return old.astype(np.float32), new.astype(np.float32), labels


def shuffled_rows(array, share, seed=0):
    """A copy with that share of the rows in another order."""
    rows = np.random.default_rng(seed).permutation(len(array))[: round(share * len(array))]
    result = array.copy()
    result[rows] = array[np.roll(rows, 1)]
    return result
