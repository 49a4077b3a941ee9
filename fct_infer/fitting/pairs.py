"""Items embedded by both models, wherever they lie, joined by their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.options import integer_or_text
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery import sample_rows
from fct_infer.gallery.ids import id_blocks
from fct_infer.gallery.source import Source
from fct_infer.transformation import Float32Array

Int64Array: TypeAlias = NDArray[np.int64]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is done, rows done, rows in all."""

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
    old_rows: Int64Array | None = None

    def __len__(self) -> int:
        return len(self.old)

    def swapped(self) -> Pairs:
        """Return the pairs for a map from the new space to the old, without side-information."""
        return replace(self, old=self.new, new=self.old, side=None, only_old=self.only_new, only_new=self.only_old)


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

    Args:
        old, new: of either model. The ids of the one with fewer rows are held in memory.
        side: side-information, row i of row i of ``old``; None takes what ``old`` brings itself.
        labels: (rows of old,).
        wanted: ids that are read in any case, as far as both sources have them.
        max_pairs: a sample of this many is read where there are more.
        seed: of that sample.
        progress: told about ids.

    Raises:
        UsageError: one source has ids and the other has none, or ids of another kind.
        GalleryError: an id occurs twice, nothing is in common, there are fewer than two pairs, rows do not fit
            together or hold NaN or infinity; names the source's row.
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
    old_vectors, side_vectors = gather(old, old_rows, with_side=side is None)
    new_vectors, _ = gather(new, new_rows, with_side=False)
    if side is not None:
        side_vectors, _ = gather(side, old_rows, with_side=False)
    return Pairs(
        old_vectors,
        new_vectors,
        side_vectors,
        ids,
        None if labels is None else labels[old_rows],
        matched,
        old.schema.rows - matched,
        new.schema.rows - matched,
        old_rows,
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
    if kinds[0] is None or kinds[1] is None:
        without, flag = ("OLD", "--old-ids") if kinds[0] is None else ("NEW", "--new-ids")
        raise UsageError(f"{without} has no ids, the other has; name them with {flag}")
    if _words(kinds[0]) != _words(kinds[1]):
        raise UsageError(f"ids of OLD are {_words(kinds[0])}, of NEW {_words(kinds[1])}; they cannot be matched")
    if old.schema.rows < new.schema.rows:
        old_rows, new_rows, ids = _joined(old, new, ("OLD", "NEW"), progress)
    else:
        new_rows, old_rows, ids = _joined(new, old, ("NEW", "OLD"), progress)
    return old_rows, new_rows, ids


def _joined(
    few: Source, many: Source, names: tuple[str, str], progress: Progress
) -> tuple[Int64Array, Int64Array, NDArray[Any]]:
    """Return the rows in ``few`` and in ``many`` of the ids that both have; the ids of ``few`` are held in memory."""
    known = np.concatenate([ids for _, ids in _ids(few)])
    order = np.argsort(known, kind="stable")
    known = known[order]
    if len(twice := np.flatnonzero(known[1:] == known[:-1])):
        raise GalleryError(f"{names[0]}: id {known[twice[0]].item()!r} occurs twice: {few.where(int(order[twice[0]]))}")
    found = np.full(len(known), -1)
    for first, ids in _ids(many):
        places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        hits = np.flatnonzero(known[places] == ids)
        places = places[hits]
        again = hits[found[places] >= 0]
        if not len(again):
            found[places] = first + hits
            again = hits[found[places] != first + hits]  # twice in this block
        if len(again):
            raise GalleryError(
                f"{names[1]}: id {ids[again[0]].item()!r} occurs twice: {many.where(first + int(again[0]))}"
            )
        progress("match ids", first + len(ids), many.schema.rows)
    both = found >= 0
    return order[both], found[both], known[both]


def _ids(source: Source) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield ids with the number of the first one's row; integers all as int64, so that they can be compared."""
    for first, ids in id_blocks(source):
        yield first, integer_or_text(ids, source.column("id"))


def gather(source: Source, rows: Int64Array, *, with_side: bool) -> tuple[Float32Array, Float32Array | None]:
    """Return embeddings and side-information of some rows, in the order given; the source is read forward once.

    Raises:
        GalleryError: a row holds NaN or infinity; names it.
    """
    order = np.argsort(rows, kind="stable")
    found = source.read_rows(rows[order], with_side)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    vectors, side = (None if each is None else np.asarray(each[places], np.float32) for each in found)
    assert vectors is not None
    for what, array in (("embedding", vectors), ("side-information", side)):
        if array is not None and not (finite := np.isfinite(array).all(axis=1)).all():
            raise GalleryError(f"{source.where(int(rows[np.argmin(finite)]))}: {what} holds NaN or infinity")
    return vectors, side


def _words(dtype: np.dtype[Any]) -> str:
    return {"i": "integers", "u": "integers", "U": "text", "S": "bytes"}.get(dtype.kind, str(dtype))
