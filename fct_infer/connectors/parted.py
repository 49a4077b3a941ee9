"""What all formats share: rows cut into parts, a row's place, checked buffers, columns that are read forward."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.options import integer_or_text
from fct_infer.errors import ArrayError, GalleryError
from fct_infer.gallery.source import Part, Schema, Source

PART_BYTES = 128 << 20  # of a part's vectors: as large as a shard, and what a killed upgrade may have to repeat
MAX_PARTS = 1 << 18  # 32 TiB; more are promised by damaged files


class Column(Protocol):
    """What is read in one role, by row numbers over the whole source."""

    def read_into(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Fill ``out``; a value that its dtype cannot hold becomes infinite."""
        ...

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start`` to ``stop`` in a new array."""
        ...

    def close(self) -> None:
        """Close what is open; a second call does nothing."""
        ...


class PartedSource(Source):
    """One run of rows, whose parts are ranges of about :data:`PART_BYTES`.

    Args:
        path: file or folder.
        schema: what lies there.
        groups: rows of each piece that is best read from its beginning; parts are some of them, or ranges within one.
    """

    path: Path

    def __init__(self, path: Path, schema: Schema, groups: Sequence[int] = ()) -> None:
        self.path, self._schema = path, schema
        self._parts = self._cut(groups or [schema.rows])

    def _cut(self, groups: Sequence[int]) -> tuple[Part, ...]:
        most = max(1, PART_BYTES // self.schema.row_bytes)
        if sum(groups) > MAX_PARTS * most:
            raise GalleryError(f"{self.path}: says it has {sum(groups):,} rows, more than are accepted")
        return cut(groups, most)

    @property
    def schema(self) -> Schema:
        """What it holds."""
        return self._schema

    @property
    def files(self) -> Mapping[str, Path]:
        """The one file."""
        return {self.path.name: self.path}

    def parts(self) -> Sequence[Part]:
        """See :class:`~fct_infer.gallery.source.Source`."""
        return self._parts

    @abstractmethod
    def open_column(self, role: str) -> Column:
        """Open what is read as ``embedding``, ``side`` or ``id``; asked for only what the schema has."""

    def open_part(self, part: Part) -> ColumnsReader:
        """See :class:`~fct_infer.gallery.source.Source`."""
        return ColumnsReader(self, part)

    def place(self, row: int) -> tuple[str, int]:
        """Return the words for where a row lies, and its number there."""
        return str(self.path), row

    def where(self, row: int, role: str = "embedding") -> str:
        """See :class:`~fct_infer.gallery.source.Source`."""
        words, number = self.place(row)
        name = None if role == "embedding" else self.schema.columns.get(role)
        return f"{words}, row {number}" + (f", column {name!r}" if name else "")


def cut(groups: Sequence[int], most: int) -> tuple[Part, ...]:
    """Return parts of at most ``most`` rows: neighbouring groups together, a larger group in equal ranges."""
    rows, waiting = [], 0
    for group in groups:
        if waiting and waiting + group > most:
            rows.append(waiting)
            waiting = 0
        if group > most:
            pieces = -(-group // most)
            rows += [group * (piece + 1) // pieces - group * piece // pieces for piece in range(pieces)]
        else:
            waiting += group
    rows += [waiting] if waiting else []
    width, first, parts = max(6, len(str(len(rows) - 1))), 0, []
    for number, count in enumerate(rows):
        parts.append(Part(f"{number:0{width}d}", count, first))
        first += count
    return tuple(parts)


def check_buffer(name: str, out: NDArray[Any], rows: int, dim: int, dtype: np.dtype[Any]) -> None:
    """Raise an ArrayError unless ``out`` is C-contiguous (rows, dim) of ``dtype``."""
    if out.shape != (rows, dim) or out.dtype != dtype or not out.flags.c_contiguous:
        raise ArrayError(f"{name} is {out.dtype} {out.shape}, wanted C-contiguous {dtype} {(rows, dim)}")


def check_range(start: int, stop: int, rows: int) -> None:
    """Raise an ArrayError unless ``start`` to ``stop`` are rows of the part."""
    if not 0 <= start < stop <= rows:
        raise ArrayError(f"rows {start} to {stop} asked for; the part has {rows}")


class ColumnsReader:
    """A part of one run of rows; its columns are opened when they are first read."""

    def __init__(self, source: PartedSource, part: Part) -> None:
        self._source, self._schema, self._part = source, source.schema, part
        self._columns: dict[str, Column] = {}

    def read_into(self, start: int, stop: int, old: NDArray[Any], side: NDArray[Any] | None) -> None:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        schema, first = self._schema, self._part.first_row
        check_range(start, stop, self._part.rows)
        check_buffer("old", old, stop - start, schema.old_dim, schema.embedding_dtype)
        self._column("embedding").read_into(first + start, first + stop, old)
        if side is not None:
            if schema.side_dim is None or schema.side_dtype is None:
                raise ArrayError("side is given, but the source has no side-information")
            check_buffer("side", side, stop - start, schema.side_dim, schema.side_dtype)
            self._column("side").read_into(first + start, first + stop, side)

    def read_ids(self, start: int, stop: int) -> NDArray[Any]:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        first = self._part.first_row
        check_range(start, stop, self._part.rows)
        if self._schema.id_dtype is None:
            return np.arange(first + start, first + stop, dtype=np.int64)
        ids = self._column("id").read(first + start, first + stop)
        return integer_or_text(ids, self._source.column("id"), first + start)

    def move_to(self, part: Part) -> bool:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        self._part = part
        return True

    def _column(self, role: str) -> Column:
        if role not in self._columns:
            self._columns[role] = self._source.open_column(role)
        return self._columns[role]

    def close(self) -> None:
        """Close what is open."""
        while self._columns:
            self._columns.popitem()[1].close()

    def __enter__(self) -> ColumnsReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Batches: TypeAlias = Callable[[int], Generator[NDArray[Any], None, None]]


class Forward:
    """Arrays that come batch by batch, given out by row numbers.

    Args:
        batches: yields arrays of (n, ...) from the beginning of a group on, whose number it is given, to the last row.
        starts: the first row of each group, sorted; reading begins at one of them, and goes back or ahead to one.
        rows: of all groups.
        where: for messages.
    """

    def __init__(self, batches: Batches, starts: Sequence[int], rows: int, where: str) -> None:
        self._begin, self._starts, self._rows, self._where = batches, starts, rows, where
        self._batches: Generator[NDArray[Any], None, None] | None = None
        self._batch, self._first, self._next = np.empty(0), 0, 0

    def pieces(self, start: int, stop: int) -> Generator[NDArray[Any], None, None]:
        """Yield arrays that together are the rows ``start`` to ``stop``."""
        group = bisect_right(self._starts, start) - 1
        if self._batches is None or start < self._first or self._starts[group] > self._next:
            self.close()
            self._batches = self._begin(group)
            self._first = self._next = self._starts[group]
        while start < stop:
            while start >= self._next:
                self._advance()
            end = min(stop, self._next)
            yield self._batch[start - self._first : end - self._first]
            start = end

    def read_into(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """See :class:`Column`."""
        done = 0
        with np.errstate(over="ignore"):
            for piece in self.pieces(start, stop):
                out[done : done + len(piece)] = piece
                done += len(piece)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See :class:`Column`; text is as wide as the widest of the rows."""
        return np.concatenate(list(self.pieces(start, stop)))

    def _advance(self) -> None:
        batch = None if self._batches is None else next(self._batches, None)
        if batch is None:
            raise GalleryError(f"{self._where}: ends after {self._next} rows, {self._rows} were announced")
        self._batch, self._first = batch, self._next
        self._next += len(batch)

    def close(self) -> None:
        """See :class:`Column`."""
        if self._batches is not None:
            with closing(self._batches):
                self._batches = None
