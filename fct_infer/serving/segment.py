"""Rows that lie in one index or database, and which of them have been replaced or deleted since."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import GalleryError
from fct_infer.gallery.ids import nothing_found
from fct_infer.serving.rows import Bools, Ids, Nearest, find
from fct_infer.serving.spaces import Space
from fct_infer.transformation import Float32Array

_MORE = 4  # times as many rows are asked for where too many of those found are gone


@dataclass(frozen=True)
class Segment:
    """One space and its rows; never changed.

    Attributes:
        space: where they are searched.
        ids: (n,) sorted.
        labels: (n,) what the space's index knows them by; as ``ids`` where they stay in the old space.
        is_new: (n,) whether the new model embedded them.
        gone: (g,) sorted ids of those that are no longer to be found here.
    """

    space: Space
    ids: Ids
    labels: NDArray[np.int64]
    is_new: Bools
    gone: Ids

    @classmethod
    def of(cls, space: Space, ids: Ids, is_new: bool | Bools, labels: NDArray[np.int64] | None = None) -> Segment:
        """Return a segment of ids in any order.

        Raises:
            GalleryError: an id is there twice.
        """
        order = np.argsort(ids, kind="stable")
        known = ids[order]
        if len(twice := np.flatnonzero(known[1:] == known[:-1])):
            raise GalleryError(f"id {known[twice[0]].item()!r} occurs twice; rows that change must be told apart")
        flags = np.broadcast_to(is_new, ids.shape)[order].copy()
        numbers = np.arange(len(ids)) if labels is None else labels
        return cls(space, known, numbers[order], flags, known[:0])

    @property
    def count(self) -> int:
        """Rows that are there."""
        return len(self.ids) - len(self.gone)

    @property
    def new_count(self) -> int:
        """Rows that are there and that the new model embedded."""
        return int(self.is_new.sum()) - int(self.is_new[find(self.gone, self.ids)].sum())

    def without(self, ids: Ids) -> Segment:
        """Return the segment without some ids, whether it has them or not."""
        places = find(ids, self.ids)
        here = np.sort(self.ids[places[places >= 0]])
        here = here[find(here, self.gone) < 0]
        # Inserted, not sorted anew: many may be gone already.
        return replace(self, gone=np.insert(self.gone, np.searchsorted(self.gone, here), here)) if len(here) else self

    def places(self, ids: Ids) -> NDArray[np.int64]:
        """Return where ids (n,) are; -1 where they are not, or are gone."""
        places = find(ids, self.ids)
        return np.where(find(ids, self.gone) >= 0, -1, places)

    def nearest(self, queries: Float32Array, k: int, old_queries: Float32Array | None) -> Nearest:
        """Return the k nearest rows that are not gone; more are asked for as long as too many of those found are."""
        wanted = max(k, self.space.depth)
        count = min(len(self.ids), wanted + min(len(self.gone), wanted))
        k = min(k, len(self.ids))
        costs = np.full((len(queries), k), np.inf, np.float32)
        ids = np.full((len(queries), k), nothing_found(self.ids.dtype), self.ids.dtype)
        open_ones = np.arange(len(queries)) if count else np.empty(0, np.int64)
        while len(open_ones):
            asked_old = None if old_queries is None else old_queries[open_ones]
            found_costs, found_ids = self.space.nearest(queries[open_ones], count, asked_old)
            is_nothing = found_ids == nothing_found(found_ids.dtype)
            alive = ~is_nothing & (find(found_ids, self.gone) < 0)
            enough = alive.sum(axis=1) >= wanted
            # Where nothing more was found, more will not be: fewer rows, or an index that looked into all its lists.
            done = enough | is_nothing.any(axis=1) | (count == len(self.ids))
            order = np.argsort(~alive, axis=1, kind="stable")[:, :wanted]
            kept = np.take_along_axis(alive, order, axis=1)[:, :k]
            width = kept.shape[1]
            ids = _widened(ids, found_ids.dtype)
            rows = open_ones[done]
            costs[rows, :width] = np.where(kept, np.take_along_axis(found_costs, order, axis=1)[:, :k], np.inf)[done]
            ids[rows, :width] = np.take_along_axis(found_ids, order, axis=1)[done, :k]
            open_ones, count = open_ones[~done], min(len(self.ids), _MORE * count)
        ids[np.isinf(costs)] = nothing_found(ids.dtype)
        return costs, ids, self.is_new[np.maximum(find(ids, self.ids), 0)] & ~np.isinf(costs)


def _widened(ids: Ids, dtype: np.dtype[np.generic]) -> Ids:
    return ids.astype(np.promote_types(ids.dtype, dtype), copy=False)
