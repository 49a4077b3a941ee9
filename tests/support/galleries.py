"""Galleries on disk, made from a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_gallery(
    path: Path,
    rows_per_shard: tuple[int, ...] = (1000, 37, 512),
    old_dim: int = 96,
    side_dim: int | None = 32,
    dtype: str = "float32",
    ids: str | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Write a gallery with NumPy's own saver; return the arrays ``old``, ``side``, ``ids`` over all shards.

    ``ids`` is ``"int"`` (shuffled, not row numbers), ``"str"`` or None.
    """
    rng = np.random.default_rng(seed)
    rows = sum(rows_per_shard)
    arrays = {"old": rng.standard_normal((rows, old_dim), np.float32).astype(dtype)}
    folders = {"old": "embeddings"}
    if side_dim:
        arrays["side"] = rng.standard_normal((rows, side_dim), np.float32).astype(dtype)
        folders["side"] = "side_information"
    if ids == "int":
        arrays["ids"] = rng.permutation(rows).astype(np.int64) * 3 + 7
        folders["ids"] = "ids"
    elif ids == "str":
        arrays["ids"] = np.array([f"item-{number}" for number in rng.permutation(rows)])
        folders["ids"] = "ids"
    first = 0
    for number, count in enumerate(rows_per_shard):
        for name, folder in folders.items():
            (path / folder).mkdir(parents=True, exist_ok=True)
            np.save(path / folder / f"{number:06d}.npy", arrays[name][first : first + count])
        first += count
    return arrays
