"""Transformations ready to run on any device in any precision, and how close their results are to float64."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import numpy as np
from support.cuda import IS_SIMULATED, memory
from support.programs import linear_map, paper_h, plain_mlp, random_rows, residual_mlp

from fct_infer.reference import apply_float64, largest_values
from fct_infer.transformation import Program, Transformation

PROGRAMS: dict[str, Callable[[], Program]] = {
    "paper size": (lambda: paper_h(inner=512)) if IS_SIMULATED else paper_h,
    "paper_h": lambda: paper_h(48, 32, 40, inner=160),
    "paper_h normalized": lambda: paper_h(96, 33, 130, inner=70).with_normalization(),
    "plain_mlp": lambda: plain_mlp(30, 50, 24, (64, 96)),
    "gelu_mlp": lambda: plain_mlp(30, 50, 24, (64, 96), activation="gelu"),
    "linear_map": lambda: linear_map(65, 33),
    "residual_mlp": lambda: residual_mlp(40, 24, 80),
    "wide": lambda: plain_mlp(20, 20, 16, (2500,)),
}
_SIMULATED_MEMORY = {"paper size": 40, "wide": 36}  # MiB; 34 for others: blocks of a few hundred rows
_SEED = 100  # far from the programs' own: rows that equal weights are like no others


@functools.cache
def compiled(name: str, device: str, precision: str) -> Transformation:
    """A program of the list, calibrated where that is needed."""
    limit = 0 if device == "cpu" else memory(0, _SIMULATED_MEMORY.get(name, 34))
    return ready(PROGRAMS[name](), device, precision, device_memory=limit)


def ready(program: Program, device: str, precision: str, **options) -> Transformation:
    h = Transformation(program, precision, 2, device, **options)
    return h if h.is_calibrated else h.calibrated(largest_values(program, *inputs(h, 500, 7)))


def inputs(h: Transformation, rows: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Random float32 rows for a transformation's one or two inputs."""
    dims = (h.old_dim, h.side_dim) if h.side_dim else (h.old_dim,)
    return tuple(random_rows(rows, dim, _SEED + 10 * seed + place) for place, dim in enumerate(dims))


def grouped_inputs(h: Transformation, groups: int) -> tuple[np.ndarray, ...]:
    """Rows that lie in groups of eleven: unlike random ones they have ten neighbours each that mean something."""
    centers = inputs(h, groups)
    scatter = inputs(h, 11 * groups, 1)
    return tuple(
        np.repeat(center, 11, axis=0) + np.float32(0.6) * around
        for center, around in zip(centers, scatter, strict=True)
    )


def float64(h: Transformation, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    """What the results should be."""
    return apply_float64(h.program, *arrays)


def largest_block(h: Transformation) -> int:
    """Rows of the largest block a device works in, as its description says; on the CPU that of a tile."""
    found = re.search(r"blocks (\d+)", h.executable.description)
    return int(found[1]) if found else 512


def row_counts(h: Transformation) -> list[int]:
    """Numbers of rows at which blocks begin and end."""
    block = largest_block(h)
    return [0, 1, 7, block - 1, block, block + 1, 3 * block + 5]


def cosines(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Cosine by row."""
    norms = np.linalg.norm(found.astype(np.float64), axis=1) * np.linalg.norm(wanted, axis=1)
    return np.einsum("ij,ij->i", found, wanted) / norms


def overlap_at_10(found: np.ndarray, wanted: np.ndarray, queries: int = 200) -> float:
    """Share of the ten nearest rows, by cosine and without the row itself, that both agree on for the first rows."""
    nearest = []
    for rows in (found.astype(np.float64), wanted):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        similar = unit[:queries] @ unit.T
        np.fill_diagonal(similar, -np.inf)
        nearest.append(np.argpartition(-similar, 10, axis=1)[:, :10])
    return float(np.mean([len(np.intersect1d(*each)) / 10 for each in zip(*nearest, strict=True)]))
