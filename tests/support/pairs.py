"""Pairs of rows by two models that see the same items."""

from __future__ import annotations

import numpy as np

from fct_infer.fitting import Pairs


def clustered(rows, old_dim=12, new_dim=16, clusters=20, seed=0):
    """Items around centres, seen by a model of each width through a random map and some noise: old, new, labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, clusters, rows)
    items = rng.standard_normal((clusters, 10))[labels] + 0.6 * rng.standard_normal((rows, 10))
    models = (rng.standard_normal((10, dim)) for dim in (old_dim, new_dim))
    old, new = (items @ model + 0.3 * rng.standard_normal((rows, model.shape[1])) for model in models)
    return old.astype(np.float32), new.astype(np.float32), labels


def families(rows, size, seed=0):
    """Items of which so many at a time share a label, seen by two models that are always the same: old, new, labels."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    centres, spread = rng.standard_normal((2, rows, 24))
    labels = rng.permutation(np.arange(rows) // size)
    items = centres[labels] + spread
    old, new = (
        items @ fixed.standard_normal((24, dim)) + noise * rng.standard_normal((rows, dim))
        for dim, noise in ((32, 2.0), (40, 0.5))
    )
    return old.astype(np.float32), new.astype(np.float32), labels


def shuffled_rows(array, share, seed=0):
    """A copy with that share of the rows in another order."""
    rows = np.random.default_rng(seed).permutation(len(array))[: round(share * len(array))]
    result = array.copy()
    result[rows] = array[np.roll(rows, 1)]
    return result


def curved(rows, seed=0):
    """New rows that no linear map of the old ones gives."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    items, side = rng.standard_normal((2, rows, 6))
    hidden = np.maximum(np.concatenate([items, side], axis=1) @ fixed.standard_normal((12, 40)), 0)
    new = hidden @ fixed.standard_normal((40, 8))
    rows = np.arange(rows)
    return Pairs(items.astype(np.float32), new.astype(np.float32), side.astype(np.float32), rows)
