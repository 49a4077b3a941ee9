"""Items embedded by both models, wherever they lie, joined by their ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.joining import Int64Array, Progress, gather_rows, join_by_id
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery import sample_rows
from fct_infer.gallery.ids import id_blocks
from fct_infer.gallery.source import Source
from fct_infer.identity import ModelId
from fct_infer.transformation import Float32Array

MAX_PAIRS = 100_000


@dataclass(frozen=True)
class Pairs:
    """The same items by both models, in the order of the old rows; all arrays have a row an item.

    Attributes:
        old: (n, d_old) float32.
        new: (n, d_new) float32.
        side: (n, d_side) float32, or None.
        ids: (n,) int64, bytes or str: of the items, or their row numbers.
        labels: (n,) or None.
        matched: how many items both sources have; n is less where only a sample was read.
        only_old, only_new: how many items only one of them has.
        matched_by: ids of both; ids of NEW, taken for row numbers of an OLD without ids; or the order, without any.
        models: whose vectors ``old`` and ``new`` are, as far as that is known.
        old_rows: (n,) where the pairs lie in OLD; None of arrays.
    """

    old: Float32Array
    new: Float32Array
    side: Float32Array | None
    ids: NDArray[Any]
    labels: NDArray[Any] | None = None
    matched: int = 0
    only_old: int = 0
    only_new: int = 0
    matched_by: Literal["ids", "row numbers", "order"] = "ids"
    models: tuple[ModelId | None, ModelId | None] = (None, None)
    old_rows: Int64Array | None = None

    def __len__(self) -> int:
        return len(self.old)

    def of(self, rows: Int64Array) -> Pairs:
        """Return some of the pairs, by their numbers."""
        columns = ("old", "new", "side", "ids", "labels", "old_rows")
        given = {name: array[rows] for name in columns if (array := getattr(self, name)) is not None}
        return replace(self, **given)

    def swapped(self) -> Pairs:
        """Return the pairs for a map from the new space to the old, without side-information."""
        return replace(
            self,
            old=self.new,
            new=self.old,
            side=None,
            only_old=self.only_new,
            only_new=self.only_old,
            models=self.models[::-1],
        )


def read_pairs(
    old: Source,
    new: Source,
    side: Source | None = None,
    *,
    labels: NDArray[Any] | None = None,
    wanted: NDArray[Any] | None = None,
    max_pairs: int = MAX_PAIRS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pairs:
    """Read what two sources have in common: by id, or row by row where neither has ids.

    The rows of an ``old`` without ids are known by their numbers, so integer ids of ``new`` name them.

    Args:
        old, new: of either model. The ids of the one with fewer rows are held in memory.
        side: side-information, row i of row i of ``old``; None takes what ``old`` brings itself.
        labels: (rows of old,).
        wanted: ids that are read in any case, as far as both sources have them.
        max_pairs: a sample of this many is read where there are more.
        seed: of that sample.
        progress: told about ids.

    Raises:
        UsageError: ``new`` has no ids and ``old`` has, or they are of another kind.
        GalleryError: an id occurs twice, or is the number of no row where ``old`` has no ids, nothing is in common,
            there are fewer than two pairs, rows do not fit together or hold NaN or infinity; names the source's row.
    """
    progress = progress or (lambda stage, done, rows: None)
    old_rows, new_rows, ids = _matched(old, new, progress)
    matched = len(ids)
    if matched < 2:
        raise GalleryError(f"OLD and NEW have {matched} ids in common, of {old.schema.rows:,} and {new.schema.rows:,}")
    counts = {
        "--side": None if side is None else side.schema.rows,
        "--labels": None if labels is None else len(labels),
    }
    for name, count in counts.items():
        if count is not None and count != old.schema.rows:
            raise GalleryError(f"{name} has {count:,} rows, OLD {old.schema.rows:,}; wanted one a row")
    chosen = np.argsort(old_rows, kind="stable")[sample_rows(matched, max_pairs, seed)]
    if wanted is not None:
        chosen = np.union1d(chosen, np.flatnonzero(np.isin(ids, wanted)))
        chosen = chosen[np.argsort(old_rows[chosen], kind="stable")]
    old_rows, new_rows, ids = old_rows[chosen], new_rows[chosen], ids[chosen]
    old_vectors, side_vectors = gather_rows(old, old_rows, with_side=side is None)
    new_vectors, _ = gather_rows(new, new_rows, with_side=False)
    if side is not None:
        side_vectors, _ = gather_rows(side, old_rows, with_side=False)
    return Pairs(
        old_vectors,
        new_vectors,
        side_vectors,
        ids,
        None if labels is None else labels[old_rows],
        matched,
        old.schema.rows - matched,
        new.schema.rows - matched,
        models=(old.model, new.model),
        matched_by="order" if new.schema.id_dtype is None else "row numbers" if old.schema.id_dtype is None else "ids",
        old_rows=old_rows,
    )


def _matched(old: Source, new: Source, progress: Progress) -> tuple[Int64Array, Int64Array, NDArray[Any]]:
    """Return row numbers in either source and the ids of what both have."""
    kinds = [source.schema.id_dtype for source in (old, new)]
    if kinds[0] is None and kinds[1] is None:
        if old.schema.rows != new.schema.rows:
            raise GalleryError(
                f"OLD has {old.schema.rows:,} rows, NEW {new.schema.rows:,}, and neither has ids to match them by; "
                "name them with --old-ids and --new-ids"
            )
        rows = np.arange(old.schema.rows)
        return rows, rows, rows
    if kinds[1] is None:
        raise UsageError("NEW has no ids, the other has; name them with --new-ids")
    if kinds[0] is None:
        _check_row_numbers(new, old.schema.rows)
    return join_by_id(old, new, ("OLD", "NEW"), progress)


def _check_row_numbers(new: Source, rows: int) -> None:
    """Refuse ids of NEW that cannot be row numbers of an OLD without ids."""
    for first, ids in id_blocks(new):
        wrong = np.flatnonzero((ids < 0) | (ids >= rows)) if ids.dtype.kind in "iu" else np.arange(1)
        if len(wrong):
            raise GalleryError(
                f"{new.where(first + int(wrong[0]), 'id')}: id {ids[wrong[0]].item()!r} is no row of OLD, which has "
                f"no ids, so that its {rows:,} rows are known by their numbers; name its ids with --old-ids"
            )
