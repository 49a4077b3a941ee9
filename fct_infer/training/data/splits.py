"""The rows held out for validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import UsageError
from fct_infer.gallery.sampling import sample_rows

MAX_VALIDATION_ROWS = 50_000
_USUAL_SHARE, _USUAL_ROWS = 0.1, 100


@dataclass(frozen=True)
class Split:
    """Which rows are held out for validation; ``held_out`` are their numbers, sorted (n,) int64."""

    rows: int
    held_out: NDArray[np.int64]

    @classmethod
    def draw(cls, rows: int, share: float, seed: int, groups: NDArray[np.int64] | None = None) -> Split:
        """Hold out a ``share`` of the rows, at random, at most :data:`MAX_VALIDATION_ROWS`; 0 holds out none.

        Args:
            rows: how many there are.
            share: at least 0 and below 1.
            seed: of the draw.
            groups: (rows,) equal numbers stay on one side, so that no image is trained on in one view and judged in
                another; then a little less than the share may be held out.

        Raises:
            UsageError: the share is out of its range, or too small for any group.
        """
        if not 0 <= share < 1:
            raise UsageError(f"validation share is {share}, wanted at least 0 and below 1")
        count = min(int(rows * share), MAX_VALIDATION_ROWS)
        if not count:
            return cls(rows, np.empty(0, np.int64))
        return cls(rows, sample_rows(rows, count, seed) if groups is None else _sample_groups(groups, count, seed))

    @property
    def training_rows(self) -> int:
        """Rows that are not held out."""
        return self.rows - len(self.held_out)

    def is_held_out(self, first: int, last: int) -> NDArray[np.bool_]:
        """Return for rows ``first`` to ``last`` whether they are held out: (last - first,) bool."""
        mask = np.zeros(last - first, np.bool_)
        begin, end = np.searchsorted(self.held_out, [first, last])
        mask[self.held_out[begin:end] - first] = True
        return mask

    def is_training(self, first: int, last: int) -> NDArray[np.bool_]:
        """The opposite of :meth:`is_held_out`."""
        return ~self.is_held_out(first, last)


def usual_share(rows: int) -> float:
    """Return the share to hold out of so many rows: a tenth, or 100 rows where that is more, but at most half."""
    return min(max(_USUAL_SHARE, _USUAL_ROWS / max(rows, 1)), 0.5)


def _sample_groups(groups: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the sorted rows of randomly drawn groups, as many as come to at most ``count`` rows."""
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    drawn = order[np.cumsum(sizes[order]) <= count]
    if not len(drawn):
        raise UsageError(
            f"validation: {count} of {len(groups)} rows are fewer than the first group drawn; hold out more"
        )
    is_drawn = np.zeros(len(sizes), np.bool_)
    is_drawn[drawn] = True
    return np.flatnonzero(is_drawn[members])
