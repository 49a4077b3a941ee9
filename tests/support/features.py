"""Cached embeddings on disk, made from a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def make_columns(
    rows: int, old_dim: int = 6, side_dim: int = 6, new_dim: int = 8, classes: int = 5, seed: int = 0
) -> dict[str, np.ndarray]:
    """New embeddings that depend on the old and, as much, on what only the side-information knows."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    hidden = rng.standard_normal((rows, old_dim + side_dim))
    new = np.maximum(hidden @ fixed.standard_normal((old_dim + side_dim, new_dim)), 0)
    labels = (new @ fixed.standard_normal((new_dim, classes))).argmax(axis=1)
    columns = {"old": hidden[:, :old_dim], "side": hidden[:, old_dim:], "new": new, "labels": labels}
    return {name: np.ascontiguousarray(column, column.dtype if name == "labels" else np.float32)
            for name, column in columns.items()}  # fmt: skip


def write_columns(path: Path, columns: dict[str, np.ndarray], rows_per_shard: tuple[int, ...]) -> dict[str, Path]:
    """Write each column as a folder of shards of its own; return the folders by column."""
    assert sum(rows_per_shard) == len(columns["old"])
    for name, column in columns.items():
        (path / name).mkdir(parents=True)
        first = 0
        for number, count in enumerate(rows_per_shard):
            np.save(path / name / f"{number:06d}.npy", column[first : first + count])
            first += count
    return {name: path / name for name in columns}
