"""Rows of two sources that are the same items, by their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.options import integer_or_text
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery.ids import id_blocks
from fct_infer.gallery.source import Source

Int64Array: TypeAlias = NDArray[np.int64]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is done, rows done, rows in all."""


def join_by_id(
    one: Source, other: Source, names: tuple[str, str], progress: Progress | None = None
) -> tuple[Int64Array, Int64Array, NDArray[Any]]:
    """Return the rows (n,) in either source, and the ids (n,), of what both have; of a source without, row numbers.

    The ids of the one with fewer rows are held in memory.

    Args:
        one, other: the sources.
        names: of both, for messages.
        progress: told about ids.

    Raises:
        UsageError: ids are of different kinds.
        GalleryError: an id that both have occurs twice in one; names the row.
    """
    kinds = [id_kind(source.schema.id_dtype or np.dtype(np.int64)) for source in (one, other)]
    if kinds[0] != kinds[1]:
        raise UsageError(f"ids of {names[0]} are {kinds[0]}, of {names[1]} {kinds[1]}; they cannot be matched")
    progress = progress or (lambda stage, done, rows: None)
    if one.schema.rows < other.schema.rows:
        return _joined(one, other, names, progress)
    other_rows, one_rows, ids = _joined(other, one, (names[1], names[0]), progress)
    return one_rows, other_rows, ids


def _joined(
    few: Source, many: Source, names: tuple[str, str], progress: Progress
) -> tuple[Int64Array, Int64Array, NDArray[Any]]:
    """Return the rows in ``few`` and in ``many`` of the ids that both have; the ids of ``few`` are held in memory."""
    known = np.concatenate([ids for _, ids in comparable_ids(few)])
    order = np.argsort(known, kind="stable")
    known = known[order]
    if len(twice := np.flatnonzero(known[1:] == known[:-1])):
        raise GalleryError(f"{names[0]}: id {known[twice[0]].item()!r} occurs twice: {few.where(int(order[twice[0]]))}")
    found = np.full(len(known), -1)
    for first, ids in comparable_ids(many):
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


def rows_of_ids(source: Source, wanted: NDArray[Any]) -> Int64Array:
    """Return the first row of each id, -1 of those that no row has; the source is read once.

    Args:
        source: whose ids are of the same kind; of one without, the row numbers.
        wanted: (n,) int64, bytes or str, any of them more than once.
    """
    known, places = np.unique(wanted, return_inverse=True)
    found = np.full(len(known), -1)
    for first, ids in comparable_ids(source):
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        hits = np.flatnonzero(known[at] == ids)[::-1]  # of equal ids the first comes last, and stays
        fresh = hits[found[at[hits]] < 0]
        found[at[fresh]] = first + fresh
    return found[places]


def comparable_ids(source: Source) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield ids with the number of the first one's row; integers all as int64, so that they can be compared."""
    for first, ids in id_blocks(source):
        yield first, integer_or_text(ids, source.column("id"))


def gather_rows(source: Source, rows: Int64Array, *, with_side: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return embeddings and side-information (n, d) float32 of some rows, in the order given, read forward once.

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


def id_kind(dtype: np.dtype[Any]) -> str:
    """Return a word for ids of a dtype."""
    return {"i": "integers", "u": "integers", "U": "text", "S": "bytes"}.get(dtype.kind, str(dtype))
