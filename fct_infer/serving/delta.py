"""Rows changed since the big index was built: few, searched exactly, never changed under a reader."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fct_infer.gallery.ids import nothing_found
from fct_infer.serving.rows import Bools, Ids, Nearest, pair_costs
from fct_infer.transformation import Float32Array

_MIN_CAPACITY = 1024
_BLOCK_VALUES = 1 << 24  # 64 MiB of them at once
_SPARE = 8  # candidates more than wanted, whose order the fast costs leave open


@dataclass(frozen=True)
class DeltaView:
    """The rows as they were at one moment.

    Attributes:
        ids, rows, is_new, alive: (n,), (n, dim), (n,), (n,); a row that is not alive was deleted or replaced.
        squares: (n,) of the rows' lengths.
    """

    ids: Ids
    rows: Float32Array
    is_new: Bools
    alive: Bools
    squares: Float32Array

    @property
    def count(self) -> int:
        """Rows that are there."""
        return int(self.alive.sum())

    def kept(self) -> tuple[Ids, Float32Array, Bools]:
        """Return ids, rows and is_new of those that are there."""
        return self.ids[self.alive], self.rows[self.alive], self.is_new[self.alive]

    def nearest(self, queries: Float32Array, k: int, metric: str) -> Nearest:
        """Return the k nearest rows, fewer if there are fewer; see :data:`~fct_infer.serving.rows.Nearest`."""
        rows = len(self.ids)
        k = min(k, rows)
        costs = np.full((len(queries), k), np.inf, np.float32)
        places = np.zeros((len(queries), k), np.int64)
        # A block holds its costs to all rows, and the rows of its candidates.
        widest = max(rows, min(k + _SPARE, rows) * self.rows.shape[1], 1)
        step = max(1, _BLOCK_VALUES // widest)
        for start in range(0, len(queries) if k else 0, step):
            block = slice(start, start + step)
            costs[block], places[block] = self._block(queries[block], k, metric)
        ids = self.ids[places]
        ids[np.isinf(costs)] = nothing_found(ids.dtype)
        return costs, ids, self.is_new[places]

    def _block(self, queries: Float32Array, k: int, metric: str) -> tuple[Float32Array, Any]:
        fast = queries @ self.rows.T
        fast = self.squares - 2 * fast if metric == "l2" else -fast
        fast[:, ~self.alive] = np.inf
        few = min(k + _SPARE, fast.shape[1])
        candidates = np.argpartition(fast, few - 1, axis=1)[:, :few]
        exact = pair_costs(queries, self.rows[candidates], metric)
        exact[~self.alive[candidates]] = np.inf
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(exact, order, axis=1), np.take_along_axis(candidates, order, axis=1)


class Delta:
    """The growing rows; changed by one thread at a time, which hands out views.

    Args:
        dim: of the rows.
        dtype: of the ids.
    """

    def __init__(self, dim: int, dtype: np.dtype[Any]) -> None:
        self._ids = np.empty(0, dtype)
        self._rows = np.empty((0, dim), np.float32)
        self._is_new = np.empty(0, bool)
        self._alive = np.empty(0, bool)
        self._squares = np.empty(0, np.float32)
        self._places: dict[Any, int] = {}
        self._count = 0

    def put(self, ids: Ids, rows: Float32Array, is_new: bool | Bools) -> None:
        """Add rows, in place of those of the same ids."""
        begin, end = self._count, self._count + len(ids)
        self._reserve(end, ids.dtype)
        self.drop(ids)
        # Beyond what any view shows; ``alive`` is not, and is copied for each.
        self._ids[begin:end], self._rows[begin:end], self._is_new[begin:end] = ids, rows, is_new
        self._squares[begin:end] = np.einsum("ij,ij->i", rows, rows)
        self._alive[begin:end] = True
        self._places.update(zip(ids.tolist(), range(begin, end), strict=True))
        self._count = end
        if end > 2 * len(self._places) + _MIN_CAPACITY:
            self._tidy()

    def drop(self, ids: Ids) -> int:
        """Drop the rows of some ids, and return how many there were."""
        places = [place for each in ids.tolist() if (place := self._places.pop(each, None)) is not None]
        self._alive[places] = False
        return len(places)

    def find(self, ids: Ids) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the places of ids (n,); -1 where they are not there."""
        return np.array([self._places.get(each, -1) for each in ids.tolist()], np.int64)

    def view(self) -> DeltaView:
        """Return the rows as they are now."""
        end = self._count
        return DeltaView(
            self._ids[:end], self._rows[:end], self._is_new[:end], self._alive[:end].copy(), self._squares[:end]
        )

    def take(self, ids: Ids) -> tuple[Ids, Float32Array, Bools]:
        """Return ids, rows and is_new of those of some ids that are there."""
        places = self.find(ids)
        kept = places[places >= 0]
        return self._ids[kept], self._rows[kept], self._is_new[kept]

    def _reserve(self, count: int, dtype: np.dtype[Any]) -> None:
        dtype = np.promote_types(self._ids.dtype, dtype)
        if count > len(self._ids) or dtype != self._ids.dtype:
            self._copy(np.arange(self._count), max(count, 2 * self._count, _MIN_CAPACITY), dtype)

    def _tidy(self) -> None:
        self._copy(np.flatnonzero(self._alive[: self._count]), len(self._ids), self._ids.dtype)
        self._count = len(self._places)
        self._places = dict(zip(self._ids[: self._count].tolist(), range(self._count), strict=True))

    def _copy(self, kept: Any, capacity: int, dtype: np.dtype[Any]) -> None:
        """Move to other arrays: views keep those they have."""
        for name in ("_ids", "_rows", "_is_new", "_alive", "_squares"):
            before = getattr(self, name)
            after = np.zeros((capacity, *before.shape[1:]), dtype if name == "_ids" else before.dtype)
            after[: len(kept)] = before[kept]
            setattr(self, name, after)


def delta_of(dim: int, dtype: np.dtype[Any], parts: Iterable[tuple[Ids, Float32Array, Bools]]) -> Delta:
    """Return rows that hold these (ids, rows, is_new)."""
    delta = Delta(dim, dtype)
    for ids, rows, is_new in parts:
        delta.put(ids, rows, is_new)
    return delta
