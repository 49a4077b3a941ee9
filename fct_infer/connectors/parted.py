"""What all sources share: finding a row's part, drawing a sample, checking buffers, reading batches forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, GalleryError
from fct_infer.gallery import sample_rows
from fct_infer.gallery.source import Part, PartReader, Sample, Schema


class PartedSource(ABC):
    """A source whose parts are known when it is opened."""

    def __init__(self, schema: Schema, parts: Sequence[Part]) -> None:
        self.schema, self._parts = schema, tuple(parts)
        self._firsts = [part.first_row for part in self._parts]

    def parts(self) -> Sequence[Part]:
        """See :class:`~fct_infer.gallery.source.Source`."""
        return self._parts

    @abstractmethod
    def open_part(self, part: Part) -> PartReader:
        """See :class:`~fct_infer.gallery.source.Source`."""

    def place(self, part: Part) -> str:
        """Return the words for a part; its name unless a format says more."""
        return part.name

    def where(self, row: int) -> str:
        """See :class:`~fct_infer.gallery.source.Source`."""
        part = self._parts[max(0, bisect_right(self._firsts, row) - 1)]
        return f"{self.place(part)}, row {row - part.first_row}"

    def sample(self, rows: int, seed: int) -> Sample:
        """See :class:`~fct_infer.gallery.source.Source`; parts without a chosen row are not opened."""
        schema = self.schema
        chosen = sample_rows(schema.rows, rows, seed)
        old = np.empty((len(chosen), schema.old_dim), schema.embedding_dtype)
        side = None if schema.side_dim is None else np.empty((len(chosen), schema.side_dim), schema.side_dtype)
        for part in self._parts:
            begin, end = np.searchsorted(chosen, (part.first_row, part.first_row + part.rows))
            if begin < end:
                with self.open_part(part) as reader:
                    for place in range(begin, end):
                        row = int(chosen[place]) - part.first_row
                        extra = None if side is None else side[place : place + 1]
                        reader.read_into(row, row + 1, old[place : place + 1], extra)
        return chosen, old, side


def check_buffer(name: str, out: NDArray[Any], rows: int, dim: int, dtype: np.dtype[Any]) -> None:
    """Raise an ArrayError unless ``out`` is C-contiguous (rows, dim) of ``dtype``."""
    if out.shape != (rows, dim) or out.dtype != dtype or not out.flags.c_contiguous:
        raise ArrayError(f"{name} is {out.dtype} {out.shape}, wanted C-contiguous {dtype} {(rows, dim)}")


def check_range(start: int, stop: int, rows: int) -> None:
    """Raise an ArrayError unless ``start`` to ``stop`` are rows of the part."""
    if not 0 <= start < stop <= rows:
        raise ArrayError(f"rows {start} to {stop} asked for; the part has {rows}")


class Forward:
    """Arrays that come batch by batch, given out by row numbers; going back begins again.

    Args:
        batches: begins at the part's row 0 and yields arrays of (n, ...) until the part ends.
        rows: of the part.
        where: the part's words, for messages.
    """

    def __init__(self, batches: Callable[[], Generator[NDArray[Any], None, None]], rows: int, where: str) -> None:
        self._begin, self._rows, self._where = batches, rows, where
        self._batches: Generator[NDArray[Any], None, None] | None = None
        self._batch, self._first, self._next = np.empty(0), 0, 0

    def pieces(self, start: int, stop: int) -> Generator[NDArray[Any], None, None]:
        """Yield arrays that together are the rows ``start`` to ``stop``."""
        check_range(start, stop, self._rows)
        if self._batches is None or start < self._first:
            self.close()
            self._batches, self._first, self._next = self._begin(), 0, 0
        while start < stop:
            while start >= self._next:
                self._advance()
            end = min(stop, self._next)
            yield self._batch[start - self._first : end - self._first]
            start = end

    def read_into(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Fill ``out``; a value that its dtype cannot hold becomes infinite."""
        done = 0
        with np.errstate(over="ignore"):
            for piece in self.pieces(start, stop):
                out[done : done + len(piece)] = piece
                done += len(piece)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start`` to ``stop`` in a new array; text as wide as the widest of them."""
        return np.concatenate(list(self.pieces(start, stop)))

    def _advance(self) -> None:
        batch = None if self._batches is None else next(self._batches, None)
        if batch is None:
            raise GalleryError(f"{self._where}: ends after {self._next} rows, {self._rows} were announced")
        self._batch, self._first = batch, self._next
        self._next += len(batch)

    def close(self) -> None:
        """End the iteration; a second call does nothing."""
        if self._batches is not None:
            with closing(self._batches):
                self._batches = None


class ColumnsReader:
    """A part whose columns are read forward, each on its own."""

    def __init__(self, schema: Schema, part: Part, old: Forward, side: Forward | None, ids: Forward | None) -> None:
        self._schema, self._part, self._old, self._side, self._ids = schema, part, old, side, ids

    def read_into(self, start: int, stop: int, old: NDArray[Any], side: NDArray[Any] | None) -> None:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        check_buffer("old", old, stop - start, self._schema.old_dim, self._schema.embedding_dtype)
        self._old.read_into(start, stop, old)
        if side is not None:
            if self._side is None or self._schema.side_dim is None or self._schema.side_dtype is None:
                raise ArrayError("side is given, but the source has no side-information")
            check_buffer("side", side, stop - start, self._schema.side_dim, self._schema.side_dtype)
            self._side.read_into(start, stop, side)

    def read_ids(self, start: int, stop: int) -> NDArray[Any]:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        check_range(start, stop, self._part.rows)
        if self._ids is None:
            first = self._part.first_row
            return np.arange(first + start, first + stop, dtype=np.int64)
        return self._ids.read(start, stop)

    def close(self) -> None:
        """Close what is open."""
        for column in (self._old, self._side, self._ids):
            if column is not None:
                column.close()

    def __enter__(self) -> ColumnsReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
