"""What the parts of a mixed gallery have in common: rows checked, ids compared, nearest rows merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError
from fct_infer.gallery.ids import nothing_found
from fct_infer.transformation import Float32Array

Ids: TypeAlias = NDArray[Any]
Bools: TypeAlias = NDArray[np.bool_]
Nearest: TypeAlias = tuple[Float32Array, Ids, Bools]
"""Of some queries: costs (m, c) float32, the smaller the nearer, infinite for nothing; ids (m, c); is_new (m, c)."""


def unit(rows: Float32Array) -> Float32Array:
    """Return rows (n, dim) divided by their norms, computed in float64; a zero row stays zero."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    norms[norms == 0] = 1
    directions: Float32Array = (rows / norms[:, None]).astype(np.float32)
    return directions


def checked_rows(name: str, rows: Any, dim: int, metric: str) -> Float32Array:
    """Return rows as they are stored: (n, dim) float32, finite, for cosine of length one.

    Raises:
        ArrayError: they have another dtype or shape, or a row holds NaN or infinity, or for cosine is zero.
    """
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != dim:
        came = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise ArrayError(f"{name} is {came}, wanted float32 (n, {dim})")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ArrayError(f"{name}: row {int(np.argmin(finite))} holds NaN or infinity")
    if metric != "cosine":
        return np.ascontiguousarray(rows)
    directed = rows.any(axis=1)
    if not directed.all():
        raise ArrayError(f"{name}: row {int(np.argmin(directed))} is zero, and has no direction to compare by cosine")
    return unit(rows)


def checked_ids(given: Any, like: np.dtype[Any]) -> Ids:
    """Return ids (n,) of a kind, each once, ready to be compared with others of it.

    Raises:
        ArrayError: they are of another kind, one is there twice, or one is what stands for nothing found.
    """
    ids: Ids = np.asarray(given)
    if not ids.size:
        return np.empty(0, like)
    kinds = {"i": "integers", "u": "integers", "U": "text", "S": "bytes"}
    if ids.ndim != 1 or kinds.get(ids.dtype.kind) != kinds[like.kind]:
        raise ArrayError(f"ids is {ids.dtype} {ids.shape}, wanted (n,) {kinds[like.kind]}")
    if like.kind in "iu":
        if (ids != ids.astype(like)).any() or ((ids < 0) != (ids.astype(like) < 0)).any():
            raise ArrayError(f"ids do not fit {like}, of which the gallery's are")
        ids = ids.astype(like)
    if (ids == nothing_found(ids.dtype)).any():
        raise ArrayError(f"ids holds {nothing_found(ids.dtype).item()!r}, which searches give for nothing found")
    found = np.sort(ids)
    if len(twice := np.flatnonzero(found[1:] == found[:-1])):
        raise ArrayError(f"ids holds {found[twice[0]].item()!r} twice")
    return ids


def find(ids: Ids, among: Ids) -> NDArray[np.int64]:
    """Return where ids, of any shape, are in ``among``, which is sorted; -1 where they are not."""
    if not len(among):
        return np.full(ids.shape, -1)
    places = np.minimum(np.searchsorted(among, ids), len(among) - 1)
    return np.where(among[places] == ids, places, -1)


def costs_of(distances: Float32Array, ids: Ids, metric: str) -> Float32Array:
    """Return distances as an index gives them as costs: the smaller the nearer, infinite where nothing was found."""
    costs = distances if metric == "l2" else -distances
    return np.where(ids == nothing_found(ids.dtype), np.float32(np.inf), costs)


def distances_of(costs: Float32Array, metric: str) -> Float32Array:
    """Return costs as an index would give them; where nothing was found, the worst there is."""
    worst = np.finfo(np.float32).max
    costs = np.minimum(costs, worst)
    return costs if metric == "l2" else -costs


def pair_costs(queries: Float32Array, rows: Float32Array, metric: str) -> Float32Array:
    """Return costs (m, c) of rows (m, c, dim), those of each query, exactly."""
    if metric == "l2":
        difference = rows - queries[:, None]
        found: Float32Array = np.einsum("ijk,ijk->ij", difference, difference)
        return found
    products: Float32Array = np.einsum("ijk,ik->ij", rows, queries)
    return -products


def nearest_of(found: Sequence[Nearest], k: int) -> Nearest:
    """Return the k nearest of several answers to the same queries; where there are fewer, nothing found."""
    costs = np.concatenate([each[0] for each in found], axis=1)
    ids = np.concatenate([each[1] for each in found], axis=1)
    is_new = np.concatenate([each[2] for each in found], axis=1)
    if (short := k - costs.shape[1]) > 0:
        pad = ((0, 0), (0, short))
        costs = np.pad(costs, pad, constant_values=np.inf)
        ids = np.concatenate([ids, np.full((len(ids), short), nothing_found(ids.dtype))], axis=1)
        is_new = np.pad(is_new, pad)
    order = np.argsort(costs, axis=1, kind="stable")[:, :k]
    costs, ids, is_new = (np.take_along_axis(each, order, axis=1) for each in (costs, ids, is_new))
    ids[np.isinf(costs)] = nothing_found(ids.dtype)
    return costs, ids, is_new
