"""A gallery whose items a second model has seen, and maps between the two that are right or wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.pairs import clustered

from fct_infer import Transformation
from fct_infer.transformation import Linear, Program


def least_squares(old: np.ndarray, new: np.ndarray) -> Transformation:
    """The affine map of least squares."""
    wide = np.hstack([old, np.ones((len(old), 1))]).astype(np.float64)
    weight = np.linalg.lstsq(wide, new.astype(np.float64), rcond=None)[0]
    step = Linear("old", "map", np.ascontiguousarray(weight[:-1].T, np.float32), weight[-1].astype(np.float32))
    return Transformation(Program({"old": old.shape[1]}, (step,), "map"), "fp32", threads=1)


def write_items(path: Path, rows: int = 600, ids: str | None = "int", shards: int = 3):
    """Write a gallery of clustered items; return old and new rows and the ids, row numbers where there are none."""
    old, new, _ = clustered(rows)
    numbers = np.arange(rows)
    names = {"int": numbers * 7 + 3, "str": np.array([f"item-{row}" for row in numbers]), None: numbers}[ids]
    for shard, part in enumerate(np.array_split(numbers, shards)):
        for folder, array in (("embeddings", old), ("ids", names)):
            if folder == "embeddings" or ids:
                (path / folder).mkdir(parents=True, exist_ok=True)
                np.save(path / folder / f"{shard:06d}.npy", array[part])
    return old, new, names
