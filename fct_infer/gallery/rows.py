"""Some rows of a source, by their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError
from fct_infer.gallery.source import Part, Rows, Source, SourceReader
from fct_infer.storage import RemotePath

# A sample's rows are read together if what lies between them is read sooner than another call is made, and a disk,
# too, has brought it along by then; not more at once than a cache holds.
_MAX_GAP_BYTES = 32 << 10
_MAX_BYTES_AT_ONCE = 512 << 10
_REMOTE_READERS = 16
_LEAST_RUNS = 8  # of a reader: opening costs as much as some reads

_Run: TypeAlias = tuple[Part, int, int, int, NDArray[np.int64]]
"""What is read at once: part, place of its first chosen row, start and stop there, chosen rows from start."""


def read_rows(source: Source, rows: NDArray[np.int64], with_side: bool = True) -> tuple[Rows, Rows | None]:
    """Return ``old`` (n, old_dim) and ``side`` (n, side_dim) or None of some rows, as they are read.

    Args:
        source: where to read; parts without a chosen row are not opened.
        rows: (n,) int64 row numbers over all parts, sorted.
        with_side: read the side-information, if there is any.

    Raises:
        ArrayError: ``rows`` is not sorted int64 within the source.
        GalleryError: a file cannot be read.
    """
    schema = source.schema
    old = np.empty((len(rows), schema.old_dim), schema.embedding_dtype)
    side_dim = schema.side_dim if with_side else None
    side = None if side_dim is None else np.empty((len(rows), side_dim), schema.side_dtype)
    row_bytes = schema.old_dim * schema.embedding_dtype.itemsize
    runs = list(_runs(source, rows, row_bytes))

    def read(some: list[_Run]) -> None:
        longest = max((stop - start for _, _, start, stop, _ in some), default=0)
        old_buffer = np.empty((longest, schema.old_dim), schema.embedding_dtype)
        side_buffer = None if side is None else np.empty((longest, side.shape[1]), side.dtype)
        with SourceReader(source) as reader:
            for part, place, start, stop, chosen in some:
                if len(chosen) == 1:  # read where it belongs
                    here = slice(place, place + 1)
                    reader.at(part).read_into(start, stop, old[here], None if side is None else side[here])
                    continue
                old_run = old_buffer[: stop - start]
                side_run = None if side_buffer is None else side_buffer[: stop - start]
                reader.at(part).read_into(start, stop, old_run, side_run)
                old[place : place + len(chosen)] = old_run[chosen]
                if side is not None and side_run is not None:
                    side[place : place + len(chosen)] = side_run[chosen]

    # A server is waited for most of the time; what lies in order is read in order.
    readers = _REMOTE_READERS if isinstance(source.path, RemotePath) and "random_rows" in source.capabilities else 1
    share = max(_LEAST_RUNS, -(-len(runs) // readers))
    if len(runs) <= share:
        read(runs)
    else:
        with ThreadPoolExecutor(readers) as pool:
            list(pool.map(read, (runs[first : first + share] for first in range(0, len(runs), share))))
    return old, side


def read_row_ids(source: Source, rows: NDArray[np.int64]) -> Rows:
    """Return the ids (n,) of some rows; arguments and errors as of :func:`read_rows`."""
    with SourceReader(source) as reader:
        found = [
            reader.at(part).read_ids(start, stop)[chosen]
            for part, _, start, stop, chosen in _runs(source, rows, np.dtype(np.int64).itemsize)
        ]
    return np.concatenate(found)


def _runs(source: Source, rows: NDArray[np.int64], row_bytes: int) -> Iterator[_Run]:
    """Yield what is read at once."""
    if rows.dtype != np.int64 or rows.ndim != 1:
        raise ArrayError(f"rows is {rows.dtype} {rows.shape}, wanted int64 (n,)")
    if len(rows) and (rows[0] < 0 or rows[-1] >= source.schema.rows or (np.diff(rows) < 0).any()):
        raise ArrayError(f"rows must be sorted and from 0 to {source.schema.rows - 1}")
    parts = source.parts()
    places = np.searchsorted(rows, [part.first_row for part in parts] + [source.schema.rows]).tolist()
    for part, begin, end in zip(parts, places[:-1], places[1:], strict=True):
        inside = rows[begin:end] - part.first_row
        for first, last in _close_together(inside, row_bytes):
            start, stop = int(inside[first]), int(inside[last - 1]) + 1
            yield part, begin + first, start, stop, inside[first:last] - start


def _close_together(rows: NDArray[np.int64], row_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) places of rows that lie close enough together to be read at once."""
    if not len(rows):
        return
    far = np.flatnonzero(np.diff(rows) * row_bytes > _MAX_GAP_BYTES + row_bytes) + 1
    most = max(_MAX_BYTES_AT_ONCE // row_bytes, 1)  # rows
    for begin, end in zip([0, *far.tolist()], [*far.tolist(), len(rows)], strict=True):
        first = begin
        while first < end:
            last = first + int(np.searchsorted(rows[first:end], rows[first] + most))
            yield first, last
            first = last
